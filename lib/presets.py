"""What a run is made of: the Config dataclass, the presets, and the checks that come before anything starts."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.errors import InputError, did_you_mean
from lib.losses import UNIFORMITY_FORMS
from lib.masking import num_visible

REPO = Path(__file__).resolve().parents[1]


CHOICES = {
    "augment": ("none", "flip", "crop", "resized_crop"),
    "normalize": ("dataset", "unit"),
    "uniformity": UNIFORMITY_FORMS,
    "pool": ("token", "avg"),
    "precision": ("fp32", "bf16", "fp64"),
    "stream": ("auto", "always", "never"),
}


DATASETS = {"digits": 1, "fashion_mnist": 1, "cifar10": 3, "folder": 3}  # name: channels


def _where(default: Any) -> Any:
    """A field that says where or how to run, not what: it does not enter the run's identity."""
    return field(default=default, metadata={"where": True})


@dataclass(frozen=True)
class Config:
    """Everything that decides a pretraining run. Sources of the defaults are given with each preset."""

    preset: str
    data: str  # digits | fashion_mnist | cifar10 | folder:/path
    image_size: int  # pixels; other sizes are resized to it
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    decoder_dim: int
    decoder_depth: int
    decoder_heads: int
    epochs: int
    warmup_epochs: float
    batch_size: int  # images per optimiser step, over all processes
    base_lr: float  # the peak rate is base_lr * batch_size / 256 (He et al. 2021)
    classes: tuple[str, ...] = ()  # a subset of the classes; () is all of them
    augment: str = "none"
    normalize: str = (
        "dataset"  # "dataset": mean/std of the training split; "unit": pixels to [-1, 1]
    )
    mask_ratio: float = 0.75  # the paper's, Section 5.1; 0 means plain autoencoding of all patches
    norm_pix_loss: bool = False
    lam: float = 0.001  # the paper's coefficient of the uniformity term; 0 is MAE
    uniformity: str = "spectral"
    pool: str = (
        "token"  # the feature under the uniformity term: class token or mean of patch tokens
    )
    weight_decay: float = 0.05  # Section 5.1
    accum_steps: int = 1
    precision: str = "fp32"
    seed: int = 0
    eval_every: int = 1  # epochs between measurements on the validation split
    snapshots: int = 8  # weights kept at this many evenly spaced epochs, for probing along training
    data_dir: str = _where("")  # where torchvision's files are; "" is the repository's data/
    download: bool = _where(False)
    stream: str = _where("auto")  # "auto": stream a folder that does not fit in 4 GiB of pixels
    workers: int = _where(2)  # decoding processes of a streamed folder
    device: str = _where("auto")
    compile: bool = _where(False)
    shard: bool = _where(
        False
    )  # every process keeps a part of the weights (FSDP2); False: all of them (DDP)
    checkpoint_every: int = _where(1)  # epochs; a signal also saves, at the next step

    @property
    def channels(self) -> int:
        return DATASETS[self.data.split(":")[0]]

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def peak_lr(self) -> float:
        return self.base_lr * self.batch_size / 256

    def identity(self) -> dict[str, Any]:
        """The fields that decide the result; with lam = 0 the form and place of the absent term do not count."""
        fields = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if not f.metadata.get("where")
        }
        if self.lam == 0:
            fields |= {
                "lam": 0.0,
                "uniformity": CHOICES["uniformity"][0],
                "pool": CHOICES["pool"][0],
            }
        return fields

    @property
    def hash8(self) -> str:
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]


def _preset(
    name: str, data: str, size: int, patch: int, vit: tuple, decoder: tuple, **fields: Any
) -> Config:
    dim, depth, heads = vit
    ddim, ddepth, dheads = decoder
    return Config(name, data, size, patch, dim, depth, heads, ddim, ddepth, dheads, **fields)


MICRO, TINY, BASE, LARGE = (96, 4, 3), (192, 12, 3), (768, 12, 12), (1024, 24, 16)


# A small study that two CPU cores finish in minutes; the rate is ours, chosen on the validation split. bf16 takes half
# the time of fp32 where the CPU has it, and after 3 epochs the losses differ by 1e-4 of their value.
CPU_STUDY: dict[str, Any] = dict(
    epochs=20, warmup_epochs=2, batch_size=256, base_lr=1e-3, precision="bf16"
)


# CIFAR-10 of Table 1: epochs, batch, weight decay from Section 5.1; the rest as the authors told it (design.md).
PAPER_CIFAR: dict[str, Any] = dict(
    epochs=2000,
    warmup_epochs=200,
    batch_size=4096,
    base_lr=1.5e-4,
    normalize="unit",
    precision="bf16",
    eval_every=20,
    checkpoint_every=20,
)


# ImageNet-100 of Table 1: epochs and batch from Section 5.1, the rest is MAE's default (He et al. 2021, Table 8).
PAPER_IMAGENET: dict[str, Any] = dict(
    epochs=200, warmup_epochs=40, batch_size=256, base_lr=1.5e-4, norm_pix_loss=True,
    augment="resized_crop", precision="bf16", eval_every=5, workers=8,
)  # fmt: skip


PRESETS: dict[str, Config] = {
    c.preset: c
    for c in (
        _preset("digits-vit-nano", "digits", 8, 2, (64, 3, 4), (32, 1, 2),
                epochs=60, warmup_epochs=5, batch_size=64, base_lr=8e-3, eval_every=2),
        _preset("fashion-vit-micro", "fashion_mnist", 28, 4, MICRO, (64, 1, 4), **CPU_STUDY),
        _preset("cifar10-vit-micro", "cifar10", 32, 4, MICRO, (64, 1, 4), **CPU_STUDY),
        _preset("cifar10-vit-tiny", "cifar10", 32, 2, TINY, (192, 4, 3), **PAPER_CIFAR),
        _preset("cifar10-vit-base", "cifar10", 32, 2, BASE, (192, 4, 3), **PAPER_CIFAR),
        _preset("imagenet100-vit-base", "folder:", 224, 16, BASE, (512, 8, 16), **PAPER_IMAGENET),
        _preset("imagenet100-vit-large", "folder:", 224, 16, LARGE, (512, 8, 16), **PAPER_IMAGENET),
    )
}  # fmt: skip


def check_type(name: str, value: Any, kinds: str) -> Any:
    """`value` if it is one of `kinds` ("float", "int | None", "tuple[str, ...]"...), an int widened where a float
    is due; else InputError."""
    allowed = {k.split("[")[0].strip() for k in kinds.split("|")}
    if isinstance(value, list) and "tuple" in allowed:
        value = tuple(value)
    kind = "None" if value is None else type(value).__name__
    if kind == "int" and "float" in allowed and "int" not in allowed:
        return float(value)
    if kind not in allowed:
        hint = "; with papermill write True or False" if "bool" in allowed else ""
        raise InputError(
            f"{name} must be {' or '.join(sorted(allowed))}, got the {kind} {value!r}{hint}"
        )
    if "[str" in kinds and (odd := [v for v in value or () if not isinstance(v, str)]):
        raise InputError(f"{name} must hold str only, got the {type(odd[0]).__name__} {odd[0]!r}")
    return value


def resolve(preset: str = "digits-vit-nano", /, **overrides: Any) -> Config:
    """The preset's Config with single fields overridden (None keeps the preset's value), checked.

    With other `epochs`, the warm-up keeps its share of them. Raises InputError, one line, for an unknown preset or
    field, a wrong type or an impossible value.
    """
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}: {did_you_mean(str(preset), list(PRESETS))}")
    kinds = {
        f.name: str(f.type.__name__ if isinstance(f.type, type) else f.type)
        for f in dataclasses.fields(Config)
    }
    changes = {}
    for name, value in overrides.items():
        if name not in kinds or name == "preset":
            raise InputError(
                f"unknown parameter {name!r}: {did_you_mean(name, [k for k in kinds if k != 'preset'])}"
            )
        if value is not None:
            changes[name] = check_type(name, value, kinds[name])
    if "epochs" in changes and "warmup_epochs" not in changes:
        base = PRESETS[preset]
        changes["warmup_epochs"] = base.warmup_epochs * changes["epochs"] / base.epochs
    config = dataclasses.replace(PRESETS[preset], **changes)
    validate(config)
    return config


def validate(c: Config) -> None:
    """Raises InputError unless every field of c can be run."""
    for name, choices in CHOICES.items():
        if (value := getattr(c, name)) not in choices:
            raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    kind, _, path = c.data.partition(":")
    if kind not in DATASETS or (kind != "folder" and path):
        raise InputError(
            f"unknown data {c.data!r}: expected digits, fashion_mnist, cifar10 or folder:/path/to/images"
        )
    if kind == "folder" and not path:
        raise InputError(
            f"preset {c.preset} needs its images: set data to folder:/path, which holds train/ and val/"
        )
    for name in ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "decoder_dim", "decoder_depth",
                 "decoder_heads", "epochs", "batch_size", "accum_steps", "eval_every",
                 "checkpoint_every"):  # fmt: skip
        if getattr(c, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(c, name)}")
    for name in ("lam", "base_lr", "weight_decay", "warmup_epochs", "seed", "snapshots",
                 "workers"):  # fmt: skip
        if not (math.isfinite(getattr(c, name)) and getattr(c, name) >= 0):
            raise InputError(f"{name} must be finite and at least 0, got {getattr(c, name)}")
    if c.seed >= 2**63:
        raise InputError(f"seed must be below 2**63, got {c.seed}")
    if len(set(c.classes)) != len(c.classes) or len(c.classes) == 1:
        raise InputError(
            f"classes must name at least 2 different classes, or none for all, got {list(c.classes)}"
        )
    if c.image_size % c.patch_size:
        raise InputError(
            f"patch_size {c.patch_size} does not divide image_size {c.image_size}; choose a divisor"
        )
    for dim, heads in (("embed_dim", "num_heads"), ("decoder_dim", "decoder_heads")):
        if getattr(c, dim) % getattr(c, heads) or getattr(c, dim) % 4:
            raise InputError(
                f"{dim} {getattr(c, dim)} must be a multiple of {heads} {getattr(c, heads)} and of 4 (positions)"
            )
    if c.batch_size % c.accum_steps or c.batch_size // c.accum_steps < 2:
        raise InputError(
            f"batch_size {c.batch_size} must be a multiple of accum_steps {c.accum_steps} and leave at least 2 images"
        )
    if c.warmup_epochs > c.epochs:
        raise InputError(f"warmup_epochs {c.warmup_epochs} must not exceed epochs {c.epochs}")
    num_visible(c.num_patches, c.mask_ratio)
