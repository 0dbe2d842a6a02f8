"""Images as uint8 batches, in memory or streamed from a folder."""

from lib.data.datasets import Dataset, Normalization, Split, validation_mask
from lib.data.loading import load

__all__ = ["Dataset", "Normalization", "Split", "load", "validation_mask"]
