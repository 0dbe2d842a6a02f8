"""What several test files need: a small run, image folders, the command line as a process."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lib.data import Dataset, Split, load
from lib.presets import REPO, Config, resolve
from lib.runs import Run, open_run

SMALL = dict(
    embed_dim=16, depth=1, num_heads=2, decoder_dim=16, decoder_depth=1, decoder_heads=2,
    batch_size=64, epochs=2, snapshots=2, eval_every=1, checkpoint_every=1, device="cpu",
)  # fmt: skip


def small(**fields) -> Config:
    """The digits preset with a model of a few thousand weights."""
    return resolve("digits-vit-nano", **{**SMALL, **fields})


def few(config: Config, n: int = 200) -> Dataset:
    """The first n training images of the config's dataset: three steps of 64 an epoch.

    The fingerprint is still that of the whole: runs on `few` and on all images share a name.
    """
    data = load(**config.data_fields)
    data.train = Split(data.train.labels[:n], data.train.images[:n], [])
    data.test = Split(data.test.labels[:n], data.test.images[:n], [])
    return data


@cache
def digits_fingerprint() -> str:
    return load(**small().data_fields).fingerprint


def run_of(config: Config) -> Run:
    """The run of a config on the images that it names, whether it exists or not."""
    digits = config.data_fields == small().data_fields
    fingerprint = digits_fingerprint() if digits else load(**config.data_fields).fingerprint
    return open_run(config, fingerprint)


def run_in(outputs: Path, config: Config) -> Run:
    """The same run under another outputs folder."""
    run = run_of(config)
    return Run(config, run.fingerprint, outputs / "runs" / run.folder.name)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return run.load_model().state_dict()


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def image_folder(
    root: Path, classes=("cat", "dog"), per_class=6, size=(20, 16), suffix=".png", seed=0
) -> Path:
    """root/{train,val}/<class>/*: random smooth pictures of `size` (width, height)."""
    rng = np.random.default_rng(seed)
    for split in ("train", "val"):
        for name in classes:
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(per_class):
                coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
                coarse.resize(size, Image.Resampling.BICUBIC).save(
                    root / split / name / f"{i}{suffix}"
                )
    return root


def folder_config(root: Path, **fields) -> Config:
    """A small run on an image folder; a batch of 4."""
    own = {
        **SMALL,
        "data": f"folder:{root}",
        "image_size": 8,
        "patch_size": 2,
        "batch_size": 4,
        "workers": 0,
    }
    return resolve("digits-vit-nano", **{**own, **fields})


def cli_args(**fields) -> list[str]:
    """The command line of `python -m lib.train` for a small run."""
    args = ["--preset", "digits-vit-nano"]
    for name, value in {**SMALL, **fields}.items():
        args += [f"--{name.replace('_', '-')}", str(value)]
    return args


def environment(**more: str) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": f"{REPO}:{REPO / 'tests'}",
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
        **more,
    }


def cli(*args: str, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    """`python -m lib.train ARGS` as a user runs it."""
    command = [sys.executable, "-m", "lib.train", *args]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, env=environment(**env), cwd="/"
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def at_step(monkeypatch, step, action):
    """Calls `action` once, in the middle of optimiser step `step` (0-based).

    What it returns is the step's rate.
    """
    import lib.train.loop  # with timm, which a process that trains nothing does not need

    real, pending = lib.train.loop.learning_rate, [step]

    def rate(config, now, steps_per_epoch):
        if pending and now == pending[0]:
            pending.clear()
            if (own := action()) is not None:
                return own
        return real(config, now, steps_per_epoch)

    monkeypatch.setattr(lib.train.loop, "learning_rate", rate)


def elsewhere(monkeypatch, tmp_path, name):
    monkeypatch.setenv("UMAE_OUTPUTS", str(tmp_path / name))


def content(run):
    """All that must not depend on interruptions.

    Weights, metrics, snapshots, the encoder, and the result without its time and place.
    """
    files = {p.relative_to(run.folder).as_posix(): p for p in run.folder.rglob("*") if p.is_file()}
    own = {
        k: p.read_bytes()
        for k, p in files.items()
        if k.endswith((".safetensors", "metrics.jsonl", "encoder/config.json"))
    }
    result = {k: v for k, v in run.result.items() if k not in ("time", "commit", "device")}
    return {**own, "files": sorted(files), "result": result}
