"""What the study measures of a run, and what it adds to the records of an earlier version."""

import json

import pytest
from support import few, small

from lib.evaluate import Features, features
from lib.runs.files import read_json, write_json
from lib.train import train
from study import __main__ as study
from study.checks import sizes
from study.measure import complete, is_complete
from study.plan import MAE, Planned


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
