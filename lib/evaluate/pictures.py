"""The pictures of an audit: the same for all encoders, each through the encoder's own transform."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from lib.data import Dataset, Split, load
from lib.data.decoding import Decoder, open_image
from lib.data.streaming import decoded_batches
from lib.errors import InputError, check_choice
from lib.evaluate.encoders import FrozenEncoder
from lib.presets import DATASETS, PRESETS


def load_pictures(data: str, images: int | None = None, **options: Any) -> Dataset:
    """The pictures that `data` names: digits, fashion_mnist, cifar10 or folder:/path.

    A folder is streamed, a built-in set comes in its own size. With `images`, at most so many
    training pictures and as many test pictures: class by class in turn, always the same ones.
    `options` go to `lib.data.load`. Raises InputError if they cannot be read.
    """
    kind, _, path = data.partition(":")
    check_choice("data", kind, list(DATASETS))
    if (kind == "folder") != bool(path):
        raise InputError(
            f"data is digits, fashion_mnist, cifar10 or folder:/path, which holds train/ and val/, "
            f"got {data!r}"
        )
    size = next((c.image_size for c in PRESETS.values() if c.data == data), 32)
    whole = load(data, size, stream="always", **options)
    return whole if images is None else chosen_pictures(whole, images)


def chosen_pictures(whole: Dataset, images: int) -> Dataset:
    """At most `images` training and as many test pictures; the fingerprint names the choice."""
    if images < 2 * len(whole.class_names):
        raise InputError(
            f"images must be at least 2 for each of {len(whole.class_names)} classes, got {images}"
        )
    train, test = _part(whole.train, images), _part(whole.test, images)
    if len(train) == len(whole.train) and len(test) == len(whole.test):
        return whole
    return replace(whole, train=train, test=test, fingerprint=f"{whole.fingerprint}-{images}")


def _part(split: Split, count: int) -> Split:
    """`count` pictures, the classes in turn, each in a fixed random order; in the split's order."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    turn = torch.empty(len(split), dtype=torch.int64)
    for c in split.labels.unique():
        members = order[split.labels[order] == c]
        turn[members] = torch.arange(len(members))
    ids = turn.argsort(stable=True)[:count].sort().values
    pixels = None if split.images is None else split.images[ids]
    return Split(split.labels[ids], pixels, [split.paths[i] for i in ids] if split.paths else [])


@dataclass
class Seen(Dataset):
    """Pictures as one encoder sees them: batches are uint8 (B, C, S, S) of its own transform."""

    encoder: FrozenEncoder

    def batches(
        self,
        split: Split,
        order: Sequence[Tensor],
        crop_seed: tuple[int, int] | None = None,
        workers: int = 0,
    ) -> Iterator[Tensor]:
        """uint8 (B, C, S, S) for every index tensor of `order`, whole pictures, never crops."""
        pictures = _Pictures(split, self.encoder)
        yield from decoded_batches(pictures, [ids.tolist() for ids in order], workers)


def seen_by(encoder: FrozenEncoder, data: Dataset) -> Seen:
    """`data` through the transform of `encoder`; grey pictures are repeated for an RGB encoder.

    Raises InputError where colours would be lost.
    """
    if len(encoder.normalization.mean) < len(data.mean):
        raise InputError(f"{encoder.name} takes grey pictures, these have colours; convert them")
    return Seen(**vars(data), encoder=encoder)


class _Pictures(Decoder):
    """Single pictures of a split, decoded and transformed as an encoder does."""

    def __init__(self, split: Split, encoder: FrozenEncoder) -> None:
        super().__init__(split.paths, encoder.image_size, None)
        self.pixels, self.transform = split.images, encoder.transform
        self.mode = "RGB" if len(encoder.normalization.mean) == 3 else "L"

    def whole(self, index: int) -> Tensor:
        """The whole picture through the encoder's transform."""
        if self.pixels is not None:
            picture = to_pil_image(self.pixels[index])
        else:
            picture = open_image(self.paths[index])
        return self.transform(picture.convert(self.mode))
