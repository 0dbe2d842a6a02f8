"""Distances of masked views, against enumeration of every mask: docs/theory.md, section 7."""

import itertools
import math
import os

import numpy as np
import pytest
import torch

from lib.data import load
from lib.masking import patchify
from lib.presets import resolve
from lib.theory.masked_views import (
    bootstrap_ratio,
    class_distances,
    independent_masks_mean,
    inner_minimum,
    nearest_view,
    patch_distances,
    same_mask_mean,
)

N, S = 6, 2  # patches, and visible ones at the ratio 2/3
RHO = 1 - S / N
MASKS = [list(m) for m in itertools.combinations(range(N), S)]


def patches(count, seed=0, n=N, d=5):
    return torch.randn(
        count, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def masked_distances(a, b, mask):
    """|a[m] - b[m]|^2 for one mask m of visible patches: (N, M)."""
    return (a[:, None, mask] - b[None, :, mask]).square().sum((-1, -2))


def test_patch_distances_are_squared_distances_of_single_patches():
    a, b = patches(3), patches(4, seed=1)
    expected = torch.stack([torch.cdist(a[:, p], b[:, p]).square() for p in range(N)], -1)
    torch.testing.assert_close(patch_distances(a, b), expected)


def test_rounding_cannot_make_a_distance_negative():
    a = patches(3).float()
    assert patch_distances(a, a).min() >= 0


def test_nearest_view_is_the_minimum_over_every_mask_and_reference():
    a, b = patches(3), patches(4, seed=1)
    for s in range(1, N + 1):
        every = [masked_distances(a, b, list(m)) for m in itertools.combinations(range(N), s)]
        expected = torch.stack(every).amin((0, 2)).sqrt()
        torch.testing.assert_close(nearest_view(a, b, [1 - s / N])[:, 0], expected)


def test_with_nothing_masked_it_is_the_nearest_neighbour():
    a, b = patches(5), patches(7, seed=1)
    nearest = torch.cdist(a.flatten(1), b.flatten(1)).amin(1)
    torch.testing.assert_close(nearest_view(a, b, [0.0])[:, 0], nearest)


def test_it_falls_with_the_ratio_and_with_more_references_and_does_not_see_the_chunks():
    a, b = patches(20), patches(30, seed=1)
    ratios = [0, 0.2, 0.4, 0.6, 0.8]
    d = nearest_view(a, b, ratios)
    assert (d.diff(dim=1) <= 0).all()
    assert (d <= nearest_view(a, b[:10], ratios) + 1e-9).all()
    torch.testing.assert_close(d, nearest_view(a, b, ratios, chunk=7))


def test_class_distances_against_loops():
    q, x = patches(8), patches(12, seed=1)
    q_labels, x_labels = torch.arange(8) % 3, torch.arange(12) % 3
    found = class_distances(q, q_labels, x, x_labels, [0.0, RHO])
    for i in range(8):
        by_class = [nearest_view(q[i : i + 1], x[x_labels == c], [0.0, RHO])[0] for c in range(3)]
        others = [d for c, d in enumerate(by_class) if c != q_labels[i]]
        np.testing.assert_allclose(found["intra"][i], by_class[q_labels[i]])
        np.testing.assert_allclose(found["inter"][i], sum(others) / 2)
        np.testing.assert_allclose(found["overall"][i], sum(by_class) / 3)
        np.testing.assert_allclose(found["pooled"][i], torch.stack(others).amin(0))


def test_one_mask_for_both_only_scales_the_distance():
    """E |a[m] - b[m]|^2 = (s/n) |a - b|^2: intra over inter cannot depend on the ratio."""
    a, b = patches(3), patches(4, seed=1)
    slow = torch.stack([masked_distances(a, b, m) for m in MASKS]).mean(0)
    fast = same_mask_mean(a, b, RHO)
    torch.testing.assert_close(fast, slow, rtol=1e-12, atol=1e-12)
    whole = torch.cdist(a.flatten(1), b.flatten(1)).square()
    torch.testing.assert_close(fast, whole * S / N)


def test_a_mask_for_each_adds_a_part_without_classes():
    a, b = patches(3), patches(4, seed=1)
    keep = torch.zeros(len(MASKS), N, dtype=torch.float64)
    for row, m in zip(keep, MASKS, strict=True):
        row[m] = 1
    every = []
    for m, n in itertools.product(keep, keep):
        every.append((a[:, None] * m[:, None] - b[None] * n[:, None]).square().sum((-1, -2)))
    slow = torch.stack(every).mean(0)
    torch.testing.assert_close(independent_masks_mean(a, b, RHO), slow, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(independent_masks_mean(a, b, 0.0), same_mask_mean(a, b, 0.0))


def test_bootstrap_of_a_constant_ratio_is_that_ratio():
    inter = np.random.default_rng(0).uniform(1, 2, (50, 3))
    np.testing.assert_allclose(bootstrap_ratio(0.7 * inter, inter, draws=20), np.full((20, 3), 0.7))


def test_bootstrap_spreads_like_the_delta_method_and_is_paired():
    rng = np.random.default_rng(0)
    inter = rng.uniform(1, 2, (400, 1))
    intra = 0.9 * inter + rng.normal(0, 0.1, (400, 1))
    ratio = intra.mean() / inter.mean()
    expected = (intra - ratio * inter).std(ddof=1) / inter.mean() / math.sqrt(400)
    draws = bootstrap_ratio(intra, inter, draws=4000)
    assert draws.mean() == pytest.approx(ratio, abs=expected / 5)
    assert draws.std() == pytest.approx(expected, rel=0.1)
    np.testing.assert_array_equal(draws[:5], bootstrap_ratio(intra, inter, draws=4000)[:5])


@pytest.mark.slow
def test_the_sweet_spot_on_cifar10():
    """A statistical statement with a fixed draw; needs a CIFAR-10 folder in $UMAE_CIFAR10."""
    if not (root := os.environ.get("UMAE_CIFAR10")):
        pytest.skip("set UMAE_CIFAR10 to a folder with train/ and test/")
    data = load(**resolve("cifar10-vit-micro", data=f"folder:{root}").data_fields)

    def sample(split, per_class):
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
        ids = torch.cat([order[split.labels[order] == c][:per_class] for c in range(10)])
        return patchify(data.images(split, ids).float() / 255, 4), split.labels[ids]

    ratios = [0, 0.3, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    d = class_distances(*sample(data.test, 200), *sample(data.train, 500), ratios)
    relative = d["intra"].mean(0) / d["inter"].mean(0)
    k = relative.argmin()
    assert 0.5 <= ratios[k] <= 0.85
    assert relative[0] - relative[k] > 0.02
    assert relative[-1] > relative[k]


def test_a_minimum_inside_has_a_fall_before_and_a_rise_behind_it():
    generator = np.random.default_rng(0)
    inter = 2 + 0.1 * generator.random((60, 1))
    noise = 0.01 * generator.random((60, 4))
    dip, falling = (
        inter * np.array(c) + noise for c in ([0.5, 0.4, 0.3, 0.6], [0.5, 0.4, 0.3, 0.1])
    )
    place, fall, rise = inner_minimum(dip, inter)
    assert place == 2 and fall == pytest.approx((0.2, 0.2), abs=0.01)
    assert rise == pytest.approx((0.3, 0.3), abs=0.01) and rise[0] < rise[1]
    place, fall, rise = inner_minimum(falling, inter)
    assert place == 2 and fall[0] > 0 > rise[1]  # the lowest ratio is the last one


def test_the_place_of_the_minimum_is_chosen_on_other_queries():
    """The first query says index 1; the second, which is measured, is lower at index 2."""
    intra, inter = np.array([[2.0, 1.0, 3.0, 4.0], [4.0, 3.0, 1.0, 2.0]]), np.ones((2, 4))
    assert inner_minimum(intra, inter) == (1, (1.0, 1.0), (-1.0, -1.0))


def test_two_ratios_have_none_inside():
    assert inner_minimum(np.ones((4, 2)), np.ones((4, 2)))[1] == (-np.inf, np.inf)
