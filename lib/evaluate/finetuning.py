"""End-to-end finetuning of a pretrained encoder (Table 1, lower half), with the recipe of MAE through timm.

The epoch is chosen on the validation split, never on the test split: "best" is the test accuracy after the epoch of
the best validation accuracy (the first of equal ones), "last" after the last epoch. All randomness is a function of
(seed, epoch, step), so that a resumed finetuning is the same one.
"""

import copy
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.optim import param_groups_layer_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lib.compute.acceleration import choose_kernels
from lib.compute.device import clear_memory_errors, pick_device, settle_precision
from lib.compute.generator import generator
from lib.data import Dataset, load, validation_mask
from lib.data.augmentation import NOISE, augment
from lib.errors import InputError, NonFiniteLoss
from lib.evaluate.randaugment import Augmented, kept_randomness, seed_all
from lib.evaluate.recipes import Recipe
from lib.models import MAE, build_encoder, encoder_args
from lib.presets import Config
from lib.runs.cache import cache_key, cached
from lib.runs.files import load_state, save_state
from lib.runs.folder import open_run, outputs
from lib.runs.provenance import provenance

SAVE_SECONDS = 30  # between the states of a long finetuning


@dataclass(frozen=True)
class Job:
    """One finetuning: what it starts from and what decides its result."""

    config: Config
    recipe: Recipe
    fraction: float  # of the labels
    seed: int
    scratch: bool

    images: str  # fingerprint
    weights: str  # digest of what the encoder starts from; "" from scratch

    def inputs(self) -> dict[str, Any]:
        """Everything that decides the result."""
        own = {k: getattr(self.config, k) for k in ("normalize", "precision")}
        return {
            "recipe": asdict(self.recipe),
            "fraction": self.fraction,
            "seed": self.seed,
            "scratch": self.scratch,
            "images": self.images,
            "weights": self.weights,
            "encoder": {**encoder_args(self.config), **own},
        }

    @property
    def folder(self) -> Path:
        """In the run's folder; from scratch in outputs/scratch, which all runs share."""
        if self.scratch:
            return outputs() / "scratch" / self.config.preset
        return open_run(self.config, self.images).folder / "finetune"

    @property
    def state_path(self) -> Path:
        """The state of an interrupted finetuning."""
        return self.folder / f"{cache_key(self.inputs())}.pt"


def labelled(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Indices of the images whose labels are used: a share of every class, at least one, outside the validation split.
    With one seed, smaller fractions are subsets of larger ones."""
    if not 0 < fraction <= 1:
        raise InputError(f"a fraction of the labels must be in (0, 1], got {fraction}")
    order = torch.randperm(len(labels), generator=generator(seed, "labels"))
    order = order[~validation_mask(labels)[order]]
    members = [order[labels[order] == c] for c in labels.unique()]
    return torch.cat([m[: max(1, round(fraction * len(m)))] for m in members])


def build(job: Job, classes: int) -> nn.Module:
    """timm's VisionTransformer with the run's encoder, or one as pretraining starts, and a new linear head."""
    seed_all(job.seed)
    encoder = (
        MAE(job.config) if job.scratch else open_run(job.config, job.images).load_model()
    ).encoder
    extra = {
        "num_classes": classes,
        "global_pool": job.recipe.pool,
        "drop_path_rate": job.recipe.drop_path,
    }
    model = build_encoder(job.config, **extra)
    model.load_state_dict({**model.state_dict(), **encoder.state_dict()})
    nn.init.trunc_normal_(model.get_classifier().weight, std=2e-5)  # type: ignore[arg-type]  # as MAE's code does
    return model


def finetune(
    config: Config, recipe: Recipe, fraction: float = 1.0, seed: int = 0, scratch: bool = False, data: Any = None
) -> dict[str, Any]:  # fmt: skip
    """Test accuracy in percent after training the encoder of a finished run end to end: {"best", "last", ...}.

    `scratch` starts from random weights instead: the same budget, one rate for all layers (a decayed rate would starve
    untrained ones). With a fraction p of the labels an epoch has sqrt(p) times the steps. Done once: the result is a
    file that a second call reads, and a long one that was killed goes on from its last saved epoch.
    """
    data = data or load(**config.data_fields)
    weights = ""
    if scratch:
        recipe = replace(recipe, layer_decay=1.0)
    else:
        weights = open_run(config, data.fingerprint).weights_digest()
    job = Job(config, recipe, fraction, seed, scratch, data.fingerprint, weights)

    def measured() -> dict[str, Any]:
        with kept_randomness(), clear_memory_errors():
            return {**Finetuning(job, data).result(), **provenance()}

    result = cached(job.folder, job.inputs(), measured)
    job.state_path.unlink(missing_ok=True)
    return result


class Finetuning:
    """Model, optimiser and history of one job."""

    def __init__(self, job: Job, data: Dataset) -> None:
        self.job, self.data, self.device = job, data, pick_device(job.config.device)
        recipe, classes = job.recipe, len(data.class_names)
        self.normalization = data.normalization(job.config.normalize)
        self.ids = labelled(data.train.labels, job.fraction, job.seed)
        full = len(labelled(data.train.labels, 1.0, job.seed))
        self.batch = min(recipe.batch_size, len(self.ids)) // 2 * 2  # Mixup takes pairs
        self.steps = max(
            1, round(math.sqrt(job.fraction) * (full // recipe.batch_size))
        )  # an epoch
        self.model = build(job, classes).to(self.device)
        self.precision, missing = settle_precision(job.config.precision, self.device)
        if missing:
            print(f"precision ({missing})")
        missing = choose_kernels(self.model, self.device, self.precision)
        if missing:
            print(f"CPU kernels: torch's operations instead, slower by a third ({missing})")
        groups = param_groups_layer_decay(
            self.model, recipe.weight_decay, ("cls_token",), layer_decay=recipe.layer_decay
        )
        self.optimizer = torch.optim.AdamW(
            groups, lr=recipe.base_lr * self.batch / 256, betas=(0.9, 0.999)
        )
        warmup, total = round(recipe.warmup_epochs * self.steps), recipe.epochs * self.steps
        timing: dict[str, Any] = {
            "warmup_t": warmup,
            "warmup_prefix": True,
            "t_in_epochs": False,
            "lr_min": 1e-6,
        }
        self.schedule = CosineLRScheduler(self.optimizer, max(1, total - warmup), **timing)
        smooth, mixes = recipe.label_smoothing, recipe.mixup or recipe.cutmix
        self.mix = (
            Mixup(recipe.mixup, recipe.cutmix, label_smoothing=smooth, num_classes=classes)
            if mixes
            else None
        )
        self.history: list[dict[str, float]] = []
        self.best = copy.deepcopy(self.model.state_dict())

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @torch.no_grad()
    def accuracy(self, split: str) -> float:
        """Percent of the unaugmented "validation" or "test" images that the model names right."""
        self.model.eval()
        source = self.data.test if split == "test" else self.data.train
        ids = (
            torch.arange(len(source))
            if split == "test"
            else validation_mask(source.labels).nonzero().squeeze(1)
        )
        right, parts = 0, list(ids.split(500))
        for part, images in zip(
            parts, self.data.batches(source, parts, workers=self.job.config.workers), strict=True
        ):
            with self.autocast():
                logits = self.model(self.normalization(images.to(self.device)))
            right += int((logits.argmax(1).cpu() == source.labels[part]).sum())
        return 100 * right / len(ids)

    def train_epoch(self, epoch: int) -> float:
        """The mean loss of one epoch."""
        seed, size, recipe, n = self.job.seed, self.batch, self.job.recipe, len(self.ids)
        rounds = range(-(-self.steps * size // n))
        order = [torch.randperm(n, generator=generator(seed, "finetune", epoch, k)) for k in rounds]
        ids = self.ids[torch.cat(order)[: self.steps * size]]
        streamed = self.data.train.images is None
        kind = (
            "flip" if streamed and recipe.augment == "resized_crop" else recipe.augment
        )  # the decoder has cropped
        images = Augmented(self.data, ids, recipe, (seed, epoch))
        total = torch.zeros((), device=self.device)
        self.model.train()
        for k, pixels in enumerate(
            DataLoader(images, size, num_workers=self.job.config.workers * streamed)
        ):
            seed_all(seed, epoch, k)
            pixels = augment(pixels.to(self.device), kind, torch.rand(size, NOISE).to(self.device))
            x, y = (
                self.normalization(pixels),
                self.data.train.labels[ids[k * size : (k + 1) * size]].to(self.device),
            )
            if self.mix:
                x, y = self.mix(x, y)
            self.schedule.step_update(epoch * self.steps + k + 1)
            with self.autocast():
                logits = self.model(x)
            loss = F.cross_entropy(
                logits.float(), y, label_smoothing=0.0 if self.mix else recipe.label_smoothing
            )
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            total += loss.detach()
        return total.item() / self.steps

    def result(self) -> dict[str, Any]:
        """Trains from the saved state, if there is one, to the end."""
        begun = saved = time.monotonic()
        path, epochs = self.job.state_path, self.job.recipe.epochs
        if path.is_file():
            state = load_state(path)
            self.history, self.best = state["history"], state["best"]
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        for epoch in range(len(self.history), epochs):
            loss = self.train_epoch(epoch)
            if not math.isfinite(loss):
                raise NonFiniteLoss(
                    f"the finetuning loss is not finite in epoch {epoch + 1}; lower its base_lr"
                )
            found = self.accuracy("validation")
            if all(h["validation"] < found for h in self.history):
                self.best = copy.deepcopy(self.model.state_dict())
            self.history.append({"epoch": epoch + 1, "loss": loss, "validation": found})
            if time.monotonic() - saved > SAVE_SECONDS:
                state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
                save_state(path, {**state, "history": self.history, "best": self.best})
                print(f"finetuning, epoch {epoch + 1}/{epochs}: validation {found:.1f} %, saved")
                saved = time.monotonic()
        last = self.accuracy("test")
        self.model.load_state_dict(self.best)
        chosen = max(self.history, key=lambda h: h["validation"])
        return {
            "best": self.accuracy("test"), "last": last, "best_epoch": chosen["epoch"],
            "best_validation": chosen["validation"], "labels": len(self.ids), "steps": self.steps * epochs,
            "seconds": time.monotonic() - begun, "history": self.history,
        }  # fmt: skip
