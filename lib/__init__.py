"""U-MAE notebooks: the few pieces that two or more notebooks need. See README.md."""

import os

from lib.threads import spin_count

if "GOMP_SPINCOUNT" not in os.environ:  # read once, when torch is loaded
    os.environ["GOMP_SPINCOUNT"] = spin_count()
