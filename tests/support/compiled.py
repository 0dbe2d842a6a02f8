"""The compiled CPU kernels in another process."""

from lib.compute.cpu_kernels import load


def load_kernels() -> None:
    library, why = load()
    assert library is not None and why == "", why
