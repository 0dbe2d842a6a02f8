"""Part F of the study: the gain of the other uniformity terms over MAE."""

from collections.abc import Sequence
from typing import Any

from lib.notebook.statistics import correct, judge
from study.plan import PRESETS, VARIANTS
from study.tables import NOT_YET, PROTOCOLS, Record, accuracy, of_part, table, with_interval


def variant_claims(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Is a variant better than MAE of the same seed? Test accuracy of the mean token, 10 epochs."""
    claims = []
    for data in PRESETS:
        sweep = of_part(records, "coefficients", data)
        base = {r["seed"]: r for r in sweep if r["fields"]["lam"] == 0}
        for (name, lam), own in _by_term(records, data).items():
            seeds = sorted(own.keys() & base.keys())
            for protocol in PROTOCOLS if seeds else ():
                differences = [
                    accuracy(own[s], protocol, "avg") - accuracy(base[s], protocol, "avg")
                    for s in seeds
                ]
                where = {"data": data, "variant": name, "lam": lam, "protocol": protocol}
                claims.append(judge("variant minus MAE, above 0", differences) | where)
    return correct(claims)


def _by_term(records: Sequence[Record], data: str) -> dict[tuple[str, float], dict[int, Record]]:
    """{(variant, lam): {seed: record}} in the order of VARIANTS, the coefficients rising."""
    found: dict[tuple[str, float], dict[int, Record]] = {}
    for r in of_part(records, "variants", data):
        found.setdefault((r["objective"], r["fields"]["lam"]), {})[r["seed"]] = r
    return dict(sorted(found.items(), key=lambda item: (VARIANTS.index(item[0][0]), item[0][1])))


def variants_block(records: Sequence[Record]) -> str:
    """A row a variant and protocol: the gain, its interval and both verdicts."""
    rows = [
        [
            claim["data"],
            claim["variant"],
            f"{claim['lam']:g}",
            f"`{claim['protocol']}`",
            with_interval(claim["differences"]),
            str(len(claim["differences"])),
            claim["verdict"],
            claim["holm"],
        ]
        for claim in variant_claims(records)
    ]
    header = [
        "data",
        "term",
        "`lam`",
        "protocol",
        "gain over MAE [95 %]",
        "n",
        "above 0",
        "after Holm",
    ]
    return table(header, rows) if rows else NOT_YET
