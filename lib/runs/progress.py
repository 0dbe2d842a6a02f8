"""What a person sees of long work: a bar with throughput and ETA, and a line an epoch."""

import os
import sys
from typing import Any

from tqdm import tqdm

BAR_AFTER = 5  # seconds, before work that is often short shows a bar


def is_live() -> bool:
    """Whether this kernel was started by a Jupyter server, whose page shows it to a person."""
    return "JPY_SESSION_NAME" in os.environ


def describe(line: dict[str, Any], epochs: int, speed: float) -> str:
    """One printed line an epoch, from a line of metrics.jsonl and the images per second."""
    terms = (
        f"loss {line['loss']:.4f} = reconstruction {line['reconstruction']:.4f} "
        f"+ lam * uniformity {line['uniformity']:.3f}"
    )
    validation = (
        f"validation: online {line['validation_online_token_full']:.1f}% "
        f"rank {line['validation_rank_token']:.1f}"
    )
    return f"epoch {line['epoch']:>4}/{epochs}  {terms}  {validation}  {speed:,.0f} images/s"


def progress(
    total: int,
    done: int = 0,
    show: bool = True,
    unit: str = "images",
    name: str = "",
    delay: float = 0,
) -> tqdm:
    """A text bar with `unit` per second and ETA; nothing before `delay` seconds have passed.

    Where a person looks on, it moves twice a second; in a log, which keeps every update, and under
    papermill, every 20 seconds.
    """
    live = sys.stdout.isatty() or is_live()
    look: dict[str, Any] = {
        "mininterval": 0.5 if live else 20,
        "maxinterval": 1 if live else 60,
        "desc": name or None,
        "unit": f" {unit}",
        "unit_scale": True,
        "ascii": True,
        "smoothing": 0.1,
        "file": sys.stdout,
        "delay": delay,
    }
    return tqdm(total=total, initial=done, disable=not show, **look)
