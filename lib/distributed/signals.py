"""The machine around a run: device, memory, signals, provenance, and the lines that it prints."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list, so that a step is never cut in two; a second one acts as usual."""
    caught: list[int] = []
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def handler(number: int, _: Any) -> None:
        caught.append(number)
        signal.signal(number, before[signal.Signals(number)])

    try:
        for number in before:
            signal.signal(number, handler)
    except ValueError:  # not in the main thread: signals are not ours to catch
        before = {}
    try:
        yield caught
    finally:
        for number, action in before.items():
            signal.signal(number, action)
