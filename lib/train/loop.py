"""The one pretraining loop: `python -m lib.train` and the notebooks both call `train`.

All randomness is a function of (seed, epoch) or (seed, step), drawn on the CPU for the global
batch. So a resumed run needs no random state, and any number of processes sees the same images,
crops and masks.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lib.compute.acceleration import choose_kernels, compile_blocks, keep_heap
from lib.compute.device import clear_memory_errors, pick_device, send, settle_precision
from lib.compute.generator import generator
from lib.data import Dataset, load, validation_mask
from lib.data.augmentation import NOISE, augment
from lib.distributed.collectives import (
    all_reduce_max,
    all_reduce_mean_,
    barrier,
    distribute,
    gradient_sync,
    local_parameters,
    rank_and_world_size,
    rank_zero_first,
)
from lib.distributed.signals import signals
from lib.errors import InputError, Interrupted, NonFiniteLoss
from lib.masking import Masks, masks_from_noise, num_visible
from lib.presets import Config
from lib.runs.folder import Run, explain_new_run, open_run
from lib.runs.progress import describe, progress
from lib.train.checkpoint import Checkpoint
from lib.train.objective import TERMS, Objective, build_optimizer, learning_rate, measure

VALIDATION_IMAGES = 2000  # at most, for the measurements along training
LESS_MEMORY = "raise accum_steps or lower batch_size (either is another run), or use bf16"


class Trainer:
    """One run in one process: model, optimiser, and the place in training that it has reached."""

    def __init__(self, config: Config, data: Dataset) -> None:
        self.config, self.data = config, data
        self.rank, self.world_size = rank_and_world_size()
        self.micro_batch = micro_batch(config, self.world_size)
        self.steps_per_epoch = len(data.train) // config.batch_size
        self.visible = num_visible(config.num_patches, config.mask_ratio)
        self.normalization = data.normalization(config.normalize)
        self._build()
        self.step = 0
        self.sums = torch.zeros(len(TERMS), dtype=torch.float64, device=self.device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)
        held = validation_mask(data.train.labels)
        val_ids = held.nonzero().squeeze(1)
        order = torch.randperm(len(val_ids), generator=generator(0, "validation"))
        self.val_ids = val_ids[order][:VALIDATION_IMAGES]
        self.labels = data.train.labels.masked_fill(held, -1).to(self.device)

    def _build(self) -> None:
        """Model, optimiser, and how they are computed on this machine."""
        c = self.config
        self.device = pick_device(c.device)
        self.precision, missing = settle_precision(c.precision, self.device)
        self.say("precision", missing)
        self.dtype = torch.float64 if self.precision == "fp64" else torch.float32
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(c.seed)
            objective = self.new_objective()
        self.objective = objective.to(self.device, self.dtype)
        if self.device.type == "cpu":
            keep_heap()
        compiled = False
        if c.compile:
            missing = compile_blocks(self.objective.mae, self.device)
            compiled = not missing
            self.say("compile: running without torch.compile", missing)
        missing = choose_kernels(self.objective, self.device, self.precision, compiled)
        self.say("CPU kernels: torch's operations instead, slower by a third", missing)
        own = self.objective.mae.encoder.blocks[0].kernels is not None
        self.how = {"precision": self.precision, "kernels": "cpu" if own else "torch"}
        self.model: nn.Module = distribute(self.objective, c.shard)
        self.optimizer = build_optimizer(self.objective, self.device)

    def new_objective(self) -> Objective:
        """What this run minimises; a trainer of another objective overrides it."""
        return Objective(self.config, len(self.data.class_names))

    def say(self, what: str, missing: str) -> None:
        """One line where this machine cannot do what was asked for."""
        if missing and self.rank == 0:
            print(f"{what} ({missing})")

    def autocast(self) -> Any:
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def micro_batches(self, epoch: int) -> Iterator[tuple[Tensor, Masks, Tensor]]:
        """This process's (images, masks, labels) from the current place in the epoch to its end."""
        c, first = self.config, self.step - epoch * self.steps_per_epoch
        order = torch.randperm(len(self.data.train), generator=generator(c.seed, "order", epoch))
        order = order[: self.steps_per_epoch * c.batch_size]
        order = order.view(-1, c.accum_steps, self.world_size, self.micro_batch)
        mine = order[first:, :, self.rank].reshape(-1, self.micro_batch)
        crops_in_decoder = self.data.train.images is None and c.augment == "resized_crop"
        kind = "flip" if crops_in_decoder else c.augment
        batches = self.data.batches(
            self.data.train,
            list(mine),
            crop_seed=(c.seed, epoch) if c.augment == "resized_crop" else None,
            workers=c.workers,
        )
        for i, images in enumerate(batches):
            step, part = divmod(i, c.accum_steps)
            if part == 0:
                noise_of_step = self._noise(epoch * self.steps_per_epoch + first + step)
            noise = send(noise_of_step[part, self.rank], self.device)
            images = augment(send(images, self.device), kind, noise[:, :NOISE])
            masks = masks_from_noise(noise[:, NOISE:], self.visible)
            labels = self.labels[send(mine[i], self.device)]
            yield self.normalization(images, self.dtype), masks, labels

    def _noise(self, step: int) -> Tensor:
        """Uniform numbers of the global batch of a step, for its crops and masks."""
        c = self.config
        shape = (c.accum_steps, self.world_size, self.micro_batch, c.num_patches + NOISE)
        return torch.rand(shape, generator=generator(c.seed, "noise", step))

    def train_epoch(self, epoch: int, bar: tqdm, should_stop: list[int]) -> None:
        """Steps to the end of the epoch; returns early at a step's end if a signal asked for it."""
        c = self.config
        self.model.train()
        for i, (images, masks, labels) in enumerate(self.micro_batches(epoch)):
            last = (i + 1) % c.accum_steps == 0
            with gradient_sync(self.model, last):
                with self.autocast():
                    total, terms = self.model(images, masks, labels)
                (total / c.accum_steps).backward()
            self._account(terms)
            if not last:
                continue
            if self.device.type == "cpu":
                self.check_finite()
            self._optimizer_step()
            bar.update(c.batch_size)
            if all_reduce_max(len(should_stop)):
                return

    def _account(self, terms: Tensor) -> None:
        """Adds the terms (3,) of a micro-batch to the epoch's sums, and notes a bad loss."""
        self.sums += terms.double() / self.config.accum_steps
        good = terms[0].isfinite() | (self.bad_step >= 0)
        self.bad_step = torch.where(good, self.bad_step, self.step)

    def _optimizer_step(self) -> None:
        rate = learning_rate(self.config, self.step, self.steps_per_epoch)
        for group in self.optimizer.param_groups:
            if group["scheduled"]:
                group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1

    def check_finite(self) -> None:
        """Raises NonFiniteLoss if any loss so far was infinite or NaN."""
        if (bad := all_reduce_max(int(self.bad_step))) >= 0:
            self._stop_not_finite(f"the loss is not finite at step {bad}", bad)

    def check_weights(self) -> None:
        """What no checkpoint may hold: a step can spoil the weights after a finite loss."""
        self.check_finite()
        finite = torch.stack([p.isfinite().all() for p in local_parameters(self.objective)]).all()
        if all_reduce_max(not finite):
            step = self.step - 1
            self._stop_not_finite(f"the weights are not finite after step {step}", step)

    def _stop_not_finite(self, what: str, step: int) -> None:
        raise NonFiniteLoss(
            f"{what} (epoch {step // self.steps_per_epoch}); the last checkpoint is kept: lower "
            "base_lr or lam, or use precision fp32"
        )

    def measure(self, split: str, bar: tqdm | None = None) -> dict[str, float]:
        """`objective.measure` on "test", or on "validation": held out of the training labels.

        `bar` counts the images.
        """
        validation = split == "validation"
        source = self.data.train if validation else self.data.test
        ids = self.val_ids if validation else torch.arange(len(source))
        batches = self.data.batches(source, measured_batches(ids), workers=self.config.workers)

        def images() -> Iterator[Tensor]:
            for x in batches:
                yield self.normalization(x.to(self.device), self.dtype)
                if bar is not None:
                    bar.update(len(x))

        labels = source.labels[ids].to(self.device)
        found = measure(self.objective.eval(), images(), labels, self.autocast)
        return {f"{split}_{k}": v for k, v in found.items()}

    def check_test_images(self) -> None:
        """Reads a streamed test split once: a damaged image stops a run before its first step.

        Training reads its own images: all but those that whole batches leave over, an epoch. Every
        process reads a share.
        """
        test = self.data.test
        if test.images is None:
            ids = measured_batches(torch.arange(self.rank, len(test), self.world_size))
            for _ in self.data.batches(test, ids, workers=self.config.workers):
                pass

    def position(self) -> dict[str, Any]:
        """The place in training, for a checkpoint."""
        return {"step": self.step, "sums": all_reduce_mean_(self.sums).cpu()}

    def go_to(self, position: dict[str, Any]) -> None:
        self.step = position["step"]
        self.sums = position["sums"].to(self.device)

    def fit(self, checkpoint: Checkpoint, should_stop: list[int]) -> None:
        """From the current step to the last, with a checkpoint every `checkpoint_every` epochs."""
        c = self.config
        wanted = c.snapshot_epochs()
        if self.step == 0 and 0 in wanted:
            checkpoint.snapshot(0)
        images = c.epochs * self.steps_per_epoch * c.batch_size
        with progress(images, self.step * c.batch_size, self.rank == 0) as bar:
            for epoch in range(self.step // self.steps_per_epoch, c.epochs):
                start, first = time.perf_counter(), self.step
                self.train_epoch(epoch, bar, should_stop)
                done = epoch + 1
                if self.step < done * self.steps_per_epoch:
                    self._save(checkpoint)
                    raise self._interrupted(checkpoint, should_stop)
                took = time.perf_counter() - start
                self._end_epoch(done, checkpoint, bar, took, self.step - first)
                if done in wanted:
                    checkpoint.snapshot(done)
                stop = done < c.epochs and all_reduce_max(len(should_stop)) > 0
                if done % c.checkpoint_every == 0 or done == c.epochs or stop:
                    self._save(checkpoint)
                if stop:
                    raise self._interrupted(checkpoint, should_stop)

    def _end_epoch(
        self, done: int, checkpoint: Checkpoint, bar: tqdm, seconds: float, steps: int
    ) -> None:
        """Measures and logs after epoch `done` (1, 2, ...).

        Its last `steps` took `seconds`: a resumed run did not take the others.
        """
        c = self.config
        self.check_weights()
        terms = (all_reduce_mean_(self.sums) / self.steps_per_epoch).tolist()
        self.sums.zero_()
        if done % c.eval_every and done != c.epochs:
            return
        line = {"epoch": done, "step": self.step, **dict(zip(TERMS, terms, strict=True))}
        line |= self.measure("validation")
        checkpoint.log(line, seconds, steps)
        if self.rank == 0 and done % max(1, c.epochs // 10) == 0:
            speed = steps * c.batch_size / seconds
            bar.write(describe(line, c.epochs, speed), file=sys.stdout)

    def _save(self, checkpoint: Checkpoint) -> None:
        self.check_weights()
        checkpoint.save(self.position())

    def _interrupted(self, checkpoint: Checkpoint, caught: list[int]) -> Interrupted:
        name = checkpoint.run.folder.name
        text = f"stopped at step {self.step}, saved; the same command resumes {name}"
        return Interrupted(text, *caught[:1])

    def finish(self, checkpoint: Checkpoint) -> None:
        """Measures the finished model and writes its files."""
        result: dict[str, Any] = {"epochs": self.config.epochs, "steps": self.step}
        result |= self.measure("validation") | self.measure("test")
        checkpoint.finish(result, self.data)


def micro_batch(c: Config, world_size: int) -> int:
    """Images in memory at once, per process; InputError if the batch cannot be shared so."""
    if c.batch_size % (c.accum_steps * world_size):
        raise InputError(
            f"batch_size {c.batch_size} must be a multiple of accum_steps {c.accum_steps} times "
            f"{world_size} processes; change one of them"
        )
    if (images := c.batch_size // c.accum_steps // world_size) < 2:
        raise InputError(
            f"batch_size {c.batch_size} leaves one image to each of {world_size} processes with "
            f"accum_steps {c.accum_steps}; the uniformity term needs two: raise batch_size"
        )
    return images


def measured_batches(ids: Tensor) -> list[Tensor]:
    """The images of a measurement in batches of 500."""
    return list(ids.split(500))


def train(config: Config, data: Dataset | None = None) -> Run:
    """Trains the run that `config` names on its images, and returns it.

    A finished run is reused, an interrupted one resumed, one on images that have changed since is
    kept and a new one made beside it. A run of an imported training is only looked up. Writes under
    `runs.outputs()`: config.json, metrics.jsonl (a line a measured epoch), snapshots, state.pt
    while it runs, model.safetensors, encoder/ for timm, result.json last. Raises InputError for
    what cannot be run, NonFiniteLoss, RunBusy, and Interrupted after a signal, once the state is
    saved.
    """
    config = replace(config, **config.identity())  # one spelling for all that name the same run
    rank = rank_and_world_size()[0]
    pick_device(config.device)
    if data is None:
        with rank_zero_first() if config.download else nullcontext():
            data = load(**config.data_fields)
    run = open_run(config, data.fingerprint)
    run.check_fits(data)
    if _finished(run):
        return run
    _check_trainable(run, data)
    with run.lock() if rank == 0 else nullcontext(), clear_memory_errors(LESS_MEMORY):
        if _finished(run):  # by the process that held the lock
            return run
        if rank == 0:
            explain_new_run(run)
        if (run.folder / "state.pt").is_file():
            data = run.as_trained(data)
        run_to_the_end(run, Trainer(config, data))
    return run


def run_to_the_end(run: Run, trainer: Trainer) -> None:
    """Trains from the last checkpoint, if there is one, and writes the run's files.

    Rank 0 must hold the run's lock; all ranks must call.
    """
    checkpoint = Checkpoint(run, trainer.objective, trainer.optimizer, trainer.device)
    run.metrics()  # a damaged file is said before the first step
    position = checkpoint.resume()
    if position:
        trainer.go_to(position)
    if trainer.rank == 0:
        data, processes = trainer.data, trainer.world_size
        moments = {"mean": data.mean.tolist(), "std": data.std.tolist()}
        how = {**trainer.how, **moments, "streamed": data.streamed, "processes": processes}
        run.write_record(position is not None, **how)
        what = f"resuming at step {trainer.step}" if position else "training"
        where = f"on {trainer.device}"
        if processes > 1:
            where += f" in {processes} processes"
        print(f"{what} {run.folder.name} {where}")
    if position is None:
        trainer.check_test_images()
    with signals() as should_stop:
        trainer.fit(checkpoint, should_stop)
    trainer.finish(checkpoint)
    barrier()  # nobody leaves before the files of rank 0 are there


def _check_trainable(run: Run, data: Dataset) -> None:
    """Raises InputError for a run that is not ours to train, or has too few images."""
    c = run.config
    if c.imported:
        raise InputError(
            f"no {run.folder.name}: nothing was imported as {c.imported!r} with these settings and "
            f"images; import its file with lam {c.lam:g}, seed {c.seed} and the rest (python -m "
            "lib.evaluate.importing --help), or correct overrides"
        )
    if c.batch_size > len(data.train):
        raise InputError(
            f"batch_size {c.batch_size} exceeds the {len(data.train)} training images; lower it"
        )


def _finished(run: Run) -> bool:
    """Whether the run has its result; rank 0 says so and tidies up."""
    run.check_finished()
    found = all_reduce_max(run.result is not None) > 0
    if found and rank_and_world_size()[0] == 0 and (result := run.result):
        when, commit = result["time"], result["commit"]
        how = run.imported_from or f"finished {when} at commit {commit}"
        print(f"reusing {run.folder.name}: {how}")
        with suppress(OSError):  # left by a process that was killed between the two
            (run.folder / "state.pt").unlink()
    return found
