"""Notebooks 01 to 08, 10 and 11: one execution with tiny settings.

The notebooks share their runs. Each test asserts the numbers that its notebook writes, so a
notebook that runs through and computes nonsense fails.
"""

import itertools
import json

import matplotlib.image
import numpy as np
import pytest
from support.notebooks import PATHS, THEORY, TINY, run_here

from lib.data import load
from lib.errors import InputError
from lib.notebook.table1 import PAPER
from lib.presets import resolve
from lib.runs import open_run

pytestmark = pytest.mark.usefixtures("shared_outputs")
NAMES = [name for name in PATHS if name not in {"00_start", *THEORY}]


def weights_on_disk(outputs):
    kinds = (
        "runs/*/model.safetensors",
        "runs/*/finetune/*",
        "scratch/*/*",
        "runs/*/probes/*",
        "runs/*/features*",
    )
    return {p: p.stat().st_mtime_ns for kind in kinds for p in outputs.glob(kind)}


def of(records, **wanted):
    return [r for r in records if all(r[k] == v for k, v in wanted.items())]


def test_an_unknown_parameter_stops_the_execution():
    with pytest.raises(InputError, match="unknown parameter 'lamda': did you mean 'lam'"):
        run_here("05_tsne", lamda=0.1)


def test_01_masking(done):
    found, _, _ = done("01_masking")
    assert (
        found["accuracy"][0] > 85 > found["accuracy"][-1]
    )  # a linear classifier on whole digits, and on a few patches
    for curve in found["rms"].values():
        assert all(a >= b for a, b in itertools.pairwise(curve)) and curve[0] > 2 * curve[-1]


def test_02_pretrain(done):
    found, _, text = done("02_pretrain")
    assert list(found["runs"]) == ["MAE", "U-MAE"]
    assert "U-MAE encoder" in text and "authors' code: lambda 0.01, 8 device(s)" in text
    assert found["runs"]["MAE"]["lam"] == 0 and found["runs"]["MAE"]["folder"] == mae().folder.name
    for result in found["runs"].values():
        assert 0 < result["test_reconstruction"] < 2
        assert 1 <= result["test_rank_token"] <= 64


def test_02_pretrains_one_objective_where_no_other_is_asked_for(done, capsys):
    done("02_pretrain")
    run_here("02_pretrain", **TINY["02_pretrain"], lam=0.0, compare=False)
    alone = capsys.readouterr().out
    assert "MAE encoder" in alone and "U-MAE encoder" not in alone


def mae():
    config = resolve(epochs=2, lam=0.0)
    return open_run(config, load(**config.data_fields).fingerprint)


def test_03_linear_probe(done):
    found, _, _ = done("03_linear_probe")
    assert {r["protocol"] for r in found["table"]} == {"online", "sgd", "mae", "lbfgs", "knn"}
    for row in found["table"]:
        assert all(0 <= v <= 100 for v in row["MAE"] + row["U-MAE"])
        assert row["gain"] == pytest.approx(
            [u - m for m, u in zip(row["MAE"], row["U-MAE"], strict=True)]
        )
    assert min(v for r in of(found["table"], protocol="lbfgs") for v in r["MAE"] + r["U-MAE"]) > 40


def test_04_finetune(done):
    found, _, text = done("04_finetune")
    assert {(r["start"], r["fraction"]) for r in found["results"]} == {
        (start, p) for start in ("MAE", "U-MAE", "scratch") for p in (0.1, 1.0)
    }
    for r in found["results"]:
        assert len(r["history"]) == 5
        assert r["best_validation"] == max(h["validation"] for h in r["history"])
    for start in ("MAE", "U-MAE"):
        assert of(found["results"], start=start, fraction=1.0)[0]["best"] > 2 * found["chance"]
    labels = {r["fraction"]: r["labels"] for r in found["results"]}
    assert labels == {0.1: 129, 1.0: 1295}
    gap = [of(found["results"], start=s, fraction=1.0)[0]["best"] for s in ("U-MAE", "MAE")]
    assert found["claims"][0]["differences"] == pytest.approx([gap[0] - gap[1]])
    for claim in found["claims"]:  # one seed
        assert claim["verdict"] == claim["holm"] == "cannot tell"
    assert "nothing for digits-vit-nano" in text


def test_05_tsne(done):
    found, _, _ = done("05_tsne")
    assert len(found["measures"]) == 4  # two objectives, class and mean token
    for row in found["measures"]:
        assert 0 <= row["k-NN purity"] <= 1 and 0 <= row["between / total variance"] <= 1
        assert -1 <= row["silhouette (cosine)"] <= 1 and 1 <= row["effective rank"] <= 64
        assert row["cosine gap"] == pytest.approx(row["cosine within"] - row["cosine between"])
    for row in found["singular_values"]:
        assert row["values"][0] == 1 and row["values"] == sorted(row["values"], reverse=True)
    for values in found["stability"].values():
        assert len(values["map purity"]) == 2 and len(values["shared neighbours"]) == 1
    assert len(found["classes"]) == 10
    assert found["joint"] == "cannot tell"


def test_06_lambda_ablation(done):
    found, _, _ = done("06_lambda_ablation")
    points = {(r["form"], r["lam"]) for r in found["results"]}
    assert points == {
        ("spectral", 0.0),
        ("spectral", 0.001),
        ("spectral", 0.1),
        ("euclidean", 0.0),
        ("euclidean", 0.1),
    }
    zero = of(found["results"], lam=0.0, seed=0)
    assert {r["run"] for r in zero} == {mae().folder.name}
    assert zero[0]["accuracy"] == zero[1]["accuracy"]
    assert zero[0]["accuracy"]["online"]["test"] == mae().result["test_online_token_full"]
    rank = {r["lam"]: r["rank"] for r in of(found["results"], form="spectral", seed=0)}
    assert rank[0.1] > rank[0.0] + 1
    assert set(found["optimum"]) == {"online", "sgd", "knn"}
    assert all(
        o["lam"] in (0.0, 0.001, 0.1) and len(o["gain"]) == 2 for o in found["optimum"].values()
    )
    assert {c["verdict"] for c in found["claims"]} <= {"agrees", "does not agree", "cannot tell"}
    assert set(found["shape"]) == {"online", "sgd", "knn"}
    assert found["same_optimum"] == "not comparable"
    weights = {(r["form"], r["lam"]): r["cosine_weight"] for r in found["results"]}
    assert weights["spectral", 0.001] == pytest.approx(0.064)
    assert weights["euclidean", 0.1] is None


def test_07_training_curve(done):
    found, _, text = done("07_training_curve")
    assert found["epochs"] == [0, 2]
    assert len(found["curve"]) == 2 * 2 * 2
    for protocol in ("sgd", "knn"):
        start = of(found["curve"], protocol=protocol, epoch=0)
        assert start[0]["test"] == start[1]["test"]  # the same initial weights
    assert "both start from the same weights: True" in text
    assert set(found["verdict"]) == {"sgd", "knn"}


def test_08_mask_ratio(done):
    found, _, _ = done("08_mask_ratio")
    for key in ("intra", "inter", "overall"):
        assert all(a >= b for a, b in itertools.pairwise(found[key]))
    assert found["relative"] == pytest.approx(
        [a / b for a, b in zip(found["intra"], found["inter"], strict=True)]
    )
    for low, middle, high in zip(
        found["interval"][0], found["relative"], found["interval"][1], strict=True
    ):
        assert low <= middle <= high
    flat = found["averages"]["one mask for both"]
    assert flat == pytest.approx([flat[0]] * len(flat))
    rising = found["averages"]["a mask for each, zeros"]
    assert all(a < b for a, b in itertools.pairwise(rising)) and rising[-1] < 1
    assert found["sweet_spot"] in ("agrees", "does not agree", "cannot tell")
    assert {(r["protocol"], r["ratio"]) for r in found["accuracy"]} == {
        (p, r) for p in ("sgd", "knn") for r in (0.0, 0.75)
    }


def test_10_table1(done):
    done("03_linear_probe"), done("04_finetune")
    found, folder, text = done("10_table1")
    assert found["paper"] == PAPER
    here = of(found["cells"], preset="digits-vit-nano")
    probed = json.loads(next((folder.parents[1] / "03_linear_probe").glob("*/*.json")).read_text())[
        "table"
    ]
    for cell in here:
        if cell["kind"] == "linear":
            (row,) = of(probed, protocol=cell["how"], feature="token")
            assert cell["by_seed"]["0"] == row[cell["objective"]][0]
        else:
            tuned = of(done("04_finetune")[0]["results"], start=cell["objective"], fraction=1.0)
            assert cell["by_seed"] == {"0": tuned[0]["best"]}
    empty = [c for c in found["cells"] if c["n"] == 0]
    assert {c["preset"] for c in empty} == set(PAPER)
    for preset in PAPER:
        assert f"notebooks/04_finetune.ipynb out.ipynb -p preset {preset}" in text
    assert "69.4" in (folder / "table1.md").read_text()


def test_11_audit(done):
    found, folder, text = done("11_audit")
    read = {(page["encoder"], page["feature"]) for page in found["pages"]}
    assert read == {(name, f) for name in ("MAE", "U-MAE") for f in ("token", "avg")}
    for page in found["pages"]:
        assert page["sentence"] in text
        assert set(page["budget"]) == {"1", "10"}
        for protocol, gap in page["gaps"].items():
            assert gap["low"] <= gap["mean"] <= gap["high"]
            tests = [np.mean(page["accuracy"][p]["test"]) for p in (protocol, "sgd")]
            assert gap["mean"] == pytest.approx(tests[0] - tests[1])
    assert all("U-MAE minus MAE" in line for line in found["comparisons"])
    assert "U-MAE" in (folder / "audit.tex").read_text()


# --- what they leave behind ---


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_there_and_not_blank(name, done):
    _, folder, _ = done(name)
    figures = sorted(folder.glob("*.png"))
    assert figures
    for figure in figures:
        assert figure.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
        pixels = matplotlib.image.imread(figure)[..., :3]
        assert min(pixels.shape[:2]) > 100
        assert (abs(pixels - pixels[0, 0]).max(-1) > 0.1).mean() > 0.01, figure.name


# Not 10_table1: it reads whatever the tests before it have trained.
AGAIN = [name for name in NAMES if name not in ("01_masking", "02_pretrain", "10_table1")]


@pytest.mark.parametrize("name", AGAIN)
def test_a_second_execution_trains_nothing_and_finds_the_same_numbers(name, done, shared_outputs):
    first, folder, _ = done(name)
    before = weights_on_disk(shared_outputs)
    run_here(name, **TINY[name])
    assert weights_on_disk(shared_outputs) == before
    (file,) = folder.glob("*.json")
    again = json.loads(file.read_text())
    changing = ("time", "command", "commit", "seconds", "trained")
    assert {k: v for k, v in again.items() if k not in changing} == {
        k: v for k, v in first.items() if k not in changing
    }
    assert again.get("trained", 0) == 0
