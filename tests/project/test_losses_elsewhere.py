"""The snippets of docs/losses_elsewhere.md run as they stand, and do what the page says."""

import re

import pytest
import torch
from torch import nn

from lib.losses import cosine_weight, effective_rank, uniformity_loss
from lib.presets import REPO

TEXT = (REPO / "docs" / "losses_elsewhere.md").read_text()
PLAIN, LIGHTLY, COEFFICIENTS = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_plain_loop_is_ten_lines_and_raises_the_rank():
    loop = PLAIN.split("\n\n")[1]
    assert len(loop.strip().splitlines()) <= 10
    ranks = []
    for weight in ("0.0", "1.0"):
        torch.manual_seed(0)
        names: dict = {}
        exec(PLAIN.replace("0.001", weight), names)
        ranks.append(effective_rank(names["features"].detach()))
    assert ranks[1] > ranks[0] + 0.5


def test_lightlys_features_get_a_gradient():
    pytest.importorskip("lightly")
    names: dict = {}
    exec(LIGHTLY, names)
    assert names["features"].shape == (16, 192)
    gradients = [p.grad for p in names["vit"].blocks.parameters()]
    assert any(g is not None and g.abs().sum() > 0 for g in gradients)


def test_coefficients_go_there_and_back():
    exec(COEFFICIENTS, {})


def test_a_common_weight_gives_the_same_term_up_to_the_diagonal():
    """Of features whose coordinates have mean 0, so that centring changes nothing."""
    batch, dim, weight = 400, 16, 0.5
    torch.manual_seed(0)
    features = nn.functional.layer_norm(torch.randn(batch, dim), (dim,))
    spectral = weight / dim * uniformity_loss(features, "spectral")
    released = weight * uniformity_loss(features, "released")
    diagonal = weight / batch
    expected = (released - diagonal) * batch / (batch - 1)
    torch.testing.assert_close(spectral, expected, rtol=1e-4, atol=0)
    assert cosine_weight(weight / dim, "spectral", dim) == pytest.approx(weight)
