"""Table 1: what the paper prints, and what the finished runs of this machine have. Reads files only, trains nothing."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from lib.evaluate.recipes import RECIPES
from lib.presets import PRESETS, Config
from lib.runs.files import read_json
from lib.runs.folder import Run, outputs

OBJECTIVES = ("MAE", "U-MAE")


PAPER: dict[
    str, dict[str, dict[str, float]]
] = {  # accuracy in percent, one number each: no spread is printed
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


def setting(config: Config) -> str:
    """What runs of one column share: everything that decides the result except the uniformity term and the seed."""
    return json.dumps(
        {k: v for k, v in config.identity().items() if k not in (*TERM, "seed")}, sort_keys=True
    )


def linear(run: Run, protocol: str, pool: str) -> float | None:
    """Test accuracy in percent of the finished model under a named protocol, if 03_linear_probe has measured it."""
    if protocol == "online":
        return (run.result or {}).get(f"test_online_{pool}_full")
    for path in sorted((run.folder / "probes").glob("*.json")):
        found = json.loads(path.read_text())
        wanted = {"protocol": repr(protocol), "pool": pool, "epoch": None, "seed": 0}
        if all(found.get(k) == v for k, v in wanted.items()):
            return found["test"]
    return None


def finetuned(run: Run, which: str = "best") -> float | None:
    """Test accuracy in percent with all labels by the preset's own recipe, else by the longest that was run."""
    found: list[dict[str, Any]] = [
        json.loads(p.read_text()) for p in (run.folder / "finetune").glob("*.json")
    ]
    own = dataclasses.asdict(RECIPES[run.config.preset])
    found = [f for f in found if f["fraction"] == 1 and f["seed"] == run.config.seed]
    best = max(found, key=lambda f: (f["recipe"] == own, f["recipe"]["epochs"]), default=None)
    return best[which] if best else None
