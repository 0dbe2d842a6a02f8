"""Batches of a streamed folder, decoded by worker processes that end when this one says so."""

import os
import signal
import threading
from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.utils.data import DataLoader

from lib.data.decoding import Decoder
from lib.errors import InputError


def decoded_batches(
    decoder: Decoder, batches: Sequence[list[int]], workers: int
) -> Iterator[Tensor]:
    """uint8 (B, 3, S, S) for every list of indices, in order, decoded by `workers` processes."""
    loader = DataLoader(
        decoder, batch_sampler=batches, num_workers=workers, worker_init_fn=_heed_parent_only
    )
    try:
        yield from loader
    except InputError as error:  # a worker's arrives inside its traceback
        line = str(error).strip().split("\n")[-1]
        raise InputError(line.removeprefix("lib.errors.InputError: ")) from None


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
