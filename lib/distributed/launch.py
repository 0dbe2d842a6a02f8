"""Many processes: a lib function in N spawned workers from a notebook, or the processes that torchrun started.

    results = launch.run(lib.train.train, processes, config)                 # from a notebook or a script
    torchrun --nproc-per-node N -m lib.train --preset NAME                   # headless, one or several nodes

Both give every process its place through torchrun's environment variables, which `process_group` reads.
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

from lib import errors
from lib.compute.device import cores
from lib.errors import InputError, UMAEError

TIMEOUT = timedelta(minutes=5)  # of one collective: no worker waits longer for one that is gone


@contextmanager
def process_group(timeout: timedelta = TIMEOUT) -> Iterator[None]:
    """Joins the group that torchrun's (or `run`'s) environment variables describe; does nothing without them.

    Gloo for tensors on the CPU, NCCL for those on GPUs. Each process takes GPU LOCAL_RANK, or its share of the cores.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield
        return
    local, workers = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    backend = "gloo"
    if torch.cuda.is_available():
        if workers > torch.cuda.device_count():
            raise InputError(
                f"{workers} processes need {workers} GPUs, this machine has {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    else:
        torch.set_num_threads(max(1, cores() // workers))
    dist.init_process_group(backend, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def end_now(code: int) -> NoReturn:
    """Ends this process without the interpreter's own ending.

    Where DDP was used, gloo's threads outlive the group (torch 2.14), and one that frees a tensor while the interpreter
    is being taken down aborts the process, with every file written: seen once in fewer than 70 exits on a busy machine.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(fn: Callable[..., Any], processes: int, *args: Any) -> Any:
    """fn(*args) in `processes` workers of one process group; returns what rank 0 returned.

    `fn` must be importable (a function of a module, not of a notebook cell) and return what can be pickled. With one
    process it is called right here. An error in any worker ends all of them: a UMAEError is raised again here, any
    other as RuntimeError with the worker's traceback. An interrupt of this process interrupts the workers, waits
    until they have saved and ended, and is raised again.
    """
    if processes < 1:
        raise InputError(f"processes must be at least 1, got {processes}")
    if processes == 1:
        return fn(*args)
    if getattr(fn, "__module__", "__main__") == "__main__" or "<" in getattr(
        fn, "__qualname__", "<"
    ):
        raise InputError(
            f"{fn!r} cannot be imported by a worker; pass a function of a module, such as lib.train.train"
        )
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=f"umae-{os.getpid()}", max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", start_method="spawn", shutdown_timeout=60,
        signals_to_handle="SIGTERM,SIGINT",
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
            known = isinstance(error, UMAEError)
            text = (
                str(error)
                if known
                else f"process {dist.get_rank()} failed: {traceback.format_exc()}".rstrip()
            )
            note = {
                "time": time.time_ns(),
                "kind": type(error).__name__ if known else "",
                "text": text,
            }
            Path(folder, str(dist.get_rank())).write_text(json.dumps(note))
            raise
        atexit.register(end_now, 0)  # once the result has been taken
        return result if dist.get_rank() == 0 else None


def _first_error(folder: Path) -> Exception | None:
    """The error that came first: the others are often about the process that it ended."""
    notes = [json.loads(file.read_text()) for file in folder.iterdir()]
    if not notes:
        return None
    first = min(notes, key=lambda note: note["time"])
    return (
        getattr(errors, first["kind"])(first["text"])
        if first["kind"]
        else RuntimeError(first["text"])
    )


@contextmanager
def _own_signals() -> Iterator[None]:
    """The launcher leaves its handlers in place when it is done: this puts back those of the notebook."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Without the lines that these loggers print, traceback and all, about a failure that is raised anyway."""
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
