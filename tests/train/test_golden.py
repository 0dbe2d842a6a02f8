"""A few steps on digits, pinned: a silent change of the recipe fails here.

In float64 the order of sums matters little; the numbers were measured on x86-64 with torch 2.14,
and other machines and versions have agreed within the tolerance. In float32 and bfloat16, with and
without the CPU kernels, the same recipe is held to the float64 numbers within the rounding of an
epoch. If a change of the recipe is meant, run this file as a program and paste its table.
"""

import pytest

from lib.compute import cpu_kernels
from lib.presets import resolve
from lib.train import train

COMMON = {"precision": "fp64", "device": "cpu", "epochs": 2, "eval_every": 1, "snapshots": 0}
RECIPES = {
    "default": {},
    "mae": {"lam": 0},
    "released": {
        "uniformity": "released",
        "lam": 0.01,
        "pool": "avg",
        "norm_pix_loss": True,
        "normalize": "unit",
    },
    "euclidean": {
        "uniformity": "euclidean",
        "augment": "crop",
        "accum_steps": 2,
        "mask_ratio": 0.5,
        "seed": 3,
    },
}
KEYS = (
    "reconstruction",
    "uniformity",
    "validation_reconstruction",
    "validation_rank_token",
    "test_reconstruction",
)
GOLDEN: dict[str, tuple[float, ...]] = {
    "default": (
        0.7852507634147596,
        62.89280339351921,
        0.7687463053216865,
        1.061407768850659,
        0.7549289876189563,
    ),
    "mae": (
        0.787713977122661,
        63.547968480925014,
        0.77248305126967,
        1.0280077988357585,
        0.7583385237585528,
    ),
    "released": (
        0.5036277714536724,
        0.991607400182771,
        0.511105307142279,
        1.0263985332620942,
        0.5035821380637747,
    ),
    "euclidean": (
        0.8371076702708432,
        -1.2481025124162317,
        0.8036880621936416,
        1.0814711322514774,
        0.7874221841328854,
    ),
}


def measured(name: str) -> tuple[float, ...]:
    run = train(resolve(**COMMON, **RECIPES[name]))
    values = {**run.metrics()[-1], **run.result}
    return tuple(values[k] for k in KEYS)


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_gives_the_pinned_numbers(name):
    assert measured(name) == pytest.approx(GOLDEN[name], rel=1e-6)


# Of widths that the CPU kernels take: reconstruction in training, validation and test, in float64.
LOW = {"embed_dim": 32, "decoder_dim": 32}
GOLDEN_LOW = (0.8047925684450075, 0.7823393598685974, 0.770277774123999)


@pytest.mark.parametrize(
    "precision,kernels,tolerance",
    [("fp32", True, 1e-4), ("bf16", True, 0.01), ("bf16", False, 0.01)],
)
def test_low_precision_is_close_to_float64(monkeypatch, precision, kernels, tolerance):
    """bf16 with and without the CPU kernels; where there is no bf16 it is computed in float32."""
    if not kernels:
        monkeypatch.setattr(cpu_kernels, "load", lambda: (None, "without, for a test"))
    run = train(resolve(**{**COMMON, **LOW, "precision": precision}))
    values = {**run.metrics()[-1], **run.result}
    found = [values[k] for k in KEYS if k.endswith("reconstruction")]
    assert found == pytest.approx(GOLDEN_LOW, rel=tolerance)
    assert kernels or run.result["kernels"] == "torch"


if __name__ == "__main__":
    import os
    import tempfile

    os.environ["UMAE_OUTPUTS"] = tempfile.mkdtemp()
    for name in RECIPES:
        print(f'    "{name}": {measured(name)},')
