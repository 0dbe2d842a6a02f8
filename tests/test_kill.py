"""Killed at any moment, two at once, a full disk, a vanished folder: nothing lost, nothing half-done."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from helpers import at_step, cli_args, content, environment, few, lines, small

from lib.errors import InputError
from lib.presets import REPO
from lib.runs import Run, open_run
from lib.runs.files import load_state, load_weights
from lib.train import train
from lib.train.arguments import main

STAGES = ("half", "written", "renamed")


class Killer:
    """Talks to killing.py."""

    def __init__(self):
        env = environment()
        command = [sys.executable, str(REPO / "tests" / "killing.py")]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )
        self.kills = 0

    def __call__(self, outputs, fields, **how) -> dict:
        self.process.stdin.write(
            json.dumps({"outputs": str(outputs), "fields": fields, **how}) + "\n"
        )
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert answer["status"] in (0, 2, -signal.SIGKILL), answer
        self.kills += answer["status"] == -signal.SIGKILL
        return answer


@pytest.fixture(scope="module")
def killer():
    killer = Killer()
    yield killer
    killer.process.stdin.close()
    killer.process.wait(30)


def check_visible_files(run: Run) -> None:
    """Whatever moment the process died at: every file that has its name is whole, metrics have no gap or duplicate."""
    for path in run.folder.rglob("*"):
        if path.name.startswith(".") or path.name == "lock" or path.is_dir():
            continue
        if path.name == "state.pt":
            load_state(path)
        elif path.suffix == ".safetensors" and path.parent.name != "encoder":
            load_weights(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            epochs = [line["epoch"] for line in lines(path)]
            assert epochs == list(range(1, len(epochs) + 1)) and path.read_bytes().endswith(b"\n")
        else:
            import safetensors.torch

            safetensors.torch.load_file(path)


def kill_everywhere(killer, tmp_path, fields, points, data=None) -> None:
    """For every (call, stage) of points: a run killed there and resumed equals the run that was never stopped."""
    from helpers import folder_config

    root = fields.get("root")
    rest = {k: v for k, v in fields.items() if k != "root"}
    config = folder_config(root, **rest) if root else small(**rest)
    whole_folder = tmp_path / "whole"
    assert killer(whole_folder, fields)["status"] == 0
    whole = Run(config, whole_folder / "runs" / open_run(config).folder.name)
    for call, stage in points:
        outputs = tmp_path / f"{call}-{stage}"
        assert killer(outputs, fields, call=call, stage=stage)["status"] == -signal.SIGKILL
        run = Run(config, outputs / "runs" / whole.folder.name)
        check_visible_files(run)
        assert killer(outputs, fields)["status"] == 0
        assert content(run) == content(whole), (call, stage)
        assert not list(run.folder.rglob(".*"))
        shutil.rmtree(outputs)


def writes_of(killer, tmp_path, fields) -> int:
    return killer(tmp_path / "count", fields)["writes"]


def test_killed_at_every_file_written(killer, tmp_path):
    fields = {"snapshots": 1}
    number = writes_of(killer, tmp_path, fields)
    assert number >= 12
    kill_everywhere(killer, tmp_path, fields, [(n, STAGES[n % 3]) for n in range(1, number + 1)])


def kill_at_random(killer, tmp_path, fields, seed, most) -> int:
    """Kills one run at random moments, `most` times or until it has come to its end; returns how often."""
    rng = random.Random(seed)
    config = small(**fields)
    before = time.monotonic()
    assert killer(tmp_path / "whole", fields)["status"] == 0
    seconds = time.monotonic() - before
    name = open_run(config).folder.name
    run, kills = Run(config, tmp_path / "killed" / "runs" / name), 0
    while (
        kills < most
        and killer(tmp_path / "killed", fields, after=rng.uniform(0, 0.6 * seconds))["status"]
    ):
        kills += 1
        if run.folder.exists():
            check_visible_files(run)
    assert killer(tmp_path / "killed", fields)["status"] == 0
    assert content(run) == content(Run(config, tmp_path / "whole" / "runs" / name))
    return kills


def test_killed_at_random_moments(killer, tmp_path):
    fields = {"epochs": 12, "accum_steps": 2, "snapshots": 3}
    assert kill_at_random(killer, tmp_path, fields, seed=0, most=8) >= 1


def test_a_full_disk_stops_with_one_line_and_leaves_the_checkpoint(killer, tmp_path):
    fields = {"epochs": 3}
    number = writes_of(killer, tmp_path, fields)
    config = small(**fields)
    outputs = tmp_path / "full"
    assert killer(outputs, fields, call=number - 6, stage="written")["status"] == -signal.SIGKILL
    run = Run(config, outputs / "runs" / open_run(config).folder.name)
    before = (run.folder / "state.pt").read_bytes()
    answer = killer(outputs, fields, limit=len(before) // 2)
    assert answer["status"] == 2
    assert answer["error"].startswith(f"cannot write {run.folder}/")
    assert answer["error"].endswith(
        " (File too large); earlier files are intact: free the disk or set UMAE_OUTPUTS to a folder that can be "
        "written, then run again to resume"
    )
    assert (run.folder / "state.pt").read_bytes() == before and not list(run.folder.rglob(".*"))
    check_visible_files(run)
    assert killer(outputs, fields)["status"] == 0
    assert content(run) == content(Run(config, tmp_path / "count" / "runs" / run.folder.name))


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
def test_a_folder_that_vanishes_stops_the_run_and_is_not_made_again(
    monkeypatch, tmp_path, outputs, how
):
    config = small()

    def vanish():
        if how == "deleted":
            shutil.rmtree(outputs)
        else:
            outputs.rename(tmp_path / "elsewhere")
        if how == "replaced":  # another process has started the run anew in its place
            open_run(config).folder.mkdir(parents=True)
            (open_run(config).folder / "lock").touch()

    at_step(monkeypatch, 4, vanish)
    with pytest.raises(
        InputError,
        match="was moved or deleted while it was being trained; run again to start it anew",
    ):
        train(config, few(config))
    assert sorted(p.name for p in outputs.rglob("*") if p.is_file()) == (
        ["lock"] if how == "replaced" else []
    )
    if how == "moved":
        check_visible_files(
            Run(config, tmp_path / "elsewhere" / "runs" / open_run(config).folder.name)
        )


def start(*args: str, **env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lib.train", *args]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**env),
        cwd="/",
    )


def wait_for(condition, process, seconds=120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_signals_save_and_say_how_to_go_on_and_a_second_process_is_told_who_trains(
    tmp_path, monkeypatch, capfd
):
    """Two real processes, SIGTERM and SIGINT as a scheduler and a user send them, then on to the end."""
    fields = {"epochs": 30, "batch_size": 128, "eval_every": 2, "checkpoint_every": 7}
    config = small(**fields)
    run = open_run(config)

    def measured(n):
        return lambda: len(run.metrics()) >= n

    for number, n in ((signal.SIGTERM, 2), (signal.SIGINT, 5)):
        process = start(*cli_args(**fields))
        wait_for(measured(n), process)
        with pytest.raises(SystemExit) as ended:
            main(cli_args(**fields))
        assert ended.value.code == 2
        told = capfd.readouterr().err
        assert (
            f"error: run {run.folder.name} is being trained by " in told
            and f", pid {process.pid}, since 2" in told
        )
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        step = load_state(run.folder / "state.pt")["step"]
        assert (
            err
            == f"error: stopped at step {step}, saved; the same command resumes {run.folder.name}\n"
        )
        check = [m["epoch"] for m in run.metrics()]
        assert check == list(range(2, 2 * len(check) + 1, 2))
    main(cli_args(**fields))
    assert f"resuming at step {step} {run.folder.name} on cpu\n" in capfd.readouterr().out
    interrupted = content(run)
    monkeypatch.setenv("UMAE_OUTPUTS", str(tmp_path / "whole"))
    assert content(train(config)) == interrupted


def test_different_configs_at_once_do_not_touch_each_other(killer, tmp_path, monkeypatch):
    """Two processes into one outputs folder; each run equals the one made alone."""
    fields = [{"seed": 1, "epochs": 4}, {"seed": 2, "epochs": 4}]
    other = Killer()
    shared = tmp_path / "shared"
    for process, own in ((killer, fields[0]), (other, fields[1])):
        process.process.stdin.write(json.dumps({"outputs": str(shared), "fields": own}) + "\n")
        process.process.stdin.flush()
    assert [json.loads(p.process.stdout.readline())["status"] for p in (killer, other)] == [0, 0]
    other.process.stdin.close()
    other.process.wait(30)
    for own in fields:
        alone = train(small(**own), few(small(**own)))
        assert content(Run(small(**own), shared / "runs" / alone.folder.name)) == content(alone)
    assert len(os.listdir(shared / "runs")) == 2


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident() -> float:
    """MiB of memory in use by this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def leak(number: int, warm: int) -> tuple[int, float]:
    """Growth of open files and of memory (MiB) over `number` short runs, after `warm` runs."""
    import gc

    data = few(small())
    for seed in range(warm + number):
        if seed == warm:
            gc.collect()
            files, memory = open_files(), resident()
        train(small(seed=seed, epochs=1, snapshots=0), data)
    gc.collect()
    return open_files() - files, resident() - memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_short_runs_leave_no_open_file_and_no_memory():
    files, memory = leak(number=25, warm=10)
    assert files == 0 and memory < 20
