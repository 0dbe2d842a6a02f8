"""The study's tables: a function with the name `*_block` makes a generated block of a page."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lib.notebook.statistics import AGREES, DISAGREES, FEWEST, OPEN, correct, interval, judge
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


def with_interval(values: Sequence[float]) -> str:
    """Mean and Student's interval, or the value alone."""
    if len(values) < 2:
        return f"{np.mean(values):+.1f}"
    low, high = interval(values)
    return f"{np.mean(values):+.1f} [{low:+.1f}, {high:+.1f}]"


GAIN = {AGREES: "higher", DISAGREES: "lower", OPEN: OPEN}


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
                        rows.append(judge("above 0", found) | key | {"feature": feature})
    return correct(rows)


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
        if validated := _on_validation(records, data):
            parts.append(f"U-MAE minus MAE on the validation images, class token: {validated}.\n")
    return "\n".join(parts)


def _on_validation(records: Sequence[Record], data: str) -> str:
    """The gain of U-MAE by protocol, on other images than those of the table; not corrected."""
    base, other = (by_seed(records, data, name) for name in ("MAE", "U-MAE"))
    seeds = sorted(base.keys() & other.keys())
    found = []
    for protocol in PROTOCOLS:
        cells = [[own[s]["accuracy"][protocol]["token"] for s in seeds] for own in (base, other)]
        if seeds and all("validation" in cell for cell in [*cells[0], *cells[1]]):
            pairs = zip(*cells, strict=True)
            gain = [b["validation"] - a["validation"] for a, b in pairs]
            found.append(f"`{protocol}` {with_interval(gain)}")
    return ", ".join(found)


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
    says = GAIN[row["verdict"]]
    if says != OPEN:
        says = f"**{says}**" if row["holm"] != OPEN else f"{says} (not after Holm)"
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
        seeds = sorted(base.keys() & other.keys())
        if len(seeds) < FEWEST:
            continue
        shown += [*base.values(), *other.values()]
        cells = []
        for protocol in SUMMARY.values():
            wanted = {"data": data, "objective": "U-MAE", "protocol": protocol, "feature": "token"}
            row = next(g for g in rows_of_gains if wanted.items() <= g.items())
            before, after = (
                spread([accuracy(own[s], protocol, "token") for s in seeds])
                for own in (base, other)
            )
            cells.append(f"{before} → {after}: {gain_text(row)}")
        rows.append([data, *cells, str(len(seeds))])
    header = ["data", *SUMMARY, "n"]
    machines = ", ".join(sorted({str(r["origin"]["device"]) for r in shown}))
    origin = f"{len(shown)} runs on {machines}; commits, commands: docs/results.md."
    return table(header, rows) + "\n\n" + origin


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


# Of one thread of an AMD EPYC at mask ratio 0.75. bf16: both presets, nothing else running. fp32:
# median of 60 epochs on Tiny-ImageNet-50 in the study's own logs, with a run on the other core.
IMAGES_PER_SECOND = {"bf16": 1300, "fp32": 470}


def origin_block(records: Sequence[Record]) -> str:
    """Commits, machines, n and the compute of the records."""
    commits = sorted({r["origin"]["commit"] for r in records})
    keys = ("measured_commit", "completed_commit")
    measured = sorted({r[key] for r in records for key in keys if key in r})
    later = f", measured at {', '.join(measured)}" if measured else ""
    machines = Counter(f"{r['origin']['device']} in {_precision(r)}" for r in records)
    counted = ", ".join(f"{machine} ({n})" for machine, n in sorted(machines.items()))
    return (
        f"{len(records)} records; trained at commit {', '.join(commits)}{later}; one thread a run; "
        f"machines: {counted}. {_compute(records)}"
    )


def _precision(record: Record) -> str:
    """What the record says, else the preset's: records of early commits do not say."""
    return str(record["origin"].get("precision", "bf16"))


def _compute(records: Sequence[Record]) -> str:
    """What pretraining and finetuning took; a run that two parts share counts once."""
    runs = {(r["run"], r["part"] == "variants" and r["objective"]): r for r in records}
    images = Counter[str]()
    for r in runs.values():
        images[_precision(r)] += r["fields"].get("epochs", 0) * r["images"]["train"]
    hours = sum(count / IMAGES_PER_SECOND[name] / 3600 for name, count in images.items())
    rates = ", ".join(f"{IMAGES_PER_SECOND[name]:,} in {name}" for name in sorted(images))
    tuning = [r["finetuned"] for r in records if "finetuned" in r]
    tuned = sum(found["seconds"] for found in tuning) / 3600
    return (
        f"Pretraining: {len(runs)} runs, {images.total() / 1e6:.0f} million images, "
        f"{hours:.0f} core hours at the images/s of mask ratio 0.75 ({rates}). "
        f"Finetuning: {len(tuning)} runs, {tuned:.1f} core hours as measured. Probes come on top."
    )


NOT_YET = "No record yet: `python -m study` trains what is missing."


def of_part(records: Sequence[Record], part: str, data: str) -> list[Record]:
    return [r for r in records if (r["part"], r["data"]) == (part, data)]


def mask_ratio_curves(
    records: Sequence[Record], data: str, protocol: str, feature: str
) -> dict[str, dict[float, dict[int, float]]]:
    """{objective: {mask ratio: {seed: accuracy}}}, the ratios rising."""
    found: dict[str, dict[float, dict[int, float]]] = {}
    own = of_part(records, "mask ratio", data)
    for r in sorted(own, key=lambda r: r["fields"]["mask_ratio"]):
        ratios = found.setdefault(r["objective"], {})
        seeds = ratios.setdefault(r["fields"]["mask_ratio"], {})
        seeds[r["seed"]] = accuracy(r, protocol, feature)
    return found


def mask_ratios_block(records: Sequence[Record]) -> str:
    """Part C: MAE and U-MAE at every mask ratio, and what the ratio 0.75 gains over others."""
    rows, compared = [], []
    for data in PRESETS:
        for feature, label in FEATURES.items():
            for name, protocol in SUMMARY.items():
                found = mask_ratio_curves(records, data, protocol, feature)
                base, other = (found.get(objective, {}) for objective in ("MAE", "U-MAE"))
                labels = [data, label, name]
                for ratio in sorted(base.keys() & other.keys()):
                    rows += _pair([base[ratio], other[ratio]], [*labels, f"{ratio:g}"])
                compared += _above_other_ratios(found, labels)
    if not rows:
        return NOT_YET
    header = ["data", "feature", "probe", "mask ratio", "MAE", "U-MAE", "gain [95 %]", "n"]
    others = [f"{PAPER_RATIO:g} minus {ratio:g} [95 %]" for ratio in OTHER_RATIOS]
    above = table(["data", "feature", "probe", "objective", *others, "n"], compared)
    return f"{table(header, rows)}\n\n{above}"


PAPER_RATIO = 0.75
OTHER_RATIOS = {0.0: "Section 3.2", 0.9: "Section 4.2"}  # and where the paper compares it


def _above_other_ratios(
    found: dict[str, dict[float, dict[int, float]]], labels: list[str]
) -> list[list[str]]:
    """A row an objective: accuracy at the paper's ratio minus that at the others, same seeds."""
    rows = []
    for objective, own in found.items():
        sides = [own.get(ratio, {}) for ratio in (PAPER_RATIO, *OTHER_RATIOS)]
        seeds = set.intersection(*map(set, sides))
        if seeds:
            cells = [with_interval([sides[0][s] - side[s] for s in seeds]) for side in sides[1:]]
            rows.append([*labels, objective, *cells, str(len(seeds))])
    return rows


def _pair(sides: Sequence[dict[int, float]], labels: list[str]) -> list[list[str]]:
    """One row, of the seeds that both sides have; none if they share no seed."""
    base, other = sides
    seeds = sorted(base.keys() & other.keys())
    if not seeds:
        return []
    gain = with_interval([other[s] - base[s] for s in seeds])
    values = [spread([side[s] for s in seeds]) for side in sides]
    return [[*labels, *values, gain, str(len(seeds))]]


def finetuned(records: Sequence[Record], data: str) -> dict[str, tuple[list[float], list[float]]]:
    """{start: (finetuned accuracies, batch-normed mean-token probes of the same encoders)}."""
    found = {}
    own = of_part(records, "finetuning", data)
    for start in ("MAE", "U-MAE", SCRATCH):
        tuned = {r["seed"]: r["finetuned"]["best"] for r in own if r["objective"] == start}
        probed = by_seed(records, data, start)
        frozen = [accuracy(probed[s], "mae", "avg") for s in tuned if s in probed]
        if tuned:
            found[start] = list(tuned.values()), frozen
    return found


def finetuning_block(records: Sequence[Record]) -> str:
    """Part D: finetuned accuracy, beside the batch-normed probe of the same encoders."""
    rows = []
    for data in PRESETS:
        for start, (tuned, frozen) in finetuned(records, data).items():
            values = [spread(tuned), spread(frozen) if frozen else "-"]
            rows.append([data, start, *values, str(len(tuned))])
    header = ["data", "start", "finetuned", "batch-normed probe, mean token", "n"]
    return table(header, rows) if rows else NOT_YET


def along_pair(
    records: Sequence[Record], data: str, protocol: str, feature: str
) -> dict[int, tuple[float, ...]]:
    """Of the long pair: {epoch: (MAE, U-MAE)}; empty if one of the two is missing."""
    own = {r["objective"]: r["along"] for r in of_part(records, "long", data)}
    if len(own) < 2:
        return {}
    pairs = zip(own["MAE"], own["U-MAE"], strict=True)
    return {pair[0]["epoch"]: tuple(accuracy(r, protocol, feature) for r in pair) for pair in pairs}


def along_block(records: Sequence[Record]) -> str:
    """The long pair under each protocol along training; one seed."""
    rows = []
    for data in PRESETS:
        for feature, label in FEATURES.items():
            found = [along_pair(records, data, protocol, feature) for protocol in SUMMARY.values()]
            for epoch in found[0]:
                cells = ["{:.1f} → {:.1f}".format(*own[epoch]) for own in found]
                rows.append([data, label, str(epoch), *cells])
    return table(["data", "feature", "epoch", *SUMMARY], rows) if rows else NOT_YET
