"""U-MAE notebooks: the few pieces that two or more notebooks need. See README.md."""

import os

# How long a thread of torch's OpenMP spins before it sleeps, read when torch is loaded: libgomp's default is faster by
# 3-16 % on an idle machine, but with a second job on it a step takes 2.5 times as long as with this (README, Speed).
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
