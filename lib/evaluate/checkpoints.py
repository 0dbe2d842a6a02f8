"""Checkpoint files of the original MAE code and of the authors' release, as our models.

Both save {"model": tensors by name, "optimizer", "epoch", "scaler", "args"}; the files that MAE
gives to the public hold {"model": the encoder's tensors}. Nothing in such a file can run: tensors,
plain types and an `argparse.Namespace` are read, anything else is refused.
"""

import argparse
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from lib.errors import InputError
from lib.models import MAE, build_encoder, sincos_positions
from lib.presets import PRESETS, Config
from lib.runs.files import load_into

ENCODER = ("cls_token", "pos_embed", "patch_embed", "blocks", "norm")
CLASSIFIER = ("fc", "fc_norm")  # the release's layer that is trained along
BESIDE = ("optimizer", "scaler", "epoch", "args")  # what training code saves with the model

# Attention heads leave no trace in the shapes: those of MAE's models by width, and of its decoder.
HEADS = {768: 12, 1024: 16, 1280: 16}
DECODER_HEADS = {512: 16}
WRAPPERS = ("module.", "_orig_mod.")  # before every name: DistributedDataParallel, torch.compile


@dataclass(frozen=True)
class Converted:
    """A checkpoint as a model.

    model: an `MAE` if the file has a decoder, else a timm VisionTransformer without a head.
    config: its architecture, with what the file says of its training (see `said`); data, rates
    and all else are those of a preset and say nothing about the file.
    said: those of mask_ratio, norm_pix_loss and epochs that the file names. args: its arguments,
    as far as they are plain values.
    reads: "token" if the file holds the release's classifier, whose feature is the class token
    through the last norm a second time; "avg" if that classifier reads the mean of patch tokens.
    notes: a line for everything that was left out or is unusual.
    """

    model: MAE | VisionTransformer
    config: Config
    said: dict[str, Any]
    args: dict[str, Any]
    reads: str | None
    notes: tuple[str, ...]

    @property
    def encoder(self) -> VisionTransformer:
        return self.model.encoder if isinstance(self.model, MAE) else self.model


def load_checkpoint(
    path: Path,
    image_size: int | None = None,
    interpolate: bool = False,
    num_heads: int | None = None,
    decoder_heads: int | None = None,
) -> Converted:
    """The model in a file such as `mae_pretrain_vit_base.pth` or `checkpoint-199.pth`, on the CPU.

    The architecture is read from the shapes, the heads from the width (`HEADS`) unless they are
    given. The positions fix the image size; with `interpolate` they are resized to `image_size`.
    Raises InputError, one line, for a file that is not of this layout, holds anything but tensors,
    plain types and an argparse.Namespace, or lacks or exceeds a tensor of the architecture.
    """
    saved = _read(path)
    args = saved.get("args")
    settings = vars(args) if isinstance(args, argparse.Namespace) else {}
    named, unwrapped = _unwrapped(_checked(saved["model"], path))
    classifier = [name for name in named if name.split(".")[0] in CLASSIFIER]
    tensors = {name: value.float() for name, value in named.items() if name not in classifier}
    config = _architecture(tensors, path, num_heads, decoder_heads)
    if interpolate and image_size is None:
        raise InputError("interpolate resizes the positions to image_size; give image_size")
    notes = unwrapped + _left_out(saved, classifier) + _unusual_positions(tensors, config)
    if image_size not in (None, config.image_size):
        tensors = _resize(tensors, config, int(image_size), interpolate, path)
        config = replace(config, image_size=int(image_size))
        notes += (f"positions interpolated to {image_size}x{image_size} pixels",)
    said = _said(settings, saved.get("epoch"), path)
    config = replace(config, **said)
    model: MAE | VisionTransformer
    if any(name in tensors for name in ("mask_token", "decoder_embed.weight")):
        model = MAE(config)
    else:
        model = build_encoder(config)
    load_into(model, _renamed(tensors, isinstance(model, MAE)), path)
    reads = ("avg" if settings.get("global_pool") else "token") if classifier else None
    plain = (str, int, float, bool, type(None))
    kept = {k: v for k, v in settings.items() if isinstance(v, plain)}
    return Converted(model.eval(), config, said, kept, reads, notes)


def _read(path: Path) -> dict[str, Any]:
    """What the file holds, checked to be {"model": ...} and what is known beside it."""
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}; give the path of a .pth file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            saved = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = found[1] if found else "something else"
        raise InputError(
            f"{path} holds {what}, which could run code; expected tensors, plain types and an "
            "argparse.Namespace: save its 'model' alone"
        ) from None
    except Exception as error:
        raise InputError(
            f"{path} cannot be read as a torch checkpoint ({type(error).__name__}); fetch it again"
        ) from None
    if not isinstance(saved, dict) or not isinstance(saved.get("model"), Mapping):
        keys = ", ".join(map(str, list(saved)[:3])) if isinstance(saved, dict) else type(saved)
        raise InputError(
            f"{path} has no 'model' (it has {keys}); expected the layout of the MAE code, "
            "{'model': tensors by name, ...}"
        )
    if unknown := sorted(set(map(str, saved)) - {"model", *BESIDE}):
        raise InputError(
            f"{path} holds {unknown[0]!r} beside the model; known are {', '.join(BESIDE)}: "
            "save {'model': ...} alone to leave it out"
        )
    return saved


def _checked(model: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """The tensors by name; InputError for anything else and for a tensor that is not finite."""
    for name, value in model.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            kind = type(value).__name__
            raise InputError(f"{path}: {name!r} of its model is a {kind}; expected a tensor")
        if not value.isfinite().all():
            raise InputError(f"{path}: {name} is not finite; the training diverged")
    return dict(model)


def _unwrapped(named: dict[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """(the tensors without a prefix that all names have from a wrapped model, a note of it)"""
    taken = ""
    while found := [w for w in WRAPPERS if named and all(n.startswith(w) for n in named)]:
        named = {name.removeprefix(found[0]): value for name, value in named.items()}
        taken += found[0]
    return named, (f"read without {taken!r} before every name",) if taken else ()


def _left_out(saved: dict[str, Any], classifier: list[str]) -> tuple[str, ...]:
    names = [name for name in BESIDE if name in saved]
    if classifier:
        names.insert(0, f"the classifier ({', '.join(sorted(classifier))})")
    return (f"read without {', '.join(names)}",) if names else ()


def _shape(tensors: dict[str, Tensor], name: str, dims: int, path: Path) -> tuple[int, ...]:
    if name not in tensors:
        raise InputError(f"{path} lacks the tensor {name}; expected a ViT of the MAE code")
    shape = tuple(tensors[name].shape)
    if len(shape) != dims:
        raise InputError(f"{path}: {name} is {shape}; expected {dims} dimensions")
    return shape


def _depth(tensors: dict[str, Tensor], blocks: str) -> int:
    found = {name.split(".")[1] for name in tensors if name.startswith(f"{blocks}.")}
    return len(found)


def _grid(tensors: dict[str, Tensor], name: str, path: Path) -> int:
    positions = _shape(tensors, name, 3, path)[1] - 1
    grid = math.isqrt(max(positions, 0))
    if grid * grid != positions or grid < 1:
        raise InputError(
            f"{path}: {name} has {positions + 1} positions; expected a class token and a square "
            "grid of patches"
        )
    return grid


def _heads(name: str, width: int, given: int | None, known: dict[int, int], path: Path) -> int:
    if given is None and width not in known:
        raise InputError(f"{path}: {name} of width {width} cannot be read from it; give {name}")
    heads = known[width] if given is None else given
    if heads < 1 or width % heads:
        raise InputError(f"{name} {heads} does not divide the width {width} of {path}")
    return heads


def _architecture(
    tensors: dict[str, Tensor], path: Path, num_heads: int | None, decoder_heads: int | None
) -> Config:
    """The shapes as a Config; what is no architecture in it is that of a preset."""
    dim, channels, patch, _ = _shape(tensors, "patch_embed.proj.weight", 4, path)
    grid = _grid(tensors, "pos_embed", path)
    fields: dict[str, Any] = {
        "image_size": grid * patch,
        "patch_size": patch,
        "embed_dim": dim,
        "depth": _depth(tensors, "blocks"),
        "num_heads": _heads("num_heads", dim, num_heads, HEADS, path),
    }
    if channels != 3 or dim % 4:
        raise InputError(
            f"{path}: {channels} channels and width {dim}; expected 3 channels (RGB) and a "
            "multiple of 4"
        )
    if "decoder_embed.weight" in tensors:
        width = _shape(tensors, "decoder_embed.weight", 2, path)[0]
        if _grid(tensors, "decoder_pos_embed", path) != grid:
            raise InputError(f"{path}: encoder and decoder have positions of different images")
        fields |= {
            "decoder_dim": width,
            "decoder_depth": _depth(tensors, "decoder_blocks"),
            "decoder_heads": _heads("decoder_heads", width, decoder_heads, DECODER_HEADS, path),
        }
    elif decoder_heads is not None:
        raise InputError(
            f"decoder_heads was given, but {path} has no decoder; such a file cannot be imported, "
            f"but audited: python -m lib.evaluate --encoder {path}"
        )
    return replace(PRESETS["imagenet100-vit-base"], **fields)


def _said(settings: dict[str, Any], epoch: Any, path: Path) -> dict[str, Any]:
    """mask_ratio and norm_pix_loss of the arguments in the file, and the epochs that are done."""
    found: dict[str, Any] = {}
    if "mask_ratio" in settings:
        ratio = settings["mask_ratio"]
        if not isinstance(ratio, float | int) or not 0 <= ratio < 1:
            raise InputError(f"{path}: its args have mask_ratio {ratio!r}; expected one in [0, 1)")
        found["mask_ratio"] = float(ratio)
    if "norm_pix_loss" in settings:
        found["norm_pix_loss"] = bool(settings["norm_pix_loss"])
    if epoch is not None:
        if not isinstance(epoch, int) or epoch < 0:
            raise InputError(f"{path}: its epoch is {epoch!r}; expected the number of one, from 0")
        found["epochs"] = epoch + 1
    return found


def _unusual_positions(tensors: dict[str, Tensor], config: Config) -> tuple[str, ...]:
    """A line for each table of positions that is not MAE's fixed sine-cosine one."""
    grid, lines = config.image_size // config.patch_size, []
    for name in ("pos_embed", "decoder_pos_embed"):
        if name in tensors and tensors[name].shape[-1] % 4 == 0:
            fixed = sincos_positions(tensors[name].shape[-1], grid)
            if not torch.allclose(tensors[name], fixed, rtol=0, atol=1e-4):
                lines.append(f"{name} is not MAE's fixed sine-cosine table; the file's own is used")
    return tuple(lines)


def _resize(
    tensors: dict[str, Tensor], config: Config, image_size: int, interpolate: bool, path: Path
) -> dict[str, Tensor]:
    """The tensors with positions of another image size."""
    old, patch = config.image_size, config.patch_size
    if not interpolate:
        raise InputError(
            f"{path} has positions of {old}x{old} pixels, image_size is {image_size}; use {old}, "
            "or set interpolate to resize the positions"
        )
    if image_size < patch or image_size % patch:
        raise InputError(f"image_size {image_size} is no multiple of the patch size {patch}")
    new_size, old_size = [image_size // patch] * 2, [old // patch] * 2
    resized: dict[str, Tensor] = {
        name: resample_abs_pos_embed(tensors[name], new_size, old_size)
        for name in ("pos_embed", "decoder_pos_embed")
        if name in tensors
    }
    return {**tensors, **resized}


def _renamed(tensors: dict[str, Tensor], full: bool) -> dict[str, Tensor]:
    """MAE's names as ours: the encoder's are timm's, and in `MAE` they stand under `encoder.`.

    Names of neither part stay as they are, so that loading reports them.
    """
    if not full:
        return tensors
    return {
        f"encoder.{name}" if name.split(".")[0] in ENCODER else name: tensor
        for name, tensor in tensors.items()
    }
