"""Sweeps that test_sweep gives to other processes."""

from lib.train import train_all
from support import small


def slow(**fields):
    """A run of 25 epochs: a few seconds, long enough to be met at work."""
    return small(epochs=25, snapshots=0, eval_every=25, **fields)


def short_and_slow() -> None:
    train_all([small(epochs=1), slow()], jobs=1)


def slow_alone() -> None:
    train_all([slow()])
