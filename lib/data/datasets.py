"""What `load` returns: two splits with one list of classes, and how their pixels become inputs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.data.decoding import Decoder
from lib.data.streaming import decoded_batches


@dataclass
class Split:
    """Labelled images, in memory or on disk.

    labels (N,) int64. images uint8 (N, C, S, S), or None for a streamed folder, whose `paths` are
    decoded when they are needed.
    """

    labels: Tensor
    images: Tensor | None
    paths: list[Path]

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple:
        """Sent to another process as arrays: joblib shares large ones instead of copying them."""
        return _split_of_arrays, (self.labels.numpy(), self._array(), self.paths)

    def _array(self) -> np.ndarray | None:
        """The images as the same array object at each call: joblib then writes them only once."""
        if self.images is None:
            return None
        kept = self.__dict__.get("_kept_array")
        if kept is None or kept[0] is not self.images:
            kept = self.__dict__["_kept_array"] = (self.images, self.images.numpy())
        return kept[1]


def _split_of_arrays(labels: np.ndarray, images: np.ndarray | None, paths: list[Path]) -> Split:
    pixels = None if images is None else torch.from_numpy(images)
    return Split(torch.from_numpy(labels), pixels, paths)


@dataclass(frozen=True)
class Normalization:
    """uint8 pixels -> the model's input: (pixels / 255 - mean) / std; mean, std (C,)."""

    mean: Tensor
    std: Tensor

    def __call__(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """images (B, C, H, W) uint8 -> (B, C, H, W) of `dtype`."""
        x = images.to(dtype) / 255
        return (x - self._like(self.mean, x)) / self._like(self.std, x)

    def inverse(self, x: Tensor) -> Tensor:
        """The model's input (B, C, H, W) -> pixels in [0, 1] (not clamped)."""
        return x * self._like(self.std, x) + self._like(self.mean, x)

    @staticmethod
    def _like(value: Tensor, x: Tensor) -> Tensor:
        return value.to(x).view(1, -1, 1, 1)


@dataclass
class Dataset:
    """A training and a test split with one list of classes.

    mean, std (C,): of the training pixels in [0, 1]. fingerprint: 16 hex digits of the content, the
    same for a folder in memory and streamed (see `lib.data.loading`).
    """

    train: Split
    test: Split
    class_names: list[str]
    mean: Tensor
    std: Tensor
    fingerprint: str
    image_size: int

    @property
    def streamed(self) -> bool:
        """Whether the training images are decoded when they are needed.

        A run must keep to one way: random resized crops of a streamed folder are cut from the file
        at its full size, those of images in memory from the image of `image_size` pixels. Give
        `load` stream="always" or "never" to repeat the way of a run.
        """
        return self.train.images is None

    def with_moments(self, mean: Sequence[float], std: Sequence[float]) -> "Dataset":
        """The same images with the mean and std (one number a channel) that a run was trained with.

        Those of a streamed folder come from a sample, those in memory from all pixels, so that the
        two ways differ in the third digit. A run stores its own (`mean.tolist()`) and uses them
        whenever it is resumed, probed or exported.
        """
        own = [torch.tensor(m, dtype=torch.float32) for m in (mean, std)]
        return replace(self, mean=own[0], std=own[1])

    def batches(
        self,
        split: Split,
        order: Sequence[Tensor],
        crop_seed: tuple[int, int] | None = None,
        workers: int = 0,
    ) -> Iterator[Tensor]:
        """uint8 (B, C, S, S) for every index tensor of `order`.

        A streamed split is decoded by `workers` processes (0: by this one); with `crop_seed` =
        (seed, epoch) every image is a random resized crop. Images in memory know neither.
        Raises InputError with its path for an image that cannot be read.
        """
        if split.images is not None:
            yield from (split.images[ids] for ids in order)
            return
        decoder = Decoder(split.paths, self.image_size, crop_seed)
        yield from decoded_batches(decoder, [ids.tolist() for ids in order], workers)

    def images(self, split: Split, ids: Tensor | Sequence[int]) -> Tensor:
        """uint8 (N, C, S, S) of these images of a split, in memory or streamed."""
        return next(self.batches(split, [torch.as_tensor(ids)]))

    def normalization(self, kind: str) -> Normalization:
        """ "dataset": by mean and std of the training pixels; "unit": pixels to [-1, 1]."""
        if kind == "unit":
            half = torch.full_like(self.mean, 0.5)
            return Normalization(half, half)
        return Normalization(self.mean, self.std)


def validation_mask(labels: Tensor) -> Tensor:
    """(N,) bool: a fixed, class-balanced part of the training labels that no probe trains on.

    Hyperparameters and epochs are chosen on it. Every class gives a tenth of its images, at
    least one; `load` refuses a class with fewer than two.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held = torch.zeros(len(labels), dtype=torch.bool)
    for c in labels.unique():
        members = order[labels[order] == c]
        held[members[: max(1, round(0.1 * len(members)))]] = True
    return held
