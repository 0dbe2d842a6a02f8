"""The one pretraining loop. `python -m lib.train --preset NAME --lam 0.001 ...` and the notebooks both call `train`.

All randomness is a function of (seed, epoch) or (seed, step), drawn on the CPU for the global batch: a resumed run
needs no random state, and any number of processes sees the same images, crops and masks.
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

from lib.compute.acceleration import choose_passes, compile_blocks, keep_heap
from lib.compute.device import clear_memory_errors, pick_device, send, settle_precision
from lib.compute.generator import stream
from lib.data.augmentation import NOISE, augment
from lib.data.datasets import Dataset, load, validation_mask
from lib.distributed import collectives as parallel
from lib.distributed.signals import signals
from lib.errors import InputError, Interrupted, NonFiniteLoss
from lib.masking import Masks, masks_from_noise, num_visible
from lib.presets import Config
from lib.runs.export import export_encoder
from lib.runs.files import load_into, load_state, save_state, save_weights, write_json
from lib.runs.folder import Run, open_run
from lib.runs.progress import describe, progress
from lib.train.objective import TERMS, Objective, build_optimizer, learning_rate, measure

VALIDATION_IMAGES = 2000  # at most, for the measurements along training


class Trainer:
    """One run in one process: model, optimiser, position; made, advanced and saved by `train`."""

    def __init__(self, config: Config, data: Dataset, run: Run) -> None:
        self.config, self.data, self.run = config, data, run
        self.rank, self.world = parallel.place()
        if config.batch_size % (config.accum_steps * self.world):
            raise InputError(
                f"batch_size {config.batch_size} must be a multiple of accum_steps {config.accum_steps} times "
                f"{self.world} processes; change one of them"
            )
        self.device = pick_device(config.device)
        self.precision, note = settle_precision(config.precision, self.device)
        self.say(note)
        self.dtype = torch.float64 if self.precision == "fp64" else torch.float32
        self.micro = config.batch_size // config.accum_steps // self.world
        self.steps_per_epoch = len(data.train) // config.batch_size
        self.visible = num_visible(config.num_patches, config.mask_ratio)
        self.step = 0
        self.sums = torch.zeros(len(TERMS), dtype=torch.float64, device=self.device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.objective = Objective(config, len(data.class_names)).to(self.device, self.dtype)
        if self.device.type == "cpu":
            keep_heap()
        note = (
            compile_blocks(self.objective.mae, self.device) if config.compile else "not asked for"
        )
        self.say(note if config.compile else "")
        self.say(choose_passes(self.objective, self.device, self.precision, compiled=not note))
        own = bool(self.objective.mae.encoder.blocks[0].fused)
        self.how = {"precision": self.precision, "passes": "own" if own else "torch's"}
        self.model: nn.Module = parallel.distribute(self.objective, config.shard)
        self.optimizer = build_optimizer(self.objective, self.device)
        held = validation_mask(data.train.labels)
        self.val_ids = held.nonzero().squeeze(1)
        self.val_ids = self.val_ids[
            torch.randperm(len(self.val_ids), generator=stream(0, "validation"))
        ]
        self.val_ids = self.val_ids[:VALIDATION_IMAGES]
        self.labels = data.train.labels.masked_fill(held, -1).to(self.device)

    def say(self, line: str) -> None:
        if line and self.rank == 0:
            print(line)

    def _autocast(self):
        return (
            torch.autocast(self.device.type, torch.bfloat16)
            if self.precision == "bf16"
            else nullcontext()
        )

    def micro_batches(self, epoch: int) -> Iterator[tuple[Tensor, Masks, Tensor]]:
        """This process's (images, masks, labels) from the current place in the epoch to its end."""
        c, first = self.config, self.step - epoch * self.steps_per_epoch
        order = torch.randperm(len(self.data.train), generator=stream(c.seed, "order", epoch))
        order = order[: self.steps_per_epoch * c.batch_size].view(
            -1, c.accum_steps, self.world, self.micro
        )
        mine = order[first:, :, self.rank].reshape(-1, self.micro)
        kind = (
            "flip" if self.data.train.images is None and c.augment == "resized_crop" else c.augment
        )
        whole = torch.empty(0)
        for i, images in enumerate(self.data.batches(self.data.train, list(mine), epoch)):
            step, part = divmod(i, c.accum_steps)
            if part == 0:
                whole = torch.rand(
                    c.accum_steps, self.world, self.micro, c.num_patches + NOISE,
                    generator=stream(c.seed, "noise", epoch * self.steps_per_epoch + first + step),
                )  # fmt: skip
            noise = send(whole[part, self.rank], self.device)
            images = augment(send(images, self.device), kind, noise[:, :NOISE])
            labels = self.labels[send(mine[i], self.device)]
            yield (
                self.data.normalize(images, self.dtype),
                masks_from_noise(noise[:, NOISE:], self.visible),
                labels,
            )

    def train_epoch(self, epoch: int, bar: tqdm, should_stop: list[int]) -> None:
        """Steps to the end of the epoch; returns early at a step's end if a signal asked for it."""
        c = self.config
        self.model.train()
        for i, (images, masks, labels) in enumerate(self.micro_batches(epoch)):
            last = (i + 1) % c.accum_steps == 0
            with parallel.gradient_sync(self.model, last):
                with self._autocast():
                    total, terms = self.model(images, masks, labels)
                (total / c.accum_steps).backward()
            self.sums += terms.double() / c.accum_steps
            finite = terms[0].isfinite()
            self.bad_step = torch.where(finite | (self.bad_step >= 0), self.bad_step, self.step)
            if not last:
                continue
            if self.device.type == "cpu":
                self.check_finite()
            rate = learning_rate(c, self.step, self.steps_per_epoch)
            for group in self.optimizer.param_groups[:2]:
                group["lr"] = rate
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            bar.update(c.batch_size)
            if parallel.largest(len(should_stop)):
                return

    def check_finite(self) -> None:
        if (bad := parallel.largest(int(self.bad_step))) >= 0:
            self._stop_not_finite(f"the loss is not finite at step {bad}", bad)

    def check_weights(self) -> None:
        """What no checkpoint may hold: a step can spoil the weights after a finite loss."""
        self.check_finite()
        finite = all(torch.stack([p.isfinite().all() for p in parallel.own_parts(self.objective)]))
        if parallel.largest(not finite):
            self._stop_not_finite(
                f"the weights are not finite after step {self.step - 1}", self.step - 1
            )

    def _stop_not_finite(self, what: str, step: int) -> None:
        raise NonFiniteLoss(
            f"{what} (epoch {step // self.steps_per_epoch}); the last checkpoint is kept: lower base_lr or lam, or use "
            "precision fp32"
        )

    def measure(self, split: str) -> dict[str, float]:
        """`objective.measure` on the "validation" images, held out of the labelled training images, or on "test"."""
        validation = split == "validation"
        source = self.data.train if validation else self.data.test
        ids = self.val_ids if validation else torch.arange(len(source))
        found = measure(self.objective.eval(), self.data, source, ids, self._autocast)
        return {f"{split}_{k}": v for k, v in found.items()}

    def state(self) -> dict[str, Any]:
        return {
            "config": self.config.hash8, "torch": str(torch.__version__).split("+")[0], "step": self.step,
            "sums": parallel.average_(self.sums).cpu(), "objective": parallel.whole(self.objective.state_dict()),
            "optimizer": parallel.whole(self.optimizer.state_dict()),
        }  # fmt: skip

    def save(self) -> None:
        self.check_weights()
        state = self.state()
        if self.rank == 0:
            save_state(self.run.held() / "state.pt", state)

    def resume(self) -> bool:
        """Goes on from the saved state, if there is one; metrics that came after it are dropped."""
        path = self.run.folder / "state.pt"
        found = path.is_file()
        if parallel.largest(found) != found:
            raise InputError(
                f"process {self.rank} does not see {path}; set UMAE_OUTPUTS to a folder that all nodes share"
            )
        if not found:
            return False
        state, own = load_state(path), self.state()
        if missing := sorted(own.keys() - state.keys()):
            raise InputError(
                f"{path} lacks {missing[0]!r}; delete it to train this run from its start"
            )
        if state["config"] != own["config"]:
            raise InputError(f"{path} belongs to another run; delete it to start this one again")
        if state["torch"] != own["torch"]:
            raise InputError(
                f"{path} was written by torch {state['torch']}, this is {own['torch']}: its weights would not be those "
                "of one run; install that version to resume, or delete the file to train from the start"
            )
        load_into(self.objective, parallel.model_part(state["objective"], self.objective), path)
        self.optimizer.load_state_dict(parallel.optimizer_part(state["optimizer"], self.optimizer))
        self.step = state["step"]
        self.sums = state["sums"].to(self.device)
        return True

    def log(self, line: dict[str, Any], seconds: float) -> None:
        """Adds a line to metrics.jsonl; what depends on the machine's speed goes to timing.jsonl."""
        if self.rank == 0:
            self.run.add_line("metrics.jsonl", line)
            self.run.add_line("timing.jsonl", {"epoch": line["epoch"], "seconds": seconds})

    def snapshot(self, epoch: int) -> None:
        weights = parallel.whole(self.objective.mae.state_dict())
        if self.rank == 0:
            save_weights(self.run.held() / f"snapshots/epoch-{epoch:05d}.safetensors", weights)

    def fit(self, should_stop: list[int]) -> None:
        """From the current step to the last, with a checkpoint every `checkpoint_every` epochs."""
        c = self.config
        wanted = (
            {round(c.epochs * k / c.snapshots) for k in range(c.snapshots + 1)}
            if c.snapshots
            else set()
        )
        if self.step == 0 and wanted:
            self.snapshot(0)
        images = c.epochs * self.steps_per_epoch * c.batch_size
        with progress(images, self.step * c.batch_size, self.rank == 0) as bar:
            for epoch in range(self.step // self.steps_per_epoch, c.epochs):
                start = time.perf_counter()
                self.train_epoch(epoch, bar, should_stop)
                done = epoch + 1
                if self.step < done * self.steps_per_epoch:
                    self.save()
                    raise self.interrupted(should_stop)
                self.check_weights()
                terms = (parallel.average_(self.sums) / self.steps_per_epoch).tolist()
                seconds = time.perf_counter() - start
                self.sums.zero_()
                if done % c.eval_every == 0 or done == c.epochs:
                    line = {
                        "epoch": done,
                        "step": self.step,
                        **dict(zip(TERMS, terms, strict=True)),
                    }
                    line |= self.measure("validation")
                    self.log(line, seconds)
                    if self.rank == 0 and (done % max(1, c.epochs // 10) == 0):
                        bar.write(
                            describe(line, c.epochs, self.steps_per_epoch * c.batch_size / seconds),
                            file=sys.stdout,
                        )
                if done in wanted:
                    self.snapshot(done)
                stop = done < c.epochs and parallel.largest(len(should_stop)) > 0
                if done % c.checkpoint_every == 0 or done == c.epochs or stop:
                    self.save()
                if stop:
                    raise self.interrupted(should_stop)

    def interrupted(self, caught: list[int]) -> Interrupted:
        text = (
            f"stopped at step {self.step}, saved; the same command resumes {self.run.folder.name}"
        )
        return Interrupted(text, *caught[:1])

    def finish(self) -> None:
        """Final weights, the encoder for timm, and last of all the result that marks the run as finished."""
        result = {
            "epochs": self.config.epochs,
            "steps": self.step,
            **self.measure("validation"),
            **self.measure("test"),
        }
        weights = parallel.whole(self.objective.mae.state_dict())
        if self.rank == 0:
            folder = self.run.held()
            save_weights(folder / "model.safetensors", weights)
            export_encoder(weights, self.config, folder / "encoder")
            write_json(folder / "result.json", {**result, **self.run.origin()})
            (folder / "state.pt").unlink(missing_ok=True)


def train(config: Config, data: Dataset | None = None) -> Run:
    """Trains the run that `config` names and returns it: a finished run is reused, an interrupted one resumed.

    Writes under `runs.outputs()`: config.json, metrics.jsonl (a line a measured epoch), snapshots, state.pt while it
    runs, model.safetensors, encoder/ for timm, result.json last. Raises InputError for what cannot be run,
    NonFiniteLoss, RunBusy, and Interrupted after a signal, once the state is saved.
    """
    config = replace(config, **config.identity())  # one spelling for all that name the same run
    run, (rank, world) = open_run(config), parallel.place()

    def finished() -> bool:
        found = parallel.largest(run.result is not None) > 0
        if found and rank == 0 and (result := run.result):
            print(
                f"reusing {run.folder.name}: finished {result['time']} at commit {result['commit']}"
            )
            with suppress(OSError):  # left by a process that was killed between the two
                (run.folder / "state.pt").unlink()
        return found

    if finished():
        return run
    pick_device(config.device)
    with parallel.leader_first() if config.download else nullcontext():
        data = replace(data, config=config) if data else load(config)
    if config.batch_size > len(data.train):
        raise InputError(
            f"batch_size {config.batch_size} exceeds the {len(data.train)} training images; lower it"
        )
    with run.lock() if rank == 0 else nullcontext(), clear_memory_errors():
        if finished():  # by the process that held the lock
            return run
        run.check_data(data.fingerprint)
        trainer = Trainer(config, data, run)
        resumed = trainer.resume()
        if rank == 0:
            run.write_record(resumed, fingerprint=data.fingerprint, processes=world, **trainer.how)
            what = f"resuming at step {trainer.step}" if resumed else "training"
            print(
                f"{what} {run.folder.name} on {trainer.device}"
                + (f" in {world} processes" if world > 1 else "")
            )
        with signals() as should_stop:
            trainer.fit(should_stop)
        trainer.finish()
        parallel.largest(0)  # nobody leaves before the files of rank 0 are there
    return run
