"""The words for many numbers: mean and spread, Student's interval, verdicts, Holm."""

import math

import pytest

from lib.notebook.statistics import (
    AGREES,
    OPEN,
    all_of,
    claims_table,
    correct,
    holm,
    interval,
    judge,
    p_value,
    summary,
    verdict,
)


def test_summary():
    assert summary([50.0]) == "50.0 (n=1)"
    assert summary([49.0, 51.0]) == "50.0 ± 1.4 (n=2)"
    assert summary([0.25, 0.75], digits=2) == "0.50 ± 0.35 (n=2)"


def test_interval_is_students():
    low, high = interval([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)
    assert (low, high) == (pytest.approx(2 - half), pytest.approx(2 + half))
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
        ([0.0, 0.0, 0.0], 0, "cannot tell"),
        ([1.0, 1.0, 1.0], 0, "agrees"),
        ([1.0, 1.0], 0, "cannot tell"),
    ],
)
def test_a_verdict_needs_an_interval_on_one_side(differences, above, says):
    assert verdict(differences, above) == says
    claim = judge("it helps", differences, above)
    assert claim["verdict"] == says
    assert (claim["p"] < 0.05) == (says != "cannot tell")


def test_the_p_value_is_that_of_the_paired_t_test():
    from scipy.stats import ttest_1samp

    assert p_value([1.0, 2.0, 4.0], 0.5) == pytest.approx(ttest_1samp([1.0, 2.0, 4.0], 0.5).pvalue)


def test_holm_steps_down():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_what_agrees_alone_may_not_among_many():
    strong, weak = [4.9, 5.0, 5.1], [1.0, 2.0, 3.0]
    assert verdict(weak) == "cannot tell"
    clear = [1.0, 1.5, 2.0]
    claims = correct([judge("a", strong), *[judge("b", clear)] * 3])
    assert [c["verdict"] for c in claims] == ["agrees"] * 4
    assert [c["holm"] for c in claims] == ["agrees"] + ["cannot tell"] * 3
    table = claims_table(claims)
    assert list(table["after Holm"]) == [c["holm"] for c in claims]
    assert table.loc["a", "mean"] == "+5.0"


def test_all_of():
    assert all_of(["agrees", "agrees"]) == "agrees"
    assert all_of(["agrees", "cannot tell"]) == "cannot tell"
    assert all_of(["agrees", "does not agree"]) == "does not agree"
    assert all_of([]) == "cannot tell"


def test_what_has_too_few_differences_is_no_test_among_the_corrected_ones():
    told = judge("told", [1.0, 1.1, 0.95])  # p = 0.002
    assert correct([told])[0]["holm"] == AGREES
    assert correct([told, *[judge("open", [0.0, 2.0, -1.0])] * 30])[0]["holm"] == OPEN
    both = correct([told, *[judge("one pair", [3.0])] * 30])
    assert both[0]["holm"] == AGREES and both[1]["holm"] == OPEN
