"""What 00_start finds in the outputs folder."""

import os

from support import few, small

from lib.notebook.inventory import figures_found, runs_found
from lib.train import train


def test_nothing_is_found_before_anything_was_run():
    assert runs_found() == [] and figures_found() == {}


def test_runs_are_found_with_what_was_measured_on_them(outputs):
    config = small(epochs=1, lam=0.001)
    run = train(config, few(config))
    (run.folder / "probes").mkdir()
    (run.folder / "probes" / "sgd.json").write_text("{}")
    (found,) = runs_found()
    assert found["run"] == run.folder.name and found["objective"] == "U-MAE"
    assert found["finished"] and found["epochs"] == 1
    assert (found["probes"], found["finetunings"]) == (1, 0)


def test_a_run_without_a_result_is_not_finished(outputs):
    folder = outputs / "runs" / "cut"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"config": {"lam": 0.0, "epochs": 3}}')
    (found,) = runs_found()
    assert not found["finished"] and found["objective"] == "MAE"


def test_figures_are_listed_by_notebook_newest_first(outputs):
    for age, name in ((100, "a"), (200, "b")):
        path = outputs / "05_tsne" / name / "map.png"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (age, age))
    assert [path.parent.name for path in figures_found()["05_tsne"]] == ["b", "a"]
