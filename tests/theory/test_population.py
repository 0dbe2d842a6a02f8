"""Images as words of tokens."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from lib.errors import InputError
from lib.theory.population import quantise


def test_equal_token_images_are_merged(small):
    assert len(np.unique(small.tokens, axis=0)) == len(small.tokens)
    counts = np.bincount(small.rows)
    np.testing.assert_allclose(small.mass, counts / counts.sum())


def test_a_merged_image_keeps_the_mixture_of_its_labels(small):
    one_hot = np.eye(10)[load_digits().target]
    means = [one_hot[small.rows == row].mean(0) for row in range(len(small.tokens))]
    np.testing.assert_allclose(small.labels, means)


def test_a_patch_becomes_the_nearest_token(small):
    patches = load_digits().images.reshape(-1, 2, 4, 2, 4).swapaxes(2, 3).reshape(-1, 16)
    distances = ((patches[:, None] - small.codebook) ** 2).sum(-1)
    np.testing.assert_array_equal(small.tokens[small.rows], distances.argmin(1).reshape(-1, 4))


@pytest.mark.parametrize(
    ("patch", "vocabulary", "message"),
    [
        ((3, 4), 8, "choose a divisor of each side"),
        ((8, 8), 8, "not the whole image"),
        ((4, 4), 1, "at least 2 tokens"),
    ],
)
def test_bad_input_is_named(patch, vocabulary, message):
    with pytest.raises(InputError, match=message):
        quantise(np.zeros((5, 8, 8)), np.zeros(5), patch, vocabulary)
