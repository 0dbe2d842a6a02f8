"""Which run a config and its images name: moved, streamed, changed, or of an earlier version."""

import json
import os
import shutil
import signal

import pytest
from support import (
    at_step,
    content,
    few,
    folder_config,
    image_folder,
    run_of,
    small,
    weights,
)  # fmt: skip

from lib.data import load
from lib.errors import InputError, Interrupted
from lib.evaluate import evaluate
from lib.notebook.table1 import finished_runs
from lib.runs.folder import explain_new_run
from lib.train import train, train_all


def interrupted(monkeypatch, config) -> None:
    at_step(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        train(config)


def test_a_run_is_found_after_images_and_outputs_have_moved(tmp_path, monkeypatch, capsys):
    config = folder_config(image_folder(tmp_path / "here"))
    run = train(config)
    before = content(run)
    (tmp_path / "here").rename(tmp_path / "there")
    (tmp_path / "outputs").rename(tmp_path / "copied")
    monkeypatch.setenv("UMAE_OUTPUTS", str(tmp_path / "copied"))
    moved = folder_config(tmp_path / "there")
    capsys.readouterr()
    for found in (train(moved), train_all([moved])[0]):
        assert found.folder == tmp_path / "copied" / "runs" / run.folder.name
        assert content(found) == before
    assert "reusing" in capsys.readouterr().out


def test_changed_images_are_seen_by_train_and_by_train_all(tmp_path, capsys):
    root = image_folder(tmp_path / "images")
    config = folder_config(root)
    first = train(config)
    shutil.copy(root / "train/cat/0.png", root / "train/cat/copy.png")
    assert run_of(config).folder != first.folder
    second = train_all([config])[0]
    assert second.folder != first.folder and first.result and second.result
    with pytest.raises(InputError, match="was trained on other images"):
        evaluate(first, "knn")


@pytest.mark.parametrize("begun,resumed", [("never", "always"), ("always", "never")])
def test_a_run_goes_on_with_the_normalisation_that_it_was_begun_with(
    tmp_path, monkeypatch, begun, resumed
):
    root = image_folder(tmp_path / "images", per_class=8)
    first = folder_config(root, stream=begun)
    whole = train(first)
    before = content(whole)
    shutil.rmtree(whole.folder)
    interrupted(monkeypatch, first)
    moments = [whole.fingerprint, run_of(first).record["mean"], run_of(first).record["std"]]
    data = load(**folder_config(root, stream=resumed).data_fields)
    other = data.with_moments([0.1, 0.2, 0.3], [1.0, 1.0, 1.0])  # as of another sample
    run = train(folder_config(root, stream=resumed), other)
    assert content(run) == before
    assert [run.fingerprint, run.record["mean"], run.record["std"]] == moments


@pytest.mark.parametrize("begun,resumed", [("never", "always"), ("always", "never")])
def test_random_crops_in_memory_and_streamed_are_not_mixed(tmp_path, monkeypatch, begun, resumed):
    root = image_folder(tmp_path / "images", per_class=8)
    config = folder_config(root, stream=begun, augment="resized_crop")
    other = folder_config(root, stream=resumed, augment="resized_crop")
    interrupted(monkeypatch, config)
    line = f"crops differ; set stream to {begun} to go on with it$"
    with pytest.raises(InputError, match=line):
        train(other)
    assert train(config).result
    for again in (train, lambda config: train_all([config])):  # nor is a finished run reused
        with pytest.raises(InputError, match=line):
            again(other)


OLD = {"fingerprint": "f28ab629391b167c", "passes": "torch's", "before": []}


def as_an_earlier_version_wrote_it(run) -> None:
    """config.json and result.json with the keys of the commits before runs had attempts."""
    new = {"attempts", "kernels", "mean", "std", "streamed", "fingerprint"}
    record = {k: v for k, v in run.record.items() if k not in new}
    record["config"] = {k: v for k, v in record["config"].items() if k != "classes_file"}
    (run.folder / "config.json").write_text(json.dumps({**record, **OLD}))
    result = {k: v for k, v in run.result.items() if k not in ("kernels", "threads")}
    (run.folder / "result.json").write_text(json.dumps({**result, "passes": "torch's"}))
    run.folder.rename(run.folder.with_name(run.folder.name[:-8] + "62db840a"))


def test_a_run_of_an_earlier_version_is_read_and_is_not_used_for_another(capsys):
    config = small()
    run = train(config, few(config))
    before, trained = run.result, weights(run)
    as_an_earlier_version_wrote_it(run)
    (old,) = finished_runs()
    assert old.config == config and old.fingerprint == OLD["fingerprint"]
    assert old.result["test_reconstruction"] == before["test_reconstruction"]
    assert weights(old).keys() == trained.keys() and len(old.metrics()) == 2
    capsys.readouterr()
    explain_new_run(run_of(config))
    said = capsys.readouterr().out
    assert said == (
        f"not reusing {old.folder.name}: an earlier version of this code named it after the path "
        "of its images; it is kept, and a new run is made beside it\n"
    )
    old.as_trained(few(config))  # the images are the same: it can be probed
