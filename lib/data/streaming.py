"""Batches of images that worker processes decode, which end when this process says so."""

import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lib.data.decoding import Decoder
from lib.data.notes import say_once
from lib.errors import InputError

SHARED_MEMORY = "/dev/shm"
PREFETCH = 2  # batches that each worker decodes ahead
REMEDY = (
    "use fewer, or workers 0 (--workers 0), or give more to this machine (docker run --shm-size=8g)"
)


def decoded_batches(
    decoder: Decoder, batches: Sequence[list[int]], workers: int
) -> Iterator[Tensor]:
    """uint8 (B, C, S, S) for every list of indices, in order, decoded by `workers` processes.

    C is 3 at most. The workers hand over their batches in shared memory or, where /dev/shm is too
    small for them (64 MB in a Docker container), through pipes, which costs two more copies; one
    line says so. Raises InputError for an image that cannot be read, and when the memory ends all
    the same.
    """
    largest = max((len(batch) for batch in batches), default=0) * 3 * decoder.size**2
    by_pipe = not _shared_memory_holds(largest * workers * (PREFETCH + 1))
    if by_pipe:
        _say_that_pipes_are_used()
    loader = DataLoader(
        decoder,
        batch_sampler=batches,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        collate_fn=_as_array if by_pipe else None,
        worker_init_fn=_heed_parent_only,
    )
    try:
        for batch in loader:
            yield torch.from_numpy(batch) if isinstance(batch, np.ndarray) else batch
    except InputError as error:  # a worker's arrives inside its traceback
        line = str(error).strip().split("\n")[-1]
        raise InputError(line.removeprefix("lib.errors.InputError: ")) from None
    except RuntimeError as error:
        if not _is_about_memory(error):
            raise
        raise InputError(
            f"the decoding workers ran out of memory ({_free_megabytes()}); {REMEDY}"
        ) from None


def _as_array(images: list[Tensor]) -> np.ndarray:
    return torch.stack(images).numpy()


def _shared_memory_holds(needed: int) -> bool:
    """Whether /dev/shm has room for the batches of all processes of this machine."""
    if needed == 0 or not os.path.isdir(SHARED_MEMORY):
        return True  # macOS and Windows have no such limit
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # set by torchrun
    return shutil.disk_usage(SHARED_MEMORY).free > needed * processes


@cache
def _say_that_pipes_are_used() -> None:
    """Once, though every epoch starts workers and the free memory changes."""
    say_once(
        "the batches of the decoding workers go through pipes, which is slower: they do not fit "
        f"into shared memory ({_free_megabytes()}); {REMEDY}"
    )


def _free_megabytes() -> str:
    if not os.path.isdir(SHARED_MEMORY):
        return "shared memory"
    return f"{SHARED_MEMORY} has {shutil.disk_usage(SHARED_MEMORY).free // 2**20} MB free"


def _is_about_memory(error: RuntimeError) -> bool:
    """A worker that the system ended, or a file in /dev/shm that could not be written."""
    told = f"{error} {error.__cause__}"
    return any(sign in told for sign in ("killed by signal", "shared memory", "No space left"))


def _heed_parent_only(_: int) -> None:
    """In a worker: a signal to the whole group is for the process that saves, not for this one.

    Such are Ctrl-C and a scheduler's SIGTERM. A SIGTERM of the parent ends the worker.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_parent_says, daemon=True).start()


def _end_when_parent_says() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
