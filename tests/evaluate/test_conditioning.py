"""Conditioning against exact gradient descent, and features of the same information."""

import pytest
import torch

from lib.errors import InputError
from lib.evaluate import Features, Probe, linear_accuracy
from lib.evaluate.conditioning import (
    grid,
    predicted_accuracy,
    rotated,
    steps_to_reach,
    tuned,
    unlearnt_by_probe,
)
from lib.evaluate.probes import schedule
from lib.evaluate.representation import condition_number


def example(n=600, d=6, classes=3, seed=0, noise=1.0, spread=1.0):
    """Classes in all directions; direction i is `spread`^i times as large as the first."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, d, generator=generator)
    y = torch.arange(n) % classes
    x = centres[y] + noise * torch.randn(n, d, generator=generator)
    x = x * spread ** torch.arange(d)
    parts = {"train": slice(0, 400), "validation": slice(400, 500), "test": slice(500, 600)}
    return Features(
        {"token": {s: x[i] for s, i in parts.items()}}, {s: y[i] for s, i in parts.items()}
    )


def test_a_probes_sgd_on_a_quadratic_loss_leaves_what_is_predicted():
    """torch's own SGD with Nesterov's momentum, at the rates of the probe's schedule."""
    values = torch.tensor([0.01, 0.1, 1.0], dtype=torch.float64)
    probe, steps = Probe(epochs=3, lr=0.2, batch_size=128, warmup_epochs=1), 5
    w = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=1.0, momentum=0.9, nesterov=True)
    for step in range(15):
        optimizer.param_groups[0]["lr"] = 0.1 * schedule(probe, step, steps)
        (0.5 * (values * w.square()).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(unlearnt_by_probe(values, probe, steps), w.data)


@pytest.mark.parametrize("condition", [1.0, 10.0, 1e4])
def test_rotation_sets_the_condition_and_keeps_variance_and_information(condition):
    features = example()
    found = rotated(features, condition)
    x, old = found.x["token"], features.x["token"]
    assert condition_number(x["train"]) == pytest.approx(condition, rel=1e-3)
    assert x["train"].var(0).sum().item() == pytest.approx(old["train"].var(0).sum().item())

    # one affine map, fitted on the training part, gives all the old features back
    def with_one(v):
        return torch.cat([v, torch.ones(len(v), 1)], 1).double()

    back = torch.linalg.lstsq(with_one(x["train"]), old["train"].double()).solution
    for split in ("train", "test"):
        error = with_one(x[split]) @ back - old[split]
        assert error.abs().max() < 1e-3
    assert torch.equal(rotated(features, condition).x["token"]["test"], x["test"])
    assert not torch.equal(rotated(features, condition, seed=1).x["token"]["test"], x["test"])


@pytest.mark.parametrize("variance", [1.0, 4.0])
def test_rotation_can_set_the_variance(variance):
    small, large = example(), example()
    large.x["token"] = {split: 10 * v + 3 for split, v in large.x["token"].items()}
    a, b = (rotated(f, 100.0, variance=variance).x["token"]["test"] for f in (small, large))
    assert a.shape[1] * variance == pytest.approx(
        rotated(small, 100.0, variance=variance).x["token"]["train"].var(0).sum().item(), rel=1e-4
    )
    torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)  # size and mean are gone


def test_conditioning_alone_moves_a_plain_probe_and_not_a_whitened_one():
    plain, white = Probe(10, 0.01, 64), Probe(10, 0.1, 64, prepare="whitened")
    good, bad = rotated(example(noise=0.5), 1.0), rotated(example(noise=0.5), 1e6)
    assert linear_accuracy(good, plain)["test"] - linear_accuracy(bad, plain)["test"] > 10
    assert linear_accuracy(good, white)["test"] == pytest.approx(
        linear_accuracy(bad, white)["test"], abs=2
    )


def test_rotation_refuses_a_condition_below_one():
    with pytest.raises(InputError, match=r"condition must be at least 1, got 0\.5"):
        rotated(example(), 0.5)


def test_the_probe_of_the_best_validation_accuracy_is_chosen_never_by_test():
    probes = grid(Probe(1, 0.1), lr=(0.1, 1.0, 10.0), weight_decay=(0.0, 0.1))
    assert len(probes) == 6
    validation = {0.1: 50.0, 1.0: 70.0, 10.0: 60.0}

    def measure(probe):
        return {"validation": validation[probe.lr] - probe.weight_decay, "test": 100 * probe.lr}

    found = tuned(measure, probes)
    assert (found["probe"]["lr"], found["probe"]["weight_decay"]) == (1.0, 0.0)
    assert found["test"] == 100
    assert found["at_edge"] == ["weight_decay"]
    with pytest.raises(InputError, match="at least one probe"):
        tuned(measure, [])


def test_a_tuned_rate_finds_what_a_fixed_one_does_not():
    features = rotated(example(noise=0.5), 1e3)
    probe = Probe(10, 1e-3, 64)
    fixed = linear_accuracy(features, probe)
    best = tuned(lambda p: linear_accuracy(features, p), grid(probe, lr=(1e-3, 1e-2, 0.1, 1.0)))
    assert best["validation"] > fixed["validation"]


def test_the_prediction_of_a_long_budget_is_least_squares_and_of_a_short_one_near_sgd():
    features = example(noise=0.5, spread=0.6)
    x, y = features.x["token"], features.y
    target = torch.nn.functional.one_hot(y["train"], 3).float()

    def with_one(v):
        return torch.cat([v, torch.ones(len(v), 1)], 1)

    weight = torch.linalg.lstsq(with_one(x["train"]), target).solution
    least_squares = 100 * ((with_one(x["test"]) @ weight).argmax(1) == y["test"]).double().mean()
    long = predicted_accuracy(features, Probe(6000, 0.3, 400))
    assert long["learnt"] == 1
    assert long["test"] == pytest.approx(least_squares.item(), abs=1e-9)
    for epochs in (1, 2, 5):
        short = Probe(epochs, 0.003, 64)
        predicted, measured = predicted_accuracy(features, short), linear_accuracy(features, short)
        assert predicted["learnt"] < 1
        assert predicted["test"] == pytest.approx(measured["test"], abs=6)


def test_ill_conditioned_features_need_more_steps_as_predicted():
    probe, budgets = Probe(1, 0.1, 64), (1, 4, 16, 64)
    steps = {
        c: steps_to_reach(rotated(example(noise=0.3), c), probe, budgets, target=99.0)
        for c in (1.0, 1e4)
    }
    for found in steps.values():
        assert [p["steps"] for p in found["curve"]] == [6 * b for b in budgets]
    for kind in ("predicted", "measured"):
        few, many = steps[1.0][kind], steps[1e4][kind]
        assert few is not None and (many is None or many > few)


@pytest.mark.parametrize("fields", [{"optimizer": "adamw"}, {"weight_decay": 0.1}])
def test_there_is_a_prediction_for_plain_sgd_only(fields):
    with pytest.raises(InputError, match="optimizer sgd and no weight decay"):
        predicted_accuracy(example(), Probe(1, 0.1, **fields))
