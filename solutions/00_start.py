"""Exercises of notebooks/00_start.ipynb."""

import json
from typing import Any

import numpy as np

from lib.masking import num_visible
from lib.notebook.inventory import runs_found
from lib.presets import PRESETS, REPO
from solutions.runs import pair


def exercise_1() -> dict[str, Any]:
    """How many patches does the encoder see of a digit, and how many of an ImageNet image?

    Answer: the floor of n (1 - mask_ratio). A digit has 16 patches of 2x2 pixels, and 4 stay. An
    image of 224x224 pixels has 196 patches of 16x16 pixels, and 49 stay: a quarter in both cases.
    """
    names = ("digits-vit-nano", "imagenet100-vit-base")
    return {
        name: (num_visible(c.num_patches, c.mask_ratio), c.num_patches)
        for name, c in ((name, PRESETS[name]) for name in names)
    }


def exercise_2() -> dict[str, Any]:
    """Which protocol shows the largest gain in the figure, and which the smallest?

    Answer: the gains below are the means over five pairs of models, for the class token. The plain
    probe (`sgd`) shows the largest. The converged one on standardised features (`lbfgs`) shows the
    smallest, and its mean is below zero. Who chooses the protocol after a look at this list can
    report either sign. So the protocol must be chosen, and written down, before the numbers are
    there.
    """
    records = json.loads((REPO / "outputs/reference/study/objectives.json").read_text())
    test: dict[tuple[str, str], list[float]] = {}
    for record in sorted(records, key=lambda record: record["seed"]):
        if record["data"] == "tiny-imagenet-50":
            for protocol, found in record["accuracy"].items():
                test.setdefault((protocol, record["objective"]), []).append(found["token"]["test"])
    gains = {
        p: round(float(np.mean(np.subtract(test[p, "U-MAE"], test[p, "MAE"]))), 1)
        for p in dict.fromkeys(protocol for protocol, _ in test)
    }
    return dict(sorted(gains.items(), key=lambda item: -item[1]))


def exercise_3(epochs: int | None = None) -> dict[str, Any]:
    """Which two runs does 00_start list after 02_pretrain, and what is their effective rank?

    Answer: one run of MAE and one of U-MAE, with the same seed. `result.json` of each holds
    `test_rank_token`, the effective rank of the class token on masked test images.
    """
    runs, _ = pair(epochs=epochs)
    listed = {row["run"]: row["objective"] for row in runs_found()}
    ranks = {name: round(run.result["test_rank_token"], 1) for name, run in runs.items()}
    return {"listed": [listed[run.folder.name] for run in runs.values()], "rank": ranks}
