"""The protocol gap, its interval, the sentence, and the page as JSON, LaTeX and command line."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.models import save_timm

from lib.data import Normalization
from lib.errors import InputError
from lib.evaluate.__main__ import main, run
from lib.evaluate.audit import (
    Answers,
    Settings,
    _check_readable,
    as_json,
    audit,
    audited_features,
    compare,
    difference,
    latex_table,
    settle_bf16,
    table,
)
from lib.evaluate.encoders import own_encoder
from lib.evaluate.pictures import load_pictures
from lib.evaluate.probes import Probe, linear_accuracy

HALF = Normalization(torch.full((1,), 0.5), torch.full((1,), 0.5))
QUICK = Settings(seeds=(0, 1), budgets=(1, 10))


def pixels(name, scale=None):
    """Pixels as features; `scale` (64,) makes them ill-conditioned without losing anything."""

    def function(x):
        flat = x.flatten(1)
        return {"avg": flat if scale is None else flat * scale}

    return own_encoder(name, function, 8, HALF, name, "cpu")


def ill_conditioned():
    """Every second pixel at a thousandth of its size: a short plain probe cannot read those."""
    return pixels("ill", torch.where(torch.arange(64) % 2 == 0, 1.0, 1e-3))


@pytest.fixture(autouse=True)
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("UMAE_OUTPUTS", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def digits():
    return load_pictures("digits")


@pytest.fixture(scope="module")
def both(digits, tmp_path_factory):
    """The pages of well-conditioned and of ill-conditioned pixels; do not change them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UMAE_OUTPUTS", str(tmp_path_factory.mktemp("audit")))
        return audit([pixels("my_pixels"), ill_conditioned()], digits, QUICK)


def test_the_gap_is_large_where_a_plain_probe_is_blind(both):
    good, ill = both
    assert ill.condition_number > 1e3 * good.condition_number
    assert ill.gaps["lbfgs"].low > good.gaps["lbfgs"].high
    assert ill.gaps["lbfgs"].low > 0
    # the converged probe standardises, so both encoders hold the same for it
    assert ill.answers.mean("lbfgs") == pytest.approx(good.answers.mean("lbfgs"), abs=0.5)
    start = "A plain probe of 10 epochs (50 steps) understates the mean of patch tokens of ill by"
    assert ill.sentence().startswith(start)
    (line,) = compare([good, ill])
    assert "ill minus my_pixels is -" in line


def test_accuracies_are_those_of_the_probes(both, digits):
    page = both[0]
    features = audited_features(pixels("my_pixels"), digits)
    for protocol, seed in (("sgd", 0), ("sgd", 1), ("lbfgs", 0), ("knn", 0)):
        found = linear_accuracy(features, protocol, "avg", seed)
        assert page.accuracy[protocol]["test"][seed] == pytest.approx(found["test"])
        assert page.accuracy[protocol]["validation"][seed] == pytest.approx(found["validation"])
        right = page.answers.right[protocol][seed]
        assert 100 * right.mean() == pytest.approx(found["test"])
    assert page.budget[10] == page.accuracy["sgd"]["test"][0]
    assert page.budget[1] < page.budget[10]
    best = max(("sgd", "mae", "lbfgs"), key=lambda p: np.mean(page.accuracy[p]["validation"]))
    assert page.report == best
    assert sum(page.spectrum) == pytest.approx(1)


def test_features_and_probes_are_measured_once(digits, monkeypatch):
    first = audit([pixels("good")], digits, QUICK)
    module = sys.modules["lib.evaluate.audit"]
    monkeypatch.setattr(module, "encode", None)
    monkeypatch.setattr(module, "linear_predictions", None)
    again = audit([pixels("good")], digits, QUICK)
    assert as_json(again) == as_json(first)
    with pytest.raises(TypeError):
        audit([pixels("other")], digits, QUICK)


def bits(rate, seeds, count=2000, seed=0):
    return (np.random.default_rng(seed).random((seeds, count)) < rate).astype(np.uint8)


def test_the_interval_of_one_seed_is_that_of_a_proportion():
    answers = Answers({"sgd": bits(0.0, 1), "lbfgs": bits(0.3, 1)})
    gap = difference(answers, "lbfgs", answers, "sgd")
    rate = answers.right["lbfgs"].mean()
    half = 1.96 * 100 * np.sqrt(rate * (1 - rate) / 2000)
    assert gap.mean == pytest.approx(100 * rate)
    assert (gap.high - gap.low) / 2 == pytest.approx(half, rel=0.1)


def test_the_interval_is_paired_by_picture_and_widened_by_seeds():
    one = bits(0.5, 1)
    same = Answers({"sgd": one, "lbfgs": one})
    gap = difference(same, "lbfgs", same, "sgd")
    assert (gap.mean, gap.low, gap.high) == (0, 0, 0)  # unpaired, it would be +- 3 points
    apart = np.concatenate([bits(0.2, 1), bits(0.8, 1)])
    seeds = Answers({"sgd": one, "lbfgs": apart})
    gap = difference(seeds, "lbfgs", seeds, "sgd")
    assert gap.low < -25 and gap.high > 25


@pytest.mark.parametrize(
    "plain, full, says",
    [
        (0.4, 0.6, "understates the mean of patch tokens of my_pixels by"),
        (0.6, 0.4, "reads the mean of patch tokens of my_pixels better by"),
        (0.5, 0.5, "neither understates nor flatters"),
    ],
)
def test_the_sentence_follows_the_interval(both, plain, full, says):
    right = {"sgd": bits(plain, 1), "mae": bits(full, 1, seed=1), "lbfgs": bits(full, 1, seed=2)}
    answers = Answers(right)
    gaps = {p: difference(answers, p, answers, "sgd") for p in ("mae", "lbfgs")}
    page = replace(both[0], answers=answers, gaps=gaps)
    assert says in page.sentence() and page.sentence().endswith(" %.")


def test_the_size_of_the_features_is_told_from_their_conditioning(digits):
    small = pixels("small", torch.full((64,), 1e-3))
    (page,) = audit([small], digits, QUICK)
    features = audited_features(small, digits)
    scaled = Probe(epochs=10, lr=0.01, prepare="scaled")
    found = [linear_accuracy(features, scaled, "avg", seed)["test"] for seed in QUICK.seeds]
    assert page.accuracy["sgd, scaled"]["test"] == pytest.approx(found)
    assert page.size.low > 10  # what a plain probe loses by size alone
    assert "under the same plain probe: " in page.sentence_on_size()
    less = replace(page, size=-page.size).sentence_on_size()
    assert less.endswith(f"{page.size} points less.")


def test_an_order_that_turns_is_said(both):
    a = replace(both[0], answers=Answers({"sgd": bits(0.4, 1), "lbfgs": bits(0.7, 1)}))
    b = replace(both[0], encoder="b")
    b.answers = Answers({"sgd": bits(0.6, 1, seed=1), "lbfgs": bits(0.5, 1, seed=1)})
    assert "the protocol decides which of the two is better" in compare([a, b])[0]
    b.answers = Answers({"sgd": bits(0.6, 1, seed=1), "lbfgs": bits(0.9, 1, seed=1)})
    assert "both protocols give the same order" in compare([a, b])[0]
    b.answers = Answers({"sgd": bits(0.6, 1, seed=1), "lbfgs": a.answers.right["lbfgs"]})
    assert "only the plain probe tells the two apart" in compare([a, b])[0]
    b.answers = Answers({"sgd": a.answers.right["sgd"], "lbfgs": bits(0.9, 1, seed=1)})
    assert "only the converged probe tells the two apart" in compare([a, b])[0]
    b.answers = a.answers
    assert "neither tells the two apart" in compare([a, b])[0]


def test_the_page_as_json_text_and_latex(both):
    pages = both
    found = json.loads(json.dumps(as_json(pages)))
    assert found[0]["gaps"]["lbfgs"]["low"] <= found[0]["gaps"]["lbfgs"]["mean"]
    assert found[1]["sentence"] == pages[1].sentence()
    text = table(pages).to_string(index=False).splitlines()
    assert len(text) == 3 and text[0].split()[:3] == ["encoder", "feature", "D"]
    latex = latex_table(pages)
    assert r"my\_pixels & avg & 64" in latex and latex.count(r"\\") == 3
    assert latex.count("&") == 9 * 3


def test_bf16_is_used_only_where_no_probe_moves(digits, monkeypatch, capsys):
    monkeypatch.setattr("lib.compute.device.has_bf16", lambda device: True)
    exact = own_encoder("sums", lambda x: {"avg": x.flatten(1)}, 8, HALF, "1", "cpu")
    assert settle_bf16(exact, digits).precision == "bf16"

    def rounded(x):
        coarse = torch.is_autocast_enabled("cpu")
        return {"avg": x.flatten(1).sign() if coarse else x.flatten(1)}

    lossy = own_encoder("lossy", rounded, 8, HALF, "2", "cpu")
    assert settle_bf16(lossy, digits).precision == "fp32"
    text = capsys.readouterr().out
    assert "sums: bf16 moves the probe's answer by 0.00 points on 360 test pictures" in text
    assert "more than 0.1, so float32 is used" in text
    monkeypatch.setattr("lib.compute.device.has_bf16", lambda device: False)
    assert settle_bf16(exact, digits).precision == "fp32"
    assert "no bfloat16 arithmetic" in capsys.readouterr().out


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Settings(seeds=(1, 1)), "seeds must be different numbers"),
        (lambda: Settings(budgets=(0,)), "budgets must be different epochs of at least 1"),
        (lambda: Settings(precision="fp16"), "precision must be one of fp32, bf16"),
        (lambda: Settings(workers=-1), "workers must be at least 0"),
        (lambda: _check_readable([torch.tensor([[1.0], [torch.nan]])], "a"), "has diverged"),
        (lambda: _check_readable([torch.ones(3, 2), torch.ones(2, 2)], "a"), "has collapsed"),
        (lambda: audit([pixels("a"), pixels("a")], None), "of different names"),
        (lambda: run(["--data", "digits"]), "the following arguments are required: --encoder"),
        (
            lambda: run(["--data", "digits", "--encoder", "resnet18", "--num-heads", "3"]),
            "options of checkpoint files were given",
        ),
    ],
)
def test_what_cannot_be_audited_is_one_line(make, message):
    with pytest.raises(InputError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_a_split_of_equal_pictures_is_no_collapse():
    _check_readable([torch.eye(2), torch.ones(2, 2)], "a")


def test_the_command_prints_the_page_and_writes_its_files(outputs, monkeypatch, capsys):
    save_timm(outputs / "net")
    command = ["--encoder", f"net=local-dir:{outputs / 'net'}", "--data", "digits",
               "--images", "40", "--seeds", "0", "--budgets", "1"]  # fmt: skip
    folder = run(command)
    printed = capsys.readouterr().out
    assert "40 training and 40 test pictures" in printed
    assert "A plain probe of 10 epochs" in printed
    found = json.loads((folder / "audit.json").read_text())
    assert [(page["encoder"], page["feature"]) for page in found["pages"]] == [
        ("net", "avg"), ("net", "token")
    ]  # fmt: skip
    assert found["commit"] and found["settings"]["seeds"] == [0]
    assert (folder / "audit.tex").read_text().startswith(r"\begin{tabular}")
    renamed = [word.replace("net=", "other=") for word in command]
    assert run(command) == folder
    assert len({folder, run(renamed), run([*command, "--budgets", "2"])}) == 3  # none overwritten
    monkeypatch.setattr(sys, "argv", ["lib.evaluate", *command, "--encoder", "resnet81"])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = capsys.readouterr().err
    assert said.startswith("error: 'resnet81' is neither a file") and said.count("\n") == 1
