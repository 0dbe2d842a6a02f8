"""Exercises of notebooks/09c_uniformity.ipynb."""

from math import pi
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lib.evaluate.representation import participation_ratio
from lib.losses import uniformity_loss
from solutions.runs import runs_of

AXES = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]]) / torch.tensor([[2.0], [6.0]]).sqrt()


def _on_circle(angles: Tensor) -> Tensor:
    """Angles (N,) as features (N, 3) behind a LayerNorm: they lie on a circle."""
    return 3**0.5 * torch.stack([angles.cos(), angles.sin()], 1) @ AXES


def _flow(points: Tensor, form: str, steps: int) -> Tensor:
    for _ in range(steps):
        points = points.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(uniformity_loss(points, form), points)
        points = F.layer_norm(points.detach() - 0.5 * gradient, (3,))
    return points


def exercise_1(steps: int = 1500) -> dict[str, Any]:
    """Start from two clusters that are 120 degrees apart. Where does each form take them?

    Answer: the Euclidean form wants the mean at zero. It turns the clusters until they are opposite
    and then stops: the points lie on one line, and about one dimension is in use. The spectral form
    wants an isotropic second moment, so it spreads the points until both dimensions are used alike.
    """
    noise = 0.1 * torch.randn(60, generator=torch.Generator().manual_seed(0))
    begin = _on_circle(noise + 2 * pi / 3 * (torch.arange(60) % 2))
    found = {}
    for name in ("start", "euclidean", "spectral"):
        points = begin if name == "start" else _flow(begin, name, steps)
        mean = (points.mean(0).norm() / 3**0.5).item()
        found[name] = {
            "length of the mean": round(mean, 2),
            "dimensions in use": round(participation_ratio(points), 2),
        }
    return found


def exercise_2(epochs: int | None = None, weight: float = 0.064) -> dict[str, Any]:
    """Train with the Euclidean form and compare the effective ranks.

    Answer: the Euclidean form only moves the mean of the features to zero, and the rank stays below
    that of the spectral form. The coefficients: behind the LayerNorm the Euclidean form is 2 D
    times the mean cosine, and the spectral form is D times the mean squared cosine. `weight` is
    given to each of the two means.
    """
    width = 64
    coefficients = {"spectral": weight / width, "euclidean": weight / (2 * width)}
    ranks = {}
    for form, lam in coefficients.items():
        runs, _ = runs_of("uniformity", [form], epochs=epochs, lam=lam)
        ranks[form] = round(runs[form].result["test_rank_token"], 1)
    return ranks


def exercise_3(dim: int = 8, count: int = 200) -> dict[str, Any]:
    """Prove that E cos^2 is one over the participation ratio, and at least 1 / (D - 1).

    Answer: let C be the second moment of unit features, with eigenvalues v. Then E (f . f')^2 =
    tr(C C) = sum v^2 for independent f and f', and sum v = tr C = 1. The participation ratio is
    (sum v)^2 / sum v^2, so E cos^2 is one over it. Behind a LayerNorm the coordinates sum to zero:
    at most D - 1 eigenvalues are not 0. By Cauchy and Schwarz (sum v)^2 <= (D - 1) sum v^2, so
    E cos^2 >= 1 / (D - 1). The check takes random features.
    """
    random = torch.Generator().manual_seed(0)
    x = torch.randn(count, dim, generator=random, dtype=torch.float64)
    unit = F.normalize(F.layer_norm(x, (dim,), eps=0), dim=1)
    return {
        "mean cos^2": ((unit @ unit.T) ** 2).mean().item(),
        "1 / participation ratio": 1 / participation_ratio(x),
        "1 / (D - 1)": 1 / (dim - 1),
    }
