"""The audit pages in docs/results.md are those of outputs/reference."""

import json

from lib.evaluate.probes import FROZEN
from study.audits import PAGES, audits_block


def page(plain: float, thorough: dict[str, float]) -> dict:
    accuracy = {p: {"validation": [50.0], "test": [plain, plain + 1]} for p in FROZEN}
    for protocol, validation in thorough.items():
        accuracy[protocol]["validation"] = [validation]
    gaps = {"mae": {"mean": 1.0, "low": 0.5, "high": 1.5}, "lbfgs": dict(mean=9.0, low=8, high=10)}
    size = {"mean": 2.0, "low": 1.0, "high": 3.0}
    shape = {"dim": 96, "effective_rank": 1.5, "condition_number": 9750.0}
    return {"encoder": "MAE", "feature": "token", **shape} | {
        "accuracy": accuracy,
        "gaps": gaps,
        "size": size,
    }


def test_a_row_holds_the_gap_of_the_better_thorough_protocol(tmp_path):
    rows = [page(12.0, {"mae": 60.0}), page(12.0, {"lbfgs": 60.0})]
    found = {"pages": rows, "comparisons": ["A differs."], "commit": "abc", "device": "a machine"}
    for name, images in (("cifar10", None), ("cifar10_2000", 2000)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**found, "images": images}))
    lines = audits_block([], tmp_path).splitlines()
    assert lines[0] == "**cifar10**, all images (commit abc, a machine):"
    start = "| MAE | class token | 96 | 1.5 | 9.8e+03 | 12.5 | 12.5 | 12.5 | 12.5 | "
    assert lines[4] == start + "1.0 ± 0.5 | 2.0 ± 1.0 |"
    assert lines[5] == start + "9.0 ± 1.0 | 2.0 ± 1.0 |"
    assert "- A differs." in lines
    assert (
        "**cifar10**, at most 2,000 training and test images each (commit abc, a machine):" in lines
    )


def test_there_are_pages():
    assert len(list(PAGES.glob("*.json"))) == 4
