"""Many accuracies and finetunings: what is missing is measured, several at once."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lib.compute.duration import encoding_seconds, training_seconds
from lib.compute.memory import memory_at_most
from lib.data import Dataset, Split, load
from lib.distributed.jobs import run_jobs
from lib.errors import InputError
from lib.evaluate.accuracy import content_of, evaluate, settings_of
from lib.evaluate.features import features
from lib.evaluate.probes import PROTOCOLS, Probe
from lib.evaluate.recipes import Recipe
from lib.presets import Config
from lib.runs.cache import kept_path
from lib.runs.folder import Run, outputs
from lib.runs.progress import BAR_AFTER, progress

Key = tuple[Run, str | Probe, str, int | None]  # run, protocol, pool, epoch


def evaluate_all(
    runs: Sequence[Run],
    protocols: Sequence[str | Probe],
    pools: Sequence[str] = ("token",),
    epochs: Sequence[int | None] = (None,),
    seed: int = 0,
    data: Dataset | None = None,
    jobs: str | int = "auto",
) -> dict[Key, dict[str, Any]]:
    """`evaluate` of every combination: {(run, protocol, pool, epoch): {"validation": ..}}.

    All runs are of the same images. First the features that are missing are computed, then the
    accuracies, `jobs` at once (`lib.distributed.jobs`). The threads are divided among the jobs.
    Their number can change the last bits of a result, and the kept file names it as "threads".
    Raises what `evaluate` raises, for the first that failed, when the others are done.
    """
    if not runs:
        raise InputError("evaluate_all needs at least one run")
    images = data or load(**runs[0].config.data_fields)
    keys = list(dict.fromkeys(itertools.product(runs, protocols, pools, epochs)))
    missing = [key for key in keys if key[1] != "online" and not _path(key, seed).is_file()]
    models = list(dict.fromkeys((run, epoch) for run, _, _, epoch in missing))
    labels = _without_images(images)  # the features of all probes are kept by then
    encoders = [(run, images, epoch) for run, epoch in models]
    probes = [(run, protocol, pool, epoch, seed, labels) for run, protocol, pool, epoch in missing]
    names = [f"{protocol} of {_name(run, epoch)}" for run, protocol, _, epoch in missing]
    config = runs[0].config
    with _bar(len(encoders) + len(probes), "features and probes") as bar:
        of_models = [_name(*model) for model in models]
        each = encoding_seconds(config, len(images.train) + len(images.test))
        place = {"memory": _encoding_memory(config), "device": config.device}
        _run(_features, encoders, of_models, jobs, bar, **place, seconds=each * len(encoders))
        seconds = sum(_probing_seconds(protocol, config, images) for _, protocol, *_ in missing)
        place = {"memory": _probing_memory(config, images), "device": "cpu"}
        _run(evaluate, probes, names, jobs, bar, **place, seconds=seconds)
    return {key: evaluate(*key, seed=seed, data=labels) for key in keys}


def finetune_all(
    wanted: Sequence[tuple[Config, Recipe, float, int, bool]],
    data: Dataset | None = None,
    jobs: str | int = "auto",
) -> list[dict[str, Any]]:
    """`finetune` of every (config, recipe, fraction, seed, scratch), `jobs` at once, in order.

    All are on the same images. Raises what `finetune` raises, for the first that failed.
    """
    from lib.evaluate.finetuning import finetune, job_for

    if not wanted:
        return []
    images = data or load(**wanted[0][0].data_fields)
    config, recipe = wanted[0][:2]
    whole = replace(config, mask_ratio=0.0, batch_size=recipe.batch_size, accum_steps=1)

    def duration(item: tuple[Config, Recipe, float, int, bool]) -> float:
        """Seconds, roughly: with a fraction f of the labels an epoch takes sqrt(f) of the steps."""
        of_all = training_seconds(replace(whole, epochs=item[1].epochs), len(images.train))
        return of_all * item[2] ** 0.5

    missing = [item for item in dict.fromkeys(wanted) if not job_for(*item, images).path.is_file()]
    missing.sort(key=duration, reverse=True)  # no long one is left for the end
    names = [
        f"{config.preset}, lam {config.lam:g}, {fraction:.0%} of the labels, seed {seed}"
        + (", from scratch" if scratch else "")
        for config, _, fraction, seed, scratch in missing
    ]
    place = {"memory": memory_at_most(whole), "device": config.device}
    seconds = sum(map(duration, missing))
    with _bar(len(missing), "finetunings") as bar:
        items = [(*item, images) for item in missing]
        _run(finetune, items, names, jobs, bar, **place, seconds=seconds)
    return [finetune(*item, data=images) for item in wanted]


def _bar(jobs: int, unit: str) -> tqdm:
    """One bar over all jobs; none where there are none."""
    return progress(jobs, show=jobs > 0, unit=unit, delay=BAR_AFTER)


def _run(
    fn: Any, items: list[tuple], names: list[str], jobs: str | int, bar: tqdm, **place: Any
) -> None:
    """fn(*item) for every item; what it finds is in files."""
    if items:
        run_jobs(fn, items, jobs, names=names, bar=bar, folder=outputs(), **place)


def _encoding_memory(config: Config) -> float:
    """Bytes for the features of 100 images at a time: weights, and a block's tensors in float32."""
    block = (config.num_patches + 1) * 14 * config.embed_dim
    return 4 * (100 * block + 12 * config.depth * config.embed_dim**2)


def _probing_memory(config: Config, data: Dataset) -> float:
    """Bytes for a linear layer: the features, their two kinds, and copies in float64."""
    return 4 * 8 * config.embed_dim * (len(data.train) + len(data.test))


def _probing_seconds(protocol: str | Probe, config: Config, data: Dataset) -> float:
    """Of one probe on one core, roughly: half a ms a step, or what sklearn takes for a number."""
    probe = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    if probe is None:
        return 2e-6 * len(data.train) * config.embed_dim
    return 5e-4 * probe.epochs * max(1, len(data.train) // probe.batch_size)


def _features(run: Run, data: Dataset, epoch: int | None) -> None:
    """Computes features and leaves them in their file: they are too large to be sent."""
    features(run, data, epoch)


def _path(key: Key, seed: int) -> Path:
    run, protocol, pool, epoch = key
    settings, content = settings_of(protocol, pool, epoch, seed), content_of(run, epoch)
    return kept_path(run.folder / "probes", settings, content, "json")


def _name(run: Run, epoch: int | None) -> str:
    return run.folder.name if epoch is None else f"{run.folder.name} after epoch {epoch}"


def _without_images(data: Dataset) -> Dataset:
    """The labels alone, which are quick to send."""
    parts = [Split(split.labels, None, []) for split in (data.train, data.test)]
    return replace(data, train=parts[0], test=parts[1])
