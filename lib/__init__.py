"""U-MAE notebooks: what two or more notebooks need (docs/architecture.md)."""

import atexit
import gc

# At its end Python looks for cycles among all objects once more. With torch and timm loaded this
# takes a second in every kernel, worker and command, and frees what ends with the process anyway.
atexit.register(gc.freeze)
