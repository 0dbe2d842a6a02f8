"""Random generators that depend on nothing but their names."""

import hashlib
from typing import Any

import torch


def generator(seed: int, *names: Any) -> torch.Generator:
    """A CPU generator for one purpose, such as generator(seed, "order", epoch).

    Equal arguments give equal numbers, in any process and after any interruption; other names
    give independent ones. So no random state has to be saved with a checkpoint.
    """
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
