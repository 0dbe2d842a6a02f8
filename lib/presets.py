"""What a run is made of: Config, the presets, and the checks before anything starts."""

import dataclasses
import hashlib
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from lib.errors import InputError, check_choice, did_you_mean
from lib.losses import UNIFORMITY_FORMS
from lib.masking import num_visible

REPO = Path(__file__).resolve().parents[1]
DATASETS = {"digits": 1, "fashion_mnist": 1, "cifar10": 3, "folder": 3}  # name: channels


REQUIRED = dataclasses.MISSING

# How a run is trained and kept: nothing that one needs to know to read its weights.
OF_TRAINING = (
    "warmup_epochs", "batch_size", "base_lr", "augment", "weight_decay", "accum_steps",
    "precision", "eval_every", "snapshots",
)  # fmt: skip


def _what(default: Any, group: str, text: str, **more: Any) -> Any:
    """A field that decides the result.

    `group` and `text` are its place and its line in every help. `more` may hold `low` (the least
    value), `below` (a bound that is not reached) or `choices`: `help_of` says them, and `validate`
    checks them, of mask_ratio by `num_visible`.
    """
    return field(default=default, metadata={"group": group, "help": text, **more})


def _data(default: Any, text: str, **more: Any) -> Any:
    """A field that chooses the images. The run's identity holds their fingerprint instead."""
    return _what(default, "images", text, data=True, **more)


def _where(default: Any, group: str, text: str, **more: Any) -> Any:
    """A field that says where or how to run, not what: it is no part of the run's identity."""
    return _what(default, group, text, where=True, **more)


@dataclass(frozen=True)
class Config:
    """Everything that decides a pretraining run, and where and how to run it.

    Sources of the defaults are given with each preset.
    """

    preset: str = _what(
        REQUIRED, "what to run", "name of the settings that the other options change"
    )
    data: str = _data(REQUIRED, "images: digits, fashion_mnist, cifar10 or folder:/path")
    image_size: int = _what(
        REQUIRED, "images", "pixels of a side to which images are resized", low=1
    )
    patch_size: int = _what(REQUIRED, "model", "pixels of a side of a patch", low=1)
    embed_dim: int = _what(REQUIRED, "model", "width of the encoder", low=1)
    depth: int = _what(REQUIRED, "model", "blocks of the encoder", low=1)
    num_heads: int = _what(REQUIRED, "model", "attention heads of the encoder", low=1)
    decoder_dim: int = _what(REQUIRED, "model", "width of the decoder", low=1)
    decoder_depth: int = _what(REQUIRED, "model", "blocks of the decoder", low=1)
    decoder_heads: int = _what(REQUIRED, "model", "attention heads of the decoder", low=1)
    epochs: int = _what(REQUIRED, "optimiser", "passes over the training images", low=1)
    warmup_epochs: float = _what(REQUIRED, "optimiser", "epochs in which the rate rises", low=0)
    batch_size: int = _what(REQUIRED, "optimiser", "images a step, over all processes", low=1)
    base_lr: float = _what(REQUIRED, "optimiser", "peak learning rate per 256 images", low=0)
    imported: str = _what(
        "", "what to run", "name of a training whose checkpoint files were imported, if any"
    )
    classes: tuple[str, ...] = _data(
        (), "names of the classes to use, with commas between; all if empty"
    )
    augment: str = _what(
        "none",
        "images",
        "random change of training images",
        choices=("none", "flip", "crop", "resized_crop"),
    )
    normalize: str = _what(
        "dataset",
        "images",
        "pixels scaled by mean and deviation of all, or to [-1, 1]",
        choices=("dataset", "unit"),
    )
    mask_ratio: float = _what(0.75, "loss", "share of removed patches", low=0, below=1)
    norm_pix_loss: bool = _what(False, "loss", "predict patches normalised one by one")
    lam: float = _what(0.001, "loss", "weight of the uniformity term (0 is MAE)", low=0)
    uniformity: str = _what("spectral", "loss", "uniformity term", choices=UNIFORMITY_FORMS)
    pool: str = _what(
        "token",
        "loss",
        "uniformity of class token or patch mean",
        choices=("token", "avg"),
    )
    weight_decay: float = _what(0.05, "optimiser", "weight decay of matrices in AdamW", low=0)
    accum_steps: int = _what(1, "optimiser", "parts of a batch that are computed one by one", low=1)
    precision: str = _what(
        "fp32", "optimiser", "format of matrix products", choices=("fp32", "bf16", "fp64")
    )
    seed: int = _what(
        0, "what to run", "number that decides weights, order, masks and crops", low=0
    )
    eval_every: int = _what(1, "measurements", "epochs between two measurements", low=1)
    snapshots: int = _what(
        8, "measurements", "equal parts of training after each of which weights are kept", low=0
    )
    classes_file: str = _data("", "text file of class names, one a line (# begins a comment)")
    data_dir: str = _where("", "images", "folder of torchvision's files, data/ if empty")
    download: bool = _where(False, "images", "let torchvision fetch its files")
    stream: str = _where(
        "auto",
        "images",
        "whether a folder is decoded batch by batch (auto: above 4 GiB)",
        choices=("auto", "always", "never"),
    )
    workers: int = _where(2, "images", "decoding processes of a streamed folder", low=0)
    device: str = _where("auto", "machine", "where to compute: auto, cpu, cuda or cuda:N")
    compile: bool = _where(False, "machine", "compile the blocks with torch.compile")
    shard: bool = _where(
        False, "machine", "each process keeps a part of the weights (FSDP2), not all (DDP)"
    )
    checkpoint_every: int = _where(1, "machine", "epochs between two checkpoints", low=1)

    @property
    def channels(self) -> int:
        return DATASETS[self.data.split(":")[0]]

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def peak_lr(self) -> float:
        return self.base_lr * self.batch_size / 256

    def snapshot_epochs(self) -> list[int]:
        """The epochs after which a training keeps its weights, 0 among them; none if it keeps none.

        They cut the training into `snapshots` equal parts, as nearly as whole epochs allow.
        """
        parts = self.snapshots
        return sorted({round(self.epochs * k / parts) for k in range(parts + 1)} if parts else ())

    @property
    def data_fields(self) -> dict[str, Any]:
        """The arguments of `lib.data.load` that give this run's images."""
        names = ("data", "image_size", "classes", "classes_file", "data_dir", "download", "stream")
        return {name: getattr(self, name) for name in names}

    def identity(self) -> dict[str, Any]:
        """The fields that decide the result, but for the images, which have a fingerprint.

        With lam = 0 the form and place of the absent term do not count. The name of an imported
        training stands for the fields in OF_TRAINING, which are not ours to know.
        """
        kinds = field_types()
        fields = {}
        for f in dataclasses.fields(self):
            if not (f.metadata.get("where") or f.metadata.get("data")):
                value = getattr(self, f.name)
                fields[f.name] = float(value) if kinds[f.name] is float else value
        if self.lam == 0:
            absent = {"lam": 0.0, "uniformity": UNIFORMITY_FORMS[0], "pool": CHOICES["pool"][0]}
            fields |= absent
        for name in OF_TRAINING if self.imported else ("imported",):
            del fields[name]
        return fields

    def hash8(self, fingerprint: str) -> str:
        """Eight hex digits that name this run on the images with this fingerprint."""
        decides = json.dumps([self.identity(), fingerprint], sort_keys=True)
        return hashlib.sha256(decides.encode()).hexdigest()[:8]


def _preset(
    name: str, data: str, size: int, patch: int, vit: tuple, decoder: tuple, **fields: Any
) -> Config:
    dim, depth, heads = vit
    ddim, ddepth, dheads = decoder
    return Config(name, data, size, patch, dim, depth, heads, ddim, ddepth, dheads, **fields)


MICRO, TINY, BASE, LARGE = (96, 4, 3), (192, 12, 3), (768, 12, 12), (1024, 24, 16)


# A small study that two CPU cores finish in minutes. The rate is ours, chosen on the validation
# part. bf16 takes half the time of fp32 where the CPU has it; after 3 epochs the losses differ by
# 1e-4 of their value.
CPU_STUDY: dict[str, Any] = dict(
    epochs=20, warmup_epochs=2, batch_size=256, base_lr=1e-3, precision="bf16"
)


# The uniformity term of both paper recipes is the authors' released code with its default
# coefficient. The paper prints 0.001 for Eq. 9, another term in another unit (docs/theory.md).
RELEASED: dict[str, Any] = dict(uniformity="released", lam=0.01)


# CIFAR-10 of Table 1: epochs, batch and weight decay from Section 5.1. The rest (patch 2, decoder
# 192 wide and 4 deep, rate, 200 warm-up epochs, no augmentation) is what the authors say they used.
PAPER_CIFAR: dict[str, Any] = dict(
    epochs=2000,
    warmup_epochs=200,
    batch_size=4096,
    base_lr=1.5e-4,
    normalize="unit",
    precision="bf16",
    eval_every=20,
    checkpoint_every=20,
    **RELEASED,
)


# ImageNet-100 of Table 1: epochs and batch from Section 5.1; the rest is MAE's default (He et al.
# 2021, Table 8).
PAPER_IMAGENET: dict[str, Any] = dict(
    epochs=200, warmup_epochs=40, batch_size=256, base_lr=1.5e-4, norm_pix_loss=True,
    augment="resized_crop", precision="bf16", eval_every=5, workers=8, **RELEASED,
)  # fmt: skip


PRESETS: dict[str, Config] = {
    c.preset: c
    for c in (
        _preset("digits-vit-nano", "digits", 8, 2, (64, 3, 4), (32, 1, 2),
                epochs=60, warmup_epochs=5, batch_size=64, base_lr=8e-3, eval_every=2,
                checkpoint_every=10),  # a checkpoint takes a third of an epoch
        _preset("fashion-vit-micro", "fashion_mnist", 28, 4, MICRO, (64, 1, 4), **CPU_STUDY),
        _preset("cifar10-vit-micro", "cifar10", 32, 4, MICRO, (64, 1, 4), **CPU_STUDY),
        _preset("cifar10-vit-tiny", "cifar10", 32, 2, TINY, (192, 4, 3), **PAPER_CIFAR),
        _preset("cifar10-vit-base", "cifar10", 32, 2, BASE, (192, 4, 3), **PAPER_CIFAR),
        _preset("tiny-imagenet-vit-micro", "folder:", 64, 8, MICRO, (64, 1, 4),
                **(CPU_STUDY | {"epochs": 40, "warmup_epochs": 4})),
        _preset("imagenet100-vit-base", "folder:", 224, 16, BASE, (512, 8, 16), **PAPER_IMAGENET),
        _preset("imagenet100-vit-large", "folder:", 224, 16, LARGE, (512, 8, 16), **PAPER_IMAGENET),
    )
}  # fmt: skip


@cache
def field_types() -> dict[str, Any]:
    """The type of every field of Config."""
    return typing.get_type_hints(Config)


def check_type(name: str, value: Any, kind: Any) -> Any:
    """`value` as the type `kind`, or InputError in one line.

    `kind` is int, float, bool, str, list, dict, None, a union of such, or list[...], dict[...] or
    tuple[..., ...] of them; elements are checked and converted like scalars. An int is widened
    where a float is due, a list becomes a tuple where one is due, and the text of a number becomes
    the number: YAML reads 1e-2 as text.
    """
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    for option in options:
        converted = _converted(name, value, option)
        if converted is not _REFUSED:
            return converted
    wanted = " or ".join(sorted(_type_name(option) for option in options))
    given = "None" if value is None else type(value).__name__
    raise InputError(f"{name} must be {wanted}, got the {given} {value!r}{_hint(value, options)}")


_REFUSED = object()


def _type_name(kind: Any) -> str:
    plain = kind in (None, types.NoneType)
    return "None" if plain else getattr(kind, "__name__", str(kind)).split(".")[-1]


def _hint(value: Any, options: tuple[Any, ...]) -> str:
    if not isinstance(value, str):
        return ""
    if bool in options:
        return "; with papermill write True or False"
    if any((typing.get_origin(option) or option) in (list, dict, tuple) for option in options):
        return "; with papermill give lists and dicts with -y, as in -y 'seeds: [0, 1]'"
    return ""


def _converted(name: str, value: Any, kind: Any) -> Any:
    """`value` as one plain or generic type, or _REFUSED."""
    origin, elements = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in (None, types.NoneType):
        return None if value is None else _REFUSED
    if origin is float:
        return _number(value)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(check_type(f"{name}[{i}]", v, elements[0]) for i, v in enumerate(value))
    if origin is list and isinstance(value, list | tuple):
        return [
            check_type(f"{name}[{i}]", v, elements[0]) if elements else v
            for i, v in enumerate(value)
        ]
    if origin is dict and isinstance(value, dict):
        return {
            k: check_type(f"{name}[{k!r}]", v, elements[1]) if elements else v
            for k, v in value.items()
        }
    if type(value) is int and abs(value) >= 2**63:
        raise InputError(f"{name} must be below 2**63, got {value}")
    return value if type(value) is origin else _REFUSED


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return _REFUSED
    try:
        return float(value)
    except (ValueError, OverflowError):
        return _REFUSED


DEFAULT_PRESET = "digits-vit-nano"


def resolve(preset: str = DEFAULT_PRESET, /, **overrides: Any) -> Config:
    """The preset's Config with single fields overridden (None keeps the preset's value), checked.

    With other `epochs`, the warm-up keeps its share of them. Raises InputError, one line, for an
    unknown preset or field, a wrong type or an impossible value.
    """
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}: {did_you_mean(str(preset), list(PRESETS))}")
    kinds = {name: kind for name, kind in field_types().items() if name != "preset"}
    changes = {}
    for name, value in overrides.items():
        if name not in kinds:
            raise InputError(f"unknown parameter {name!r}: {did_you_mean(name, list(kinds))}")
        if value is not None:
            changes[name] = check_type(name, value, kinds[name])
    if "epochs" in changes and "warmup_epochs" not in changes:
        base = PRESETS[preset]
        changes["warmup_epochs"] = base.warmup_epochs * changes["epochs"] / base.epochs
    config = dataclasses.replace(PRESETS[preset], **changes)
    validate(config)
    _check_effect(config, changes)
    return config


CHOICES: dict[str, tuple[str, ...]] = {
    f.name: f.metadata["choices"] for f in dataclasses.fields(Config) if "choices" in f.metadata
}
POOLS = CHOICES["pool"]  # a feature of an image: its class token, or the mean of its patch tokens


def help_of(name: str) -> str:
    """What a field of Config is and which values it takes, in one line for people."""
    about = next(f for f in dataclasses.fields(Config) if f.name == name).metadata
    choices = tuple(PRESETS) if name == "preset" else about.get("choices")
    if choices:
        return f"{about['help']}: {', '.join(choices[:-1])} or {choices[-1]}"
    if "below" in about:
        return f"{about['help']}, at least {about['low']} and below {about['below']}"
    if "low" in about:
        return f"{about['help']}, at least {about['low']}"
    return about["help"]


def validate(c: Config) -> None:
    """Raises InputError unless every field of c can be run."""
    for name, choices in CHOICES.items():
        check_choice(name, getattr(c, name), choices)
    for f in dataclasses.fields(Config):
        if "low" in f.metadata and f.name != "mask_ratio":  # num_visible checks it, below
            _check_low(f.name, getattr(c, f.name), f.metadata["low"])
    _validate_data(c)
    _validate_shapes(c)
    _validate_budget(c)
    num_visible(c.num_patches, c.mask_ratio)


def _check_low(name: str, value: float, low: float) -> None:
    if not (math.isfinite(value) and value >= low):
        finite = "finite and " if field_types()[name] is float else ""
        raise InputError(f"{name} must be {finite}at least {low}, got {value}")


def _validate_data(c: Config) -> None:
    kind, _, path = c.data.partition(":")
    if kind not in DATASETS or (kind != "folder" and path):
        wanted = "expected digits, fashion_mnist, cifar10 or folder:/path/to/images"
        if os.path.isdir(os.path.expanduser(c.data)):
            wanted = f"did you mean folder:{c.data}?"
        raise InputError(f"unknown data {c.data!r}: {wanted}")
    if kind == "folder" and not path:
        raise InputError(
            f"preset {c.preset} needs its images: set data to folder:/path, which holds train/ "
            "and val/"
        )
    if len(set(c.classes)) != len(c.classes) or len(c.classes) == 1:
        raise InputError(
            "classes must name at least 2 different classes, or none for all, "
            f"got {list(c.classes)}"
        )
    if c.classes and c.classes_file:
        raise InputError("classes and classes_file were both given; give one of them")


def _check_effect(c: Config, given: Mapping[str, Any]) -> None:
    """Raises InputError for a field that was given by name and that this run would not heed."""
    kind = c.data.partition(":")[0]
    unused = []
    if kind in ("digits", "folder"):  # torchvision has no files of them
        unused += [name for name in ("data_dir", "download") if getattr(c, name)]
    if kind in ("digits", "fashion_mnist") and c.stream == "always":
        unused += ["stream"]
    for name in unused:
        if name in given:
            raise InputError(
                f"{name} {given[name]} has no effect on data {kind}; leave it out, or change data"
            )


def _validate_shapes(c: Config) -> None:
    if c.image_size % c.patch_size:
        raise InputError(
            f"patch_size {c.patch_size} does not divide image_size {c.image_size}; choose a divisor"
        )
    if c.norm_pix_loss and c.patch_size == 1 and c.channels == 1:
        raise InputError(
            "norm_pix_loss divides by the deviation within a patch, and patch_size 1 leaves one "
            "grey value; use a larger patch_size or norm_pix_loss False"
        )
    if c.augment == "crop" and c.image_size < 8:
        raise InputError(
            f"augment crop moves an image by an eighth of its side, which of image_size "
            f"{c.image_size} is less than a pixel; use at least 8, or another augment"
        )
    for dim, heads in (("embed_dim", "num_heads"), ("decoder_dim", "decoder_heads")):
        if getattr(c, dim) % getattr(c, heads) or getattr(c, dim) % 4:
            raise InputError(
                f"{dim} {getattr(c, dim)} must be a multiple of {heads} {getattr(c, heads)} "
                "and of 4 (positions)"
            )


def _validate_budget(c: Config) -> None:
    if c.batch_size % c.accum_steps or c.batch_size // c.accum_steps < 2:
        raise InputError(
            f"batch_size {c.batch_size} must be a multiple of accum_steps {c.accum_steps} and "
            "leave at least 2 images"
        )
    if c.warmup_epochs > c.epochs:
        raise InputError(f"warmup_epochs {c.warmup_epochs} must not exceed epochs {c.epochs}")
