"""One run in many processes: started from a notebook by `run`, or by torchrun.

    results = launch.run(lib.train.train, processes, config)     # from a notebook or a script
    torchrun --nproc-per-node N -m lib.train --preset NAME       # headless, one or several nodes

Both tell every process its place by torchrun's environment variables, which `process_group` reads.
"""

import atexit
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from lib.compute.device import cores
from lib.errors import InputError, UMAEError

TIMEOUT = timedelta(minutes=5)  # of one collective: no worker waits longer for one that is gone


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the group that torchrun's (or `run`'s) variables describe; nothing without them.

    Gloo for tensors on the CPU, NCCL for those on GPUs. Each process takes GPU LOCAL_RANK, or its
    share of the cores. Raises InputError if there are fewer GPUs than processes on this machine.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield
        return
    local, workers = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    backend = "gloo"
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        if workers > gpus:
            raise InputError(f"{workers} processes need {workers} GPUs, this machine has {gpus}")
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    else:
        torch.set_num_threads(max(1, cores() // workers))
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def end_now(code: int) -> NoReturn:
    """Ends this process without the interpreter's own ending.

    Where DDP was used, gloo's threads outlive the group (torch 2.14). One that frees a tensor while
    the interpreter is being taken down aborts the process, with every file written: seen once in
    fewer than 70 exits on a busy machine.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(fn: Callable[..., Any], processes: int, *args: Any) -> Any:
    """fn(*args) in `processes` workers of one process group; returns what rank 0 returned.

    `fn` must be a function of a module, not of a notebook cell, and return what can be pickled.
    With one process it is called right here. An error in any worker ends all of them: a UMAEError
    is raised again here, any other as RuntimeError with the worker's traceback. An interrupt of
    this process interrupts the workers, waits until they have saved and ended, and is raised again.
    """
    if processes < 1:
        raise InputError(f"processes must be at least 1, got {processes}")
    if processes == 1:
        return fn(*args)
    module, name = getattr(fn, "__module__", "__main__"), getattr(fn, "__qualname__", "<")
    if module == "__main__" or "<" in name:
        raise InputError(
            f"{fn!r} cannot be imported by a worker; pass a function of a module, such as "
            "lib.train.train"
        )
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=f"umae-{os.getpid()}",
        max_restarts=0, rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="spawn",
        shutdown_timeout=60, signals_to_handle="SIGTERM,SIGINT",
    )  # fmt: skip
    quiet = _quiet("torch.distributed.elastic", "torch.multiprocessing")
    with tempfile.TemporaryDirectory() as folder, quiet, _own_signals():
        try:
            return elastic_launch(config, _worker)(fn, args, folder)[0]
        except SignalException:
            raise KeyboardInterrupt from None
        except ChildFailedError as failed:
            raise _first_error(Path(folder)) or RuntimeError(
                failed.get_first_failure()[1].message
            ) from None


def _worker(fn: Callable[..., Any], args: tuple, folder: str) -> Any:
    with process_group():
        try:
            result = fn(*args)
            ForkingPickler.dumps(result)  # what cannot be sent is an error of the function
        except BaseException as error:  # noted before the others see that this process is gone
            Path(folder, str(dist.get_rank())).write_text(json.dumps(_note(error)))
            raise
        atexit.register(end_now, 0)  # once the result has been taken
        return result if dist.get_rank() == 0 else None


def _note(error: BaseException) -> dict[str, Any]:
    """What the parent must know of an error, as JSON; called where it is handled."""
    if isinstance(error, UMAEError):
        kind, text = type(error).__name__, str(error)
    else:
        kind, text = "", f"process {dist.get_rank()} failed: {traceback.format_exc()}".rstrip()
    return {"time": time.time_ns(), "kind": kind, "text": text}


def _first_error(folder: Path) -> Exception | None:
    """The error that came first: the others are often about the process that it ended."""
    notes = [json.loads(file.read_text()) for file in folder.iterdir()]
    if not notes:
        return None
    first = min(notes, key=lambda note: note["time"])
    family: dict[str, type[Exception]] = {kind.__name__: kind for kind in _family(UMAEError)}
    return family.get(first["kind"], RuntimeError)(first["text"])


def _family(kind: type[UMAEError]) -> list[type[UMAEError]]:
    """An error class and all that are derived from it."""
    return [kind, *(k for below in kind.__subclasses__() for k in _family(below))]


@contextmanager
def _own_signals() -> Iterator[None]:
    """Puts back the notebook's handlers: the launcher leaves its own when it is done."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Without the lines of these loggers about a failure that is raised anyway."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
