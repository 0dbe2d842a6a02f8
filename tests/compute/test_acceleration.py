"""How a step is computed changes no result beyond the precision, and falls back by itself."""

import ctypes
import dataclasses
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from support import environment, same_tensors, small, workers

from lib.compute.acceleration import choose_kernels, keep_heap
from lib.compute.cost import duration, estimate, gemm_peak, precision_of
from lib.compute.device import settle_precision
from lib.compute.memory import memory_at_most
from lib.masking import random_masks
from lib.models import MAE
from lib.presets import PRESETS, resolve
from lib.train.loop import Trainer

CPU = torch.device("cpu")


def trained(**fields) -> dict[str, torch.Tensor]:
    return workers.steps(small(batch_size=16, warmup_epochs=0, **fields), 5)["weights"]


def test_a_heap_that_is_kept_changes_nothing_and_another_c_library_is_left_alone(monkeypatch):
    kept = keep_heap()
    assert kept is keep_heap()
    with_it = trained()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert keep_heap() is False
    assert same_tensors(trained(), with_it)


def test_bf16_falls_back_to_fp32_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    assert settle_precision("bf16", CPU) == (
        "fp32",
        "bf16: this cpu has no bfloat16 arithmetic, float32 is used instead",
    )
    assert same_tensors(trained(precision="bf16"), trained())
    assert capsys.readouterr().out.count("float32 is used instead") == 1
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert settle_precision("bf16", CPU) == ("bf16", "")
    assert settle_precision("fp64", CPU) == ("fp64", "")
    assert not same_tensors(trained(precision="bf16"), trained())


def test_attention_as_products_is_the_same_function():
    config = small()
    mae = MAE(config).double()
    images, masks = torch.randn(4, 1, 8, 8).double(), random_masks(4, config.num_patches, 0.75)
    fused = mae(images, masks)
    choose_kernels(mae, CPU, "bf16", compiled=True)
    assert not any(b.attn.fused_attn for b in (*mae.encoder.blocks, *mae.decoder_blocks))
    for a, b in zip(mae(images, masks), fused, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for device, precision in ((CPU, "fp32"), (torch.device("cuda"), "bf16")):
        assert choose_kernels(mae, device, precision) == ""
        assert all(b.attn.fused_attn for b in (*mae.encoder.blocks, *mae.decoder_blocks))


def test_without_a_compiler_training_goes_on_and_says_so(monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler\nlong story")

    plain = trained()
    monkeypatch.setattr(torch, "compile", broken)
    assert same_tensors(trained(compile=True), plain)
    line = "compile: running without torch.compile (RuntimeError: no C++ compiler)"
    assert line in capsys.readouterr().out


@pytest.mark.slow
def test_compiled_blocks_train_the_same_up_to_rounding(capsys):
    plain, compiled = trained(precision="fp64"), trained(precision="fp64", compile=True)
    assert "does not work" not in capsys.readouterr().out
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-7, atol=1e-9)


def test_no_step_waits_for_its_device(monkeypatch):
    """Every value of a meta tensor is unknown: reading one, as a synchronisation does, raises."""
    with pytest.raises(RuntimeError):
        torch.ones((), device="meta").item()
    monkeypatch.setattr("lib.train.loop.pick_device", lambda _: torch.device("meta"))
    monkeypatch.setattr(
        torch, "autocast", lambda *_, **__: nullcontext()
    )  # which meta tensors do not have
    for fields in (
        {},
        {"accum_steps": 2, "augment": "crop"},
        {"augment": "resized_crop", "uniformity": "euclidean"},
    ):
        config = small(batch_size=16, **fields)
        trainer = Trainer(config, workers.data_of(config))
        trainer.train_epoch(0, type("Bar", (), {"update": lambda self, n: None})(), [])
        assert trainer.step == 5 and trainer.sums.is_meta


def test_the_cost_is_counted_right():
    config = resolve("cifar10-vit-micro", batch_size=64)
    cost = estimate(config, images=1000, processes=2)
    width, depth, tokens = config.embed_dim, config.depth, 1 + 16
    narrow, all_tokens = config.decoder_dim, 1 + 64

    def block(d: int, n: int) -> int:
        return 2 * (12 * d * d * n + 2 * n * n * d)

    # q, k, v of the visible patches, and once a position of the removed ones; the rest of the block
    # for the removed patches only.
    decoder = 2 * narrow**2 * (3 * tokens + 9 * 48) + 2 * 2 * narrow * 48 * all_tokens
    forward = depth * block(width, tokens) + decoder
    forward += 2 * (16 * 48 * width + tokens * width * narrow + 48 * narrow * 48)
    assert cost.flops == pytest.approx(3 * forward, rel=0.01)  # the images need no gradient
    assert cost.parameters == sum(p.numel() for p in MAE(config).parameters() if p.requires_grad)
    assert (cost.images, cost.micro_batch, cost.epochs) == (960, 32, 20)
    assert cost.state_bytes == 16 * cost.parameters
    assert cost.seconds(1e9) == pytest.approx(cost.flops * 960 * 20 / 1e9)
    assert "0.5 M parameters" in cost.describe(1e12) and "1 TFLOP/s" in cost.describe(1e12)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_bound_on_the_memory_is_above_the_estimate_and_not_far(preset):
    config = PRESETS[preset]
    at_least = estimate(config, images=10_000).memory
    assert at_least < memory_at_most(config) < 8 * at_least


@pytest.mark.parametrize("compiled", [False, True])
def test_the_memory_is_what_a_step_keeps(compiled, monkeypatch):
    """By the CPU kernels, where the machine has them, and by torch's operations."""
    monkeypatch.setattr("lib.compute.device.has_bf16", lambda _: True)
    config = resolve(
        "cifar10-vit-micro", batch_size=64, precision="bf16", compile=compiled, device="cpu"
    )
    mae, kept = MAE(config), {}
    own = {p.untyped_storage().data_ptr() for p in mae.parameters()}
    choose_kernels(mae, CPU, "bf16", compiled)

    def keep(x):
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        torch.autocast("cpu", torch.bfloat16),
    ):
        out = mae(torch.randn(64, 3, 32, 32), random_masks(64, 64, 0.75))
    del out
    cost = estimate(config, images=1000)
    assert cost.memory - cost.state_bytes == pytest.approx(sum(kept.values()), rel=0.1)
    other = estimate(dataclasses.replace(config, compile=not compiled), images=1000)
    assert cost.flops == pytest.approx(other.flops, rel=1e-3)


def test_durations_read_well():
    assert [duration(s) for s in (0.02, 45, 119, 720, 12240, 440640)] == [
        "less than 1 s",
        "45 s",
        "119 s",
        "12.0 min",
        "3.4 h",
        "5.1 days",
    ]


def test_a_product_peak_is_measured():
    assert gemm_peak("fp32", CPU, size=64, repeats=2) > 0


def test_costs_are_those_of_the_format_that_a_training_here_computes_in(monkeypatch):
    """Without bfloat16 arithmetic that is float32: twice the bytes, and its own peak."""
    config = resolve("cifar10-vit-micro", batch_size=64, device="cpu", compile=True)
    monkeypatch.setattr("lib.compute.device.has_bf16", lambda _: True)
    low = estimate(config, images=1000)
    assert precision_of(config) == "bf16"
    monkeypatch.setattr("lib.compute.device.has_bf16", lambda _: False)
    full, used = estimate(config, images=1000), []
    assert precision_of(config) == "fp32"
    assert 1.3 < full.activation_bytes / low.activation_bytes <= 2 and full.flops == low.flops
    monkeypatch.setattr(torch, "mm", lambda a, b: used.append(a.dtype))
    gemm_peak("bf16", CPU, size=8, repeats=1)
    assert used == [torch.float32]


@pytest.mark.parametrize("name", [
    "cifar10-vit-tiny", "cifar10-vit-base", "imagenet100-vit-base",
    pytest.param("imagenet100-vit-large", marks=pytest.mark.slow),
])  # fmt: skip
def test_every_paper_preset_takes_a_step(name):
    config = dataclasses.replace(PRESETS[name], batch_size=2, device="cpu")
    trainer = Trainer(config, workers.data_of(config, 2))
    before = trainer.objective.mae.encoder.blocks[0].attn.qkv.weight.detach().clone()
    trainer.train_epoch(0, type("Bar", (), {"update": lambda self, n: None})(), [])
    assert trainer.step == 1 and trainer.sums.isfinite().all()
    assert not torch.equal(trainer.objective.mae.encoder.blocks[0].attn.qkv.weight, before)


def test_an_import_is_light_and_leaves_the_environment_alone():
    heavy = {"sklearn", "scipy", "matplotlib", "pandas"}
    code = (
        "import os, sys; before = dict(os.environ); import lib.train, lib.compute.cost; "
        f"print(dict(os.environ) == before, *sorted({heavy} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert done.stdout.strip() == "True", done.stdout + done.stderr
