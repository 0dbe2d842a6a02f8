"""Exercises of notebooks/07_training_curve.ipynb."""

from typing import Any

from lib.evaluate import evaluate
from solutions.runs import pair


def _curve(runs: Any, data: Any, protocol: str, feature: str) -> dict[str, dict[int, float]]:
    return {
        name: {
            epoch: round(evaluate(run, protocol, feature, epoch, data=data)["test"], 1)
            for epoch in run.snapshot_epochs()
        }
        for name, run in runs.items()
    }


def exercise_1(epochs: int | None = None, protocol: str = "sgd") -> dict[str, Any]:
    """Set `feature` to "avg". Does the order of the curves change?

    Answer: on digits it does not, with one seed. Under the plain probe U-MAE is far ahead after 8
    epochs, for both features, and the curves meet later. For the class token they meet within a
    point, for the mean of the patch tokens U-MAE stays a few points ahead. The answer can differ on
    your images.
    """
    runs, data = pair(epochs=epochs)
    return {feature: _curve(runs, data, protocol, feature) for feature in ("token", "avg")}


def exercise_2(epochs: int = 20) -> dict[str, Any]:
    """Train a run of half the `epochs`, and compare its end with the middle of the long one.

    Answer: they differ, in the same number of epochs, because the schedules differ. The rate of the
    short run has fallen to zero. The long run is in the middle of its schedule, with a high rate,
    and its warm-up took longer. On digits with 20 and 10 epochs the middle of the long run has the
    lower loss: there the short run is still far from its end. So neither number can be taken for
    the other.
    """
    (long, _), (short, _) = pair(epochs=epochs), pair(epochs=epochs // 2)
    found = {}
    for name in long:
        lines = {line["epoch"]: line for line in long[name].metrics()}
        middle, end = lines[epochs // 2], short[name].metrics()[-1]
        key = "validation_reconstruction"
        found[name] = {
            "middle of the long": round(middle[key], 4), "end of the short": round(end[key], 4)
        }  # fmt: skip
    return found


def exercise_3(
    epochs: int | None = None, protocols: tuple[str, ...] = ("sgd", "knn")
) -> dict[str, Any]:
    """After which epoch is the untrained network beaten for the first time, under each protocol?

    Answer: the first epoch below whose accuracy is above that of epoch 0, the untrained network.
    Random features are not empty: a probe reads quite a lot from them. So always compare with them
    and not with chance.
    """
    runs, data = pair(epochs=epochs)
    found = {}
    for protocol in protocols:
        for name, curve in _curve(runs, data, protocol, "token").items():
            first = next((epoch for epoch, a in curve.items() if a > curve[0]), "never")
            found[f"{protocol}, {name}"] = {"untrained": curve[0], "beaten after epoch": first}
    return found
