"""Eq. 3: what frozen features are worth under named linear protocols, whatever encoder they are of.

All protocols train on the training images without their validation part. They report the accuracy
on the validation part, for every choice, and on the test images. Every accuracy names its protocol.
"""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.compute.generator import generator
from lib.errors import InputError, check_choice, check_number, did_you_mean
from lib.evaluate.features import SPLITS, Features

PREPARATIONS = ("raw", "centred", "scaled", "standardised", "whitened", "normalised")
USUAL_OPTIMIZERS = ("sgd", "lars", "adamw")  # of timm
NEIGHBOURS = 20  # of "knn"
LBFGS_ITERATIONS = 2000  # at most, of "lbfgs"


@dataclass(frozen=True)
class Probe:
    """A linear layer's training recipe; `epochs` and `lr` are its budget.

    Raises InputError if it cannot be trained.
    """

    epochs: int
    lr: float  # per 256 images, like base_lr
    batch_size: int = 256
    optimizer: str = "sgd"  # a name that timm knows; momentum 0.9 where it has one
    prepare: str = "raw"  # one of PREPARATIONS
    warmup_epochs: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_choice("prepare", self.prepare, PREPARATIONS)
        _check_optimizer(self.optimizer)
        check_number("epochs", self.epochs, 1, whole=True)
        check_number("batch_size", self.batch_size, 1, whole=True)
        check_number("lr", self.lr, 0, above=True)
        check_number("warmup_epochs", self.warmup_epochs, 0, self.epochs)
        check_number("weight_decay", self.weight_decay, 0)


def _check_optimizer(name: str) -> None:
    """Raises InputError for a name that timm does not know; timm takes seconds to import."""
    if name in USUAL_OPTIMIZERS:
        return
    from timm.optim import list_optimizers

    known = [str(optimizer) for optimizer in list_optimizers()]
    if name not in known:
        raise InputError(f"unknown optimizer {name!r}: {did_you_mean(name, known)}")


# "sgd": a plain linear layer with a short fixed budget, the release's kind of probe.
# "mae": batch norm without affine, 90 epochs, base lr 0.1, 10 of warm-up, no weight decay
# (He et al. 2021, Table 10). They take LARS with a trust ratio. timm's LARS has none without weight
# decay, so ours is SGD with momentum 0.9. Their batch of 16,384 would be 3 steps an epoch on
# CIFAR-10, so ours is 512, which makes about as many steps as theirs on ImageNet.
# "lbfgs": scikit-learn's logistic regression on standardised features, to convergence.
# "knn": a vote of the 20 nearest training images by cosine.
# "online": the linear layer trained along with the encoder on masked images, read on full ones.
PROTOCOLS: dict[str, Probe | None] = {
    "online": None,
    "sgd": Probe(epochs=10, lr=0.01),
    "mae": Probe(
        epochs=90,
        lr=0.1,
        batch_size=512,
        optimizer="lars",
        prepare="standardised",
        warmup_epochs=10,
    ),
    "lbfgs": None,
    "knn": None,
}
FROZEN = tuple(name for name in PROTOCOLS if name != "online")  # those of frozen features


def prepared(x: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    """Features x[split] (N, D) as a probe sees them; statistics are those of the training part.

    "raw": as they come. "centred": minus their mean. "scaled": centred, and times one number, so
    that the mean variance of a dimension is 1; the condition number stays. "standardised": mean 0
    and variance 1 in every dimension, which is a converged batch norm without affine. "whitened":
    covariance 1 (PCA); directions below 1e-9 of the largest variance are dropped. Plain SGD on
    these is SGD on the raw features preconditioned with the inverse of their covariance.
    "normalised": every feature to length 1.
    """
    check_choice("prepare", how, PREPARATIONS)
    if how == "raw":
        return x
    if how == "normalised":
        return {s: F.normalize(v, dim=1) for s, v in x.items()}
    mean = x["train"].mean(0)
    if how == "centred":
        return {s: v - mean for s, v in x.items()}
    if how == "scaled":
        size = x["train"].var(0).mean().sqrt().clamp_min(1e-6)
        return {s: (v - mean) / size for s, v in x.items()}
    if how == "standardised":
        std = x["train"].std(0).clamp_min(1e-6)
        return {s: (v - mean) / std for s, v in x.items()}
    transform = whitening(x["train"])
    return {s: (v - mean) @ transform for s, v in x.items()}


def whitening(x: Tensor) -> Tensor:
    """The map (D, K) of centred features x (N, D) to covariance 1 on the K directions in use."""
    values, vectors = torch.linalg.eigh(torch.cov(x.double().T))
    used = values > 1e-9 * values[-1]
    return (vectors[:, used] / values[used].sqrt()).float()


def linear_probe(
    x: dict[str, Tensor], y: dict[str, Tensor], probe: Probe, seed: int = 0
) -> dict[str, Tensor]:
    """Trains one linear layer by cross entropy with a cosine schedule.

    Returns the classes (N,) that it predicts on each split. x[split] (N, D), y[split] (N,).
    """
    from timm.optim import create_optimizer_v2

    x = prepared(x, probe.prepare)
    inputs, labels = x["train"], y["train"]
    steps = max(1, len(inputs) // probe.batch_size)
    classes = int(labels.max()) + 1
    # skip_init takes no numbers of the global generator
    head = nn.utils.skip_init(nn.Linear, inputs.shape[1], classes)
    head.weight.data = first_weights(inputs.shape[1], classes, seed)
    nn.init.zeros_(head.bias)
    peak = probe.lr * probe.batch_size / 256
    optimizer = create_optimizer_v2(
        head, opt=probe.optimizer, lr=peak, weight_decay=probe.weight_decay, momentum=0.9
    )
    for epoch in range(probe.epochs):
        order = torch.randperm(len(inputs), generator=generator(seed, "probe order", epoch))
        for k, ids in enumerate(order[: steps * probe.batch_size].chunk(steps)):
            for group in optimizer.param_groups:
                group["lr"] = peak * schedule(probe, epoch * steps + k, steps)
            F.cross_entropy(head(inputs[ids]), labels[ids]).backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        return {s: head(x[s]).argmax(1) for s in SPLITS}


def first_weights(width: int, classes: int, seed: int) -> Tensor:
    """The weights (classes, width) with which a probe starts."""
    return nn.init.normal_(
        torch.empty(classes, width), std=0.01, generator=generator(seed, "probe")
    )


def schedule(probe: Probe, step: int, steps_per_epoch: int) -> float:
    """The share of the peak rate at a step: linear warm-up, then half a cosine."""
    warmup, total = probe.warmup_epochs * steps_per_epoch, probe.epochs * steps_per_epoch
    done = (step - warmup) / max(1, total - warmup)
    return (step + 1) / warmup if done < 0 else 0.5 + 0.5 * math.cos(math.pi * done)


def logistic_regression(
    x: dict[str, Tensor], y: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """scikit-learn's L-BFGS on standardised features.

    (predicted classes on "validation" and "test", {"converged", the number of "iterations"}). A
    fit that did not converge is part of the result and no warning. Not for threads: the warnings
    of Python belong to the whole process.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=LBFGS_ITERATIONS, tol=1e-5)
    x = prepared(x, "standardised")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x["train"].numpy(), y["train"].numpy())
    stopped = [w for w in caught if issubclass(w.category, ConvergenceWarning)]
    for other in caught:
        if other not in stopped:
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    found = {"converged": not stopped, "iterations": int(model.n_iter_.max())}
    return _predicted(model, x), found


def nearest_neighbours(
    x: dict[str, Tensor], y: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A vote of the 20 nearest training images by cosine, of all of them where there are fewer.

    (predicted classes on "validation" and "test", {the "k" that was used}).
    """
    from sklearn.neighbors import KNeighborsClassifier

    k = min(NEIGHBOURS, len(y["train"]))
    # on unit vectors the nearest by distance are the nearest by cosine
    x, model = prepared(x, "normalised"), KNeighborsClassifier(k, algorithm="brute")
    model.fit(x["train"].numpy(), y["train"].numpy())
    return _predicted(model, x), {"k": k}


def _predicted(model: Any, x: dict[str, Tensor]) -> dict[str, Tensor]:
    return {s: torch.from_numpy(model.predict(x[s].numpy())) for s in SPLITS[1:]}


def linear_predictions(
    features: Features, protocol: str | Probe, feature: str = "token", seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The classes (N,) by split that a protocol or a Probe predicts from frozen features.

    With them what is known of the fit: "lbfgs" has "converged" and "iterations", "knn" its "k".
    `feature` is one of the names in `features.x`. Raises InputError for a name that is not there,
    and for "online", which is trained with its encoder.
    """
    check_choice("feature", feature, list(features.x))
    x, y = features.x[feature], features.y
    if isinstance(protocol, Probe):
        return linear_probe(x, y, protocol, seed), {}
    check_choice("protocol", protocol, FROZEN)
    if protocol == "lbfgs":
        return logistic_regression(x, y)
    if protocol == "knn":
        return nearest_neighbours(x, y)
    probe = PROTOCOLS[protocol]
    assert probe is not None
    return linear_probe(x, y, probe, seed), {}


def accuracies(predicted: dict[str, Tensor], y: dict[str, Tensor]) -> dict[str, float]:
    """Percent of the images of each split whose predicted class is their own."""
    return {s: 100 * (p == y[s]).double().mean().item() for s, p in predicted.items()}


def linear_accuracy(
    features: Features, protocol: str | Probe, feature: str = "token", seed: int = 0
) -> dict[str, Any]:
    """Accuracy in percent of frozen features, of whatever encoder, under a protocol or a Probe.

    Returns {"validation": .., "test": ..}; a trained layer adds "train". The rest of the result
    and the errors are those of `linear_predictions`.
    """
    predicted, found = linear_predictions(features, protocol, feature, seed)
    return {**accuracies(predicted, features.y), **found}
