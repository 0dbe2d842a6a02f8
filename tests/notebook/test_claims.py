"""Verdicts on claims."""

import pytest

from lib.notebook.claims import Claims


@pytest.mark.parametrize(
    ("as_printed", "corrected", "verdict"),
    [
        (True, False, "holds"),
        (True, True, "holds"),
        (False, True, "fails as printed, holds as corrected"),
        (False, False, "does not hold"),
    ],
)
def test_the_verdict_follows_from_two_truth_values(as_printed, corrected, verdict, capsys):
    claims = Claims()
    claims.add("Eq. 5", "a <= b", "1 <= 2", as_printed, corrected)
    assert claims.found[0].verdict == verdict
    assert capsys.readouterr().out == f"[{verdict}] Eq. 5: a <= b (1 <= 2)\n"
    record = claims.record()
    assert record["counts"] == {v: int(v == verdict) for v in record["counts"]}
    assert len(record["counts"]) == 3


def test_the_table_keeps_its_columns_when_a_claim_has_a_bar():
    claims = Claims()
    claims.add("Thm 3.4", "|f| is constant", "R = 2", True)
    assert claims.table().splitlines()[-1] == r"| Thm 3.4 | \|f\| is constant | R = 2 | holds |"
