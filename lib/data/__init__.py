"""Images as uint8 batches, in memory or streamed from a folder."""

from lib.data.datasets import Dataset, Split, load, validation_mask

__all__ = ["Dataset", "Split", "load", "validation_mask"]
