"""N processes compute what one computes: gloo on the CPU, spawned by `launch.run` and torchrun."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from support import cli_args, environment, lines, ranks, run_of, small, weights, workers

from lib.distributed.launch import run
from lib.errors import InputError, Interrupted
from lib.losses import UNIFORMITY_FORMS, uniformity_loss
from lib.presets import REPO
from lib.runs import open_run

TINY = dict(
    batch_size=16, epochs=2, warmup_epochs=1, precision="fp64", lam=0.1, base_lr=0.02, snapshots=1
)
CASES = {
    "spectral": {},
    "released": {"uniformity": "released", "lam": 1.0},
    "euclidean": {"uniformity": "euclidean", "pool": "avg"},
    "accumulated": {"accum_steps": 2},
    "nothing removed": {"mask_ratio": 0.0},
    "sharded": {"shard": True},
    "sharded, accumulated": {"shard": True, "accum_steps": 2, "augment": "crop"},
}  # fmt: skip


def case(name: str):
    return small(**{**TINY, **CASES[name]})


def long(shard: bool):
    """Three epochs of five steps. Sharding is not part of a run's name: the seed tells it apart."""
    return small(**{**TINY, "epochs": 3, "shard": shard, "seed": int(shard)})


def low(shard: bool = False, **fields):
    """In bf16, of widths that the CPU kernels take."""
    return small(
        **{
            **TINY,
            "precision": "bf16",
            "embed_dim": 32,
            "decoder_dim": 32,
            "shard": shard,
            **fields,
        }
    )


def run_on_random(config):
    """The run of `workers.whole_run` and `workers.stopped_run`."""
    return open_run(config, workers.data_of(config).fingerprint)


def features() -> torch.Tensor:
    """Twelve views; the two processes see halves of different distributions."""
    f = torch.randn(12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    f[6:] += 2
    return f


@pytest.fixture(scope="module", autouse=True)
def importable():
    """The workers find this folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(REPO), str(REPO / "tests")]))
        yield


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes computed, in one launch; runs stopped halfway lie under "outputs"."""
    folder = tmp_path_factory.mktemp("two")
    calls = {form: (workers.global_uniformity, features(), form) for form in UNIFORMITY_FORMS}
    calls |= {f"steps, {name}": (workers.steps, case(name), 5) for name in CASES}
    calls |= {f"bf16, {shard}": (workers.steps, low(shard), 5) for shard in (False, True)}
    calls |= {f"stopped, {shard}": (workers.stopped_run, long(shard), 8) for shard in (False, True)}
    (folder / "marks").mkdir()
    calls["marks"] = (ranks.leaves_marks, str(folder / "marks"))
    calls["odd"] = (workers.whole_run, small(**{**TINY, "batch_size": 18, "accum_steps": 2}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UMAE_OUTPUTS", str(folder))
        answers = run(workers.many, 2, *calls.values())
    return {**dict(zip(calls, answers, strict=True)), "outputs": folder}


def relative(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference of two state dicts, relative to the tensor's largest weight."""
    return max(((a[k] - b[k]).abs().max() / b[k].abs().max().clamp_min(1e-12)).item() for k in b)


@pytest.mark.parametrize("form", UNIFORMITY_FORMS)
def test_uniformity_has_the_value_and_the_gradient_of_the_global_batch(two, form):
    x = features().requires_grad_()
    value = uniformity_loss(x, form)
    (value**2).backward()
    torch.testing.assert_close(two[form]["value"], value.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(two[form]["grad"], x.grad, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(
        two[form]["local"], uniformity_loss(x[:6], form).detach(), rtol=1e-12, atol=0
    )
    assert abs(two[form]["local"] - value) > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_five_steps_of_two_processes_are_those_of_one(two, name):
    one = workers.steps(case(name), 5)
    both = two[f"steps, {name}"]
    assert relative(both["weights"], one["weights"]) < 1e-6
    torch.testing.assert_close(both["sums"], one["sums"], rtol=1e-6, atol=0)
    other = workers.steps(small(**{**TINY, **CASES[name], "lam": 0.0}), 5)
    assert relative(other["weights"], one["weights"]) > 1e-3, (
        "the test would not see the uniformity term"
    )


@pytest.mark.parametrize("shard", [False, True])
def test_in_bf16_with_the_cpu_kernels_they_are_up_to_rounding(two, shard):
    start, one, both = (
        workers.steps(low(base_lr=0.0), 5),
        workers.steps(low(), 5),
        two[f"bf16, {shard}"],
    )
    names = [name for name in start["weights"] if name.startswith("mae.")]
    first, alone, together = (
        torch.cat([r["weights"][n].flatten() for n in names]) for r in (start, one, both)
    )
    assert (together - alone).norm() < 0.1 * (alone - first).norm()
    torch.testing.assert_close(both["sums"], one["sums"], rtol=0.01, atol=0)


def test_every_image_of_a_step_is_seen_by_one_process_only(two):
    one, both = workers.steps(case("spectral"), 5)["seen"][0], two["steps, spectral"]["seen"]
    assert all(s.shape == (5, 8) for s in both)
    for step in range(5):
        shares = [set(s[step].tolist()) for s in both]
        assert not shares[0] & shares[1]
        assert shares[0] | shares[1] == set(one[step].tolist())


def test_a_batch_that_does_not_divide_is_refused(two):
    assert isinstance(two["odd"], InputError)
    assert "18 must be a multiple of accum_steps 2 times 2 processes" in str(two["odd"])


def test_runs_of_two_processes_resume_on_one_and_on_two_and_equal_undisturbed_ones(
    two, outputs, monkeypatch, capfd
):
    configs = [long(False), long(True)]
    for config in configs:
        workers.whole_run(config)
    whole = [run_on_random(c) for c in configs]
    monkeypatch.setenv("UMAE_OUTPUTS", str(two["outputs"]))
    for config in configs:
        stopped = two[f"stopped, {config.shard}"]
        assert isinstance(stopped, Interrupted) and "stopped at step 8" in str(stopped)
        with pytest.raises(Interrupted, match="stopped at step 11"):
            workers.stopped_run(config, 4)  # loading AdamW's state takes a step of rate 0
    capfd.readouterr()
    run(workers.many, 2, *((workers.whole_run, c) for c in (*configs, configs[0])))
    reused = run_on_random(configs[0]).folder.name
    assert capfd.readouterr().out.count(f"reusing {reused}") == 1  # by rank 0 only
    for stopped, own in zip([run_on_random(c) for c in configs], whole, strict=True):
        assert stopped.folder != own.folder and stopped.folder.name == own.folder.name
        assert relative(weights(stopped), weights(own)) < 1e-6
        for a, b in zip(stopped.metrics(), own.metrics(), strict=True):
            assert a == pytest.approx(b, rel=1e-6)
        assert stopped.record["processes"] == 2 and own.record["processes"] == 1
        assert (stopped.folder / "encoder" / "model.safetensors").is_file()
        assert not list(stopped.folder.rglob("*.tmp"))


def test_an_error_in_one_process_ends_all_and_leaves_the_signals_as_they_were(outputs):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(InputError, match=r"^made up: nothing, do nothing$"):
        run(ranks.fails, 2, "input")
    with pytest.raises(RuntimeError, match=r"process 1 failed: (?s:.*)Error: .*pickle"):
        run(ranks.fails, 2, "what cannot be sent")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_one_process_is_this_one_and_what_cannot_be_imported_is_refused():
    assert run(os.getpid, 1) == os.getpid()
    with pytest.raises(InputError, match="at least 1, got 0"):
        run(os.getpid, 0)
    with pytest.raises(InputError, match="cannot be imported by a worker"):
        run(lambda: None, 2)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind_when_the_notebook_is_interrupted_or_killed(tmp_path, sent):
    code = (
        "from support import ranks; from lib.distributed.launch import run; "
        f"run(ranks.waits, 2, {str(tmp_path)!r})"
    )
    notebook = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(PYTHONPATH=os.environ["PYTHONPATH"])
    )
    while len(list(tmp_path.iterdir())) < 2 and notebook.poll() is None:
        time.sleep(0.05)
    notebook.send_signal(sent)
    assert notebook.wait(60) != 0
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    deadline = time.monotonic() + 30
    while alive := [pid for pid in pids if os.path.exists(f"/proc/{pid}")]:
        assert time.monotonic() < deadline, f"left behind: {alive}"
        time.sleep(0.05)


def test_workers_end_without_the_interpreters_own_ending(two):
    """Which gloo's threads outlive: the process would now and then abort with everything done."""
    assert two["marks"] == "done"
    marks = sorted(path.name for path in (two["outputs"] / "marks").iterdir())
    assert marks == ["worked-0", "worked-1"]


def test_torchrun_trains_and_the_files_are_those_of_rank_0(outputs, tmp_path):
    """By the program that `python -m lib.train` is, which tells when the interpreter ends."""
    program = tmp_path / "main.py"
    program.write_text(
        "import atexit\nfrom lib.train.arguments import main\n"
        "atexit.register(print, 'ended', flush=True)\nmain()\n"
    )

    def torchrun(**fields) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        command += [str(program), *cli_args(**fields)]
        env = environment(UMAE_OUTPUTS=str(outputs))
        return subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)

    done = torchrun(epochs=1)
    assert done.returncode == 0, done.stderr
    result = run_of(small(epochs=1))
    assert result.result and result.record["processes"] == 2
    assert [m["epoch"] for m in lines(result.folder / "metrics.jsonl")] == [1]
    assert done.stdout.count("training digits-vit-nano") == 1 and "in 2 processes" in done.stdout
    failed = torchrun(batch_size=33)
    assert failed.returncode and "error: batch_size 33 must be a multiple" in failed.stderr
    assert "ended" not in done.stdout + failed.stdout
