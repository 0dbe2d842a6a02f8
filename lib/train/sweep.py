"""Many runs: training what is missing."""

import time
from collections.abc import Sequence
from contextlib import redirect_stdout

from lib.data import Dataset, load
from lib.distributed import launch
from lib.distributed.jobs import check_jobs
from lib.presets import Config
from lib.runs.folder import Run, open_run
from lib.train.loop import train


def train_all(
    configs: Sequence[Config],
    data: Dataset | None = None,
    jobs: str | int = "auto",
    processes: int = 1,
) -> list[Run]:
    """The run of every config, trained where it is missing; a line each instead of their progress.

    A run is found by its config, so a killed sweep goes on where it stopped: finished runs are
    found, the interrupted ones resume from their last checkpoint. What a run prints goes to
    log.txt in its folder.
    """
    check_jobs(jobs)
    data = data or load(**configs[0].data_fields)
    runs = []
    for k, config in enumerate(configs, 1):
        run, begun, text = open_run(config, data.fingerprint), time.monotonic(), "found"
        if run.result is None:
            text = "resumed" if (run.folder / "state.pt").is_file() else "trained"
            if processes > 1:
                launch.run(train, processes, config)
            else:
                run.folder.mkdir(parents=True, exist_ok=True)
                with open(run.folder / "log.txt", "a", buffering=1) as log, redirect_stdout(log):
                    train(config, data)
            text += f" in {time.monotonic() - begun:.1f} s"
        print(f"{k:>3}/{len(configs)}  {run.folder.name}: {text}", flush=True)
        runs.append(run)
    return runs
