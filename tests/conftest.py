"""One thread, no network, and an outputs folder of its own for every test."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    """$UMAE_OUTPUTS, empty and of this test alone."""
    monkeypatch.setenv("UMAE_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path / "outputs"
