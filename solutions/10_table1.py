"""Exercises of notebooks/10_table1.ipynb."""

from typing import Any

import numpy as np

from lib.data import load
from lib.errors import InputError
from lib.evaluate import evaluate
from lib.notebook.pairs import OBJECTIVES, pair_configs
from lib.notebook.statistics import judge
from lib.presets import resolve
from lib.train import train_all


def _gains(
    preset: str, seeds: tuple[int, ...], protocol: str, feature: str, epochs: int | None
) -> list[float]:
    """U-MAE minus MAE in points, for each seed."""
    configs = pair_configs(preset, {}, list(seeds), epochs=epochs)
    data = load(**resolve(preset).data_fields)
    runs = dict(zip(configs, train_all(list(configs.values()), data, jobs=1), strict=True))
    test = {key: evaluate(run, protocol, feature, data=data)["test"] for key, run in runs.items()}
    mae, u_mae = (np.array([test[name, seed] for seed in seeds]) for name in OBJECTIVES)
    return (u_mae - mae).tolist()


def exercise_1(epochs: int | None = None, seeds: tuple[int, ...] = (0, 1, 2)) -> dict[str, Any]:
    """Train with `seeds` 0, 1, 2 and read the table again. Which verdicts change?

    Answer: with one seed every verdict is "cannot tell", because one difference has no spread. With
    three, a gain that is large against its spread over seeds can be told. Small gains still cannot.
    """
    gains = _gains("digits-vit-nano", seeds, "sgd", "token", epochs)
    return {
        f"{count} seeds": {
            "gains": [round(gain, 1) for gain in gains[:count]],
            "verdict": judge("gain above 0", gains[:count])["verdict"],
        }
        for count in (1, len(seeds))
    }


def exercise_2(epochs: int | None = None, protocols: tuple[str, ...] = ("sgd", "lbfgs")) -> Any:
    """Set `feature` to "avg". Which rows keep their order?

    Answer: those whose gain has the same sign in both columns below. A gain that is small in either
    column may change its sign with another seed.
    """
    return {
        protocol: {
            feature: round(_gains("digits-vit-nano", (0,), protocol, feature, epochs)[0], 1)
            for feature in ("token", "avg")
        }
        for protocol in protocols
    }


def exercise_3(preset: str = "fashion-vit-micro", epochs: int | None = 5) -> dict[str, Any]:
    """Fill the row of `fashion-vit-micro`.

    Answer: `papermill notebooks/03_linear_probe.ipynb out.ipynb -p preset fashion-vit-micro` trains
    the pair and probes it; `10_table1` then finds the runs. This takes minutes on two CPU cores.
    The function does the same for the plain probe with 5 epochs of pretraining. Without the images
    of Debian's dataset-fashion-mnist it says so.
    """
    try:
        gains = _gains(preset, (0,), "sgd", "token", epochs)
    except InputError as error:
        return {preset: f"not measured: {error}"}
    return {preset: {"gain of the plain probe, one seed": round(gains[0], 1)}}
