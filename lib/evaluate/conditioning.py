"""Is a probe's accuracy about what features hold, or about how they are conditioned?

Four ways to find out: tune the probe for each model; give it another optimiser or preparation;
change the conditioning and keep the information (`rotated`); predict from the spectrum how far
a budget of steps comes (`predicted_accuracy`) and compare with what it reaches.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.compute.generator import generator
from lib.errors import InputError
from lib.evaluate.features import Features
from lib.evaluate.probes import Probe, first_weights, linear_accuracy, prepared, schedule, whitening

MOMENTUM = 0.9  # of a probe's "sgd"


def grid(probe: Probe, **values: Sequence[Any]) -> list[Probe]:
    """The probe with every combination of the values, as in grid(probe, lr=(0.01, 0.1))."""
    combinations = itertools.product(*values.values())
    return [replace(probe, **dict(zip(values, chosen, strict=True))) for chosen in combinations]


def tuned(measure: Callable[[Probe], dict[str, Any]], probes: Sequence[Probe]) -> dict[str, Any]:
    """The probe of the best validation accuracy (the first of equal ones), chosen for one model.

    `measure` gives a probe's {"validation": .., "test": ..}: `linear_accuracy` of its features, or
    `evaluate` of its run. Returns that of the best, its "probe" as a dict, and "at_edge": the
    fields in which it is the first or last of several values, where a wider grid may be better.
    """
    if not probes:
        raise InputError("tuned needs at least one probe")
    found = [measure(probe) for probe in probes]
    best = max(range(len(probes)), key=lambda i: found[i]["validation"])
    fields, edges = asdict(probes[best]), []
    for name, value in fields.items():
        values = {asdict(probe)[name] for probe in probes}
        if len(values) > 1 and not isinstance(value, str) and value in (min(values), max(values)):
            edges.append(name)
    return {**found[best], "probe": fields, "at_edge": edges}


def rotated(
    features: Features, condition: float, seed: int = 0, variance: float | None = None
) -> Features:
    """The same information with another conditioning.

    Each feature is whitened on its directions in use, rotated by a fixed random rotation, and
    rescaled, so that the eigenvalues of the training part's covariance fall geometrically from
    `condition` to 1, times a constant. Their sum is that of the features, or `variance` times the
    number of directions. All of it is invertible on the directions in use, so that an affine
    classifier can reach the same accuracy. condition >= 1; at 1 the features are white. Raises
    InputError otherwise.
    """
    if not condition >= 1:
        raise InputError(f"condition must be at least 1, got {condition}")
    x = {name: _rotated(splits, condition, seed, variance) for name, splits in features.x.items()}
    return Features(x, features.y)


def _rotated(
    x: dict[str, Tensor], condition: float, seed: int, variance: float | None
) -> dict[str, Tensor]:
    train = x["train"].double()
    mean, white = train.mean(0), whitening(train)
    size = white.shape[1]
    before, after = (_rotation(size, seed, k) for k in range(2))
    values = torch.logspace(0, math.log10(condition), size, dtype=torch.float64).flip(0)
    values *= (train.var(0).sum() if variance is None else variance * size) / values.sum()
    # Rotated once more after the scaling: no direction is a single dimension.
    transform = white.double() @ before * values.sqrt() @ after
    return {split: ((v.double() - mean) @ transform).float() for split, v in x.items()}


def _rotation(size: int, seed: int, number: int) -> Tensor:
    """A random orthogonal matrix, uniform over all of them (Haar), float64."""
    random = generator(seed, "rotation", number)
    noise = torch.randn(size, size, dtype=torch.float64, generator=random)
    rotation, upper = torch.linalg.qr(noise)
    return rotation * upper.diagonal().sign()


def unlearnt_by_probe(eigenvalues: Tensor, probe: Probe, steps_per_epoch: int) -> Tensor:
    """What a probe's SGD has left of each direction, (D,): 1 is all, 0 nothing.

    Exact for a quadratic loss whose Hessian has these eigenvalues (D,): the distance to the optimum
    along each eigenvector, as a share of that at the start. Nesterov's momentum is 0.9. Kept within
    [-1, 1]: cross entropy, whose curvature falls, does not diverge where a quadratic loss does.
    Raises InputError for a probe with another optimiser than "sgd" or weight decay.
    """
    if probe.optimizer != "sgd" or probe.weight_decay:
        raise InputError("the prediction is for a probe with optimizer sgd and no weight decay")
    left, velocity = torch.ones_like(eigenvalues), torch.zeros_like(eigenvalues)
    peak = probe.lr * probe.batch_size / 256
    for step in range(probe.epochs * steps_per_epoch):
        gradient = eigenvalues * left
        velocity = MOMENTUM * velocity + gradient
        rate = peak * schedule(probe, step, steps_per_epoch)
        left = (left - rate * (gradient + MOMENTUM * velocity)).clamp(-1, 1)
    return left


def predicted_accuracy(
    features: Features, probe: Probe, feature: str = "token"
) -> dict[str, float]:
    """The accuracy in percent that the spectrum predicts for a plain SGD probe; no training.

    Around zero weights cross entropy with C classes is, up to a direction that does not change
    which class is largest, the quadratic loss whose curvature is the second moment of (feature, 1)
    over C, and whose optimum is least squares on one-hot labels. Each eigenvector is taken so far
    from the probe's first weights towards that optimum as SGD comes (`unlearnt_by_probe`).

    Returns the accuracy by split, and "learnt": the share of directions of which 90 % is learnt.
    """
    x, y = prepared(features.x[feature], probe.prepare), features.y
    inputs, classes = _with_one(x["train"]), int(y["train"].max()) + 1
    target = F.one_hot(y["train"], classes).double() - 1 / classes
    values, vectors = torch.linalg.eigh(inputs.T @ inputs / len(inputs) / classes)
    values = values.clamp_min(0)
    left = unlearnt_by_probe(values, probe, max(1, len(inputs) // probe.batch_size))
    first = F.pad(first_weights(inputs.shape[1] - 1, classes, seed=0).double(), (0, 1))
    pull = vectors.T @ inputs.T @ target / len(inputs)  # minus the gradient at zero weights
    used = values > 1e-12 * values[-1]
    learnt = torch.where(used, (1 - left) / values.clamp_min(1e-300), 0.0)[:, None] * pull
    weight = vectors @ (left[:, None] * (vectors.T @ first.T) + learnt)
    found = {s: _percent(_with_one(v) @ weight, y[s]) for s, v in x.items()}
    return {**found, "learnt": (left[used].abs() <= 0.1).double().mean().item()}


def _with_one(x: Tensor) -> Tensor:
    """(N, D) -> (N, D + 1), float64: the last weight is then the bias."""
    return F.pad(x.double(), (0, 1), value=1.0)


def _percent(scores: Tensor, labels: Tensor) -> float:
    return 100 * (scores.argmax(1) == labels).double().mean().item()


def steps_to_reach(
    features: Features, probe: Probe, epochs: Sequence[int], target: float, feature: str = "token"
) -> dict[str, Any]:
    """SGD steps with which the probe reaches the validation accuracy `target`, in percent.

    Tries the budgets `epochs`, smallest first, each with its own schedule. Returns "predicted" and
    "measured" steps, None where no budget reaches the target, and the "curve" by budget.
    """
    steps = max(1, len(features.y["train"]) // probe.batch_size)
    curve = []
    for budget in sorted(epochs):
        own = replace(probe, epochs=budget)
        predicted = predicted_accuracy(features, own, feature)
        measured = linear_accuracy(features, own, feature)
        curve.append(
            {
                "steps": budget * steps,
                "predicted": predicted["validation"],
                "learnt": predicted["learnt"],
                "measured": measured["validation"],
            }
        )

    def first(kind: str) -> float | None:
        return next((point["steps"] for point in curve if point[kind] >= target), None)

    return {"predicted": first("predicted"), "measured": first("measured"), "curve": curve}
