"""Populations that several files of this folder use."""

import pytest
from sklearn.datasets import load_digits

from lib.theory.population import quantise


@pytest.fixture(scope="session")
def digits():
    """1,797 digits as 8 patches of 4x2, 8 tokens: the notebook's default."""
    data = load_digits()
    return quantise(data.images, data.target, (4, 2), 8)


@pytest.fixture(scope="session")
def small():
    """The digits as 4 patches of 4x4, 8 tokens: small enough for dense linear algebra."""
    data = load_digits()
    return quantise(data.images, data.target, (4, 4), 8)


@pytest.fixture(scope="session")
def two_classes():
    """Only the digits 0 and 1, as 4 patches of 4x4, 8 tokens."""
    data = load_digits(n_class=2)
    return quantise(data.images, data.target, (4, 4), 8)
