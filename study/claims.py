"""The paper's claims, one by one, as the records of the study and the notebooks judge them."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lib.notebook.statistics import correct, judge
from lib.presets import REPO
from study.coefficients import NO_TERM, by_setting
from study.plan import PRESETS, SCRATCH
from study.tables import (
    FEATURES,
    NOT_YET,
    OTHER_RATIOS,
    PAPER_RATIO,
    PROTOCOLS,
    SUMMARY,
    Record,
    accuracy,
    by_seed,
    mask_ratio_curves,
    of_part,
    table,
    with_interval,
)

REFERENCE = REPO / "outputs" / "reference"
THEORY = ("09a_graph", "09b_trained_model", "09c_uniformity")

# Claims that a notebook judged on CIFAR-10 after 5 epochs: file, section of the paper, command.
EARLIER = {
    "03_linear_probe": "Table 1, linear",
    "04_finetune": "Table 1, finetuning",
    "05_tsne": "Figure 4",
    "06_lambda_ablation": "Figure 5 (a)",
    "07_training_curve": "Figure 5 (b)",
    "08_mask_ratio": "Sections 3.2, 4.2",
}

MIDDLE, LARGEST = 1e-3, 1e-1  # spectral: the paper's number, and the largest of the plan
FIGURES = {  # the picture of a part, in outputs/reference/study
    "objectives": "gains_{data}_U-MAE.png",
    "finetuning": "finetuning_{data}.png",
    "coefficients": "coefficients_{data}.png",
    "mask ratio": "mask_ratios_{data}.png",
}
NOT_WORSE = -0.5  # points: a finetuned U-MAE that is closer to MAE than this is as good
Values = dict[int, float]  # {seed: test accuracy in percent}


def study_claims(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What the records say of Table 1, Figure 5 (a) and the mask ratio, on paired seeds.

    The linear readings of Table 1 and Figure 5 (a) are of the class token, on which the term acts;
    those of the mask ratio, which acts on every token, are of both features. Each claim names the
    data set, the place in the paper and the part of the study.
    """
    claims = []
    for data in PRESETS:
        for make in (_linear, _finetuning, _coefficient, _mask_ratio):
            for place, part, text, values, other, above in make(records, data):
                seeds = sorted(values.keys() & other.keys())
                differences = [values[seed] - other[seed] for seed in seeds]
                if differences:
                    where = {"place": place, "part": part, "data": data}
                    claims.append(judge(text, differences, above) | where)
    return correct(claims)


Comparison = tuple[str, str, str, Values, Values, float]


def _linear(records: Sequence[Record], data: str) -> Iterator[Comparison]:
    for protocol in PROTOCOLS:
        mae, umae = (
            {seed: accuracy(r, protocol, "token") for seed, r in by_seed(records, data, o).items()}
            for o in ("MAE", "U-MAE")
        )
        text = f"`{protocol}`: U-MAE minus MAE, above 0"
        yield "Table 1, linear", "objectives", text, umae, mae, 0.0


def _finetuning(records: Sequence[Record], data: str) -> Iterator[Comparison]:
    tuned: dict[str, Values] = {}
    for r in of_part(records, "finetuning", data):
        tuned.setdefault(r["objective"], {})[r["seed"]] = r["finetuned"]["best"]
    for one, other, above in (
        ("U-MAE", "MAE", NOT_WORSE),
        ("MAE", SCRATCH, 0.0),
        ("U-MAE", SCRATCH, 0.0),
    ):
        text = f"{one} minus {other}, " + (f"above {above:g}" if above else "above 0")
        sides = tuned.get(one, {}), tuned.get(other, {})
        yield "Table 1, finetuning", "finetuning", text, *sides, above


def _coefficient(records: Sequence[Record], data: str) -> Iterator[Comparison]:
    """The accuracy rises up to MIDDLE and falls after it."""
    found = {(form, lam): own for (_, form, lam), own in by_setting(records, data).items()}
    for protocol in PROTOCOLS:
        middle, none, largest = (
            {seed: accuracy(r, protocol, "token") for seed, r in found.get(key, {}).items()}
            for key in (("spectral", MIDDLE), (NO_TERM, 0.0), ("spectral", LARGEST))
        )
        for lam, other in ((0.0, none), (LARGEST, largest)):
            text = f"`{protocol}`: `lam` {MIDDLE:g} minus `lam` {lam:g}, above 0"
            yield "Figure 5 (a)", "coefficients", text, middle, other, 0.0


def _mask_ratio(records: Sequence[Record], data: str) -> Iterator[Comparison]:
    """A large mask ratio is better than none and than a very large one; MAE, both features."""
    for feature, label in FEATURES.items():
        for protocol in SUMMARY.values():
            found = mask_ratio_curves(records, data, protocol, feature).get("MAE", {})
            for ratio, place in OTHER_RATIOS.items():
                ratios = f"MAE at ratio {PAPER_RATIO:g} minus ratio {ratio:g}"
                text = f"`{protocol}`, {label}: {ratios}, above 0"
                sides = found.get(PAPER_RATIO, {}), found.get(ratio, {})
                yield place, "mask ratio", text, *sides, 0.0


def study_block(records: Sequence[Record]) -> str:
    """The claims of `study_claims`, with intervals, verdicts, and Holm's correction."""
    rows = []
    for claim in study_claims(records):
        values = claim["differences"]
        number, n = with_interval(values), str(len(values))
        where = [claim["place"], claim["data"], claim["claim"]]
        file = FIGURES[claim["part"]].format(data=claim["data"])
        seen = [f"[figure](../outputs/reference/study/{file})", f"`{claim['part']}`"]
        rows.append([*where, number, n, claim["verdict"], claim["holm"], *seen])
    header = ["in the paper", "data", "claim", "points [95 %]", "n", "verdict", "after Holm"]
    return table([*header, "figure", "part"], rows) if rows else NOT_YET


def read_earlier(folder: Path = REFERENCE) -> list[dict[str, Any]]:
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
        number = with_interval(row["differences"])
        n = str(len(row["differences"]))
        notebook = f"`{row['notebook']}`"
        rows.append([row["place"], row["claim"], number, n, row["verdict"], row["holm"], notebook])
    header = ["in the paper", "claim", "points [95 %]", "n", "verdict", "after Holm", "notebook"]
    return table(header, rows)


def theory_block(_: Sequence[Record], folder: Path = REFERENCE / "executed") -> str:
    """The claims of Sections 3 and 4, from the tables in the executed notebooks."""
    rows = []
    for name in THEORY:
        (found,) = [t for t in _markdown(folder / f"{name}.ipynb") if t.startswith("| where |")]
        for line in found.splitlines()[2:]:
            rows.append(f"{line} `{name}` |")
    header = "| where | claim | computed | verdict | notebook |\n|---|---|---|---|---|"
    return "\n".join([header, *rows])


def _markdown(path: Path) -> list[str]:
    """The Markdown that the cells of a notebook displayed."""
    cells = json.loads(path.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    texts = [output.get("data", {}).get("text/markdown", "") for output in outputs]
    return ["".join(text) for text in texts]
