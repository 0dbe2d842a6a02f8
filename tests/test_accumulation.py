"""A batch in parts: which estimates of uniformity keep their mean.

Tried on every way of splitting eight views into two halves.
"""

from itertools import combinations

import pytest
import torch

from lib.losses import uniformity_loss

VIEWS = 8


def every_split(form: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Value and gradient of the mean over two halves, for all 35 splits of eight views."""
    own = torch.Generator().manual_seed(0)
    x = (torch.randn(VIEWS, 5, dtype=torch.float64, generator=own) + 0.5).requires_grad_()
    values, grads = [], []
    for half in combinations(range(1, VIEWS), VIEWS // 2 - 1):
        ids = torch.tensor([0, *half])
        rest = torch.tensor([i for i in range(VIEWS) if i not in ids])
        value = (uniformity_loss(x[ids], form) + uniformity_loss(x[rest], form)) / 2
        values.append(value.detach())
        grads.append(torch.autograd.grad(value, x)[0])
    whole = uniformity_loss(x, form)
    return [whole.detach(), *values], [torch.autograd.grad(whole, x)[0], *grads]


@pytest.mark.parametrize("form", ["spectral", "euclidean"])
def test_the_mean_over_all_splits_is_the_whole_batch_in_value_and_gradient(form):
    values, grads = every_split(form)
    assert len(values) == 36 and torch.stack(values).std() > 1e-3
    torch.testing.assert_close(torch.stack(values[1:]).mean(), values[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.stack(grads[1:]).mean(0), grads[0], rtol=1e-10, atol=1e-13)


def test_the_released_form_is_biased_by_its_diagonal():
    values, _ = every_split("released")
    cosines = values[0] * VIEWS**2 - VIEWS  # the sum of cos^2 over different views
    expected = 1 / 4 + cosines / (VIEWS * (VIEWS - 1)) * 3 / 4
    torch.testing.assert_close(torch.stack(values[1:]).mean(), expected, rtol=1e-10, atol=0)
    assert torch.stack(values[1:]).mean() > values[0] * 1.1
