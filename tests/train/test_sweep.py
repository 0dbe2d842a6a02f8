"""Sweeps find, resume and train; Table 1 reads what is there."""

import io
import os
import re
import signal
import threading
import time
from dataclasses import replace

import joblib
import pytest
from support import content, elsewhere, environment, few, run_of, same_tensors, small, weights
from support.sweeps import one_after_another, slow, slow_alone, two_alike
from tqdm import tqdm

from lib.errors import InputError, NonFiniteLoss
from lib.evaluate import evaluate
from lib.evaluate.finetuning import finetune
from lib.evaluate.recipes import recipe_for
from lib.notebook import table1
from lib.notebook.table1 import PAPER, finetuned, finished_runs, linear, setting
from lib.runs import open_run
from lib.train import sweep, train, train_all
from scripts.forked import Forked


def said_of_runs(capsys) -> list[str]:
    """The lines that `train_all` prints, without those of its bar."""
    printed = re.split(r"[\n\r]", capsys.readouterr().out)
    return [line.rstrip() for line in printed if re.match(r" +\d+/\d+  ", line)]


def test_a_sweep_trains_each_run_once_and_says_what_it_did(capsys, monkeypatch):
    configs = [small(epochs=1, lam=lam) for lam in (0.0, 0.1)]
    data = few(configs[0])
    first = train_all(configs, data)
    said = said_of_runs(capsys)
    assert sorted(line[:5] for line in said) == ["  1/2", "  2/2"]
    assert all(": trained in " in line for line in said)
    assert "epoch    1/1" in (first[0].folder / "log.txt").read_text()
    monkeypatch.setattr(sweep, "run_jobs", lambda *_: pytest.fail("nothing is missing"))
    assert train_all(configs, data) == first
    assert capsys.readouterr().out.count(": found") == 2


def test_a_sweep_of_nothing_has_no_runs():
    assert train_all([]) == []


def test_outputs_that_cannot_be_written_stop_a_sweep_in_one_line(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("UMAE_OUTPUTS", str(tmp_path / "file/outputs"))
    config = small(epochs=1)
    with pytest.raises(InputError, match=r"cannot write .*file/outputs \(Not a directory\); free"):
        train_all([config], few(config))


def test_the_bar_of_a_sweep_counts_the_trained_part_of_a_run(tmp_path):
    runs = [run_of(small(epochs=4, seed=seed)) for seed in (0, 1)]
    with tqdm(total=2, file=io.StringIO()) as bar:
        sweep._move(bar, runs)
        assert bar.n == 0
        runs[0].folder.mkdir(parents=True)
        (runs[0].folder / "metrics.jsonl").write_text('{"epoch": 3, "loss": 0.25}\n')
        sweep._move(bar, runs)
        assert bar.n == 0.75 and bar.postfix == "loss 0.250"
        (runs[1].folder).mkdir(parents=True)
        (runs[1].folder / "result.json").write_text('{"epochs": 4}')
        sweep._move(bar, runs)
        assert bar.n == 1.75
        (runs[0].folder / "result.json").write_text("{")
        sweep._move(bar, runs)
        assert bar.n == 1


def test_a_run_of_a_sweep_is_the_run_of_train():
    config, other = small(epochs=1), small(epochs=1, seed=1)
    data = few(config)
    swept = weights(train_all([other, config], data)[1])
    (run_of(config).folder / "result.json").unlink()
    assert same_tensors(swept, weights(train(config, data)))


def test_a_killed_sweep_goes_on_where_it_stopped(capsys):
    configs = two_alike()
    process = Forked(one_after_another)
    state, begun = run_of(configs[1]).folder / "state.pt", time.monotonic()
    while not state.is_file() and process.poll() is None and time.monotonic() - begun < 120:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = run_of(configs[0]).folder / "model.safetensors"
    before = finished.stat().st_mtime_ns
    assert run_of(configs[1]).result is None
    runs = train_all(configs)
    assert [line.split(": ")[1].split()[0] for line in said_of_runs(capsys)] == ["found", "resumed"]
    assert finished.stat().st_mtime_ns == before
    assert runs[1].result["epochs"] == configs[1].epochs


def test_a_sweep_says_why_runs_of_the_same_settings_are_trained_anew(capsys):
    """As where a label was corrected: notebooks train through `train_all`."""
    config = small(epochs=1)
    data = few(config)
    (old,) = train_all([config], data, jobs=1)
    capsys.readouterr()
    (new,) = train_all([config], replace(data, fingerprint="f" * 16), jobs=1)
    said = [line for line in capsys.readouterr().out.splitlines() if "not reusing" in line]
    assert said == [
        f"not reusing {old.folder.name}: it was trained on other images under the same path; it is "
        "kept, and a new run is made beside it"
    ]
    assert new.folder != old.folder and new.result and old.result


def test_runs_at_once_give_the_weights_of_one_after_another(monkeypatch, tmp_path, capsys):
    configs = [small(epochs=1, lam=lam) for lam in (0.0, 0.1, 0.2)]
    data = few(configs[0])
    one = [content(run) for run in train_all(configs, data, jobs=1)]
    elsewhere(monkeypatch, tmp_path, "together")
    together = train_all(configs, data, jobs=2)
    assert [content(run) for run in together] == one
    assert {run.record["threads"] for run in together} == {1}
    assert len(said_of_runs(capsys)) == 6


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_ends_its_run_and_the_others_finish(jobs):
    configs = [small(epochs=1), small(epochs=1, base_lr=1e30), small(epochs=1, seed=1)]
    data, bad = few(configs[0]), run_of(configs[1])
    with pytest.raises(NonFiniteLoss, match=rf"^{bad.folder.name}: the loss is not finite at step"):
        train_all(configs, data, jobs=jobs)
    assert [run_of(c).result is not None for c in configs] == [True, False, True]


def test_what_cannot_be_meant_is_refused():
    with pytest.raises(InputError, match="jobs 2 and processes 2 were both given; give one"):
        train_all([small()], jobs=2, processes=2)
    with pytest.raises(InputError, match="share their images, but differ in image_size"):
        train_all([small(), small(image_size=16)])


def wait_until_held(run, process) -> None:
    end = time.monotonic() + 120
    while not run.is_busy():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("dies", [False, True])
def test_executions_share_a_sweep(capsys, dies):
    """A run that another process trains is left to it; one whose owner died is taken over."""
    configs = [slow(), small(epochs=1)]
    held = run_of(configs[0])
    process = Forked(slow_alone)
    wait_until_held(held, process)
    if dies:
        os.kill(process.pid, signal.SIGSTOP)  # it holds the lock, and does not go on
        threading.Timer(3, process.kill).start()
    runs = train_all(configs, jobs=1)
    process.wait(60)
    assert all(run.result for run in runs) and runs[0].result["epochs"] == configs[0].epochs
    said = said_of_runs(capsys)
    assert said[0].startswith("  2/2") and ": trained in" in said[0]
    how = ("resumed in", "trained in") if dies else ("trained by another process",)
    assert said[1].startswith("  1/2") and any(f": {text}" in said[1] for text in how)


def test_a_sweep_on_dask_workers():
    """Two processes of a LocalCluster, as they could be on two machines."""
    dask, distributed = pytest.importorskip("dask"), pytest.importorskip("dask.distributed")
    configs = [small(epochs=1, seed=seed) for seed in range(3)]
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, env=environment()
        )
    with cluster, distributed.Client(cluster), joblib.parallel_config("dask"):
        runs = train_all(configs, few(configs[0]))
    owners = {(run.folder / "lock").read_text().split(",")[1] for run in runs}
    assert all(run.result for run in runs) and f" pid {os.getpid()}" not in owners


def test_table_1_of_the_paper():
    """Averages that its text gives: +14.7 points linear on CIFAR-10, +20.35 on ImageNet-100."""
    gain = {p: v["linear"]["U-MAE"] - v["linear"]["MAE"] for p, v in PAPER.items()}
    assert (gain["cifar10-vit-tiny"] + gain["cifar10-vit-base"]) / 2 == pytest.approx(14.75)
    assert (gain["imagenet100-vit-base"] + gain["imagenet100-vit-large"]) / 2 == pytest.approx(
        20.35
    )
    assert max(
        abs(v["finetune"]["U-MAE"] - v["finetune"]["MAE"]) for v in PAPER.values()
    ) == pytest.approx(0.2)


def test_table_1_reads_what_has_been_measured_and_measures_nothing(monkeypatch):
    config = small(epochs=1)
    data = few(config)
    run = train(config, data)
    (run_of(small(epochs=7)).folder).mkdir(parents=True)  # begun, not finished
    assert [r.folder for r in finished_runs()] == [run.folder]
    found = next(finished_runs())
    assert found.config == run.config
    assert linear(found, "sgd", "token") is None and finetuned(found) is None
    assert linear(found, "online", "avg") == run.result["test_online_avg_full"]
    accuracy = evaluate(run, "sgd", "token", data=data)["test"]
    evaluate(run, "sgd", "token", epoch=0, data=data)  # a snapshot's is not the run's
    evaluate(run, "sgd", "avg", data=data)
    assert linear(found, "sgd", "token") == accuracy
    finetune(run.config, recipe_for("digits-vit-nano", epochs=1), 0.5, data=data)
    assert finetuned(found) is None  # half of the labels is not the table's
    tuned = finetune(run.config, recipe_for("digits-vit-nano", epochs=1), data=data)
    assert finetuned(found) == tuned["best"] and finetuned(found, "last") == tuned["last"]


def test_a_column_is_everything_but_the_term_and_the_seed():
    def of(fingerprint="images", **fields):
        return setting(open_run(small(**fields), fingerprint))

    terms = [{"lam": 0.0}, {"lam": 0.5}, {"uniformity": "euclidean"}, {"pool": "avg"}]
    for same in ({"seed": 3}, *terms):
        assert of(**same) == of()
    for other in ({"epochs": 3}, {"mask_ratio": 0.5}, {"base_lr": 1e-3}, {"fingerprint": "new"}):
        assert of(**other) != of()


def test_runs_of_another_version_are_left_out_of_the_table(monkeypatch):
    run = train(small(epochs=1), few(small()))
    record = run.folder / "config.json"
    record.write_text(record.read_text().replace('"patch_size"', '"patch_sizes"'))
    assert list(table1.finished_runs()) == []


def test_columns_are_chosen_by_checked_values():
    train(small(epochs=1), few(small()))
    base = small(epochs=1, mask_ratio="7.5e-1", workers=3)
    fields = table1.chosen_fields(base, ["epochs", "mask_ratio", "workers"])
    assert fields == {"epochs": 1, "mask_ratio": 0.75}
    (column,) = table1.found_settings({"lam": small().lam}, fields)
    assert table1.config_of(column).epochs == 1
    assert table1.found_settings({}, {**fields, "epochs": 2}) == []
    with pytest.raises(InputError, match="use this notebook's own"):
        table1.chosen_fields(base, ["lam"])


def test_a_run_of_other_settings_with_the_same_name_is_not_said_to_be_of_other_images(capsys):
    """The name of a run leaves out some settings, such as the warm-up."""
    config = small(epochs=1, warmup_epochs=0.5)
    data = few(config)
    train_all([config], data, jobs=1)
    train_all([small(epochs=1, warmup_epochs=0.25)], replace(data, fingerprint="f" * 16), jobs=1)
    assert "not reusing" not in capsys.readouterr().out
