"""RandAugment for finetuning; the global generators of timm are seeded and given back."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor

from lib.compute.generator import generator
from lib.data import Dataset
from lib.data.decoding import Decoder
from lib.evaluate.recipes import Recipe


class Augmented(Decoder):
    """The training images of `order`, uint8 (C, S, S), after RandAugment.

    (seed, epoch) and the place in the order decide what happens to an image.
    """

    def __init__(self, data: Dataset, order: Tensor, recipe: Recipe, seed: tuple[int, int]) -> None:
        cropped = recipe.augment == "resized_crop"
        super().__init__(data.train.paths, data.image_size, seed if cropped else None)
        self.pixels, self.order, self.policy_seed = data.train.images, order, seed
        self.policy = None
        if recipe.rand_augment:
            fill = [round(255 * m) for m in data.mean.tolist()]
            hparams = {
                "img_mean": tuple(fill) if len(fill) == 3 else fill[0],
                # pixels of the strongest shift, as timm has it
                "translate_const": max(1, round(0.45 * data.image_size)),
                # at 10 timm asks Pillow to keep 0 bits of a pixel, which it refuses
                "magnitude_max": 9.99,
            }
            self.policy = rand_augment_transform(recipe.rand_augment, hparams)

    def __getitems__(self, places: Sequence[int]) -> list[Tensor]:
        """What a DataLoader calls with the places of a batch in the order."""
        ids = self.order[list(places)]
        plain = super().__getitems__(ids.tolist()) if self.pixels is None else self.pixels[ids]
        return [self._augmented(x, place) for x, place in zip(plain, places, strict=True)]

    def _augmented(self, pixels: Tensor, place: int) -> Tensor:
        if self.policy is None:
            return pixels
        seed_all(*self.policy_seed, place)
        shown = pixels.permute(1, 2, 0).numpy()
        image = self.policy(Image.fromarray(shown if shown.shape[-1] == 3 else shown[..., 0]))
        return torch.from_numpy(np.array(image).reshape(shown.shape)).permute(2, 0, 1)


def seed_all(*what: int) -> None:
    """Seeds the three global generators that timm draws from."""
    number = generator(0, "finetune", *what).initial_seed()
    torch.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


@contextmanager
def kept_randomness() -> Iterator[None]:
    """The caller's global generators are afterwards as they were."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
