"""How each preset is finetuned: recipes as data, beside the presets of pretraining."""

from dataclasses import dataclass, replace
from typing import Any

from lib.errors import InputError, check_choice, check_number
from lib.presets import CHOICES

RAND_AUGMENT = "rand-m9-mstd0.5-inc1"  # timm's spelling of (9, 0.5)
VERSION = 1  # of lib.evaluate.finetuning: raise it when the same inputs would give other numbers


@dataclass(frozen=True)
class Recipe:
    """A finetuning recipe. The defaults are MAE's for ViT-B on ImageNet (He et al. 2021, Table 9).

    Not here is what only their code has: random erasing 0.25, a base rate of 5e-4, trained
    positions. RandAugment comes before the crop here and after it there. Raises InputError if it
    cannot be trained.
    """

    epochs: int = 100
    batch_size: int = 1024
    base_lr: float = 1e-3  # the peak rate is base_lr * batch_size / 256
    warmup_epochs: float = 5.0
    weight_decay: float = 0.05
    layer_decay: float = 0.75  # of the rate, from each block to the one before it
    drop_path: float = 0.1
    label_smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    rand_augment: str = RAND_AUGMENT  # "" for none
    augment: str = "resized_crop"
    pool: str = "avg"  # under the classifier, as in MAE's code; "token" is the class token

    def __post_init__(self) -> None:
        for name in ("augment", "pool"):
            check_choice(name, getattr(self, name), CHOICES[name])
        check_number("epochs", self.epochs, 1, whole=True)
        check_number("batch_size", self.batch_size, 2, whole=True)
        check_number("warmup_epochs", self.warmup_epochs, 0, self.epochs)
        check_number("base_lr", self.base_lr, 0, above=True)
        for name in ("weight_decay", "mixup", "cutmix"):
            check_number(name, getattr(self, name), 0)
        for name in ("layer_decay", "drop_path", "label_smoothing"):
            check_number(name, getattr(self, name), 0, 1)
        if self.rand_augment not in ("", RAND_AUGMENT):
            _check_policy(self.rand_augment)


def _check_policy(text: str) -> None:
    """Raises InputError for what is no RandAugment of timm, which takes seconds to import."""
    from timm.data.auto_augment import rand_augment_transform

    try:
        rand_augment_transform(text, {})
    except Exception:
        raise InputError(
            f"rand_augment must be a policy of timm, such as {RAND_AUGMENT}, or empty, got {text!r}"
        ) from None


# CIFAR-10: crops of the padded image, usual at 32 pixels; the paper does not say. The micro
# models: 10 epochs, for a CPU. Digits: no flips, crops or RandAugment, which would turn one digit
# into another, and no mixing: in 200 steps Mixup 0.8 cost 4 points (pretrained) and 15 (from
# scratch) on the validation split. Their rate is the best of 2e-3 to 1.6e-2 there without mixing.
RECIPES: dict[str, Recipe] = {
    "digits-vit-nano": Recipe(
        10, 64, 8e-3, 1.0, drop_path=0.0, mixup=0.0, cutmix=0.0, rand_augment="", augment="none"
    ),
    "fashion-vit-micro": Recipe(10, 256, 1e-3, 1.0, augment="flip"),
    "cifar10-vit-micro": Recipe(10, 256, 1e-3, 1.0, augment="crop"),
    "tiny-imagenet-vit-micro": Recipe(10, 256, 1e-3, 1.0, augment="crop"),
    "cifar10-vit-tiny": Recipe(augment="crop"),
    "cifar10-vit-base": Recipe(augment="crop"),
    "imagenet100-vit-base": Recipe(),
    "imagenet100-vit-large": Recipe(epochs=50),
}


def recipe_for(preset: str, **changes: Any) -> Recipe:
    """The preset's recipe with single fields changed; None keeps a field.

    With other `epochs` the warm-up keeps its share of them.
    """
    base, given = RECIPES[preset], {k: v for k, v in changes.items() if v is not None}
    if "epochs" in given and "warmup_epochs" not in given:
        given["warmup_epochs"] = base.warmup_epochs * given["epochs"] / base.epochs
    return replace(base, **given)
