"""Many accuracies and finetunings: what is missing is measured, several at once."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lib.data import Dataset, Split, load
from lib.distributed.jobs import run_jobs
from lib.errors import InputError
from lib.evaluate.accuracy import content_of, evaluate, settings_of
from lib.evaluate.features import features
from lib.evaluate.finetuning import finetune
from lib.evaluate.probes import Probe
from lib.evaluate.recipes import Recipe
from lib.presets import Config
from lib.runs.cache import kept_path
from lib.runs.folder import Run, outputs
from lib.runs.progress import progress

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
    keys = list(itertools.product(runs, protocols, pools, epochs))
    missing = [key for key in keys if key[1] != "online" and not _path(key, seed).is_file()]
    models = list(dict.fromkeys((run, epoch) for run, _, _, epoch in missing))
    items = [(run, images, epoch) for run, epoch in models]
    _all(_features, items, "features", [_name(*model) for model in models], jobs)
    labels = _without_images(images)  # the features of all that follow are kept
    probes = [(run, protocol, pool, epoch, seed, labels) for run, protocol, pool, epoch in missing]
    names = [f"{protocol} of {_name(run, epoch)}" for run, protocol, _, epoch in missing]
    _all(evaluate, probes, "probes", names, jobs)
    return {key: evaluate(*key, seed=seed, data=labels) for key in keys}


def finetune_all(
    wanted: Sequence[tuple[Config, Recipe, float, int, bool]],
    data: Dataset | None = None,
    jobs: str | int = "auto",
) -> list[dict[str, Any]]:
    """`finetune` of every (config, recipe, fraction, seed, scratch), `jobs` at once, in order.

    All are on the same images. Raises what `finetune` raises, for the first that failed.
    """
    if not wanted:
        return []
    images = data or load(**wanted[0][0].data_fields)
    names = [
        f"{config.preset}, lam {config.lam:g}, {fraction:.0%} of the labels, seed {seed}"
        + (", from scratch" if scratch else "")
        for config, _, fraction, seed, scratch in wanted
    ]
    return _all(finetune, [(*item, images) for item in wanted], "finetunings", names, jobs)


def _all(fn: Any, items: list[tuple], unit: str, names: list[str], jobs: str | int) -> list[Any]:
    """One bar over all jobs; nothing at all where there are none."""
    if not items:
        return []
    with progress(len(items), unit=unit, delay=10) as bar:
        return run_jobs(fn, items, jobs, names=names, bar=bar, folder=outputs())


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
