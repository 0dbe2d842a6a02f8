"""The study's tables: each function makes one generated block of docs/results.md or README.md."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lib.notebook import statistics
from lib.notebook.statistics import AGREES, DISAGREES, FEWEST, LEVEL, OPEN, holm, interval, p_value
from study.plan import OBJECTIVES, PRESETS, SCRATCH

FEATURES = {"token": "class token", "avg": "mean token"}
PROTOCOLS = ("online", "sgd", "knn", "mae", "lbfgs")
Record = dict[str, Any]


def by_seed(records: Sequence[Record], data: str, objective: str) -> dict[int, Record]:
    """The 40-epoch records of one objective on one data set, by seed."""
    return {
        r["seed"]: r
        for r in records
        if (r["part"], r["data"], r["objective"]) == ("objectives", data, objective)
    }


def accuracy(record: Record, protocol: str, feature: str) -> float:
    return record["accuracy"][protocol][feature]["test"]


def differences(
    records: Sequence[Record], data: str, objective: str, protocol: str, feature: str
) -> list[float]:
    """Test accuracy of `objective` minus MAE's, in points, for every seed that both have."""
    base, other = (by_seed(records, data, name) for name in ("MAE", objective))
    return [
        accuracy(other[seed], protocol, feature) - accuracy(base[seed], protocol, feature)
        for seed in sorted(base.keys() & other.keys())
    ]


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, or the value alone."""
    if len(values) < 2:
        return f"{np.mean(values):.1f}"
    return f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


GAIN = {AGREES: "higher", DISAGREES: "lower", OPEN: OPEN}


def verdict(values: Sequence[float]) -> str:
    """ "higher" or "lower" than MAE, or "cannot tell"."""
    return GAIN[statistics.verdict(values)]


def gains(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Every gain over MAE that the page judges, with its verdict and Holm's over all of them."""
    rows = []
    for data in PRESETS:
        for objective in list(OBJECTIVES)[1:]:
            for protocol in PROTOCOLS:
                for feature in FEATURES:
                    found = differences(records, data, objective, protocol, feature)
                    if found:
                        key = {"data": data, "objective": objective, "protocol": protocol}
                        rows.append({**key, "feature": feature, "differences": found})
    tested = [row for row in rows if len(row["differences"]) > 1]
    for row, p in zip(tested, holm([p_value(r["differences"]) for r in tested]), strict=True):
        row["holm"] = verdict(row["differences"]) if p < 1 - LEVEL else OPEN
    return rows


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(header), ["---"] * len(header), *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def objectives_block(records: Sequence[Record]) -> str:
    """One table a data set: accuracies of the three objectives, and the gains over MAE."""
    parts = []
    rows_of_gains = gains(records)
    for data in PRESETS:
        base = by_seed(records, data, "MAE")
        if not base:
            continue
        seeds = ", ".join(map(str, sorted(base)))
        parts.append(f"**{data}**, 40 epochs, seeds {seeds}, test accuracy in percent:\n")
        rows = [_row(records, rows_of_gains, data, p, f) for p in PROTOCOLS for f in FEATURES]
        header = ["protocol", "feature", *OBJECTIVES]
        header += [f"gain of {name} [95 %], verdict" for name in list(OBJECTIVES)[1:]]
        parts.append(table(header, rows) + "\n")
    return "\n".join(parts)


def _row(
    records: Sequence[Record], rows_of_gains: list[dict[str, Any]], data: str, p: str, f: str
) -> list[str]:
    cells = [f"`{p}`", FEATURES[f]]
    for name in OBJECTIVES:
        values = [accuracy(r, p, f) for r in by_seed(records, data, name).values()]
        cells.append(spread(values) if values else "-")
    for name in list(OBJECTIVES)[1:]:
        wanted = {"data": data, "objective": name, "protocol": p, "feature": f}
        row = next((g for g in rows_of_gains if wanted.items() <= g.items()), None)
        cells.append(gain_text(row) if row else "-")
    return cells


def gain_text(row: dict[str, Any]) -> str:
    values = row["differences"]
    if len(values) < 2:
        return f"{with_interval(values)}, {OPEN} (n=1)"
    says = verdict(values)
    if says != OPEN:
        says = f"**{says}**" if row["holm"] == says else f"{says} (not after Holm)"
    return f"{with_interval(values)}, {says}"


def representation_block(records: Sequence[Record]) -> str:
    """How the features use their dimensions: variance, condition number and effective rank."""
    rows = []
    for data in PRESETS:
        for objective in OBJECTIVES:
            found = by_seed(records, data, objective).values()
            for feature in FEATURES if found else ():
                own = [r["representation"][feature] for r in found]
                condition = sorted(r["condition_number"] for r in own)
                ranks = spread([r["effective_rank"] for r in own])
                variance = spread([sum(r["eigenvalues"]) for r in own])
                ends = dict.fromkeys((condition[0], condition[-1]))  # one number if n is 1
                condition_text = " to ".join(f"{end:,.0f}" for end in ends)
                rows.append([data, objective, FEATURES[feature], variance, condition_text, ranks])
    header = ["data", "objective", "feature", "total variance", "condition number"]
    header.append("effective rank of 96")
    return table(header, rows)


SUMMARY = {"plain": "sgd", "20 nearest neighbours": "knn", "batch-normed": "mae"}


def summary_block(records: Sequence[Record]) -> str:
    """The small table of README.md: three readings of the class token, where pairs can decide."""
    rows, shown = [], []
    rows_of_gains = gains(records)
    for data in PRESETS:
        base, other = (by_seed(records, data, name) for name in ("MAE", "U-MAE"))
        if len(base.keys() & other.keys()) < FEWEST:
            continue
        shown += [r for r in records if (r["part"], r["data"]) == ("objectives", data)]
        for reading, protocol in SUMMARY.items():
            wanted = {"data": data, "objective": "U-MAE", "protocol": protocol, "feature": "token"}
            row = next(g for g in rows_of_gains if wanted.items() <= g.items())
            values = [
                spread([accuracy(r, protocol, "token") for r in own.values()])
                for own in (base, other)
            ]
            n = str(len(row["differences"]))
            rows.append([data, reading, *values, gain_text(row), n])
    header = ["data", "probe", "MAE", "U-MAE", "gain [95 % interval]", "n"]
    machines = ", ".join(sorted({str(r["origin"]["device"]) for r in shown}))
    origin = f"{len(shown)} runs on {machines}; commits and commands are in docs/results.md."
    return table(header, rows) + "\n\n" + origin


def checks_block(records: Sequence[Record]) -> str:
    """The attempts to break the explanation: the same features under other probes."""
    rows = []
    for data in PRESETS:
        for feature, label in FEATURES.items():
            own = [by_seed(records, data, name) for name in ("MAE", "U-MAE")]
            seeds = [s for s in sorted(own[0].keys() & own[1].keys()) if _checked(own, s)]
            for name, read in CHECKS.items() if seeds else ():
                mae, umae = ([read(side[s], feature) for s in seeds] for side in own)
                gain = spread([b - a for a, b in zip(mae, umae, strict=True)])
                rows.append([data, label, name, spread(mae), spread(umae), gain, str(len(seeds))])
    header = ["data", "feature", "probe", "MAE", "U-MAE", "gain", "n"]
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
    "plain, rotated to condition 10,000": _check("rotated", 2, "sgd"),
    "plain, rotated to condition 1,000,000": _check("rotated", 3, "sgd"),
    "plain, rotated to condition 1, one size": _check("rotated, one size", 0, "sgd"),
    "plain, rotated to condition 10,000, one size": _check("rotated, one size", 2, "sgd"),
    "plain, rotated to condition 1,000,000, one size": _check("rotated, one size", 3, "sgd"),
    "batch-normed, as above": lambda record, feature: accuracy(record, "mae", feature),
    "batch-normed, rotated to condition 1": _check("rotated", 0, "mae"),
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
            says = verdict(values)
            judged = {"higher": "bears it out" if above else "speaks against it"}
            judged["lower"] = "speaks against it"
            judged[OPEN] = OPEN if above else "no difference can be told"
            rows.append([data, text, with_interval(values), str(len(values)), judged[says]])
    return table(["data", "prediction", "points [95 %]", "n", "verdict"], rows)


def with_interval(values: Sequence[float]) -> str:
    """Mean and Student's interval, or the value alone."""
    if len(values) < 2:
        return f"{np.mean(values):+.1f}"
    low, high = interval(values)
    return f"{np.mean(values):+.1f} [{low:+.1f}, {high:+.1f}]"


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
        "From condition 1 to 1,000,000, the plain probe of MAE loses",
        True,
        _lost_by("plain, rotated to condition 1", "plain, rotated to condition 1,000,000"),
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


ARMS = ("MAE", "U-MAE", "gain")


def baselines_block(records: Sequence[Record]) -> str:
    """Encoders that learned nothing; the untrained one has other first weights at every seed."""
    found: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        for name, features in record.get("baselines", {}).items():
            for feature, own in features.items():
                label = FEATURES.get(feature, feature)
                found.setdefault((record["data"], name, label), []).append(own)
    rows = []
    for key, own in found.items():
        cells = [spread([one[p]["test"] for one in own]) for p in SUMMARY.values()]
        rows.append([*key, *cells, str(len(own))])
    return table(["data", "encoder", "feature", *(f"`{p}`" for p in SUMMARY.values()), "n"], rows)


def origin_block(records: Sequence[Record]) -> str:
    """Commits, machines, n and hours of the records."""
    commits = sorted({r["origin"]["commit"] for r in records})
    keys = ("measured_commit", "completed_commit")
    measured = sorted({r[key] for r in records for key in keys if key in r})
    later = f", measured at {', '.join(measured)}" if measured else ""
    machines = sorted({str(r["origin"]["device"]) for r in records})
    return (
        f"{len(records)} runs; trained at commit {', '.join(commits)}{later}; machine: "
        f"{', '.join(machines)}, one thread a run, bf16."
    )


NOT_YET = "No record yet: `python -m study` trains what is missing."


def of_part(records: Sequence[Record], part: str, data: str) -> list[Record]:
    return [r for r in records if (r["part"], r["data"]) == (part, data)]


def mask_ratios_block(records: Sequence[Record]) -> str:
    """Part C: MAE and U-MAE at every mask ratio, class token."""
    rows = []
    for data in PRESETS:
        own = of_part(records, "mask ratio", data)
        for ratio in sorted({r["fields"]["mask_ratio"] for r in own}):
            for name, protocol in SUMMARY.items():
                sides = [
                    {
                        r["seed"]: accuracy(r, protocol, "token")
                        for r in own
                        if (r["fields"]["mask_ratio"], r["objective"]) == (ratio, objective)
                    }
                    for objective in ("MAE", "U-MAE")
                ]
                rows += _pair(sides, [data, f"{ratio:g}", name])
    header = ["data", "mask ratio", "probe", "MAE", "U-MAE", "gain", "n"]
    return table(header, rows) if rows else NOT_YET


def _pair(sides: Sequence[dict[int, float]], labels: list[str]) -> list[list[str]]:
    """One row, of the seeds that both sides have; none if they share no seed."""
    base, other = sides
    seeds = sorted(base.keys() & other.keys())
    if not seeds:
        return []
    gain = spread([other[s] - base[s] for s in seeds])
    values = [spread([side[s] for s in seeds]) for side in sides]
    return [[*labels, *values, gain, str(len(seeds))]]


def finetuning_block(records: Sequence[Record]) -> str:
    """Part D: finetuned accuracy, beside the batch-normed probe of the same encoders."""
    rows = []
    for data in PRESETS:
        own = of_part(records, "finetuning", data)
        for start in ("MAE", "U-MAE", SCRATCH):
            tuned = {r["seed"]: r["finetuned"]["best"] for r in own if r["objective"] == start}
            probed = by_seed(records, data, start)
            frozen = [accuracy(probed[s], "mae", "avg") for s in tuned if s in probed]
            if tuned:
                values = [spread(list(tuned.values())), spread(frozen) if frozen else "-"]
                rows.append([data, start, *values, str(len(tuned))])
    header = ["data", "start", "finetuned", "batch-normed probe, mean token", "n"]
    return table(header, rows) if rows else NOT_YET


def along_block(records: Sequence[Record]) -> str:
    """The long pair: the gain under each protocol along training; one seed."""
    rows = []
    for data in PRESETS:
        own = {r["objective"]: r["along"] for r in of_part(records, "long", data)}
        if len(own) < 2:
            continue
        for mae, umae in zip(own["MAE"], own["U-MAE"], strict=True):
            cells = [
                f"{accuracy(mae, p, 'token'):.1f} → {accuracy(umae, p, 'token'):.1f}"
                for p in SUMMARY.values()
            ]
            rows.append([data, str(mae["epoch"]), *cells])
    return table(["data", "epoch", *SUMMARY], rows) if rows else NOT_YET
