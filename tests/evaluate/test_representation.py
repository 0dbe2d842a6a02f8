"""Ranks, spectra and cosines against closed forms and slow references."""

import math

import pytest
import torch
import torch.nn.functional as F

from lib.errors import InputError
from lib.evaluate.representation import (
    class_cosines,
    condition_number,
    participation_ratio,
    variance_ratio,
)
from lib.losses import effective_rank, spectrum

HADAMARD = torch.tensor([[1.0]]).double()
for _ in range(3):
    HADAMARD = torch.cat([torch.cat([HADAMARD, HADAMARD], 1), torch.cat([HADAMARD, -HADAMARD], 1)])


def rows(n=40, d=6, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_ranks_of_k_equally_used_directions_are_k(k):
    features = HADAMARD[1 : 1 + k].repeat(5, 1)
    assert effective_rank(features) == pytest.approx(k, rel=1e-9)
    assert participation_ratio(features) == pytest.approx(k, rel=1e-9)


def test_ranks_of_unequally_used_directions():
    """Used 3:1 -> entropy rank exp(H(3/4, 1/4)), participation ratio 1 / (9/16 + 1/16)."""
    features = torch.cat([HADAMARD[1:2].expand(30, -1), HADAMARD[2:3].expand(10, -1)])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(features) == pytest.approx(math.exp(entropy), rel=1e-9)
    assert participation_ratio(features) == pytest.approx(1.6, rel=1e-9)


def test_spectrum_is_the_covariances_or_the_second_moments():
    x = rows() + 3
    torch.testing.assert_close(spectrum(x), torch.linalg.eigvalsh(x.T.cov(correction=0)).flip(0))
    torch.testing.assert_close(spectrum(x, centred=False), torch.linalg.svdvals(x).square() / 40)


def test_condition_number_counts_only_directions_in_use():
    x = rows(4000, 4)
    white = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov(correction=0)).T)
    assert condition_number(white) == pytest.approx(1, rel=1e-9)
    scaled = white * torch.tensor([10.0, 1, 1, 0])
    assert condition_number(scaled) == pytest.approx(100, rel=1e-9)


def test_class_cosines_equal_the_mean_over_pairs():
    x, labels = rows(), torch.arange(40) % 3
    z = F.normalize(x, dim=1)
    pairs = {True: [], False: []}
    for i in range(40):
        for j in range(40):
            if i != j:
                pairs[bool(labels[i] == labels[j])].append((z[i] @ z[j]).item())
    got = class_cosines(x, labels)
    assert got["within"] == pytest.approx(sum(pairs[True]) / len(pairs[True]), abs=1e-12)
    assert got["between"] == pytest.approx(sum(pairs[False]) / len(pairs[False]), abs=1e-12)


def test_variance_ratio_is_one_for_separate_points_and_zero_for_equal_means():
    labels = torch.arange(40) % 2
    assert variance_ratio(labels[:, None].double().expand(-1, 5) * 2 - 1, labels) == pytest.approx(
        1
    )
    same = rows(20).repeat_interleave(2, 0)  # every point once in each class
    assert variance_ratio(same, labels) == pytest.approx(0, abs=1e-12)
    x = rows()
    within = sum((x[labels == c] - x[labels == c].mean(0)).square().sum() for c in (0, 1))
    assert variance_ratio(x, labels) == pytest.approx(
        1 - (within / (x - x.mean(0)).square().sum()).item(), rel=1e-12
    )


def test_features_that_are_one_have_no_condition_number():
    with pytest.raises(InputError, match="all features are"):
        condition_number(torch.ones(10, 4))
