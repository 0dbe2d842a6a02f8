"""One thread, no network, an outputs folder of its own for every test, and long files first."""

import os
import signal
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

# nbformat imports jsonschema, which compiles 38 grammars of addresses if it finds this: 2 seconds.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
# A shell's background job inherits "ignore".
signal.signal(signal.SIGINT, signal.default_int_handler)

# The files that take longest begin first: then two processes end at nearly the same time.
LONGEST = (
    "test_notebooks", "test_distributed", "test_any_data", "test_solutions", "test_interruption",
    "test_sweep", "test_acceleration", "test_benchmarks", "test_loop", "test_jobs",
    "test_theory_notebooks", "test_streaming", "test_importing", "test_many", "test_start",
    "test_finetuning", "test_golden", "test_probes", "test_bad_input", "test_cpu_kernels",
)  # fmt: skip


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist would sort files by their number of tests


def pytest_collection_modifyitems(items):
    place = {name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Whatever $OMP_NUM_THREADS was before."""
    import torch  # not above: the process that only hands out the tests does without

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    """$UMAE_OUTPUTS, empty and of this test alone."""
    monkeypatch.setenv("UMAE_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"


@pytest.fixture(scope="module")
def killer():
    from support.killer import Killer

    killer = Killer()
    yield killer
    killer.end()
