"""Pretraining: `train(config)` trains one run, `train_all(configs)` what is missing of a sweep."""

from typing import TYPE_CHECKING, Any

from lib.train.sweep import train_all

if TYPE_CHECKING:
    from lib.train.loop import train

__all__ = ["train", "train_all"]


def __getattr__(name: str) -> Any:
    """`train` is imported at its first use: with timm it takes seconds, which a notebook saves
    whose runs are trained by other processes or found."""
    if name != "train":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lib.train.loop import train

    return train
