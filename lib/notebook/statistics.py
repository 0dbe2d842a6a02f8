"""What a few seeds say about a claim: intervals, verdicts, and the correction for many of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

LEVEL = 0.95  # of every interval
FEWEST = 3  # seeds of a verdict: two that happen to be equal have an interval of no width
AGREES, DISAGREES, OPEN = "agrees", "does not agree", "cannot tell"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % confidence interval of the mean; (-inf, inf) of a single value."""
    v = np.asarray(values, dtype=float)
    if len(v) < 2:
        return -np.inf, np.inf
    low, high = v.mean() + _students_half_width(v) * np.array([-1, 1])
    return float(low), float(high)


def _students_half_width(v: np.ndarray) -> float:
    from scipy.stats import t  # half a second to import: only where it is used

    return float(t.ppf(0.5 + LEVEL / 2, len(v) - 1) * v.std(ddof=1) / np.sqrt(len(v)))


def p_value(differences: Sequence[float], above: float = 0.0) -> float:
    """Two-sided p-value of Student's t-test that the mean is `above`; 1 of fewer than 3 values.

    It is below 1 - LEVEL where `verdict` is not "cannot tell", and nowhere else.
    """
    from scipy.stats import t

    v = np.asarray(differences, dtype=float) - above
    if len(v) < FEWEST:
        return 1.0
    error = v.std(ddof=1) / np.sqrt(len(v))
    if error == 0:
        return float(v.mean() == 0)
    return float(2 * t.sf(abs(v.mean()) / error, len(v) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979), in the order given.

    Below 0.05 they reject with a chance of at most 0.05 of any false rejection among all of them.
    scipy.stats has no such correction.
    """
    p = np.asarray(p_values, dtype=float)
    order = p.argsort(kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1).tolist()


def verdict(differences: Sequence[float], above: float = 0.0) -> str:
    """Whether paired differences bear out that their mean is above `above`.

    "agrees" if all of the 95 % interval of the mean is above, "does not agree" if all of it is
    below, else "cannot tell"; so also with fewer than 3 differences.
    """
    if len(differences) < FEWEST:
        return OPEN
    low, high = interval(differences)
    if low > above:
        return AGREES
    return DISAGREES if high < above else OPEN


def judge(claim: str, differences: Sequence[float], above: float = 0.0) -> dict[str, Any]:
    """A claim with its paired differences, its p-value and its verdict, for a notebook's JSON."""
    v = [float(d) for d in differences]
    says = verdict(v, above)
    return {
        "claim": claim,
        "differences": v,
        "above": above,
        "p": p_value(v, above),
        "verdict": says,
    }


def correct(claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The claims of `judge` with the verdict "holm": corrected for judging that many at once.

    A claim with fewer than three differences is not tested, so it does not count among them.
    """
    tested = [k for k, claim in enumerate(claims) if len(claim["differences"]) >= FEWEST]
    adjusted = dict(zip(tested, holm([claims[k]["p"] for k in tested]), strict=True))
    return [
        {**claim, "holm": claim["verdict"] if adjusted.get(k, 1) < 1 - LEVEL else OPEN}
        for k, claim in enumerate(claims)
    ]


def claims_table(claims: list[dict[str, Any]]) -> pd.DataFrame:
    """The claims of `correct`, a row each: mean difference, interval, n and both verdicts."""
    rows = []
    for claim in claims:
        v = claim["differences"]
        low, high = interval(v)
        rows.append(
            {
                "claim": claim["claim"],
                "mean": f"{np.mean(v):+.1f}",
                "95 % interval": f"[{low:+.1f}, {high:+.1f}]" if len(v) > 1 else "none",
                "n": len(v),
                "verdict": claim["verdict"],
                "after Holm": claim["holm"],
            }
        )
    return pd.DataFrame(rows).set_index("claim") if rows else pd.DataFrame()


def all_of(verdicts: Sequence[str]) -> str:
    """The verdict on "all of these": agrees if all do, does not agree if any does not."""
    if DISAGREES in verdicts:
        return DISAGREES
    return AGREES if verdicts and set(verdicts) == {AGREES} else OPEN


def summary(values: Sequence[float], digits: int = 1) -> str:
    """`mean ± standard deviation (n)`, the deviation with ddof 1; only the value where n is 1."""
    v = np.asarray(values, dtype=float)
    if len(v) == 1:
        return f"{v[0]:.{digits}f} (n=1)"
    return f"{v.mean():.{digits}f} ± {v.std(ddof=1):.{digits}f} (n={len(v)})"
