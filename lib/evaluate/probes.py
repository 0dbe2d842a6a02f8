"""Eq. 3: features of a frozen encoder, and the named linear protocols. Every accuracy names its protocol.

All probes train on the training split without its validation part and report both the validation accuracy, for any
choice, and the test accuracy.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import timm.optim
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.compute.generator import generator
from lib.data import Dataset, load
from lib.errors import InputError
from lib.evaluate.features import SPLITS, features
from lib.models import POOLS
from lib.runs.cache import cached
from lib.runs.folder import Run

PREPARATIONS = ("raw", "standardised", "whitened")


@dataclass(frozen=True)
class Probe:
    """A linear layer's training recipe; `epochs` and `lr` are its budget."""

    epochs: int
    lr: float  # per 256 images, like base_lr
    batch_size: int = 256
    optimizer: str = "sgd"  # timm's names; momentum 0.9
    prepare: str = "raw"  # one of PREPARATIONS
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        if self.prepare not in PREPARATIONS:
            raise InputError(
                f"prepare must be one of {', '.join(PREPARATIONS)}, got {self.prepare!r}"
            )
        if self.epochs < 1 or not self.lr > 0:
            raise InputError(
                f"a probe needs epochs >= 1 and lr > 0, got {self.epochs} and {self.lr}"
            )


# "sgd": a plain linear layer with a short fixed budget, the release's kind of probe. "mae": batch norm without affine,
# LARS, 90 epochs, base lr 0.1, 10 of warm-up, no weight decay (He et al. 2021, Table 10); their batch of 16,384 would
# be 3 steps an epoch on CIFAR-10, so ours is 512, which makes about as many steps as theirs on ImageNet.
# "lbfgs": scikit-learn's logistic regression on standardised features, to convergence. "knn": 20 nearest, cosine.
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


def prepared(x: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    """Features as they come, standardised per dimension (a converged batch norm without affine), or whitened (PCA).

    Statistics are those of the training part; whitening drops directions below 1e-9 of the largest variance.
    """
    if how == "raw":
        return x
    mean = x["train"].mean(0)
    if how == "standardised":
        std = x["train"].std(0).clamp_min(1e-6)
        return {s: (v - mean) / std for s, v in x.items()}
    values, vectors = torch.linalg.eigh(torch.cov(x["train"].double().T))
    used = values > 1e-9 * values[-1]
    transform = (vectors[:, used] / values[used].sqrt()).float()
    return {s: (v - mean) @ transform for s, v in x.items()}


def linear_probe(
    x: dict[str, Tensor], y: dict[str, Tensor], probe: Probe, seed: int = 0
) -> dict[str, float]:
    """Trains one linear layer by cross entropy with a cosine schedule; accuracy in percent on each split of SPLITS."""
    x = prepared(x, probe.prepare)
    inputs, labels = x["train"], y["train"]
    steps = max(1, len(inputs) // probe.batch_size)
    head = nn.utils.skip_init(
        nn.Linear, inputs.shape[1], int(labels.max()) + 1
    )  # takes no global random numbers
    nn.init.normal_(head.weight, std=0.01, generator=generator(seed, "probe"))
    nn.init.zeros_(head.bias)
    peak = probe.lr * probe.batch_size / 256
    optimizer = timm.optim.create_optimizer_v2(
        head, opt=probe.optimizer, lr=peak, weight_decay=0.0, momentum=0.9
    )
    warmup, total = probe.warmup_epochs * steps, probe.epochs * steps
    for epoch in range(probe.epochs):
        order = torch.randperm(len(inputs), generator=generator(seed, "probe order", epoch))
        for k, ids in enumerate(order[: steps * probe.batch_size].chunk(steps)):
            step = epoch * steps + k
            done = (step - warmup) / (total - warmup)
            for group in optimizer.param_groups:
                group["lr"] = peak * (
                    (step + 1) / warmup if done < 0 else 0.5 + 0.5 * math.cos(math.pi * done)
                )
            F.cross_entropy(head(inputs[ids]), labels[ids]).backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        return {s: 100 * (head(x[s]).argmax(1) == y[s]).double().mean().item() for s in SPLITS}


def _sklearn(x: dict[str, Tensor], y: dict[str, Tensor], protocol: str) -> dict[str, float]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    if protocol == "lbfgs":
        x, model = prepared(x, "standardised"), LogisticRegression(max_iter=2000, tol=1e-5)
    else:  # on unit vectors the nearest by distance are the nearest by cosine
        x, model = (
            {s: F.normalize(v, dim=1) for s, v in x.items()},
            KNeighborsClassifier(20, algorithm="brute"),
        )
    model.fit(x["train"].numpy(), y["train"].numpy())
    return {
        s: 100 * float(np.mean(model.predict(x[s].numpy()) == y[s].numpy())) for s in SPLITS[1:]
    }


def evaluate(
    run: Run,
    protocol: str | Probe,
    pool: str = "token",
    epoch: int | None = None,
    seed: int = 0,
    data: Dataset | None = None,
) -> dict[str, float]:
    """Accuracy in percent of a finished run under a named protocol, or under a Probe: {"validation": .., "test": ..}.

    Measured once per (protocol, pool, epoch, seed) and kept in the run's folder. Raises InputError for an unknown
    protocol or pool, and for "online" of a snapshot, which has no trained layer.
    """
    if isinstance(protocol, str) and protocol not in PROTOCOLS:
        raise InputError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if pool not in POOLS:
        raise InputError(f"pool must be one of {', '.join(POOLS)}, got {pool!r}")
    if protocol == "online":
        source: dict[str, Any] | None = run.result
        if epoch is not None:
            source = next((m for m in run.metrics() if m["epoch"] == epoch), None)
        if source is None:
            raise InputError(
                f"run {run.folder.name} has no online accuracy at epoch {epoch}; it was not measured there"
            )
        return {
            s: source[f"{s}_online_{pool}_full"]
            for s in SPLITS[1:]
            if f"{s}_online_{pool}_full" in source
        }
    recipe = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    data = data or load(**run.config.data_fields)
    run.check_data(data.fingerprint)
    inputs = {
        "protocol": repr(protocol),
        "recipe": repr(recipe),
        "pool": pool,
        "epoch": epoch,
        "seed": seed,
        "weights": run.weights_digest(epoch),
        "images": data.fingerprint,
    }

    def measured() -> dict[str, Any]:
        f = features(run, data, epoch)
        if recipe:
            return linear_probe(f.x[pool], f.y, recipe, seed)
        return _sklearn(f.x[pool], f.y, str(protocol))

    found = cached(run.folder / "probes", inputs, measured)
    return {s: found[s] for s in SPLITS[1:]}
