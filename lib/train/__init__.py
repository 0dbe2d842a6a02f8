"""Pretraining: `train(config)` trains one run, `train_all(configs)` what is missing of a sweep."""

from lib.train.loop import train
from lib.train.sweep import train_all

__all__ = ["train", "train_all"]
