"""Sweeps that test_sweep gives to other processes."""

from lib.presets import Config
from lib.train import train_all
from support import small


def slow() -> Config:
    """A run of 25 epochs: a few seconds, long enough to be met at work."""
    return small(epochs=25, snapshots=0, eval_every=25)


def two_alike() -> list[Config]:
    """Neither is the longer one: they are trained in this order."""
    return [small(epochs=15, snapshots=0, eval_every=15, seed=seed) for seed in (0, 1)]


def one_after_another() -> None:
    train_all(two_alike(), jobs=1)


def slow_alone() -> None:
    train_all([slow()])
