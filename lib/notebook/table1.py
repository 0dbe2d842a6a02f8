"""Table 1: what the paper prints, and what the finished runs of this machine have.

Reads files only, trains nothing.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lib.errors import InputError
from lib.evaluate.accuracy import content_of, settings_of
from lib.evaluate.recipes import RECIPES, VERSION
from lib.notebook.pairs import OBJECTIVES, objective
from lib.presets import PRESETS, Config
from lib.runs.cache import kept_path
from lib.runs.files import read_json
from lib.runs.folder import Run, outputs

# Accuracy in percent, one number each: no spread is printed.
PAPER: dict[str, dict[str, dict[str, float]]] = {
    "cifar10-vit-tiny": {
        "linear": {"MAE": 52.0, "U-MAE": 69.4},
        "finetune": {"MAE": 89.6, "U-MAE": 89.4},
    },
    "cifar10-vit-base": {
        "linear": {"MAE": 59.9, "U-MAE": 72.0},
        "finetune": {"MAE": 90.7, "U-MAE": 90.8},
    },
    "imagenet100-vit-base": {
        "linear": {"MAE": 37.5, "U-MAE": 56.3},
        "finetune": {"MAE": 86.9, "U-MAE": 86.8},
    },
    "imagenet100-vit-large": {
        "linear": {"MAE": 39.5, "U-MAE": 61.4},
        "finetune": {"MAE": 87.3, "U-MAE": 87.3},
    },
}


TERM = ("lam", "uniformity", "pool")  # what tells U-MAE runs of one setting apart


def finished_runs() -> Iterator[Run]:
    """Every finished run under outputs/runs that this version can read, by name."""
    names = {f.name for f in dataclasses.fields(Config)}
    for folder in sorted((outputs() / "runs").glob("*/")):
        record = read_json(folder / "config.json")
        fields = record.get("config", {})
        known = set(fields) <= names and fields.get("preset") in PRESETS
        if (folder / "result.json").is_file() and known:
            config = Config(**{**fields, "classes": tuple(fields.get("classes", ()))})
            yield Run(config, record["fingerprint"], folder)


Column = dict[str, list[Run]]  # the runs of each objective


def chosen_fields(base: Config, names: Sequence[str]) -> dict[str, Any]:
    """The fields of Config by which columns are chosen: {name: its checked value in `base`}.

    A field that only says where to compute chooses nothing. Raises InputError for the images, the
    uniformity term and the seed, which `overrides` cannot choose.
    """
    for name in names:
        if name in (*TERM, "seed", "data", "preset"):
            raise InputError(
                f"overrides sets {name!r}; use this notebook's own preset, data, lam, uniformity, "
                "pool and seeds"
            )
    where = {f.name for f in dataclasses.fields(Config) if f.metadata.get("where")}
    return {name: getattr(base, name) for name in names if name not in where}


def setting(run: Run) -> str:
    """What runs of one column share: all that decides the result but uniformity term and seed."""
    own = run.config.identity().items()
    shared = {k: v for k, v in own if k not in (*TERM, "seed")}
    return json.dumps([shared, run.fingerprint], sort_keys=True)


def found_settings(
    term: Mapping[str, Any], fields: Mapping[str, Any], seeds: Sequence[int] | None = None
) -> list[Column]:
    """Every setting that has finished runs, each with its runs by objective.

    term: lam, uniformity and pool of the U-MAE runs, of the run's preset where None. fields: those
    of `chosen_fields`, which the runs must have; the mask ratio is the preset's if not among them.
    """
    settings: dict[str, Column] = {}
    for run in finished_runs():
        preset = PRESETS[run.config.preset]
        wanted = {"mask_ratio": preset.mask_ratio, **fields}
        if run.config.lam > 0:
            own = {name: getattr(preset, name) for name in TERM}
            wanted |= own | {k: v for k, v in term.items() if v is not None}
        right_seed = seeds is None or run.config.seed in seeds
        if right_seed and all(getattr(run.config, k) == v for k, v in wanted.items()):
            column = settings.setdefault(setting(run), {name: [] for name in OBJECTIVES})
            column[objective(run.config)].append(run)
    return list(settings.values())


def config_of(column: Column) -> Config | None:
    """The config of one of its runs, None of a column without runs."""
    return next((run.config for runs in column.values() for run in runs), None)


def choose_columns(settings: Sequence[Column], presets: Sequence[str]) -> dict[str, Column]:
    """One column for each preset: a setting with both objectives before others, then the longest.

    A preset without runs has an empty column.
    """

    def rank(column: Column) -> tuple[bool, int, int]:
        config = config_of(column)
        epochs = config.epochs if config else 0
        return all(column.values()), epochs, sum(map(len, column.values()))

    columns = {name: Column({o: [] for o in OBJECTIVES}) for name in presets}
    for column in sorted(settings, key=rank):
        config = config_of(column)
        if config is not None and config.preset in columns:
            columns[config.preset] = column
    return columns


def linear(run: Run, protocol: str, pool: str) -> float | None:
    """Test accuracy in percent of the finished model under a protocol, if it has been measured."""
    if protocol == "online":
        return (run.result or {}).get(f"test_online_{pool}_full")
    settings = settings_of(protocol, pool, epoch=None, seed=0)
    path = kept_path(run.folder / "probes", settings, content_of(run), "json")
    return read_json(path).get("test")


def finetuned(run: Run, which: str = "best") -> float | None:
    """Test accuracy in percent with all labels, "best" or "last" (see `finetune`).

    By the preset's own recipe, else by the longest that was run. Files whose weights, images or
    code are not the present ones do not count.
    """
    content = {"images": run.fingerprint, "weights": run.weights_digest()}
    wanted = {"fraction": 1, "seed": run.config.seed, "finetuning_version": VERSION, **content}
    files = [read_json(p) for p in sorted((run.folder / "finetune").glob("*.json"))]
    found = [f for f in files if all(f.get("inputs", {}).get(k) == v for k, v in wanted.items())]
    own = dataclasses.asdict(RECIPES[run.config.preset])

    def rank(result: dict[str, Any]) -> tuple[bool, int]:
        recipe = result["inputs"]["recipe"]
        return recipe == own, recipe["epochs"]

    best = max(found, key=rank, default=None)
    return best[which] if best else None
