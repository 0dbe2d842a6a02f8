"""Any frozen encoder by name: a run of ours, a timm model, a checkpoint file, or a function.

Every encoder brings its own transform: what it sees is what its authors evaluate it on.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from lib.compute.device import pick_device, settle_precision
from lib.data import Normalization
from lib.errors import InputError, check_choice, did_you_mean
from lib.evaluate.checkpoints import load_checkpoint
from lib.runs.cache import cache_key
from lib.runs.files import digest
from lib.runs.folder import imported_from, outputs

CHECKPOINT_SUFFIXES = (".pth", ".pt", ".bin", ".tar")
# Mean and std of the images of a checkpoint file, which does not say: as in the MAE code, or
# pixels to [-1, 1].
NORMALIZE: dict[str, dict[str, Any]] = {
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "unit": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
}

ByName = dict[str, Tensor]  # features (B, D) by name


@dataclass(frozen=True)
class FrozenEncoder:
    """A frozen encoder and what it sees.

    function: normalised images (B, C, H, W) on `device` -> features (B, D) by name: "token" (class
    token), "avg" (mean of patch tokens), "pooled" (the model's own, if it is another).
    transform: a picture -> uint8 (C, S, S) with S = image_size. digest: of weights and
    transform; kept features belong to it. notes: what a person should know, a line each.
    """

    name: str
    function: Callable[[Tensor], ByName]
    transform: Callable[[Image.Image], Tensor]
    normalization: Normalization
    digest: str
    image_size: int
    device: torch.device
    precision: str = "fp32"
    notes: tuple[str, ...] = ()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> ByName:
        """uint8 (B, C, S, S), as `transform` gives them -> float32 features (B, D) by name."""
        x = self.normalization(images.to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            found = self.function(x)
        return {name: f.float() for name, f in found.items()}

    def at(self, precision: str) -> "FrozenEncoder":
        """The same encoder with products in "fp32" or "bf16" (see `settle_precision`)."""
        settled, why = settle_precision(precision, self.device)
        return replace(self, precision=settled, notes=self.notes + ((why,) if why else ()))


@dataclass(frozen=True)
class CheckpointOptions:
    """What a checkpoint file does not say (see `lib.evaluate.checkpoints.load_checkpoint`)."""

    image_size: int | None = None
    interpolate: bool = False
    num_heads: int | None = None
    decoder_heads: int | None = None
    normalize: str = "imagenet"  # mean and std of ImageNet, or "unit": pixels to [-1, 1]


def frozen_encoder(
    spec: str, device: str = "auto", options: CheckpointOptions | None = None
) -> FrozenEncoder:
    """The encoder that `spec` names, after an optional "label=".

    - "run:NAME" or the folder of a finished run of this repository;
    - "local-dir:/folder" as timm saves it, or a timm name such as "vit_base_patch16_224.mae",
      whose weights timm downloads;
    - "untrained:NAME": a timm model with random weights, drawn with seed 0;
    - a file of the MAE code or of the authors' release, such as "checkpoint-199.pth". `options`
      say what such a file does not.

    Raises InputError, one line, for what is none of these or cannot be loaded.
    """
    label, rest = _split_label(spec)
    path = _path(rest.removeprefix("run:"))
    folder = outputs() / "runs" / path if rest.startswith("run:") else path
    if is_checkpoint(spec):
        encoder = _of_checkpoint(path, pick_device(device), options or CheckpointOptions())
    elif options is not None:
        raise InputError(f"{rest} is no checkpoint file; its size and heads are its own")
    elif rest.startswith("run:") or folder.is_dir():
        encoder = _of_run(folder, pick_device(device))
    else:
        encoder = _of_timm(rest, pick_device(device))
    return replace(encoder, name=label or encoder.name)


def own_encoder(
    name: str,
    function: Callable[[Tensor], ByName],
    image_size: int,
    normalization: Normalization,
    identity: str,
    device: str = "auto",
) -> FrozenEncoder:
    """Any function of images as an encoder: normalised (B, C, S, S) -> features (B, D) by name.

    `identity` is text that changes whenever the function does; kept features belong to it. Images
    are resized to S pixels by their shorter side, bicubic, and cut to the square in the middle.
    """
    transform = _transform(_input(image_size))
    seen = [normalization.mean.tolist(), normalization.std.tolist()]
    key = cache_key({"function": identity, "size": image_size, "normalization": seen})
    return FrozenEncoder(
        name, function, transform, normalization, key, image_size, pick_device(device)
    )


def is_checkpoint(spec: str) -> bool:
    """Whether `frozen_encoder` reads a checkpoint file for `spec`."""
    name = _split_label(spec)[1]
    path = _path(name)
    return not name.startswith("run:") and (path.suffix in CHECKPOINT_SUFFIXES or path.is_file())


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))


def _split_label(spec: str) -> tuple[str, str]:
    label, found, rest = spec.partition("=")
    if _path(spec).is_file():  # a file's own name may hold "="
        return "", spec
    if found and label and rest and not set(label) & set("/:"):
        return label, rest
    return "", spec


# ---- where encoders come from --------------------------------------------------------------------


def _of_run(folder: Path, device: torch.device) -> FrozenEncoder:
    if not (folder / "result.json").is_file():
        raise InputError(
            f"{folder} is no finished run; give run:NAME of a folder in {outputs() / 'runs'}, or "
            "local-dir:PATH for a model that timm saved"
        )
    encoder = _of_timm(f"local-dir:{folder / 'encoder'}", device, name=folder.name)
    source = imported_from(folder)
    return replace(encoder, notes=(source,)) if source else encoder


def _of_checkpoint(path: Path, device: torch.device, options: CheckpointOptions) -> FrozenEncoder:
    check_choice("normalize", options.normalize, list(NORMALIZE))
    found = load_checkpoint(
        path,
        options.image_size,
        options.interpolate,
        options.num_heads,
        options.decoder_heads,
    )
    model, size = found.encoder, found.config.image_size
    # At 224 pixels as the MAE code evaluates: resized to 256, then the middle.
    crop_pct = 0.875 if size == 224 else 1.0
    config = {**_input(size, crop_pct), **NORMALIZE[options.normalize]}

    def function(x: Tensor) -> ByName:
        tokens = model.forward_features(x)
        features = {"token": tokens[:, 0], "avg": tokens[:, 1:].mean(1)}
        if found.reads == "token":  # the release's own feature passes the last norm twice
            features["pooled"] = model.norm(features["token"])
        return features

    return _frozen(path.stem, model, function, config, device, found.notes)


def _of_timm(spec: str, device: torch.device, name: str = "") -> FrozenEncoder:
    random = spec.startswith("untrained:")
    model = _create(spec.removeprefix("untrained:"), pretrained=not random)
    config = resolve_model_data_config(model)
    notes = ("its weights are random",) if random else ()
    return _frozen(name or spec, model, _timm_function(model), config, device, notes)


def _create(name: str, pretrained: bool) -> nn.Module:
    source, _, rest = name.rpartition(":")
    folder = _path(rest)
    if source == "local-dir":
        name = f"local-dir:{folder}"
        if not (folder / "config.json").is_file():
            raise InputError(f"no config.json in {folder}; local-dir: needs a folder of timm's")
    elif not source and not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models(), "see timm.list_models()")
        raise InputError(
            f"{name!r} is neither a file, nor a run (run:NAME), nor a model that timm knows: {hint}"
        )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if not pretrained:
                return timm.create_model(name, num_classes=0)
            # With its own head timm refuses weights that are not all there.
            model: Any = timm.create_model(name, pretrained=pretrained)
            model.reset_classifier(0)
            return model
    except Exception as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise InputError(
            f"timm cannot load {name} ({reason}); check the network and the files, or give "
            f"untrained:{name} for random weights"
        ) from None


def _timm_function(model: Any) -> Callable[[Tensor], ByName]:
    """Class token, mean over places and own pooled feature of a timm model, what it has of them."""
    prefix = getattr(model, "num_prefix_tokens", 0)
    has_token = any(name.startswith("cls_token") for name, _ in model.named_parameters("", False))
    unknown = has_token and not prefix  # where its class token stands among the others
    places = (1, 2) if getattr(model, "output_fmt", "NCHW") == "NHWC" else (2, 3)

    def function(x: Tensor) -> ByName:
        last = model.forward_features(x)
        features = {}
        dims = last.ndim if isinstance(last, Tensor) and not unknown else 0
        if dims == 3:
            if has_token:
                features["token"] = last[:, 0]
            features["avg"] = last[:, prefix:].mean(1)
        if dims == 4:
            features["avg"] = last.mean(places)
        features["pooled"] = model.forward_head(last, pre_logits=True)
        return features

    return function


def _input(image_size: int, crop_pct: float = 1.0) -> dict[str, Any]:
    """timm's description of a square RGB input."""
    size = (3, image_size, image_size)
    return {"input_size": size, "interpolation": "bicubic", "crop_pct": crop_pct}


def _transform(config: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
    """timm's transform for evaluation, without the normalisation: picture -> uint8 (C, S, S)."""
    return create_transform(**config, normalize=False)


def _frozen(
    name: str,
    model: nn.Module,
    function: Callable[[Tensor], ByName],
    config: dict[str, Any],
    device: torch.device,
    notes: Sequence[str],
) -> FrozenEncoder:
    """A model, its features and timm's description of its input as a FrozenEncoder."""
    weights = digest(dict(model.state_dict()))
    model = model.to(device).eval()
    transform = _transform(config)
    normalization = Normalization(torch.tensor(config["mean"]), torch.tensor(config["std"]))
    identity = {"weights": weights, "input": str(sorted(config.items())), "settings": _plain(model)}
    names = _different(function, config["input_size"], device)

    def chosen(x: Tensor) -> ByName:
        found = function(x)
        return {feature: found[feature] for feature in names}

    key = cache_key({**identity, "features": names})
    size = config["input_size"][-1]
    return FrozenEncoder(
        name, chosen, transform, normalization, key, size, device, notes=tuple(notes)
    )


def _plain(model: nn.Module) -> str:
    """Every plain setting of every module: the weights tell neither heads nor strides."""

    def is_plain(value: Any) -> bool:
        if isinstance(value, tuple):
            return all(map(is_plain, value))
        return isinstance(value, int | float | str)

    settings = []
    for name, module in model.named_modules():
        own = {k: v for k, v in vars(module).items() if is_plain(v)}
        settings.append((name, type(module).__name__, sorted(own.items())))
    return str(settings)


@torch.no_grad()
def _different(
    function: Callable[[Tensor], ByName], size: tuple[int, int, int], device: torch.device
) -> list[str]:
    """The names of the features, without a pooled one that is the class token or the mean."""
    x = torch.rand(2, *size, generator=torch.Generator().manual_seed(0)).to(device)
    found = function(x)
    own = found.get("pooled")
    others = [f for name, f in found.items() if name != "pooled"]
    if own is not None and any(f.shape == own.shape and torch.allclose(f, own) for f in others):
        del found["pooled"]
    return list(found)
