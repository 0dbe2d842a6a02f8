"""Exercises of notebooks/03_linear_probe.ipynb."""

from typing import Any

from lib.evaluate import Probe, evaluate, features
from lib.evaluate.conditioning import predicted_accuracy
from lib.losses import spectrum
from solutions.runs import pair


def exercise_1(epochs: int | None = None, budget: int = 10) -> dict[str, Any]:
    """Train the plain probe with AdamW instead of SGD. Does the conditioning still matter?

    Answer: less. AdamW divides the step of each coordinate by the size of its gradients, so a
    coordinate that varies little learns as fast as one that varies much, and both models read
    better than under SGD. It does not see directions that are mixtures of coordinates: those stay
    slow. Whitening treats all directions alike. Compare the accuracies first: the gain of one pair
    on digits is a few images.
    """
    runs, data = pair(epochs=epochs)
    probes = {
        "sgd": Probe(epochs=budget, lr=0.01),
        "adamw": Probe(epochs=budget, lr=0.01, optimizer="adamw"),
        "sgd, whitened": Probe(epochs=budget, lr=0.01, prepare="whitened"),
    }
    return {name: _gain(runs, probe, "token", data) for name, probe in probes.items()}


def _gain(runs: Any, probe: str | Probe, feature: str, data: Any) -> dict[str, float]:
    test = {name: evaluate(run, probe, feature, data=data)["test"] for name, run in runs.items()}
    return {
        **{k: round(v, 1) for k, v in test.items()},
        "gain": round(test["U-MAE"] - test["MAE"], 1),
    }


def exercise_2(epochs: int | None = None) -> dict[str, Any]:
    """Train with `pool` set to "avg". Which feature should show the gain now, under which probe?

    Answer: one expects it on the mean of the patch tokens under the plain probe (`sgd`): the term
    flattens the spectrum of this feature, and this probe depends on the spectrum. `lbfgs` works on
    standardised features until it converges, so the spectrum matters little to it. Look whether the
    numbers below agree. On digits, with one seed, they need not: then say so.
    """
    runs, data = pair(epochs=epochs, pool="avg")
    return {
        f"{protocol}, {feature}": _gain(runs, protocol, feature, data)
        for protocol in ("sgd", "lbfgs")
        for feature in ("token", "avg")
    }


def exercise_3(
    epochs: int | None = None, budgets: tuple[int, ...] = (1, 10, 100)
) -> dict[str, Any]:
    """From the spectrum of MAE's features, predict how many epochs the plain probe needs.

    Answer: near its start the loss of the probe is quadratic. Each step of gradient descent shrinks
    the error along an eigenvector with eigenvalue v by the factor (1 - rate v). So it needs about
    1 / (rate v) steps, and the smallest useful eigenvalue decides. `predicted_accuracy` computes
    this for the probe's own schedule; "learnt" is the share of directions that are learnt to 90 %.
    The prediction is too low for long budgets, because cross entropy is not quadratic there.
    """
    runs, data = pair(epochs=epochs)
    kept = features(runs["MAE"], data)
    values = spectrum(kept.x["token"]["train"])
    found: dict[str, Any] = {
        "largest / median eigenvalue": round(float(values[0] / values.median()))
    }
    for budget in budgets:
        probe = Probe(epochs=budget, lr=0.01)
        predicted = predicted_accuracy(kept, probe)
        measured = evaluate(runs["MAE"], probe, "token", data=data)
        found[f"{budget} epochs"] = {
            "learnt": round(predicted["learnt"], 2),
            "predicted": round(predicted["validation"], 1),
            "measured": round(measured["validation"], 1),
        }
    return found
