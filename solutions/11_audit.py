"""Exercises of notebooks/11_audit.ipynb."""

from typing import Any

import torch
from torch import Tensor

from lib.data import load
from lib.evaluate import Probe, evaluate, features
from lib.evaluate.audit import Settings, audit
from lib.evaluate.baselines import evaluate_baseline
from lib.evaluate.conditioning import steps_to_reach
from lib.evaluate.encoders import own_encoder
from lib.evaluate.pictures import load_pictures
from lib.evaluate.probes import whitening
from lib.masking import keep_all
from lib.presets import resolve
from solutions.runs import pair


def exercise_1(protocols: tuple[str, ...] = ("lbfgs", "sgd")) -> dict[str, Any]:
    """How far is a random encoder from chance under `lbfgs`, and how far under `sgd`?

    Answer: far under `lbfgs`, less far under `sgd`. Random features keep most of the image, but in
    very unequal directions. A thorough probe finds the classes in them, a short plain one does not.
    So a baseline must be read under the same protocol as the encoder, and chance is no baseline.
    The function takes the untrained encoder of the digits preset; with your own pictures use
    `untrained:vit_tiny_patch16_224`, as the exercise says.
    """
    config = resolve()
    data = load(**config.data_fields)
    found = {
        protocol: round(evaluate_baseline("untrained", config, protocol, data=data)["test"], 1)
        for protocol in protocols
    }
    return {**found, "chance": 100 / len(data.class_names)}


def exercise_2(epochs: int | None = None, seeds: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """Whiten the features of an encoder and audit it with `own_encoder`. What happens to the gap?

    Answer: the gap between the thorough and the plain probe shrinks or vanishes. Whitening gives
    all directions the same variance, so the condition number is near 1, and gradient descent learns
    all of them equally fast. The classes are as far apart as before: only the coordinates changed.
    """
    runs, data = pair(epochs=epochs)
    model, config = runs["MAE"].load_model(), runs["MAE"].config
    scale = data.normalization(config.normalize)
    token = features(runs["MAE"], data).x["token"]["train"]
    mean, matrix = token.mean(0), whitening(token)

    def plain(images: Tensor) -> dict[str, Tensor]:
        whole = keep_all(len(images), config.num_patches)
        with torch.no_grad():
            return {"token": model.encode(images, whole)[:, 0]}

    def whitened(images: Tensor) -> dict[str, Tensor]:
        return {"token": (plain(images)["token"] - mean) @ matrix}

    identity = runs["MAE"].weights_digest()
    encoders = [
        own_encoder(f.__name__, f, config.image_size, scale, f"{f.__name__} {identity}", "cpu")
        for f in (plain, whitened)
    ]
    pages = audit(encoders, load_pictures("digits"), Settings(seeds=seeds, budgets=(10,)))
    return {
        page.encoder: {
            "condition number": round(page.condition_number, 1),
            "gap in points": round(page.gaps[page.thorough].mean, 1),
        }
        for page in pages
    }


def exercise_3(
    epochs: int | None = None, budgets: tuple[int, ...] = (1, 3, 10, 30, 100)
) -> dict[str, Any]:
    """Predict the epochs that the plain probe needs to reach the thorough one, and check it.

    Answer: the predicted steps come from the spectrum alone, the measured ones from training the
    probe with growing budgets. The target is 95 % of the accuracy of `lbfgs` on the validation
    part; `None` means that no budget reaches it. The prediction has the right order of magnitude
    for MAE's steep spectrum, and both numbers are smaller for U-MAE's flatter one.
    """
    runs, data = pair(epochs=epochs)
    found = {}
    for name, run in runs.items():
        target = 0.95 * evaluate(run, "lbfgs", "token", data=data)["validation"]
        reached = steps_to_reach(features(run, data), Probe(epochs=1, lr=0.01), budgets, target)
        steps = {kind: reached[kind] for kind in ("predicted", "measured")}
        found[name] = {"target accuracy": round(target, 1), **steps}
    return found
