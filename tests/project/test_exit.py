"""The end of a process that imported lib."""

import subprocess
import sys

from lib.presets import REPO

CODE = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count() > 0))  # runs after what lib registers
import lib
"""


def test_no_time_is_spent_on_cycles_at_the_end_of_a_process():
    done = subprocess.run(
        [sys.executable, "-c", CODE], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "True"
