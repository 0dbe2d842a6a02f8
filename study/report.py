"""From the study's records to the generated blocks and the figure of docs/results.md.

A block stands between `<!-- begin NAME -->` and `<!-- end NAME -->`; the text around it is written
by hand and holds no number of the study. README.md has such a block too.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lib.notebook import statistics
from lib.notebook.statistics import (
    AGREES,
    DISAGREES,
    LEVEL,
    OPEN,
    correct,
    holm,
    interval,
    judge,
    p_value,
)
from lib.presets import REPO
from lib.runs.files import write_atomic, write_json
from study.plan import OBJECTIVES, PRESETS

RECORDS = REPO / "outputs" / "reference" / "study"
PAGES = (REPO / "docs" / "results.md", REPO / "README.md")
FEATURES = {"token": "class token", "avg": "mean token"}
PROTOCOLS = ("online", "sgd", "knn", "mae", "lbfgs")
Record = dict[str, Any]


def read_records(folder: Path = RECORDS) -> list[Record]:
    """Every committed record, by part."""
    found: list[Record] = []
    for path in sorted(folder.glob("*.json")):
        found += json.loads(path.read_text())
    return found


def collect(source: Path, target: Path = RECORDS) -> None:
    """The records of single runs in `source`, as one file a part in `target`."""
    parts: dict[str, list[Record]] = {}
    for path in sorted(source.glob("*.json")):
        record = json.loads(path.read_text())
        parts.setdefault(record["part"], []).append(_rounded(record))
    for part, records in parts.items():
        write_json(target / f"{part.replace(' ', '_')}.json", records)


def _rounded(value: Any) -> Any:
    """Floats with six significant digits: accuracies and spectra need no more."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, list) else value


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
        return f"{np.mean(values):+.1f} (n=1)"
    low, high = interval(values)
    says = verdict(values)
    if says != OPEN:
        says = f"**{says}**" if row["holm"] == says else f"{says} (not after Holm)"
    return f"{np.mean(values):+.1f} [{low:+.1f}, {high:+.1f}], {says}"


def representation_block(records: Sequence[Record]) -> str:
    """How the features use their dimensions: condition number and effective rank."""
    rows = []
    for data in PRESETS:
        for objective in OBJECTIVES:
            found = by_seed(records, data, objective).values()
            for feature in FEATURES if found else ():
                own = [r["representation"][feature] for r in found]
                condition = sorted(r["condition_number"] for r in own)
                ranks = spread([r["effective_rank"] for r in own])
                condition_text = f"{condition[0]:,.0f} to {condition[-1]:,.0f}"
                rows.append([data, objective, FEATURES[feature], condition_text, ranks])
    header = ["data", "objective", "feature", "condition number", "effective rank of 96"]
    return table(header, rows)


SUMMARY = {"plain": "sgd", "20 nearest neighbours": "knn", "batch-normed": "mae"}


def summary_block(records: Sequence[Record]) -> str:
    """The small table of README.md: three readings of the class token."""
    rows = []
    rows_of_gains = gains(records)
    for data in PRESETS:
        base, other = (by_seed(records, data, name) for name in ("MAE", "U-MAE"))
        for reading, protocol in SUMMARY.items() if base and other else ():
            wanted = {"data": data, "objective": "U-MAE", "protocol": protocol, "feature": "token"}
            row = next(g for g in rows_of_gains if wanted.items() <= g.items())
            values = [
                spread([accuracy(r, protocol, "token") for r in own.values()])
                for own in (base, other)
            ]
            n = str(len(row["differences"]))
            rows.append([data, reading, *values, gain_text(row), n])
    header = ["data", "probe", "MAE", "U-MAE", "gain [95 % interval]", "n"]
    return table(header, rows) + "\n\n" + origin_block(records)


# Claims that a notebook judged on CIFAR-10 after 5 epochs: file, section of the paper, command.
EARLIER = {
    "03_linear_probe": "Table 1, linear",
    "04_finetune": "Table 1, finetuning",
    "05_tsne": "Figure 4",
    "06_lambda_ablation": "Figure 5 (a)",
    "07_training_curve": "Figure 5 (b)",
    "08_mask_ratio": "Section 3.2, ratio 0",
}


def read_earlier(folder: Path = RECORDS.parent) -> list[dict[str, Any]]:
    """The claims of the notebooks' JSON files, each with its differences by seed."""
    rows = []
    for name, place in EARLIER.items():
        found = json.loads((folder / f"{name}_cifar10.json").read_text())
        for claim in _claims_of(found):
            rows.append({"place": place, "notebook": name, "commit": found["commit"], **claim})
    return correct([judge(r["claim"], r["differences"], r["above"]) | r for r in rows])


def _claims_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    if "table" in found:
        return [
            {
                "claim": f"U-MAE minus MAE, `{r['protocol']}`, {FEATURES[r['pool']]}: above 0",
                "differences": r["gain"],
                "above": 0.0,
            }
            for r in found["table"]
        ]
    claims = []
    for claim in found["claims"]:
        if "differences" in claim:
            text = claim.get("claim") or (
                f"U-MAE minus MAE, `{claim['protocol']}`, after epoch {claim['epoch']}: above 0"
            )
            values = {"differences": claim["differences"], "above": claim.get("above", 0.0)}
            claims.append({"claim": " ".join(text.split()), **values})
    return claims


def earlier_block(_: Sequence[Record]) -> str:
    """The claims after 5 epochs on CIFAR-10, with intervals, verdicts, and Holm's correction."""
    rows = []
    for row in read_earlier():
        low, high = interval(row["differences"])
        number = f"{np.mean(row['differences']):+.1f} [{low:+.1f}, {high:+.1f}]"
        n = str(len(row["differences"]))
        notebook = f"`{row['notebook']}`"
        rows.append([row["place"], row["claim"], number, n, row["verdict"], row["holm"], notebook])
    header = ["in the paper", "claim", "points [95 %]", "n", "verdict", "after Holm", "notebook"]
    return table(header, rows)


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
    return all("checks" in side[seed] for side in sides)


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
    "plain on whitened features": _check("whitened"),
    "plain, rotated to condition 1": _check("rotated", 0, "sgd"),
    "plain, rotated to condition 10,000": _check("rotated", 2, "sgd"),
    "plain, rotated to condition 1,000,000": _check("rotated", 3, "sgd"),
    "batch-normed, as above": lambda record, feature: accuracy(record, "mae", feature),
    "batch-normed, rotated to condition 1": _check("rotated", 0, "mae"),
    "batch-normed, rotated to condition 1,000,000": _check("rotated", 3, "mae"),
}


def baselines_block(records: Sequence[Record]) -> str:
    """Encoders that learned nothing."""
    rows = []
    for record in records:
        for name, features in record.get("baselines", {}).items():
            for feature, found in features.items():
                cells = [f"{found[p]['test']:.1f}" for p in ("sgd", "knn", "mae")]
                label = FEATURES.get(feature, feature)
                rows.append([record["data"], name, label, *cells])
    return table(["data", "encoder", "feature", "`sgd`", "`knn`", "`mae`"], rows)


def origin_block(records: Sequence[Record]) -> str:
    """Commits, machines, n and hours of the records."""
    commits = sorted({r["origin"]["commit"] for r in records})
    measured = sorted({r["measured_commit"] for r in records if "measured_commit" in r})
    later = f", measured at {', '.join(measured)}" if measured else ""
    machines = sorted({str(r["origin"]["device"]) for r in records})
    return (
        f"{len(records)} runs; trained at commit {', '.join(commits)}{later}; machine: "
        f"{', '.join(machines)}, one thread a run, bf16."
    )


BLOCKS: dict[str, Callable[[Sequence[Record]], str]] = {
    "study summary": summary_block,
    "study checks": checks_block,
    "study baselines": baselines_block,
    "earlier claims": earlier_block,
    "study objectives": objectives_block,
    "study representation": representation_block,
    "study origin": origin_block,
}


def filled(page: str, records: Sequence[Record]) -> str:
    """The page with every generated block made anew from the records."""
    for name, make in BLOCKS.items():
        pattern = rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)"
        if re.search(pattern, page, re.DOTALL):
            text = make(records)
            page = re.sub(
                pattern, lambda m, text=text: m[1] + text + "\n" + m[2], page, flags=re.DOTALL
            )
    return page


def write_pages(records: Sequence[Record]) -> None:
    for path in PAGES:
        write_atomic(path, filled(path.read_text(), records).encode())
