"""Many runs: training what is missing, and what their numbers say about a claim."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import t as student


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's confidence interval of the mean; (-inf, inf) of a single value."""
    v = np.asarray(values, dtype=float)
    if len(v) < 2:
        return -np.inf, np.inf
    half = student.ppf(0.5 + level / 2, len(v) - 1) * v.std(ddof=1) / np.sqrt(len(v))
    return float(v.mean() - half), float(v.mean() + half)


def verdict(differences: Sequence[float], above: float = 0.0) -> str:
    """Whether paired differences bear out that their mean is above `above`: by the 95 % interval of the mean.

    "agrees" if all of it is above, "does not agree" if all of it is below, else "cannot tell"; so also with n = 1.
    """
    low, high = interval(differences)
    return "agrees" if low > above else "does not agree" if high < above else "cannot tell"


def judge(claim: str, differences: Sequence[float], above: float = 0.0) -> dict[str, object]:
    """Prints a claim with its numbers and its verdict, and returns them for a notebook's JSON."""
    v, (low, high) = np.asarray(differences, dtype=float), interval(differences)
    shown = f"[{low:+.1f}, {high:+.1f}]" if len(v) > 1 else "[no interval]"
    print(f"{claim}: {v.mean():+.1f} {shown}, n={len(v)} -> {(says := verdict(v.tolist(), above))}")
    return {"claim": claim, "differences": v.tolist(), "above": above, "verdict": says}


def summary(values: Sequence[float]) -> str:
    """`mean ± standard deviation (n)` of measurements, the deviation with ddof 1; only the value where n is 1."""
    v = np.asarray(values, dtype=float)
    return (
        f"{v[0]:.1f} (n=1)" if len(v) == 1 else f"{v.mean():.1f} ± {v.std(ddof=1):.1f} (n={len(v)})"
    )
