"""The two sides of a benchmark compute the same loss, and what it prints is what it measured."""

import json
import subprocess
import sys

import nbformat
import pytest
import torch
from support import small

from benchmarks import __main__ as bench
from benchmarks import gpu, notebooks, profile, streaming, sweep, training
from benchmarks.loss import accumulation
from benchmarks.memory import children_memory
from benchmarks.paired import Side, compare
from benchmarks.plain import PlainImages, pairwise, plain_loss
from lib.compute import cpu_kernels
from lib.errors import InputError
from lib.losses import uniformity_loss
from lib.masking import masks_from_noise, num_visible
from lib.presets import resolve
from lib.train.objective import Objective

TINY = dict(
    embed_dim=32, depth=1, num_heads=2, decoder_dim=32, decoder_depth=1, decoder_heads=2,
    batch_size=8, device="cpu", workers=0, precision="fp32",
)  # fmt: skip


def test_the_plain_reference_is_the_same_loss(monkeypatch):
    config = small(lam=0.1, uniformity="released")
    objective = Objective(config, 10)
    images = torch.randn(6, 1, 8, 8)
    noise = torch.rand(6, config.num_patches)
    masks = masks_from_noise(noise, num_visible(config.num_patches, config.mask_ratio))
    _, terms = objective(images, masks, torch.zeros(6, dtype=torch.long))
    monkeypatch.setattr(torch, "rand", lambda *_, **__: noise)
    plain = plain_loss(objective.mae, images, config)
    torch.testing.assert_close(plain, terms[0], rtol=1e-5, atol=1e-6)
    features = torch.nn.functional.layer_norm(torch.randn(20, 8), (8,))
    released = uniformity_loss(features, "released")
    torch.testing.assert_close(pairwise(features), released, rtol=1e-4, atol=1e-6)


def test_plain_images_are_transformed_one_by_one():
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    data = PlainImages(images)
    assert len(data) == 3 and data[0].shape == (3, 32, 32) and data[0].dtype == torch.float32


def test_two_sides_take_steps_in_turn():
    fields = {"batch_size": 64, "epochs": 2}
    plain = Side("digits-vit-nano", {**fields, "batch_size": 16}, plain=True)
    product = Side("digits-vit-nano", fields, kernels=False, dense=True, heap=False)
    result = compare(plain, product, rounds=2, steps=2)
    assert len(result["ratio"]) == 2 and result["ratio"][0] > 0
    assert result["own_memory_ratio"] > 0 and result["b"]["own_memory"] < result["b"]["memory"]
    for side in (result["a"], result["b"]):
        assert side["images_per_s"] > 0 and side["memory"] > 1e8 and side["gemm"] > 1e6
        assert set(side["ms"]) == {"data", "forward", "backward", "optimizer"}
    line = training.row("name", result, product)
    assert line["of GEMM peak"] > 0 and line["images/s"] == round(result["b"]["images_per_s"])


def test_memory_of_child_processes_counts_what_they_do_not_share():
    before = children_memory()
    grow = "import sys; x = b'1' * 50 * 2**20; print(); sys.stdin.read()"
    command = [sys.executable, "-c", grow]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin and child.stdout
        child.stdout.readline()
        grown = children_memory() - before
        child.stdin.close()
    assert 50 * 2**20 < grown < 80 * 2**20


def test_tables_and_files(monkeypatch, outputs, capsys):
    rows = [{"": "a", "ratio": 1.25}, {"": "longer", "ratio": 2.0}]
    monkeypatch.setitem(bench.PARTS, "steps", lambda rounds: rows)
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    bench.main(["steps", "--rounds", "1"])
    kept = json.loads((outputs / "benchmarks" / "steps.json").read_text())
    assert kept["steps"] == rows and kept["machine"]["GOMP_SPINCOUNT"] == "77"
    printed = capsys.readouterr().out
    assert "longer      2\n" in printed and "GOMP_SPINCOUNT 77" in printed
    with pytest.raises(InputError, match=r"unknown part 'step': did you mean 'steps'\?"):
        bench.main(["step"])
    with pytest.raises(InputError, match="rounds must be at least 1, got 0"):
        bench.main(["steps", "--rounds", "0"])


def test_every_part_is_explained_in_a_sentence(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--help"])
    printed = capsys.readouterr().out
    for name in bench.PARTS:
        assert bench.help_of(name).endswith(".") and f"  {name:<14}{bench.help_of(name)}" in printed


def test_what_a_split_batch_costs():
    rows = accumulation(1)
    assert rows[0]["gradient error of one split"] < 1e-12
    assert all(r["value / exact"] == pytest.approx(1, abs=0.01) for r in rows)
    errors = [r["gradient error of one split"] for r in rows]
    assert errors == sorted(errors)
    assert all(r["of the mean gradient"] < r["gradient error of one split"] for r in rows[1:])


def test_a_sweep_trains_every_run_in_an_outputs_folder_of_its_own(outputs, monkeypatch):
    trained = []
    real = sweep.train_all
    monkeypatch.setattr(sweep, "train_all", lambda *a, **k: trained.append((real(*a, **k), k)))
    (row,) = sweep.measure_sweep([1], runs=2, preset="digits-vit-nano", epochs=1)
    (runs, given), *more = trained
    assert not more and len(runs) == 2 and given == {"jobs": 1}
    assert row["runs / min"] == pytest.approx(60 * 2 / row["s"]) and row["peak MiB"] > 100
    assert not outputs.exists()


@pytest.mark.parametrize("preset", gpu.PAPER)
def test_the_gpu_benchmark_takes_its_path_on_tiny_shapes(preset):
    data = "folder:random" if preset.startswith("imagenet") else None
    size = {"image_size": 32, "patch_size": 8}
    config = resolve(preset, **{**TINY, **size, "data": data})
    rows = gpu.compare_on_device(config, images=1000, peak=1e9, rounds=1, steps=1, count=16)
    assert [row["at once"] for row in rows] == [8, 8]
    assert all(row["images/s"] > 0 and row["of bf16 peak"] > 0 for row in rows)


def test_a_batch_that_does_not_fit_is_split(monkeypatch):
    asked = []

    def product(config, data):
        asked.append(config.accum_steps)
        if config.accum_steps < 4:
            raise torch.OutOfMemoryError("made up")
        return lambda count: None

    config = resolve("cifar10-vit-tiny", **TINY)
    found = gpu._measure(product, config, None, rounds=1, steps=1)
    assert asked == [1, 2, 4] and found.at_once == 2


def test_without_a_gpu_one_line_is_printed(monkeypatch, outputs, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bench.main(["gpu"])
    assert capsys.readouterr().out.count("gpu: skipped") == 1
    assert not (outputs / "benchmarks").exists()


def test_notebooks_are_timed_and_a_failure_is_said(tmp_path):
    for name, source in (("1_good", "print(1)"), ("2_bad", "raise ValueError")):
        cells = [nbformat.v4.new_markdown_cell("text"), nbformat.v4.new_code_cell(source)]
        spec = {"kernelspec": {"name": "python3", "display_name": "p", "language": "python"}}
        nbformat.write(
            nbformat.v4.new_notebook(cells=cells, metadata=spec), tmp_path / f"{name}.ipynb"
        )
    good, bad, both = notebooks.time_notebooks(sorted(tmp_path.glob("*.ipynb")))
    assert 0 < good["first cell after s"] <= good["s"] and good[""] == ""
    assert bad[""] == "failed (1)" and both["s"] == good["s"]


def test_streamed_crops_are_timed_in_turn():
    rows = streaming.streaming(rounds=2, images=72, workers=0)
    assert rows[0][""] == "this repository" and len(rows) == 3
    assert rows[0]["we are min med max"] == "1.00 1.00 1.00"
    assert all(row["images/s"] > 0 for row in rows)


def test_a_profile_accounts_for_the_products_of_a_step():
    config = resolve("cifar10-vit-micro", **{**TINY, "batch_size": 16})
    rows = {row[""]: row for row in profile.profile_steps(config, steps=2)}
    assert list(rows)[-1] == "the whole step" and rows["the whole step"]["share"] == 1
    assert rows["linear products"]["ms"] > 0 and rows["weight gradients"]["of GEMM peak"] > 0
    assert torch.get_num_threads() == 1 and not cpu_kernels._call.__name__.startswith("timed")


@pytest.mark.parametrize(
    "a,b,kind,flops",
    [
        (torch.ones(5, 3), torch.ones(3, 4), "linear products", 120),
        (torch.ones(3, 5).t(), torch.ones(3, 4), "weight gradients", 120),
        (torch.ones(4, 3, 5).mT, torch.ones(4, 3, 2), "weight gradients", 240),
        (torch.ones(6, 3, 5).mT, torch.ones(6, 3, 2), "attention products", 360),
    ],
)
def test_products_are_told_apart(a, b, kind, flops):
    assert profile._product(a, b) == (kind, flops)
