"""Independent jobs (runs, probes, finetunings) in parallel processes, through joblib.

    with progress(len(items), unit="probes") as bar:
        results = run_jobs(evaluate_one, items, "auto", names=names, bar=bar)

The processes are joblib's own (loky) on this machine. Inside `joblib.parallel_config("dask")` or
another of joblib's backends they are that backend's, on other machines too (docs/cluster.md).
"""

import _thread
import fcntl
import io
import math
import os
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import BACKENDS, get_active_backend
from tqdm import tqdm

from lib.compute.device import cores, pick_device
from lib.distributed.signals import ask_to_stop, signals
from lib.errors import InputError, Interrupted, UMAEError

LIBRARIES = 0.5 * 2**30  # bytes: torch and what it imports, in every process
STARTING = 6.0  # seconds until other processes have imported what a job needs
POLL = 0.2  # seconds between two looks of a job at whether it should stop
_working = threading.Lock()  # held while this process computes a job of its parent


def check_jobs(jobs: str | int) -> int | None:
    """The number of parallel jobs that `jobs` names (1, 2, ... or its text), None for "auto"."""
    if jobs == "auto":
        return None
    text = str(jobs)
    if isinstance(jobs, bool) or not text.isdecimal() or int(text) < 1:
        raise InputError(f"jobs must be auto or a number of processes from 1 on, got {jobs!r}")
    return int(text)


@dataclass(frozen=True)
class Plan:
    """How jobs are computed: `at_once`, each with `threads` (None: as many as its process has)."""

    at_once: int
    threads: int | None = None
    gpus: int = 0  # one for each job; 0: on the CPU
    reduced: str = ""  # why there are fewer at once than was asked for


def plan_jobs(
    jobs: str | int,
    number: int,
    memory: float = 0.0,
    device: str = "auto",
    seconds: float = math.inf,
) -> Plan:
    """How `number` jobs that need `memory` bytes each are computed on this machine.

    "auto" is one job a core, or one a GPU; a device like cuda:1 is one GPU. It is one job in this
    process, if other processes would save less than their start takes: `seconds` is what all jobs
    take one after another on a core, roughly. The threads of this process are divided among them.
    Jobs that do not fit into the free memory wait, and `reduced` says so. Free is what psutil
    sees: the machine's memory, not the limit of a container.
    """
    wanted, number = check_jobs(jobs), max(1, number)
    if not isinstance(get_active_backend()[0], BACKENDS["loky"]):
        return Plan(min(wanted or effective_n_jobs(-1), number))
    place = pick_device(device)
    gpus = torch.cuda.device_count() if place.type == "cuda" else 0
    if place.index is not None:  # one GPU was named
        gpus = min(gpus, 1)
    at_once = min(wanted or gpus or cores(), number)
    short = wanted is None and not gpus and seconds * (1 - 1 / at_once) < STARTING
    if at_once == 1 or short:
        return Plan(1)
    each, free = memory + LIBRARIES, psutil.virtual_memory().available
    fitting = max(1, int(0.9 * free // each))
    reduced = ""
    if fitting < at_once:
        reduced = (
            f"jobs: {fitting} at once, not {at_once}: each needs about {each / 2**30:.1f} GiB, "
            f"and {free / 2**30:.1f} GiB are free"
        )
        at_once = fitting
    threads = min(torch.get_num_threads(), max(1, cores() // at_once))
    return Plan(at_once, threads, min(gpus, at_once), reduced)


@dataclass(frozen=True)
class _Outcome:
    """What became of job `index`: its value or its error, and what it printed elsewhere."""

    index: int
    value: Any = None
    error: Exception | None = None
    lines: tuple[str, ...] = ()


def run_jobs(
    fn: Callable[..., Any],
    items: Sequence[tuple],
    jobs: str | int = "auto",
    *,
    names: Sequence[str],
    memory: float = 0.0,
    device: str = "auto",
    seconds: float = math.inf,
    bar: tqdm | None = None,
    say: Callable[[str], Any] | None = None,
    line: Callable[[int, Any], str] | None = None,
    folder: Path | None = None,
) -> list[Any]:
    """fn(*item) for every item, `jobs` at once, in the order of `items`.

    fn: a function of a module. A single job at once is computed in this process, with its threads.
    names: one for each item, for messages. memory, device, seconds: see `plan_jobs`.
    bar: moves by one with every job that ends; say: prints a line, above the bar by default.
    line(index, value): what is printed of a job that has ended, if any.
    Lines that a job prints in another process are printed here, named, when it ends; its own
    bars are not shown.
    folder: one that all processes see, where another machine may compute; default: the machine's
    folder for temporary files.

    An error ends its job only. It is printed in one line when it comes, and the first one is
    raised again, named, when the others are done. SIGINT and SIGTERM reach all jobs: a run saves
    its state, other jobs are dropped, and Interrupted is raised when all have ended.
    """
    plan = plan_jobs(jobs, len(items), memory, device, seconds)
    say = say or (bar.write if bar else print)
    if plan.reduced:
        say(plan.reduced)
    stream = _here(fn, items) if plan.at_once == 1 else _elsewhere(fn, items, plan, folder)
    values: list[Any] = [None] * len(items)
    failed: list[_Outcome] = []
    for outcome in stream:
        if bar is not None:
            bar.update(1)
        values[outcome.index] = outcome.value
        for text in outcome.lines:
            say(f"{names[outcome.index]}: {text}")
        if outcome.error:
            failed.append(outcome)
            say(f"{names[outcome.index]}: {_last_line(outcome.error)}")
        elif line and (text := line(outcome.index, outcome.value)):
            say(text)
    if failed:
        _raise_first(failed, names)
    return values


def _last_line(error: Exception) -> str:
    """What an error says, or its kind where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[-1]


def _raise_first(failed: list[_Outcome], names: Sequence[str]) -> None:
    first = min(failed, key=lambda outcome: outcome.index)
    text = f"{names[first.index]}: {first.error}"
    if len(failed) > 1:
        text = f"{len(failed)} of {len(names)} failed; {text}"
    kind = type(first.error) if isinstance(first.error, UMAEError) else RuntimeError
    raise kind(text) from first.error


def _here(fn: Callable[..., Any], items: Sequence[tuple]) -> Iterator[_Outcome]:
    """One after another in this process, which handles its own interrupts."""
    for index, args in enumerate(items):
        outcome = _outcome(index, fn, args)
        if isinstance(outcome.error, Interrupted):
            raise outcome.error
        yield outcome


def _outcome(index: int, fn: Callable[..., Any], args: tuple) -> _Outcome:
    try:
        return _Outcome(index, fn(*args))
    except Exception as error:
        return _Outcome(index, error=error)


@dataclass(frozen=True)
class _Place:
    """What a job's process must know of the one that started it."""

    folder: str  # where the two meet
    variables: dict[str, str]  # of the environment: an older worker has older ones
    plan: Plan
    parent: int  # its process id, 0 if the job's process is not its child

    @property
    def stop(self) -> Path:
        return Path(self.folder, "stop")

    def left(self) -> bool:
        """Whether the parent of this process is gone."""
        return self.parent > 0 and os.getppid() != self.parent


def _elsewhere(
    fn: Callable[..., Any], items: Sequence[tuple], plan: Plan, folder: Path | None
) -> Iterator[_Outcome]:
    """In processes of joblib's active backend, in the order in which they end."""
    variables = {k: v for k, v in os.environ.items() if k.startswith("UMAE_")}
    parent = os.getpid() if plan.threads else 0
    try:
        temporary = tempfile.TemporaryDirectory(prefix=".jobs-", dir=folder)
    except OSError as error:
        raise InputError(
            f"cannot write {folder or tempfile.gettempdir()} ({error.strerror}); set UMAE_OUTPUTS, "
            "or TMPDIR, to a folder that can be written"
        ) from None
    with temporary as meeting:
        place = _Place(meeting, variables, plan, parent)
        parallel = Parallel(
            plan.at_once, batch_size=1, return_as="generator_unordered", mmap_mode="c"
        )
        calls = (delayed(_job)(place, index, fn, args) for index, args in enumerate(items))
        with signals(place.stop.touch) as caught:
            try:
                yield from parallel(calls)
            except BrokenProcessPool:
                raise UMAEError(
                    "a process was killed, often for want of memory; what had ended is kept: lower "
                    "jobs and run the same again"
                ) from None
        if caught:
            text = "stopped; runs that had begun are saved, the same command goes on from there"
            raise Interrupted(text, caught[0])


def _job(place: _Place, index: int, fn: Callable[..., Any], args: tuple) -> _Outcome:
    """A job in a process of its own."""
    os.environ.update(place.variables)
    if place.plan.threads:
        torch.set_num_threads(place.plan.threads)
    if place.parent:
        _end_with_parent(place.parent)
    said, at_work = io.StringIO(), _working if place.parent else nullcontext()
    try:
        with at_work, _heeding(place), _own_gpu(place), redirect_stdout(said):
            outcome = _outcome(index, fn, args)
    except KeyboardInterrupt:
        return _Outcome(index, error=Interrupted("stopped"))
    if outcome.error and not isinstance(outcome.error, UMAEError):
        text = "".join(traceback.format_exception(outcome.error)).rstrip()
        outcome = _Outcome(index, error=RuntimeError(text))  # what surely can be sent
    lines = [line for line in said.getvalue().split("\n") if line and "\r" not in line]  # no bars
    return replace(outcome, lines=tuple(lines))


@cache
def _end_with_parent(parent: int) -> None:
    """Ends this process, when it is idle, soon after its parent: joblib keeps it for minutes.

    A kernel that is killed at a notebook's end cannot end its workers. A job that is at work sees
    to its own end (`_heeding`).
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        with _working:
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _heeding(place: _Place) -> Iterator[None]:
    """The job ends when its parent wants it to, or when its parent is gone.

    Ctrl-C in a terminal and a scheduler's SIGTERM reach the whole group of processes. Where they
    are not caught (see `signals`) they are ignored: the parent decides.
    """
    told, ended = threading.Event(), threading.Event()

    def interrupt(*_: Any) -> None:
        if told.is_set() and not ended.is_set():
            raise KeyboardInterrupt

    def watch() -> None:
        while not ended.wait(POLL):
            if place.left() or place.stop.exists():
                if not ask_to_stop():
                    told.set()
                    _thread.interrupt_main()
                return

    if threading.current_thread() is threading.main_thread() and place.parent:
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if place.stop.exists():
        raise KeyboardInterrupt
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if place.left():  # nobody takes a result, and joblib's worker would wait for minutes
            os._exit(1)


@contextmanager
def _own_gpu(place: _Place) -> Iterator[None]:
    """A GPU that no other job of this call has is the one called "cuda"."""
    for number in range(place.plan.gpus):
        with open(Path(place.folder, f"gpu-{number}-{socket.gethostname()}"), "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            with torch.cuda.device(number):
                yield
                return
    yield
