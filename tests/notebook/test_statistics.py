"""The words for many numbers: mean and spread, Student's interval, verdicts."""

import math

import pytest

from lib.notebook.statistics import interval, judge, summary, verdict


def test_summary():
    assert summary([50.0]) == "50.0 (n=1)"
    assert summary([49.0, 51.0]) == "50.0 ± 1.4 (n=2)"


def test_interval_is_students():
    low, high = interval([1.0, 2.0, 3.0])
    assert (low, high) == (
        pytest.approx(2 - 4.302653 / math.sqrt(3)),
        pytest.approx(2 + 4.302653 / math.sqrt(3)),
    )
    assert interval([5.0]) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    "differences, above, says",
    [
        ([5.0], 0, "cannot tell"),
        ([4.9, 5.0, 5.1], 0, "agrees"),
        ([-5.1, -5.0, -4.9], 0, "does not agree"),
        ([-1.0, 5.0, 6.0], 0, "cannot tell"),
        ([-0.2, -0.25, -0.3], -0.5, "agrees"),
        ([-0.2, -0.25, -0.3], 0, "does not agree"),
        ([0.0, 0.0], 0, "cannot tell"),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side(differences, above, says, capsys):
    assert verdict(differences, above) == says
    assert judge("it helps", differences, above)["verdict"] == says
    assert says in capsys.readouterr().out
