"""Exercises of notebooks/05_tsne.ipynb. The first two work on raw pixels: nothing is trained."""

from typing import Any

import torch
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from torch import Tensor

from lib.data import load
from lib.evaluate import features
from lib.evaluate.representation import knn_purity
from lib.losses import effective_rank
from lib.notebook.samples import balanced_ids, pixels_of
from lib.presets import resolve
from solutions.runs import pair


def _pixels(per_class: int) -> tuple[Tensor, Tensor]:
    data = load(**resolve().data_fields)
    ids = balanced_ids(data.test.labels, per_class, 0)
    return pixels_of(data, data.test, ids).flatten(1), data.test.labels[ids]


def exercise_1(per_class: int = 30, perplexities: tuple[int, ...] = (5, 30, 70)) -> dict[str, Any]:
    """Set `perplexity` to 5 and to 100. Which clusters appear and vanish?

    Answer: a small perplexity cuts one class into many small groups, since only a few neighbours
    count. A large one joins groups. The features are the same in all maps: so is the purity that is
    measured on them. Only the number that is measured on the map moves. What a map shows at one
    perplexity only is a property of the map.
    """
    x, labels = _pixels(per_class)
    found: dict[str, Any] = {"purity of the features": round(knn_purity(x, labels, 10), 3)}
    for perplexity in perplexities:
        points = TSNE(perplexity=perplexity, init="random", random_state=0).fit_transform(x.numpy())
        spread = torch.from_numpy(points)
        distances = torch.cdist(spread, spread)
        nearest = distances.topk(11, largest=False).indices[:, 1:]
        pure = (labels[nearest] == labels[:, None]).float().mean()
        found[f"purity of the map, perplexity {perplexity}"] = round(pure.item(), 3)
    return found


def exercise_2(per_class: int = 30) -> dict[str, Any]:
    """Shuffle `labels` before the measures. Which purity and silhouette does chance give?

    Answer: the purity is about one over the number of classes, because a neighbour then has any
    class. The silhouette is a little below 0, because an image is as far from "its" class as from
    any other, and the nearest of nine other classes is nearer by chance alone. So a silhouette of 0
    is already better than chance.
    """
    x, labels = _pixels(per_class)
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    return {
        name: {
            "purity": round(knn_purity(x, own, 10), 3),
            "silhouette": round(float(silhouette_score(x, own, metric="cosine")), 3),
        }
        for name, own in (("true labels", labels), ("shuffled", shuffled))
    }


def exercise_3(epochs: int | None = None) -> dict[str, Any]:
    """Set `feature` to "avg". For which objective does the choice of the feature matter more?

    Answer: for U-MAE. On digits its class token has an effective rank of about 19 and its mean of
    patch tokens about 6. For MAE both are between 5 and 6. The term works on the class token only;
    for MAE nothing treats the class token in a special way.
    """
    runs, data = pair(epochs=epochs)
    found = {}
    for name, run in runs.items():
        kept = features(run, data)
        found[name] = {
            f"{feature}: {what}": round(measure(kept.x[feature]["test"], kept.y["test"]), 2)
            for feature in ("token", "avg")
            for what, measure in (("purity", knn_purity), ("rank", lambda x, _: effective_rank(x)))
        }
    return found
