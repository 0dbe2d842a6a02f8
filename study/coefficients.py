"""Parts B and F of the study: accuracy against the coefficient of the uniformity term."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from lib.losses import cosine_weight
from lib.notebook.statistics import correct, judge
from study.plan import PRESETS
from study.tables import (
    NOT_YET,
    PROTOCOLS,
    SUMMARY,
    Record,
    accuracy,
    of_part,
    spread,
    table,
    with_interval,
)

NO_TERM = "none (MAE)"
Setting = tuple[float, str, float]  # weight on mean cos^2 (inf: another term), form, lam
RELEASED = cosine_weight(0.01, "released", 96)  # the authors' coefficient, one device


def by_setting(records: Sequence[Record], data: str) -> dict[Setting, dict[int, Record]]:
    """{(weight, form, lam): {seed: record}}, in the order of the weight on mean cos^2.

    A seed counts when every setting has it: MAE has more seeds than the sweep.
    """
    found: dict[Setting, dict[int, Record]] = {}
    for r in of_part(records, "coefficients", data):
        weight = float("inf") if r["cosine_weight"] is None else r["cosine_weight"]
        setting = weight, r["fields"].get("uniformity", NO_TERM), r["fields"]["lam"]
        found.setdefault(setting, {})[r["seed"]] = r
    return dict(sorted(_with_common_seeds(found).items()))


def _with_common_seeds(found: dict[Any, dict[int, Record]]) -> dict[Any, dict[int, Record]]:
    """The same groups of records, each with the seeds that all of them have."""
    common = set.intersection(*map(set, found.values())) if found else set()
    return {key: {seed: own[seed] for seed in sorted(common)} for key, own in found.items()}


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


def by_mean_token_lam(records: Sequence[Record], data: str) -> dict[float, dict[int, Record]]:
    """{lam: {seed: record}} of the term on the mean token; lam 0 is MAE of the other sweep."""
    found: dict[float, dict[int, Record]] = {}
    own = of_part(records, "mean token", data)
    base = [r for r in of_part(records, "coefficients", data) if r["fields"]["lam"] == 0]
    for r in [*base, *own] if own else ():
        found.setdefault(r["fields"]["lam"], {})[r["seed"]] = r
    return dict(sorted(_with_common_seeds(found).items()))


def chosen_on_validation(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Is U-MAE on the mean token better if every protocol chooses its `lam`? Test, mean token.

    The `lam` with the best mean validation accuracy is chosen; `judge` says what its gain over MAE
    in test accuracy is.
    """
    claims = []
    for data in PRESETS:
        base, *others = [*by_mean_token_lam(records, data).items()] or [(0.0, {})]
        for protocol in PROTOCOLS if others else ():
            lam, own = max(others, key=lambda item: _validation(item[1], protocol))
            differences = [
                accuracy(own[s], protocol, "avg") - accuracy(base[1][s], protocol, "avg")
                for s in sorted(own.keys() & base[1].keys())
            ]
            where = {"data": data, "protocol": protocol, "lam": lam}
            claims.append(judge("U-MAE minus MAE, above 0", differences) | where)
    return correct(claims)


def _validation(own: dict[int, Record], protocol: str) -> float:
    return fmean(r["accuracy"][protocol]["avg"]["validation"] for r in own.values())


def mean_token_block(records: Sequence[Record]) -> str:
    """The term on the mean token: accuracies of the mean token for every `lam`, and the choice."""
    rows, choices = [], []
    for data in PRESETS:
        for lam, own in by_mean_token_lam(records, data).items():
            runs = list(own.values())
            cells = [spread([accuracy(r, p, "avg") for r in runs]) for p in PROTOCOLS]
            ranks = spread([r["representation"]["avg"]["effective_rank"] for r in runs])
            rows.append([data, f"{lam:g}", *cells, ranks, str(len(runs))])
    for claim in chosen_on_validation(records):
        values = claim["differences"]
        where = [claim["data"], f"`{claim['protocol']}`", f"{claim['lam']:g}"]
        says = [claim["verdict"], claim["holm"]]
        choices.append([*where, with_interval(values), str(len(values)), *says])
    if not rows:
        return NOT_YET
    protocols = [f"`{p}`" for p in PROTOCOLS]
    swept = table(["data", "`lam`", *protocols, "effective rank", "n"], rows)
    header = ["data", "protocol", "chosen `lam`", "gain over MAE [95 %]", "n"]
    return f"{swept}\n\n{table([*header, 'above 0', 'after Holm'], choices)}"
