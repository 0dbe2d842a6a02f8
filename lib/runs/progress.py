"""The machine around a run: device, memory, signals, provenance, and the lines that it prints."""

import sys
from typing import Any

from tqdm import tqdm


def describe(line: dict[str, Any], epochs: int, speed: float) -> str:
    """One printed line an epoch."""
    return (
        f"epoch {line['epoch']:>4}/{epochs}  loss {line['loss']:.4f} = reconstruction {line['reconstruction']:.4f} "
        f"+ lam * uniformity {line['uniformity']:.3f}  "
        f"validation: online {line['validation_online_token_full']:.1f}% rank {line['validation_rank_token']:.1f}  "
        f"{speed:,.0f} images/s"
    )


def progress(total: int, done: int, show: bool) -> tqdm:
    """A text bar with images/s and ETA; rare updates where a log or a notebook keeps every one."""
    live = sys.stdout.isatty()
    intervals = (
        {"mininterval": 0.5, "maxinterval": 1} if live else {"mininterval": 20, "maxinterval": 60}
    )
    look: dict[str, Any] = {
        "unit": " images",
        "unit_scale": True,
        "ascii": True,
        "smoothing": 0.1,
        "file": sys.stdout,
    }
    return tqdm(total=total, initial=done, disable=not show, **look, **intervals)
