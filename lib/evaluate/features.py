"""Eq. 3: features of a frozen encoder, and the named linear protocols. Every accuracy names its protocol.

All probes train on the training split without its validation part and report both the validation accuracy, for any
choice, and the test accuracy.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lib.compute.device import pick_device
from lib.data import Dataset, load, validation_mask
from lib.masking import keep_all
from lib.models import MAE, POOLS, pool_tokens
from lib.presets import Config
from lib.runs.cache import cache_key
from lib.runs.files import load_weights, save_weights
from lib.runs.folder import Run

SPLITS = ("train", "validation", "test")


@dataclass
class Features:
    """Frozen features by pool and split, float32 (N, D), and labels (N,) by split."""

    x: dict[str, dict[str, Tensor]]
    y: dict[str, Tensor]


@torch.no_grad()
def encode(
    model: MAE, data: Dataset, split: str, config: Config, batch_size: int = 100
) -> dict[str, Tensor]:
    """Features (N, D) of full images by pool, in the order of the split ("train" or "test").

    In float32. 100 images at a time stay in a CPU's cache: 500 take 1.4 times as long with
    cifar10-vit-micro.
    """
    device = pick_device(config.device)
    model = model.to(device).eval()
    source = data.train if split == "train" else data.test
    normalization = data.normalization(config.normalize)
    order = list(torch.arange(len(source)).split(batch_size))
    parts: dict[str, list[Tensor]] = {pool: [] for pool in POOLS}
    for images in data.batches(source, order, workers=config.workers):
        x = normalization(images.to(device))
        latent = model.encode(x, keep_all(len(x), config.num_patches, device))
        for pool in POOLS:
            parts[pool].append(pool_tokens(latent, pool).cpu())
    return {pool: torch.cat(p) for pool, p in parts.items()}


def features(run: Run, data: Dataset | None = None, epoch: int | None = None) -> Features:
    """Features of a run's encoder (after `epoch`, if given), computed once and kept."""
    data = data or load(**run.config.data_fields)
    run.check_data(data.fingerprint)
    inputs = {"weights": run.weights_digest(epoch), "images": data.fingerprint}
    path = run.folder / "features" / f"{cache_key(inputs)}.safetensors"
    if path.is_file():
        kept = load_weights(path)
    else:
        model = run.load_model(epoch)
        kept = {
            f"{pool}_{split}": x
            for split in ("train", "test")
            for pool, x in encode(model, data, split, run.config).items()
        }
        kept |= {"labels_train": data.train.labels, "labels_test": data.test.labels}
        save_weights(path, kept)
    held = validation_mask(kept["labels_train"])
    y = {
        "train": kept["labels_train"][~held],
        "validation": kept["labels_train"][held],
        "test": kept["labels_test"],
    }
    x = {
        pool: {"train": kept[f"{pool}_train"][~held], "validation": kept[f"{pool}_train"][held],
               "test": kept[f"{pool}_test"]}
        for pool in POOLS
    }  # fmt: skip
    return Features(x, y)
