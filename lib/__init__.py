"""U-MAE notebooks: the few pieces that two or more notebooks need. See README.md."""

import os
import sys

from lib.threads import spin_count

if "GOMP_SPINCOUNT" not in os.environ and "torch" not in sys.modules:  # read once, when torch is loaded
    os.environ["GOMP_SPINCOUNT"] = spin_count()
