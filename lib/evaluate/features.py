"""Features of frozen encoders: of any function of images, and of a run, computed once and kept."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lib.compute.device import pick_device
from lib.data import Dataset, Split, load, validation_mask
from lib.data.datasets import Normalization
from lib.masking import keep_all
from lib.presets import POOLS, Config
from lib.runs.cache import explain_new_result, kept_path
from lib.runs.files import load_weights, save_weights
from lib.runs.folder import Run
from lib.runs.progress import BAR_AFTER, progress

if TYPE_CHECKING:
    from lib.models import MAE

SPLITS = ("train", "validation", "test")
VERSION = 1  # of this file: raise it when the same inputs would give other features

# A frozen encoder: uint8 images (B, C, H, W) on the CPU -> features (B, D) by name.
Encoder = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Features:
    """Frozen features x[name][split] (N, D), float32, and labels y[split] (N,), int64.

    Splits are "train", "validation" (held out of the training images) and "test".
    """

    x: dict[str, dict[str, Tensor]]
    y: dict[str, Tensor]


def encode(encoder: Encoder, data: Dataset, batch_size: int = 100, workers: int = 0) -> Features:
    """The features of all images of `data`, whole and unaugmented, under any frozen encoder.

    100 images at a time stay in a CPU's cache: 500 take 1.4 times as long with cifar10-vit-micro.
    `workers` processes decode a streamed folder. What takes longer than 5 s shows its progress.
    """
    with progress(len(data.train) + len(data.test), name="features", delay=BAR_AFTER) as bar:

        def run_through(split: Split) -> dict[str, Tensor]:
            order = list(torch.arange(len(split)).split(batch_size))
            parts: dict[str, list[Tensor]] = {}
            for images in data.batches(split, order, workers=workers):
                for name, x in encoder(images).items():
                    parts.setdefault(name, []).append(x.float().cpu())
                bar.update(len(images))
            return {name: torch.cat(p) for name, p in parts.items()}

        train, test = run_through(data.train), run_through(data.test)
    held = validation_mask(data.train.labels)

    def split(of_train: Tensor, of_test: Tensor) -> dict[str, Tensor]:
        return {"train": of_train[~held], "validation": of_train[held], "test": of_test}

    y = split(data.train.labels, data.test.labels)
    return Features({name: split(train[name], test[name]) for name in train}, y)


def mae_encoder(model: "MAE", config: Config, normalization: Normalization) -> Encoder:
    """The encoder of an MAE, in float32: class token "token" and mean of patch tokens "avg"."""
    from lib.models import pool_tokens

    device = pick_device(config.device)
    model = model.to(device).eval()

    @torch.no_grad()
    def encoder(images: Tensor) -> dict[str, Tensor]:
        x = normalization(images.to(device))
        latent = model.encode(x, keep_all(len(x), config.num_patches, device))
        return {pool: pool_tokens(latent, pool) for pool in POOLS}

    return encoder


def kept_features(
    folder: Path,
    what: str,
    settings: dict[str, Any],
    content: dict[str, Any],
    compute: Callable[[], Features],
) -> Features:
    """The result of `compute`, from a file of `folder` if it is there (see `lib.runs.cache`)."""
    content = {**content, "features_version": VERSION}
    path = kept_path(folder, settings, content, "safetensors")
    if not path.is_file():
        explain_new_result(path, what)
        save_weights(path, _to_file(compute()), {**settings, **content})
    return _from_file(load_weights(path))


def _to_file(features: Features) -> dict[str, Tensor]:
    tensors = {f"labels/{split}": y for split, y in features.y.items()}
    for name, splits in features.x.items():
        tensors |= {f"{name}/{split}": x for split, x in splits.items()}
    return tensors


def _from_file(tensors: dict[str, Tensor]) -> Features:
    features = Features({}, {})
    for key, tensor in tensors.items():
        name, split = key.rsplit("/", 1)
        target = features.y if name == "labels" else features.x.setdefault(name, {})
        target[split] = tensor
    return features


def as_trained(run: Run, data: Dataset | None = None) -> Dataset:
    """`Run.as_trained` of `data`, or of the images that the run's config names."""
    return run.as_trained(data or load(**run.config.data_fields))


def features(run: Run, data: Dataset | None = None, epoch: int | None = None) -> Features:
    """Features of a run's encoder (after `epoch`, if given): "token" and "avg", computed once.

    Raises InputError if `data` are not the images that the run was trained on.
    """
    config, images = run.config, as_trained(run, data)

    def compute() -> Features:
        normalization = images.normalization(config.normalize)
        encoder = mae_encoder(run.load_model(epoch), config, normalization)
        return encode(encoder, images, workers=config.workers)

    content = {"weights": run.weights_digest(epoch), "images": images.fingerprint}
    what = f"features of {run.folder.name}"
    return kept_features(run.folder / "features", what, {"epoch": epoch}, content, compute)
