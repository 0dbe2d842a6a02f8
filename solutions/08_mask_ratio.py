"""Exercises of notebooks/08_mask_ratio.ipynb."""

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from lib.data import load
from lib.evaluate import evaluate
from lib.losses import normalise_patches
from lib.masking import patchify
from lib.notebook.samples import balanced_ids, pixels_of
from lib.presets import resolve
from lib.theory.masked_views import class_distances
from solutions.runs import runs_of

RATIOS = [0.0, 0.25, 0.375, 0.5, 0.625]  # with fewer patches digits share equal, empty views


def _relative(references: int, prepare: Callable[[Tensor], Tensor], queries: int) -> dict[str, Any]:
    """The curve of Figure 3 (d) on digits: intra over inter at each ratio, and its minimum."""
    data = load(**resolve().data_fields)

    def patches(split: Any, count: int) -> tuple[Tensor, Tensor]:
        ids = balanced_ids(split.labels, count, 0)
        return prepare(patchify(pixels_of(data, split, ids), 2)), split.labels[ids]

    found = class_distances(*patches(data.test, queries), *patches(data.train, references), RATIOS)
    curve = found["intra"].mean(0) / found["inter"].mean(0)
    lowest = int(np.argmin(curve))
    shown = {ratio: round(float(value), 3) for ratio, value in zip(RATIOS, curve, strict=True)}
    return {"lowest at": RATIOS[lowest], "curve": shown}


def exercise_1(queries: int = 20, many: int = 100) -> dict[str, Any]:
    """Lower `references` to 20. Where is the minimum now?

    Answer: compare the two rows. A nearest view is a minimum over all references: with fewer of
    them it is further away, inside a class and across classes. So the curve, and the place of its
    minimum, belong to the number of references and must be told with it.
    """
    counts = (20, many)
    return {f"{n} references": _relative(n, lambda patches: patches, queries) for n in counts}


def exercise_2(epochs: int = 24, lam: float = 0.001) -> dict[str, Any]:
    """Repeat the sweep with `lam` at 0.001. Does the control at ratio 0 profit from uniformity?

    Answer: very much, under the plain probe: compare the first rows of the two sweeps. On digits it
    reads little more than chance without the term. (One seed.) At ratio 0 the model is a plain
    autoencoder, whose features lie near a line. The term does not need a mask: it flattens the
    spectrum of any feature, and the plain probe depends on the spectrum. The notebook has the
    intervals and the other protocols.
    """
    found = {}
    for value in (0.0, lam):
        runs, data = runs_of("mask_ratio", [0.0, 0.75], epochs=epochs, lam=value)
        for ratio, run in runs.items():
            test = evaluate(run, "sgd", "token", data=data)["test"]
            found[f"lam {value:g}, ratio {ratio:g}"] = round(test, 1)
    return found


def exercise_3(queries: int = 20, references: int = 100) -> dict[str, Any]:
    """Compute the curve on patches that are normalised one by one. What does that loss then see?

    Answer: the shape of each patch, no longer its brightness. Without a mask the classes come
    nearer to each other. The curve begins nearer to 1, because faint patches now count as much as
    strokes. With a mask it falls faster. A patch of one colour becomes exactly 0 in every image,
    and the best mask keeps those patches, in which all images agree.
    """
    kinds = {"pixels": lambda patches: patches, "normalised patches": normalise_patches}
    return {name: _relative(references, prepare, queries) for name, prepare in kinds.items()}
