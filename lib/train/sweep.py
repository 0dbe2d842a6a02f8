"""Many runs: training what is missing, several at once, together with other processes."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from lib.compute.duration import training_seconds
from lib.compute.memory import memory_at_most
from lib.data import Dataset, load
from lib.distributed import launch
from lib.distributed.jobs import check_jobs, plan_jobs, run_jobs
from lib.errors import InputError, RunBusy, check_number
from lib.presets import Config
from lib.runs.files import make_folder
from lib.runs.folder import Run, explain_new_run, open_run, outputs
from lib.runs.progress import progress

POLL = 1.0  # seconds between two looks at the folders of runs


def train_all(
    configs: Sequence[Config],
    data: Dataset | None = None,
    jobs: str | int = "auto",
    processes: int = 1,
) -> list[Run]:
    """The run of every config, trained where it is missing; a line each instead of their progress.

    jobs: how many runs at once (`lib.distributed.jobs`): "auto" is one a core or GPU, or one after
    another where all together take less than the start of processes. The weights
    are the same whatever `jobs` is, for the same number of threads; result.json holds that number.
    processes: how many compute one run; then the runs are trained one after another.

    A run is found by its config and its images, so a killed sweep goes on where it stopped:
    finished runs are found, interrupted ones resume from their last checkpoint. Executions that
    share an outputs folder, on one machine or several, share the sweep: a run that another process
    is training is left to it until it has a result, or taken over when its owner has died. With
    processes 1, what a run prints goes to log.txt in its folder. The bar counts the runs, and the
    trained part of those that are not done; it shows their last losses.

    An error ends its run only; it is raised when the others are done. Raises what `train` raises;
    Interrupted once all runs that had begun are saved.
    """
    if processes > 1 and (check_jobs(jobs) or 1) > 1:
        raise InputError(f"jobs {jobs} and processes {processes} were both given; give one of them")
    check_number("processes", processes, 1, whole=True)
    if processes > 1:
        from lib.train.loop import micro_batch

        for config in configs:
            micro_batch(config, processes)  # refused here, and not by every process
    if not configs:
        return []
    data = data or load(**_shared_data_fields(configs))
    runs = [open_run(config, data.fingerprint) for config in configs]
    for k, run in enumerate(runs):
        run.check_fits(data)
        run.check_finished()
        if run.result is not None:
            print(_line(runs, k, ", ".join(filter(None, ["found", run.imported_from]))), flush=True)
    missing = _missing(runs)
    for k in missing:
        explain_new_run(runs[k])  # what the jobs print goes to their logs
    with _bar_over([runs[k] for k in missing]) as bar:
        while missing:
            _train_together(runs, missing, data, jobs if processes == 1 else 1, processes, bar)
            missing = _wait(runs, _missing(runs), bar)
    return runs


def _shared_data_fields(configs: Sequence[Config]) -> dict[str, Any]:
    fields = configs[0].data_fields
    for config in configs:
        if differ := [k for k, v in config.data_fields.items() if v != fields[k]]:
            raise InputError(
                f"the runs of one train_all share their images, but differ in {differ[0]}; call it "
                "once for each"
            )
    return fields


def _missing(runs: Sequence[Run]) -> list[int]:
    """The first index of every run that has no result; one run may be named several times."""
    first = {run.folder: k for k, run in reversed([*enumerate(runs)])}
    return [k for k in sorted(first.values()) if runs[k].result is None]


@contextmanager
def _bar_over(runs: Sequence[Run]) -> Iterator[tqdm]:
    """A bar that moves while the runs are trained, by whichever process."""
    ended = threading.Event()
    with progress(len(runs), show=bool(runs), unit="runs") as bar:

        def watch() -> None:
            while not ended.wait(POLL):
                _move(bar, runs)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield bar
        finally:
            ended.set()
            thread.join()
            _move(bar, runs)


def _move(bar: tqdm, runs: Sequence[Run]) -> None:
    """Moves the bar to where the folders of the runs say that they are."""
    trained, losses = 0.0, []
    for run in runs:
        with suppress(InputError):  # an altered file, which the training itself reports
            if run.result is not None:
                trained += 1
            elif lines := run.metrics():
                trained += lines[-1]["epoch"] / run.config.epochs
                losses.append(f"{lines[-1]['loss']:.3f}")
    if losses:
        bar.set_postfix_str("loss " + " ".join(losses[:4]), refresh=False)
    bar.update(trained - bar.n)


def _line(runs: Sequence[Run], k: int, text: str) -> str:
    return f"{k + 1:>3}/{len(runs)}  {runs[k].folder.name}: {text}"


def _train_together(
    runs: Sequence[Run],
    missing: Sequence[int],
    data: Dataset,
    jobs: str | int,
    processes: int,
    bar: tqdm,
) -> None:
    """One attempt at every missing run, but for those that other processes are training."""

    def seconds(k: int) -> float:
        return training_seconds(runs[k].config, len(data.train))

    missing = sorted(missing, key=seconds, reverse=True)  # no long one is left for the end

    def line(job: int, text: str) -> str:
        return _line(runs, missing[job], text) if text else ""

    make_folder(outputs())
    run_jobs(
        _train,
        [(runs[k].config, data, processes) for k in missing],
        jobs,
        names=[runs[k].folder.name for k in missing],
        memory=_memory([runs[k].config for k in missing], data, jobs),
        device=runs[0].config.device,
        seconds=sum(map(seconds, missing)),
        say=bar.write,
        line=line,
        folder=outputs(),
    )


def _memory(configs: Sequence[Config], data: Dataset, jobs: str | int) -> float:
    """Bytes of the largest run: an upper bound, or an estimate where the bound does not fit.

    What does not change a run's memory is looked at once.
    """
    same: dict[str, Any] = dict(seed=0, lam=0.0, epochs=1, warmup_epochs=0.0, base_lr=0.0)
    different = {replace(config, **same) for config in configs}
    most = max(map(memory_at_most, different))
    if not plan_jobs(jobs, len(configs), most, configs[0].device).reduced:
        return most
    from lib.compute.cost import estimate

    return max(estimate(config, len(data.train)).memory for config in different)


def _train(config: Config, data: Dataset, processes: int) -> str:
    """Trains one run; says how in a few words, in none if another process is training it."""
    from lib.train.loop import train

    run, begun = open_run(config, data.fingerprint), time.monotonic()
    if run.result is not None:
        return "trained by another process"
    text = "resumed" if (run.folder / "state.pt").is_file() else "trained"
    try:
        if processes > 1:
            launch.run(train, processes, config, data)
        else:
            make_folder(run.folder)
            with open(run.folder / "log.txt", "a", buffering=1) as log, redirect_stdout(log):
                train(config, data)
    except RunBusy:
        return ""
    return f"{text} in {time.monotonic() - begun:.1f} s"


def _wait(runs: Sequence[Run], others: list[int], bar: tqdm) -> list[int]:
    """Waits until one of the runs that others train is done or left; returns what is missing."""
    if others:
        bar.write(f"waiting for {len(others)} runs that other processes are training")
    while others and all(runs[k].result is None and runs[k].is_busy() for k in others):
        time.sleep(POLL)
    for k in others:
        if runs[k].result is not None:
            bar.write(_line(runs, k, "trained by another process"))
    return _missing(runs)
