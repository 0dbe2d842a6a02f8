"""What the study measures of a run, and what it adds to the records of an earlier version."""

import json

import pytest
from support import few, small

from lib.errors import InputError
from lib.evaluate import Features, features
from lib.evaluate.recipes import Recipe
from lib.runs.files import read_json, write_json
from lib.train import train
from study import __main__ as study
from study.checks import sizes
from study.measure import complete, is_complete
from study.plan import MAE, SCRATCH, Planned


@pytest.fixture
def run():
    config = small(epochs=1, snapshots=0)
    return train(config, few(config))


def test_an_old_record_gets_what_a_new_one_has(run):
    data = few(run.config)
    old = {"checks": {feature: {"whitened": {"test": 1.0}} for feature in ("token", "avg")}}
    assert not is_complete(old)
    new = complete(old, run, data)
    assert is_complete(new) and not is_complete(old)
    own = features(run, data)
    for feature, x in own.x.items():
        fresh = sizes(Features({feature: x}, own.y), feature)
        assert new["checks"][feature] == {"whitened": {"test": 1.0}, **fresh}
    assert is_complete({"finetuned": {}})  # a part without checks


def test_a_record_that_is_there_is_completed_and_not_measured_anew(run, monkeypatch):
    planned = Planned("objectives", "cifar10", "MAE", 0, MAE)
    path = study.record_path(planned, run.folder.name)
    write_json(path, {"old": True, "checks": {"token": {}}})
    monkeypatch.setattr(study, "measure", lambda *_: pytest.fail("measured anew"))
    monkeypatch.setattr(study, "complete", lambda found, *_: {**found, "checks": {}})
    assert study.finish(planned, run.config, few(run.config))
    assert read_json(path) == {"old": True, "checks": {}}
    before = path.stat().st_mtime_ns
    assert study.finish(planned, run.config, few(run.config))
    assert path.stat().st_mtime_ns == before and json.loads(path.read_text())["old"]


def test_a_committed_record_is_not_trained_again(run, monkeypatch):
    planned = Planned("objectives", "cifar10", "MAE", 0, MAE)
    name = run.folder.name
    own = {"part": "objectives", "objective": "MAE", "run": name}
    trained = []
    monkeypatch.setattr(study, "train", lambda *_: trained.append(1) or run)
    monkeypatch.setattr(study, "measure", lambda *_: {"measured": True})
    monkeypatch.setattr(study, "read_records", lambda: [own])
    assert study.finish(planned, run.config, few(run.config)) and not trained
    assert not study.record_path(planned, name).exists()
    others = ({"part": "long"}, {"objective": "U-MAE"}, {"run": "x"}, {"checks": {"token": {}}})
    monkeypatch.setattr(study, "read_records", lambda: [{**own, **other} for other in others])
    assert study.finish(planned, run.config, few(run.config)) and trained
    assert read_json(study.record_path(planned, name)) == {"measured": True}


def test_without_data_there_is_nothing_to_train():
    with pytest.raises(InputError, match="nothing to train: give --data NAME=PATH"):
        study.main(["--part", "objectives"])


def test_random_weights_are_finetuned_without_a_pretraining(monkeypatch):
    config = small(epochs=1, snapshots=0, seed=7)
    recipe = Recipe(epochs=1, batch_size=32, warmup_epochs=0, augment="none")
    monkeypatch.setattr("study.measure.recipe_for", lambda *_, **__: recipe)
    monkeypatch.setattr(study, "train", lambda *_: pytest.fail("pretrained"))
    planned = Planned("finetuning", "cifar10", SCRATCH, 7, MAE)
    assert study.finish(planned, config, few(config))
    name = study.open_run(config, few(config).fingerprint).folder.name
    found = read_json(study.record_path(planned, name))
    assert 0 <= found["finetuned"]["best"] <= 100
    assert found["origin"]["device"] and found["origin"]["commit"]


def test_a_run_that_another_sweep_measured_is_taken_over(run, monkeypatch):
    name = run.folder.name
    known = {"part": "coefficients", "objective": "MAE", "run": name, "accuracy": {"x": 1}}
    monkeypatch.setattr(study, "read_records", lambda: [known])
    monkeypatch.setattr(study, "train", lambda *_: pytest.fail("trained again"))
    planned = Planned("mask ratio", "cifar10", "MAE", 0, {**MAE, "mask_ratio": 0.75})
    assert study.finish(planned, run.config, few(run.config))
    found = read_json(study.record_path(planned, name))
    assert found == {**known, "part": "mask ratio", "fields": planned.fields}
    assert not study.measured_in_another_part(Planned("long", "cifar10", "MAE", 0), name)
