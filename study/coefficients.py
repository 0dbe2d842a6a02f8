"""Part B of the study: accuracy against the coefficient, in every form of the uniformity term."""

from collections.abc import Sequence

from lib.losses import cosine_weight
from study.plan import PRESETS
from study.tables import NOT_YET, SUMMARY, Record, accuracy, of_part, spread, table

NO_TERM = "none (MAE)"
Setting = tuple[float, str, float]  # weight on mean cos^2 (inf: another term), form, lam
RELEASED = cosine_weight(0.01, "released", 96)  # the authors' coefficient, one device


def by_setting(records: Sequence[Record], data: str) -> dict[Setting, dict[int, Record]]:
    """{(weight, form, lam): {seed: record}}, in the order of the weight on mean cos^2."""
    found: dict[Setting, dict[int, Record]] = {}
    for r in of_part(records, "coefficients", data):
        weight = float("inf") if r["cosine_weight"] is None else r["cosine_weight"]
        setting = weight, r["fields"].get("uniformity", NO_TERM), r["fields"]["lam"]
        found.setdefault(setting, {})[r["seed"]] = r
    return dict(sorted(found.items()))


def coefficients_block(records: Sequence[Record]) -> str:
    """Every form and coefficient, in the order of its weight on mean cos^2."""
    rows = []
    for data in PRESETS:
        for (weight, form, lam), own in by_setting(records, data).items():
            shown = "another term" if weight == float("inf") else f"{weight:.3g}"
            runs = list(own.values())
            cells = [spread([accuracy(r, p, "token") for r in runs]) for p in SUMMARY.values()]
            ranks = spread([r["representation"]["token"]["effective_rank"] for r in runs])
            rows.append([data, form, f"{lam:g}", shown, *cells, ranks, str(len(own))])
    header = ["data", "form", "`lam`", "weight on mean cos²", *SUMMARY, "effective rank", "n"]
    return table(header, rows) if rows else NOT_YET


def curves(records: Sequence[Record], data: str, protocol: str) -> dict[str, dict[float, list]]:
    """{form: {weight on mean cos^2: accuracies over seeds}} of the class token.

    "spectral" begins with MAE, at weight 0. Eq. 9 as printed has no such weight: it is left out.
    """
    found: dict[str, dict[float, list]] = {}
    for (weight, form, _), own in by_setting(records, data).items():
        if weight != float("inf"):
            values = [accuracy(r, protocol, "token") for r in own.values()]
            found.setdefault("spectral" if form == NO_TERM else form, {})[weight] = values
    return found
