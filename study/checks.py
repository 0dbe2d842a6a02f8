"""Attempts to break the explanation that conditioning makes U-MAE's gain (docs/results.md)."""

from dataclasses import replace
from typing import Any

from lib.data import Dataset
from lib.evaluate import PROTOCOLS, Features, Probe, evaluate, features, linear_accuracy
from lib.evaluate.baselines import BASELINES, evaluate_baseline
from lib.evaluate.conditioning import grid, rotated, steps_to_reach, tuned
from lib.losses import spectrum
from lib.presets import Config
from lib.runs import Run

PLAIN = PROTOCOLS["sgd"]
RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
DECAYS = (0.0, 1e-4, 1e-2)
CONDITIONS = (1.0, 1e2, 1e4, 1e6)
LENGTHS = (1, 3, 10, 30, 100)  # epochs of the plain probe whose steps are predicted
BUDGETS = [  # of the plain probe: raw or standardised values, rate, epochs
    (prepare, lr, epochs)
    for prepare in ("raw", "standardised")
    for lr, epochs in ((0.01, 1), (0.01, 10), (0.01, 100), (0.1, 10), (0.1, 100))
]


def checks(run: Run, data: Dataset) -> dict[str, Any]:
    """For the class token and the mean token of one run, in percent."""
    own = features(run, data)
    return {feature: _checks(own, feature) for feature in own.x}


def _checks(own: Features, feature: str) -> dict[str, Any]:
    assert PLAIN is not None

    def best(*probes: Probe) -> dict[str, Any]:
        return tuned(lambda probe: linear_accuracy(own, probe, feature), probes)

    alone = Features({feature: own.x[feature]}, own.y)
    batch_normed = linear_accuracy(own, "mae", feature)["validation"]
    return {
        "plain, rate tuned": best(*grid(PLAIN, lr=RATES)),
        "Adam, rate and decay tuned": best(
            *grid(Probe(epochs=10, lr=1e-3, optimizer="adamw"), lr=RATES[:4], weight_decay=DECAYS)
        ),
        "whitened": linear_accuracy(own, Probe(epochs=10, lr=0.01, prepare="whitened"), feature),
        "rotated": [_rotated(alone, feature, condition) for condition in CONDITIONS],
        "steps": steps_to_reach(own, PLAIN, LENGTHS, 0.9 * batch_normed, feature),
        **sizes(alone, feature),
    }


def sizes(alone: Features, feature: str) -> dict[str, Any]:
    """The plain probe where the features of all models have the same size.

    MAE's class token has about a tenth of the variance of U-MAE's, and SGD's step grows with the
    features: a probe of `rotated` features at the same condition still sees two sizes.
    """
    assert PLAIN is not None
    return {
        "centred": linear_accuracy(alone, replace(PLAIN, prepare="centred"), feature),
        "scaled": linear_accuracy(alone, replace(PLAIN, prepare="scaled"), feature),
        "rotated, one size": [
            {
                "condition": condition,
                "sgd": linear_accuracy(rotated(alone, condition, variance=1.0), "sgd", feature),
            }
            for condition in CONDITIONS
        ],
    }


def _rotated(own: Features, feature: str, condition: float) -> dict[str, Any]:
    """The same information, another conditioning."""
    other = rotated(own, condition)
    values = spectrum(other.x[feature]["train"])
    return {
        "condition": condition,
        "eigenvalue_sum": values.sum().item(),
        "sgd": linear_accuracy(other, "sgd", feature),
        "mae": linear_accuracy(other, "mae", feature),
    }


def baselines(config: Config, data: Dataset) -> dict[str, Any]:
    """Raw pixels and the untrained encoder under the protocols of frozen features."""
    return {
        name: {
            feature: {
                protocol: evaluate_baseline(name, config, protocol, feature, data=data)
                for protocol in ("sgd", "mae", "knn")
            }
            for feature in names
        }
        for name, names in BASELINES.items()
    }


def budgets(run: Run, data: Dataset) -> list[dict[str, Any]]:
    """Accuracy of plain probes of several lengths and rates, raw and standardised features."""
    found = []
    for prepare, lr, epochs in BUDGETS:
        probe = Probe(epochs=epochs, lr=lr, prepare=prepare)
        own = {feature: evaluate(run, probe, feature, data=data) for feature in ("token", "avg")}
        found.append({"epochs": epochs, "lr": lr, "prepare": prepare, **own})
    return found
