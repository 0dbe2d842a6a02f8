"""One thread, no network, and an outputs folder of its own for every test."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

torch.set_num_threads(1)
# A shell's background job inherits "ignore".
signal.signal(signal.SIGINT, signal.default_int_handler)


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
