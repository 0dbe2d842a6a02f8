"""End-to-end finetuning of a pretrained encoder (Table 1, lower half), by MAE's recipe and timm.

The epoch is chosen on the validation split, never on the test split: "best" is the test accuracy
after the epoch of the best validation accuracy (the first of equal ones), "last" after the last
epoch. All randomness is a function of (seed, epoch, step), so that a resumed finetuning is the
same one.
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
from tqdm import tqdm

from lib.compute.acceleration import choose_kernels
from lib.compute.device import clear_memory_errors, pick_device, settle_precision
from lib.compute.generator import generator
from lib.data import Dataset, load, validation_mask
from lib.data.augmentation import NOISE, augment
from lib.data.streaming import decoded_batches
from lib.errors import InputError, NonFiniteLoss
from lib.evaluate.features import as_trained
from lib.evaluate.randaugment import Augmented, kept_randomness, seed_all
from lib.evaluate.recipes import VERSION, Recipe
from lib.models import MAE, build_encoder, encoder_args, model_args
from lib.presets import Config
from lib.runs.cache import cached, kept_path
from lib.runs.files import load_state, save_state
from lib.runs.folder import open_run, outputs
from lib.runs.progress import BAR_AFTER, progress
from lib.runs.provenance import provenance

SAVE_SECONDS = 30  # between the states of a long finetuning


@dataclass(frozen=True)
class Job:
    """One finetuning: what it starts from and what decides its result (see `job_for`)."""

    config: Config
    recipe: Recipe
    fraction: float  # of the labels, in (0, 1]
    seed: int
    scratch: bool
    images: str  # fingerprint
    streamed: bool  # whether random crops are cut from the file
    weights: str  # digest of what the encoder starts from; "" from scratch

    @property
    def settings(self) -> dict[str, Any]:
        """What a person asks for, of everything that decides the result."""
        shape = model_args(self.config) if self.scratch else encoder_args(self.config)
        model = {name: getattr(self.config, name) for name in ("normalize", "precision")}
        crops = {"streamed": self.streamed} if self.recipe.augment == "resized_crop" else {}
        return {
            "recipe": asdict(self.recipe),
            "fraction": self.fraction,
            "seed": self.seed,
            "scratch": self.scratch,
            "encoder": {**shape, **model},
            **crops,
        }

    @property
    def content(self) -> dict[str, Any]:
        """What it is measured on: images, first weights, and by which code."""
        return {"images": self.images, "weights": self.weights, "finetuning_version": VERSION}

    @property
    def folder(self) -> Path:
        """In the run's folder; from scratch in outputs/scratch, which all runs share."""
        if self.scratch:
            return outputs() / "scratch" / self.config.preset
        return open_run(self.config, self.images).folder / "finetune"

    @property
    def path(self) -> Path:
        """The file of the result."""
        return kept_path(self.folder, self.settings, self.content, "json")

    @property
    def state_path(self) -> Path:
        """The state of an interrupted finetuning."""
        return kept_path(self.folder, self.settings, self.content, "pt")

    @property
    def name(self) -> str:
        """What it is called in a line for a person."""
        start = (
            "from scratch"
            if self.scratch
            else f"of {open_run(self.config, self.images).folder.name}"
        )
        return f"finetuning {start}, {self.fraction:.0%} of the labels, seed {self.seed}"


def job_for(
    config: Config, recipe: Recipe, fraction: float, seed: int, scratch: bool, data: Dataset
) -> Job:
    """The job of these arguments of `finetune` on these images.

    From scratch all layers have one rate: a decayed rate would starve untrained ones.
    """
    images = data.fingerprint
    if scratch:
        recipe = replace(recipe, layer_decay=1.0)
    weights = "" if scratch else open_run(config, images).weights_digest()
    return Job(config, recipe, fraction, seed, scratch, images, data.streamed, weights)


def labelled(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Indices of the images whose labels are used: a share of every class, at least one image.

    None is of the validation split. With one seed, smaller fractions are subsets of larger ones.
    Raises InputError unless `fraction` is in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise InputError(f"a fraction of the labels must be in (0, 1], got {fraction}")
    order = torch.randperm(len(labels), generator=generator(seed, "labels"))
    order = order[~validation_mask(labels)[order]]
    members = [order[labels[order] == c] for c in labels.unique()]
    return torch.cat([m[: max(1, round(fraction * len(m)))] for m in members])


def build(job: Job, classes: int) -> nn.Module:
    """timm's VisionTransformer with the run's encoder and a new linear head.

    From scratch the encoder is one as pretraining starts. Raises InputError if the run has no
    weights.
    """
    seed_all(job.seed)
    mae = MAE(job.config) if job.scratch else open_run(job.config, job.images).load_model()
    extra = {
        "num_classes": classes,
        "global_pool": job.recipe.pool,
        "drop_path_rate": job.recipe.drop_path,
    }
    model = build_encoder(job.config, **extra)
    model.load_state_dict({**model.state_dict(), **mae.encoder.state_dict()})
    head = model.get_classifier()
    nn.init.trunc_normal_(head.weight, std=2e-5)  # type: ignore[arg-type]  # as MAE's code does
    return model


def finetune(
    config: Config,
    recipe: Recipe,
    fraction: float = 1.0,
    seed: int = 0,
    scratch: bool = False,
    data: Dataset | None = None,
) -> dict[str, Any]:
    """Trains the encoder of a finished run end to end; {"best", "last", ...}, accuracy in percent.

    `scratch` starts from random weights instead, with the same budget. With a fraction p of the
    labels an epoch has sqrt(p) times the steps. Done once: the result is a file that a second
    call reads, and a long one that was killed goes on from its last saved epoch.

    The result: test accuracy "best" and "last", "best_epoch", "best_validation", the number of
    "labels" and "steps", "seconds", "history" by epoch, "inputs" (everything that decided it) and
    the provenance. Raises InputError if the run is not finished, NonFiniteLoss if it diverges.
    """
    images = data or load(**config.data_fields)
    job = job_for(config, recipe, fraction, seed, scratch, images)
    if not scratch:
        images = as_trained(open_run(config, images.fingerprint), images)

    def measured() -> dict[str, Any]:
        with kept_randomness(), clear_memory_errors("lower the recipe's batch_size, or use bf16"):
            return {**Finetuning(job, images).result(), **provenance()}

    result = cached(job.folder, job.name, job.settings, job.content, measured)
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
        epoch_of_all = full // recipe.batch_size
        self.steps = max(1, round(math.sqrt(job.fraction) * epoch_of_all))  # an epoch
        self.model = build(job, classes).to(self.device)
        self.precision, missing = settle_precision(job.config.precision, self.device)
        if missing:
            print(f"precision ({missing})")
        missing = choose_kernels(self.model, self.device, self.precision)
        if missing:
            print(f"CPU kernels: torch's operations instead, slower by a third ({missing})")
        self._build_optimizer()
        self.mix = None
        if recipe.mixup or recipe.cutmix:
            smooth = recipe.label_smoothing
            self.mix = Mixup(
                recipe.mixup, recipe.cutmix, label_smoothing=smooth, num_classes=classes
            )
        self.history: list[dict[str, float]] = []
        self.spent, self.begun = 0.0, time.monotonic()  # seconds: of earlier attempts; this one's
        self.best = copy.deepcopy(self.model.state_dict())

    def _build_optimizer(self) -> None:
        """AdamW with a rate that falls from layer to layer, and a cosine after a warm-up."""
        recipe = self.job.recipe
        groups = param_groups_layer_decay(
            self.model, recipe.weight_decay, ("cls_token",), layer_decay=recipe.layer_decay
        )
        rate = recipe.base_lr * self.batch / 256
        self.optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.999))
        warmup, total = round(recipe.warmup_epochs * self.steps), recipe.epochs * self.steps
        timing: dict[str, Any] = {
            "warmup_t": warmup,
            "warmup_prefix": True,
            "t_in_epochs": False,
            "lr_min": 1e-6,
        }
        self.schedule = CosineLRScheduler(self.optimizer, max(1, total - warmup), **timing)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    @torch.no_grad()
    def accuracy(self, split: str) -> float:
        """Percent of the unaugmented "validation" or "test" images that the model names right."""
        self.model.eval()
        if split == "test":
            source, ids = self.data.test, torch.arange(len(self.data.test))
        else:
            source = self.data.train
            ids = validation_mask(source.labels).nonzero().squeeze(1)
        parts = list(ids.split(500))
        batches = self.data.batches(source, parts, workers=self.job.config.workers)
        right = 0
        for part, images in zip(parts, batches, strict=True):
            with self.autocast():
                logits = self.model(self.normalization(images.to(self.device)))
            right += int((logits.argmax(1).cpu() == source.labels[part]).sum())
        return 100 * right / len(ids)

    def epoch_ids(self, epoch: int) -> Tensor:
        """Indices of the training images of an epoch in order, (steps * batch,).

        As many permutations of the labelled images as that takes.
        """
        seed, wanted, n = self.job.seed, self.steps * self.batch, len(self.ids)
        rounds = range(-(-wanted // n))
        order = [torch.randperm(n, generator=generator(seed, "finetune", epoch, k)) for k in rounds]
        return self.ids[torch.cat(order)[:wanted]]

    def train_epoch(self, epoch: int, bar: tqdm) -> float:
        """The mean loss of one epoch."""
        seed, recipe, ids = self.job.seed, self.job.recipe, self.epoch_ids(epoch)
        streamed = self.data.train.images is None
        cropped = streamed and recipe.augment == "resized_crop"  # by the decoder
        kind = "flip" if cropped else recipe.augment
        images = Augmented(self.data, ids, recipe, (seed, epoch))
        workers = self.job.config.workers * streamed
        total = torch.zeros((), device=self.device)
        self.model.train()
        places = [part.tolist() for part in torch.arange(len(ids)).split(self.batch)]
        batches = decoded_batches(images, places, workers)
        for k, (pixels, chosen) in enumerate(zip(batches, ids.split(self.batch), strict=True)):
            seed_all(seed, epoch, k)
            noise = torch.rand(self.batch, NOISE).to(self.device)
            x = self.normalization(augment(pixels.to(self.device), kind, noise))
            self.schedule.step_update(epoch * self.steps + k + 1)
            loss = self.loss(x, self.data.train.labels[chosen].to(self.device))
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            total += loss.detach()
            bar.update(self.batch)
        return total.item() / self.steps

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Cross entropy of images x (B, C, H, W) and labels y (B,), mixed and smoothed."""
        smooth = self.job.recipe.label_smoothing
        if self.mix:
            x, y = self.mix(x, y)  # y (B, classes), which is smoothed
            smooth = 0.0
        with self.autocast():
            logits = self.model(x)
        return F.cross_entropy(logits.float(), y, label_smoothing=smooth)

    def resume(self) -> None:
        """Takes up the saved state, if there is one."""
        if not self.job.state_path.is_file():
            return
        state = load_state(self.job.state_path)
        self.history, self.best = state["history"], state["best"]
        self.spent = state.get("seconds", 0.0)  # a state of before this entry has none
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def save(self) -> None:
        """Writes the state after a whole epoch."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "best": self.best,
            "seconds": self.seconds(),
        }
        save_state(self.job.state_path, state)

    def seconds(self) -> float:
        """The time spent so far, without the epochs that an interruption lost."""
        return self.spent + time.monotonic() - self.begun

    def result(self) -> dict[str, Any]:
        """Trains from the saved state, if there is one, to the end."""
        saved = time.monotonic()
        self.resume()
        epochs, images = self.job.recipe.epochs, self.steps * self.batch
        done = len(self.history)
        name = "finetuning"
        with progress(epochs * images, done * images, name=name, delay=BAR_AFTER) as bar:
            for epoch in range(done, epochs):
                self._epoch(epoch, bar)
                if time.monotonic() - saved > SAVE_SECONDS:
                    self.save()
                    saved = time.monotonic()
        last = self.accuracy("test")
        self.model.load_state_dict(self.best)
        chosen = max(self.history, key=lambda h: h["validation"])
        return {
            "best": self.accuracy("test"),
            "last": last,
            "best_epoch": chosen["epoch"],
            "best_validation": chosen["validation"],
            "labels": len(self.ids),
            "steps": self.steps * epochs,
            "seconds": self.seconds(),
            "history": self.history,
        }

    def _epoch(self, epoch: int, bar: tqdm) -> None:
        """Trains and measures one epoch, and keeps the weights of the best."""
        loss = self.train_epoch(epoch, bar)
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                f"the finetuning loss is not finite in epoch {epoch + 1}; lower its base_lr"
            )
        found = self.accuracy("validation")
        if all(h["validation"] < found for h in self.history):
            self.best = copy.deepcopy(self.model.state_dict())
        self.history.append({"epoch": epoch + 1, "loss": loss, "validation": found})
        bar.set_postfix_str(f"validation {found:.1f} %", refresh=False)
