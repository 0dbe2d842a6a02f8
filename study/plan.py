"""What the study trains: every run of docs/results.md, as data, in the order in which they run."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

SEEDS = (0, 1, 2, 3, 4)
SHORT = 10  # epochs of the sweeps over coefficients and mask ratios
TUNING_EPOCHS = 30  # of finetuning: three times the preset's recipe
MAE = {"lam": 0.0}
UMAE = {"lam": 0.001, "uniformity": "spectral", "pool": "token"}
UMAE_MEAN = {"lam": 0.001, "uniformity": "spectral", "pool": "avg"}
SWEEPS = {"coefficients", "mean token", "mask ratio"}  # parts that measure the same of a run
SCRATCH = "from scratch"
VARIANTS = ("all tokens", "dropped head", "falling", "variance only")
OBJECTIVES = {"MAE": MAE, "U-MAE": UMAE, "U-MAE, mean token": UMAE_MEAN}
PRESETS = {"tiny-imagenet-50": "tiny-imagenet-vit-micro", "cifar10": "cifar10-vit-micro"}


@dataclass(frozen=True)
class Planned:
    """One pretraining run: the part of the study it belongs to, its data set, and its settings."""

    part: str
    data: str  # a key of PRESETS
    objective: str
    seed: int
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def preset(self) -> str:
        return PRESETS[self.data]


def objectives(data: str, seeds: tuple[int, ...]) -> Iterator[Planned]:
    """Part A and F: MAE, U-MAE on the class token, U-MAE on the mean token; 40 epochs."""
    for seed in seeds:
        for name, term in OBJECTIVES.items():
            yield Planned("objectives", data, name, seed, {"epochs": 40, **term})


def coefficients(data: str, seeds: tuple[int, ...]) -> Iterator[Planned]:
    """Part B: the coefficient in every form of the uniformity term."""
    grid = {
        "spectral": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
        "released": (1e-3, 1e-2, 1e-1),
        "euclidean": (1e-3,),
    }
    for seed in seeds:
        yield Planned("coefficients", data, "MAE", seed, {"epochs": SHORT, **MAE})
        for form, values in grid.items():
            for lam in values:
                term = {"lam": lam, "uniformity": form}
                yield Planned("coefficients", data, "U-MAE", seed, {"epochs": SHORT, **term})


def mean_token(data: str, seeds: tuple[int, ...]) -> Iterator[Planned]:
    """Part F: the coefficient of the term on the mean token; MAE of part B is its baseline."""
    for seed in seeds:
        for lam in (1e-4, 1e-3, 1e-2, 1e-1):
            term = {**UMAE_MEAN, "lam": lam}
            yield Planned("mean token", data, "U-MAE", seed, {"epochs": SHORT, **term})


def variants(
    data: str, seeds: tuple[int, ...], names: Iterable[str] = VARIANTS
) -> Iterator[Planned]:
    """Part F: other terms on the mean token (study/variants.py); MAE of part B is their baseline.

    The variance term is in another unit. At 0.1 it weighs on MAE's features what the spectral one
    does at 0.001: both are near their largest value there, 1 and 96.
    """
    coefficients_of = {"variance only": (0.1,), "falling": (1e-3, 1e-2)}
    for seed in seeds:
        for name in names:
            for lam in coefficients_of.get(name, (1e-3,)):
                own = {"epochs": SHORT, **UMAE_MEAN, "lam": lam}
                yield Planned("variants", data, name, seed, own)


def falling_again(data: str, seeds: tuple[int, ...]) -> Iterator[Planned]:
    """Part F: more seeds of the one variant that looked better under every protocol, and of MAE."""
    for seed in seeds:
        yield Planned("coefficients", data, "MAE", seed, {"epochs": SHORT, **MAE})
        yield from variants(data, (seed,), ("falling",))


def mask_ratios(data: str, seeds: tuple[int, ...]) -> Iterator[Planned]:
    """Part C: the mask ratio; 0 is plain autoencoding. The ratios of the paper's claims first.

    All seeds of one ratio before the next ratio: a study that is stopped can judge what it has.
    """
    for ratio in (0.75, 0.9, 0.0, 0.5, 0.25):
        for seed in seeds:
            for name in ("MAE", "U-MAE"):
                own = {"epochs": SHORT, "mask_ratio": ratio, **OBJECTIVES[name]}
                yield Planned("mask ratio", data, name, seed, own)


def finetunings(data: str, seeds: tuple[int, ...]) -> Iterator[Planned]:
    """Part D: finetuning the encoders of part A, and the same network from random weights."""
    for seed in seeds:
        for name in ("MAE", "U-MAE", SCRATCH):
            term = OBJECTIVES.get(name, MAE)
            yield Planned("finetuning", data, name, seed, {"epochs": 40, **term})


def long_pair(data: str) -> Iterator[Planned]:
    """Part A, along training: one pair of 200 epochs."""
    for name in ("MAE", "U-MAE"):
        yield Planned("long", data, name, 0, {"epochs": 200, **OBJECTIVES[name]})


def plan() -> list[Planned]:
    """Every run of the study, the most telling ones first."""
    tiny, cifar = PRESETS
    return [
        *objectives(tiny, SEEDS[:3]),
        *objectives(cifar, SEEDS[:2]),
        *coefficients(tiny, SEEDS[:1]),
        *objectives(cifar, SEEDS[2:3]),
        *coefficients(tiny, SEEDS[1:3]),
        *mean_token(tiny, SEEDS[:3]),
        *finetunings(tiny, SEEDS[:3]),
        *mask_ratios(tiny, SEEDS[:3]),
        *variants(tiny, SEEDS[:3]),
        *falling_again(tiny, SEEDS[3:]),
        *objectives(tiny, SEEDS[3:]),
        *objectives(cifar, SEEDS[3:]),
        *long_pair(tiny),
        *coefficients(cifar, SEEDS[:3]),
        *mean_token(cifar, SEEDS[:3]),
        *mask_ratios(cifar, SEEDS[:3]),
        *finetunings(cifar, SEEDS[:3]),
    ]
