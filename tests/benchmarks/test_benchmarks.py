"""The benchmark's two sides compute the same loss, and what it prints is what it measured."""

import json
import subprocess
import sys

import pytest
import torch
from support import small

from benchmarks import __main__ as bench
from benchmarks.loss import accumulation
from benchmarks.memory import children_memory
from benchmarks.paired import Side, compare
from benchmarks.plain import PlainImages, pairwise, plain_loss
from benchmarks.training import row
from lib.errors import InputError
from lib.losses import uniformity_loss
from lib.masking import masks_from_noise, num_visible
from lib.train.objective import Objective


def test_the_plain_reference_is_the_same_loss(monkeypatch):
    config = small(lam=0.1, uniformity="released")
    objective = Objective(config, 10)
    images = torch.randn(6, 1, 8, 8)
    noise = torch.rand(6, config.num_patches)
    masks = masks_from_noise(noise, num_visible(config.num_patches, config.mask_ratio))
    _, terms = objective(images, masks, torch.zeros(6, dtype=torch.long))
    monkeypatch.setattr(torch, "rand", lambda *_: noise)
    torch.testing.assert_close(
        plain_loss(objective.mae, images, config), terms[0], rtol=1e-5, atol=1e-6
    )
    features = torch.nn.functional.layer_norm(torch.randn(20, 8), (8,))
    torch.testing.assert_close(
        pairwise(features), uniformity_loss(features, "released"), rtol=1e-4, atol=1e-6
    )


def test_plain_images_are_transformed_one_by_one():
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    data = PlainImages(images)
    assert len(data) == 3 and data[0].shape == (3, 32, 32) and data[0].dtype == torch.float32


def test_two_sides_are_timed_in_turn():
    fields = {"batch_size": 64, "epochs": 2}
    plain = Side("digits-vit-nano", {**fields, "batch_size": 16}, plain=True)
    result = compare(plain, Side("digits-vit-nano", fields), rounds=2, steps=2)
    for side, batch in (("a", 16), ("b", 64)):  # images, not steps, are counted
        assert (
            batch / 2
            < result[side]["images_per_s"] * sum(result[side]["ms"].values()) / 1e3
            < batch * 2
        )
    speeds = result["b"]["images_per_s"] / result["a"]["images_per_s"]
    assert result["ratio"][0] / 2 < speeds < result["ratio"][-1] * 2
    assert len(result["ratio"]) == 2 and result["ratio"][0] > 0
    assert result["own_memory_ratio"] > 0 and result["b"]["own_memory"] < result["b"]["memory"]
    for side in ("a", "b"):
        assert (
            result[side]["images_per_s"] > 0
            and result[side]["memory"] > 1e8
            and result[side]["gemm"] > 1e8
        )
        assert set(result[side]["ms"]) == {"data", "forward", "backward", "optimizer"}
    line = row("name", result, Side("digits-vit-nano", fields))
    assert 0 < line["of GEMM peak"] < 1 and line["images/s"] > 0


def test_memory_of_child_processes_counts_what_they_do_not_share():
    before = children_memory()
    grow = "import sys; x = b'1' * 50 * 2**20; print(); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", grow], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin and child.stdout
        child.stdout.readline()
        grown = children_memory() - before
        child.stdin.close()
    assert 50 * 2**20 < grown < 80 * 2**20


def test_tables_and_file(monkeypatch, outputs, capsys):
    monkeypatch.setattr(
        bench, "steps", lambda rounds: [{"": "a", "ratio": 1.25}, {"": "longer", "ratio": 2.0}]
    )
    bench.main(["steps", "--rounds", "1"])
    assert json.loads((outputs / "bench.json").read_text())["steps"][1] == {
        "": "longer",
        "ratio": 2.0,
    }
    assert "  longer  2\n" in capsys.readouterr().out
    with pytest.raises(InputError, match="unknown part 'step'"):
        bench.main(["step"])


def test_what_a_split_batch_costs():
    rows = accumulation(1)
    assert rows[0]["gradient error of one split"] < 1e-12
    assert all(r["value / exact"] == pytest.approx(1, abs=0.01) for r in rows)
    errors = [r["gradient error of one split"] for r in rows]
    assert errors == sorted(errors) and all(
        r["of the mean gradient"] < r["gradient error of one split"] for r in rows[1:]
    )
