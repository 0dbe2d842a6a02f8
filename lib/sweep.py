"""Many runs: training what is missing, and what their numbers say about a claim."""

import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace

import numpy as np
from scipy.stats import t as student

from lib import launch
from lib.data import Dataset, load
from lib.presets import Config
from lib.runs import Run, open_run
from lib.train import train


def train_all(configs: Sequence[Config], data: Dataset | None = None, processes: int = 1) -> list[Run]:
    """The run of every config, one after another, trained where it is missing; a line each instead of their progress.

    A run is found by its config, so a killed sweep goes on where it stopped: finished runs are found, the interrupted
    one resumes from its last checkpoint. What a run prints goes to log.txt in its folder.
    """
    runs = []
    for k, config in enumerate(configs, 1):
        run, begun, text = open_run(config), time.monotonic(), "found"
        if run.result is None:
            text = "resumed" if (run.folder / "state.pt").is_file() else "trained"
            if processes > 1:
                launch.run(train, processes, config)
            else:
                data = replace(data, config=config) if data else load(config)
                run.folder.mkdir(parents=True, exist_ok=True)
                with open(run.folder / "log.txt", "a", buffering=1) as log, redirect_stdout(log):
                    train(config, data)
            text += f" in {time.monotonic() - begun:.1f} s"
        print(f"{k:>3}/{len(configs)}  {run.folder.name}: {text}", flush=True)
        runs.append(run)
    return runs


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's confidence interval of the mean; (-inf, inf) of a single value."""
    v = np.asarray(values, dtype=float)
    if len(v) < 2:
        return -np.inf, np.inf
    half = student.ppf(0.5 + level / 2, len(v) - 1) * v.std(ddof=1) / np.sqrt(len(v))
    return float(v.mean() - half), float(v.mean() + half)


def verdict(differences: Sequence[float], above: float = 0.0) -> str:
    """Whether paired differences bear out that their mean is above `above`: by the 95 % interval of the mean.

    "agrees" if all of it is above, "does not agree" if all of it is below, else "cannot tell"; so also with n = 1.
    """
    low, high = interval(differences)
    return "agrees" if low > above else "does not agree" if high < above else "cannot tell"


def judge(claim: str, differences: Sequence[float], above: float = 0.0) -> dict[str, object]:
    """Prints a claim with its numbers and its verdict, and returns them for a notebook's JSON."""
    v, (low, high) = np.asarray(differences, dtype=float), interval(differences)
    shown = f"[{low:+.1f}, {high:+.1f}]" if len(v) > 1 else "[no interval]"
    print(f"{claim}: {v.mean():+.1f} {shown}, n={len(v)} -> {(says := verdict(v.tolist(), above))}")
    return {"claim": claim, "differences": v.tolist(), "above": above, "verdict": says}
