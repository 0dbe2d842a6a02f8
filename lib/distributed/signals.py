"""SIGINT and SIGTERM as a wish that long work looks at between two steps."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_listening: list[list[int]] = []  # what each `signals` block in progress has caught


@contextmanager
def signals(then: Callable[[], Any] | None = None) -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list, so that a step is never cut in two.

    `then` is called when one arrives. A second one acts as it did before. Outside the main thread
    signals cannot be caught; there only `ask_to_stop` adds to the list.
    """
    caught: list[int] = []
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def handler(number: int, _: Any) -> None:
        caught.append(number)
        signal.signal(number, before[signal.Signals(number)])
        if then:
            then()

    try:
        for number in before:
            signal.signal(number, handler)
    except ValueError:  # not in the main thread: signals are not ours to catch
        before = {}
    _listening.append(caught)
    try:
        yield caught
    finally:
        _listening[:] = [other for other in _listening if other is not caught]
        for number, action in before.items():
            signal.signal(number, action)


def ask_to_stop() -> bool:
    """Tells all `signals` blocks of this process, as SIGINT would; False if there is none."""
    for caught in _listening:
        if not caught:
            caught.append(signal.SIGINT)
    return bool(_listening)
