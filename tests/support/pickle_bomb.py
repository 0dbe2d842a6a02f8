"""A pickle that leaves a mark if it is ever loaded without care."""

import os
import pickle
import tempfile
from pathlib import Path


class Bomb:
    def __reduce__(self):
        return os.system, (f"touch {BOMB_MARK}",)


BOMB_MARK = Path(tempfile.gettempdir()) / f"umae-bomb-{os.getpid()}"
PICKLE_BOMB = pickle.dumps(Bomb())
