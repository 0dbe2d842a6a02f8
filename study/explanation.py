"""The attempts to break the explanation (study/checks.py) as generated blocks of a page."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lib.notebook.statistics import AGREES, DISAGREES, OPEN, verdict
from study.checks import BUDGETS
from study.plan import PRESETS
from study.tables import (
    FEATURES,
    NOT_YET,
    Record,
    accuracy,
    by_seed,
    spread,
    table,
    with_interval,
)

Budget = tuple[str, float, int]  # raw or standardised values, rate, epochs of a plain probe


def checks_block(records: Sequence[Record]) -> str:
    """The attempts to break the explanation: the same features under other probes."""
    rows = []
    for data in PRESETS:
        for feature, label in FEATURES.items():
            own = [by_seed(records, data, name) for name in ("MAE", "U-MAE")]
            seeds = [s for s in sorted(own[0].keys() & own[1].keys()) if _checked(own, s)]
            for name, read in CHECKS.items() if seeds else ():
                mae, umae = ([read(side[s], feature) for s in seeds] for side in own)
                gain = with_interval([b - a for a, b in zip(mae, umae, strict=True)])
                rows.append([data, label, name, spread(mae), spread(umae), gain, str(len(seeds))])
    header = ["data", "feature", "probe", "MAE", "U-MAE", "gain [95 %]", "n"]
    return table(header, rows)


def _checked(sides: Sequence[dict[int, Record]], seed: int) -> bool:
    return all("scaled" in side[seed].get("checks", {}).get("token", {}) for side in sides)


def _check(*keys: Any) -> Callable[[Record, str], float]:
    """Reads a test accuracy out of a record's checks."""

    def read(record: Record, feature: str) -> float:
        found = record["checks"][feature]
        for key in keys:
            found = found[key]
        return found["test"]

    return read


CHECKS: dict[str, Callable[[Record, str], float]] = {
    "plain, as above": lambda record, feature: accuracy(record, "sgd", feature),
    "plain, rate tuned for each model on validation": _check("plain, rate tuned"),
    "AdamW, rate and decay tuned": _check("Adam, rate and decay tuned"),
    "plain, centred": _check("centred"),
    "plain, centred and scaled to one size": _check("scaled"),
    "plain on whitened features": _check("whitened"),
    "plain, rotated to condition 1": _check("rotated", 0, "sgd"),
    "plain, rotated to condition 100": _check("rotated", 1, "sgd"),
    "plain, rotated to condition 10,000": _check("rotated", 2, "sgd"),
    "plain, rotated to condition 1,000,000": _check("rotated", 3, "sgd"),
    "plain, rotated to condition 1, one size": _check("rotated, one size", 0, "sgd"),
    "plain, rotated to condition 100, one size": _check("rotated, one size", 1, "sgd"),
    "plain, rotated to condition 10,000, one size": _check("rotated, one size", 2, "sgd"),
    "plain, rotated to condition 1,000,000, one size": _check("rotated, one size", 3, "sgd"),
    "batch-normed, as above": lambda record, feature: accuracy(record, "mae", feature),
    "batch-normed, rotated to condition 1": _check("rotated", 0, "mae"),
    "batch-normed, rotated to condition 100": _check("rotated", 1, "mae"),
    "batch-normed, rotated to condition 10,000": _check("rotated", 2, "mae"),
    "batch-normed, rotated to condition 1,000,000": _check("rotated", 3, "mae"),
}


def explanation_block(records: Sequence[Record]) -> str:
    """What the explanation by conditioning predicts of the class token, and what was measured."""
    rows = []
    for data in PRESETS:
        mae, umae = (by_seed(records, data, name) for name in ("MAE", "U-MAE"))
        seeds = [s for s in sorted(mae.keys() & umae.keys()) if _checked((mae, umae), s)]
        for text, above, measure in PREDICTIONS if seeds else ():
            values = [measure(mae[s], umae[s]) for s in seeds]
            says = {
                AGREES: "bears it out" if above else "speaks against it",
                DISAGREES: "speaks against it" if above else "no gain, but a loss",
                OPEN: OPEN if above else "no difference is seen",
            }[verdict(values)]
            rows.append([data, text, with_interval(values), str(len(values)), says])
    return table(["data", "prediction", "points [95 %]", "n", "verdict"], rows)


ARMS = ("MAE", "U-MAE", "gain")


def _gain(check: str) -> Callable[[Record, Record], float]:
    """U-MAE minus MAE, class token, under one of CHECKS."""
    read = CHECKS[check]
    return lambda mae, umae: read(umae, "token") - read(mae, "token")


def _lost_by(check: str, other: str) -> Callable[[Record, Record], float]:
    """What MAE's class token loses from one of CHECKS to another."""
    return lambda mae, _: CHECKS[check](mae, "token") - CHECKS[other](mae, "token")


def _closed_by(check: str) -> Callable[[Record, Record], float]:
    """How much smaller the gain is under one of CHECKS than under the plain probe."""
    plain = _gain("plain, as above")
    return lambda mae, umae: plain(mae, umae) - _gain(check)(mae, umae)


# What is predicted; whether the number should be above 0, or not differ from it; the number.
PREDICTIONS: list[tuple[str, bool, Callable[[Record, Record], float]]] = [
    (
        "The gain is larger under the plain probe than under the batch-normed one; by",
        True,
        _closed_by("batch-normed, as above"),
    ),
    (
        "Tuning the plain probe's rate makes the gain smaller; by",
        True,
        _closed_by("plain, rate tuned for each model on validation"),
    ),
    (
        "Centring and one size for all make the gain smaller; by",
        True,
        _closed_by("plain, centred and scaled to one size"),
    ),
    ("Whitening makes the gain smaller; by", True, _closed_by("plain on whitened features")),
    (
        "With the plain probe's rate tuned, no gain is left",
        False,
        _gain("plain, rate tuned for each model on validation"),
    ),
    (
        "With AdamW, rate and decay tuned, no gain is left",
        False,
        _gain("AdamW, rate and decay tuned"),
    ),
    (
        "Centred and of one size, no gain is left",
        False,
        _gain("plain, centred and scaled to one size"),
    ),
    ("Whitened, no gain is left", False, _gain("plain on whitened features")),
    ("Batch-normed, no gain is left", False, _gain("batch-normed, as above")),
    (
        "Conditioned alike (10,000, rotated at random), no gain is left under the plain probe",
        False,
        _gain("plain, rotated to condition 10,000"),
    ),
    (
        "Conditioned alike and of one size, no gain is left under the plain probe",
        False,
        _gain("plain, rotated to condition 10,000, one size"),
    ),
    (
        "From its own condition to 100 (rotated at random), the plain probe of MAE gains",
        True,
        _lost_by("plain, rotated to condition 100", "plain, as above"),
    ),
    (
        "From condition 1 to 1,000,000, the plain probe of MAE loses",
        True,
        _lost_by("plain, rotated to condition 1", "plain, rotated to condition 1,000,000"),
    ),
    (
        "Rotated at about its own condition (10,000), the batch-normed probe of MAE loses nothing",
        False,
        _lost_by("batch-normed, as above", "batch-normed, rotated to condition 10,000"),
    ),
    (
        "From condition 1 to 1,000,000, the batch-normed probe of MAE loses nothing",
        False,
        _lost_by(
            "batch-normed, rotated to condition 1", "batch-normed, rotated to condition 1,000,000"
        ),
    ),
]


def steps_block(records: Sequence[Record]) -> str:
    """What the spectrum predicts of plain probes of every length, and what they reach."""
    rows, apart = [], []
    for data in PRESETS:
        mae, umae = (by_seed(records, data, name) for name in ("MAE", "U-MAE"))
        seeds = [s for s in sorted(mae.keys() & umae.keys()) if _checked((mae, umae), s)]
        curves = [
            [side[s]["checks"]["token"]["steps"]["curve"] for s in seeds] for side in (mae, umae)
        ]
        for points in zip(*curves[0], *curves[1], strict=True):
            sides = points[: len(seeds)], points[len(seeds) :]
            cells, gains_of = [], []
            for kind in ("predicted", "measured"):
                base, other = ([point[kind] for point in side] for side in sides)
                gain = [b - a for a, b in zip(base, other, strict=True)]
                cells += [spread(base), spread(other), spread(gain)]
                gains_of.append(gain)
            apart.append(abs(np.mean(gains_of[0]) - np.mean(gains_of[1])))
            rows.append([data, f"{points[0]['steps']:,}", *cells, str(len(seeds))])
    if not rows:
        return NOT_YET
    header = ["data", "steps"]
    header += [f"{kind}: {name}" for kind in ("predicted", "measured") for name in ARMS]
    says = f"The mean gains, predicted and measured, are at most {max(apart):.1f} points apart."
    return table([*header, "n"], rows) + "\n\n" + says


def budget_block(records: Sequence[Record]) -> str:
    """Plain probes of several lengths and rates, on raw and on standardised features."""
    rows = []
    for data in PRESETS:
        for feature, label in FEATURES.items():
            for (prepare, lr, epochs), pairs in _budget_pairs(records, data, feature).items():
                base, other = zip(*pairs, strict=True)
                cells = [label, prepare, f"{lr:g}", str(epochs), spread(base), spread(other)]
                gain = with_interval([b - a for a, b in pairs])
                rows.append([data, *cells, gain, str(len(pairs))])
    header = ["data", "feature", "values", "rate", "epochs", "MAE", "U-MAE", "gain [95 %]", "n"]
    return table(header, rows) if rows else NOT_YET


def budget_gains(records: Sequence[Record], data: str) -> dict[Budget, list[float]]:
    """{(values, rate, epochs) of the plain probe: U-MAE minus MAE of every pair}, class token."""
    found = _budget_pairs(records, data, "token")
    return {budget: [other - base for base, other in pairs] for budget, pairs in found.items()}


def _budget_pairs(
    records: Sequence[Record], data: str, feature: str
) -> dict[Budget, list[tuple[float, float]]]:
    """{(values, rate, epochs): [(MAE, U-MAE)]} of one feature."""
    mae, umae = (by_seed(records, data, name) for name in ("MAE", "U-MAE"))
    seeds = [s for s in sorted(mae.keys() & umae.keys()) if "budget" in mae[s]]
    return {
        budget: [tuple(_budgeted(side[s], budget, feature) for side in (mae, umae)) for s in seeds]
        for budget in (BUDGETS if seeds else ())
    }


def _budgeted(record: Record, budget: Budget, feature: str) -> float:
    wanted = dict(zip(("prepare", "lr", "epochs"), budget, strict=True))
    (found,) = (b for b in record["budget"] if wanted.items() <= b.items())
    return found[feature]["test"]
