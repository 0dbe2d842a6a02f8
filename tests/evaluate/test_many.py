"""Many accuracies at once are those of one after another."""

from contextlib import contextmanager

import pytest
from support import elsewhere, few, small

from lib.errors import InputError
from lib.evaluate import Probe, evaluate, many
from lib.evaluate.finetuning import finetune
from lib.evaluate.many import evaluate_all, finetune_all
from lib.evaluate.recipes import recipe_for
from lib.train import train


@contextmanager
def measured_by_jobs(job, measure):
    """`job` runs in run_jobs, and after it a call of `measure` in this process is an error."""
    run_jobs, ran = many.run_jobs, []

    def fail(*_):
        raise AssertionError("measured by the caller and not by a job")

    with pytest.MonkeyPatch.context() as patch:

        def run(fn, *args, **more):
            run_jobs(fn, *args, **more)
            if fn is job:
                ran.append(fn)
                patch.setattr(measure, fail)

        patch.setattr(many, "run_jobs", run)
        yield
    assert ran, "no job was run"


@pytest.mark.parametrize("jobs", [1, 2])
def test_accuracies_do_not_depend_on_the_number_of_jobs(jobs, tmp_path, monkeypatch):
    elsewhere(monkeypatch, tmp_path, f"jobs{jobs}")
    config = small(epochs=1)
    data = few(config)
    runs = [train(small(epochs=1, lam=lam), data) for lam in (0.0, 0.001)]
    protocols = ["online", "knn", Probe(epochs=1, lr=0.1)]
    with measured_by_jobs(evaluate, "lib.evaluate.accuracy.linear_accuracy"):
        found = evaluate_all(runs, protocols, ("token", "avg"), data=data, jobs=jobs)
    assert len(found) == 2 * 3 * 2
    for (run, protocol, pool, epoch), accuracy in found.items():
        for path in (run.folder / "probes").glob("*.json"):
            path.unlink()
        assert evaluate(run, protocol, pool, epoch, data=data) == accuracy


def test_what_is_kept_is_not_measured_again(monkeypatch):
    config = small(epochs=1)
    data = few(config)
    run = train(config, data)
    first = evaluate_all([run], ["sgd"], data=data, jobs=1)
    monkeypatch.setattr("lib.evaluate.many.run_jobs", None)
    assert evaluate_all([run], ["sgd"], data=data) == first
    with pytest.raises(TypeError):
        evaluate_all([run], ["sgd"], seed=1, data=data)


def test_no_runs_and_unknown_protocols_are_one_line():
    config = small(epochs=1)
    data = few(config)
    with pytest.raises(InputError, match="at least one run"):
        evaluate_all([], ["sgd"])
    with pytest.raises(InputError, match="protocol must be one of"):
        evaluate_all([train(config, data)], ["lbgfs"], data=data, jobs=1)


def test_finetunings_at_once_are_those_of_one_after_another(tmp_path, monkeypatch):
    config, recipe = small(epochs=1), recipe_for("digits-vit-nano", epochs=1)
    data = few(config)
    wanted = [(config, recipe, 1.0, 0, scratch) for scratch in (False, True)]
    elsewhere(monkeypatch, tmp_path, "one after another")
    train(config, data)
    alone = [finetune(*item, data=data)["history"] for item in wanted]
    elsewhere(monkeypatch, tmp_path, "at once")
    train(config, data)
    with measured_by_jobs(finetune, "lib.evaluate.finetuning.Finetuning"):
        found = finetune_all(wanted, data, jobs=2)
    assert [result["history"] for result in found] == alone
    assert finetune_all([], data) == []
    monkeypatch.setattr("lib.evaluate.many.run_jobs", None)
    assert finetune_all([*wanted, wanted[0]], data) == [*found, found[0]]
