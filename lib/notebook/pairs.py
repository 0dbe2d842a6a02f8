"""The runs that notebooks compare: MAE and U-MAE of one seed, which differ in the term alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from lib.errors import InputError
from lib.notebook.parameters import config_fields
from lib.presets import Config, resolve

OBJECTIVES = ("MAE", "U-MAE")


def objective(config: Config) -> str:
    """The name of the objective of a run: U-MAE with the uniformity term, MAE without."""
    return OBJECTIVES[config.lam > 0]


def pair_configs(
    preset: str,
    overrides: Mapping[str, Any],
    seeds: Sequence[int],
    lam: float | None = None,
    **named: Any,
) -> dict[tuple[str, int], Config]:
    """{(objective, seed): its Config} for both objectives and every seed.

    lam: the coefficient of U-MAE, of the preset if None. `overrides` and `named` as in
    `lib.notebook.parameters.config_fields`. Raises InputError for no seed, a seed twice, and a
    coefficient that is not above 0.
    """
    check_seeds(seeds)
    if {"seed", "lam"} & set(overrides):
        raise InputError("overrides sets lam or seed; use this notebook's own lam and seeds")
    fields = config_fields(overrides, **named)
    u_mae = resolve(preset, **fields, lam=lam)
    if not u_mae.lam > 0:
        raise InputError(f"lam must be above 0, got {u_mae.lam}: the MAE run beside it has 0")
    coefficients = dict(zip(OBJECTIVES, (0.0, u_mae.lam), strict=True))
    return {
        (name, seed): resolve(preset, **fields, lam=value, seed=seed)
        for seed in seeds
        for name, value in coefficients.items()
    }


def check_seeds(seeds: Sequence[int]) -> None:
    """Raises InputError unless there is at least one seed and none is named twice."""
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds must name at least one seed, each once, got {list(seeds)}")
