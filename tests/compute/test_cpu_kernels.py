"""The CPU kernels against float64, a block's halves against torch's own, what is chosen where."""

import ctypes
import subprocess

import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_ndtr
from support import environment, same_tensors, small, workers
from support.compiled import load_kernels
from timm.layers import Mlp

from lib.compute import cpu_block
from lib.compute import cpu_kernels as kernels
from lib.compute.acceleration import choose_kernels
from lib.models import MAE, SparseBlock, build_encoder
from lib.presets import resolve
from scripts.forked import Forked

CPU = torch.device("cpu")
EPS = 2**-7  # of bfloat16, twice the error of rounding to it
needs_kernels = pytest.mark.skipif(
    kernels.load()[0] is None, reason=f"no CPU kernels here: {kernels.load()[1]}"
)


def noise(*shape: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(own: torch.Tensor, exact: torch.Tensor, factor: float = 0.51) -> None:
    """Within `factor` roundings to bf16 of each element (at least a hundredth of the largest)."""
    exact = exact.detach().double()
    floor = exact.abs().max() / 100
    assert own.shape == exact.shape
    assert ((own.double() - exact).abs() / exact.abs().clamp_min(floor)).max() < factor * EPS


def same_sum(own: torch.Tensor, exact: torch.Tensor) -> None:
    """A sum over many rows, in float32."""
    torch.testing.assert_close(
        own.double(), exact.detach().double(), rtol=1e-3, atol=1e-4 * exact.abs().max().item()
    )


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("rows,dim", [(1, 32), (7, 96), (50, 192)])
def test_norm(rows, dim, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x = noise(rows, dim, scale=3).add(2).requires_grad_()
    weight, bias = (noise(dim, seed=k).requires_grad_() for k in (1, 2))
    d_out, residual = noise(rows, dim, seed=3).bfloat16(), noise(rows, dim, seed=4)
    exact = F.layer_norm(x.double(), (dim,), weight.double(), bias.double(), 1e-6)
    grads = torch.autograd.grad(exact, (x, weight, bias), d_out.double())
    plain = [t.detach() for t in (x, weight, bias)]
    out, mean, rstd = kernels.norm_forward(*plain, 1e-6)
    close(out, exact)
    d_x, again, d_weight, d_bias = kernels.norm_backward(
        d_out, residual, plain[0], mean, rstd, *plain[1:]
    )
    torch.testing.assert_close(d_x, residual + grads[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(again, out)
    same_sum(d_weight, grads[1])
    same_sum(d_bias, grads[2])


@needs_kernels
def test_gelu_is_exact_to_the_last_bit_but_one_far_into_the_tail():
    x = torch.cat([torch.linspace(-12, 12, 9600), noise(9600, scale=2)]).view(-1, 32).bfloat16()
    out = kernels.gelu_forward(x, torch.zeros(32)).double()
    exact = (
        x.double() * torch.from_numpy(log_ndtr(x.double().numpy())).exp()
    )  # torch's own has no tail below -8
    assert ((out - exact).abs() <= 0.505 * EPS * exact.abs()).all()


@needs_kernels
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_gelu_with_bias_and_its_gradient(threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x, d_out = noise(37, 64, scale=2).bfloat16(), noise(37, 64, seed=1).bfloat16()
    bias = noise(64, seed=2)
    v = (x.double() + bias.double()).requires_grad_()
    (grad,) = torch.autograd.grad(F.gelu(v), v, d_out.double())
    close(kernels.gelu_forward(x, bias), F.gelu(v))
    d_x, again, d_bias = kernels.gelu_backward(d_out, x, bias)
    close(d_x, grad)
    assert torch.equal(again, kernels.gelu_forward(x, bias))
    same_sum(d_bias, grad.sum(0))


@needs_kernels
@pytest.mark.parametrize("scaled", [False, True])
def test_add(scaled):
    x, y, bias = noise(5, 3, 32), noise(15, 32, seed=1).bfloat16(), noise(32, seed=2)
    scale = torch.tensor([0.0, 2.0, 1.0, 0.5, 2.0]) if scaled else None
    by = torch.ones(5, 1, 1) if scale is None else scale.view(-1, 1, 1)
    torch.testing.assert_close(
        kernels.add_forward(x, y, bias, scale), x + by * (y.float() + bias).view(5, 3, 32)
    )
    d_y, d_bias = kernels.add_backward(x, scale)
    close(d_y, (by * x).flatten(0, 1))
    same_sum(d_bias, (by * x).sum((0, 1)))


@needs_kernels
@pytest.mark.parametrize("removed,wanted", [(0, 5), (0, 2), (4, 9), (4, 4), (4, 6), (4, 2)])
def test_heads_are_split_and_their_gradients_merged(removed, wanted):
    images, own, heads, size, table = 3, 5, 2, 8, 7
    count = table if removed else 0
    rows, bias = (
        noise(images * own + count, 3 * heads * size).bfloat16(),
        noise(3 * heads * size, seed=1),
    )
    ids = torch.rand(images, table).argsort(1)[:, :removed].contiguous() if removed else None
    x, b = rows.double().requires_grad_(), bias.double().requires_grad_()
    tokens = x[: images * own].view(images, own, -1)
    if ids is not None:
        tokens = torch.cat([tokens, x[images * own :][ids]], 1)
    exact = (tokens + b).unflatten(2, (3, heads, size)).permute(2, 0, 3, 1, 4)
    close(kernels.split_heads(rows, bias, ids, images, own, heads), exact)
    grad = noise(*exact.shape, seed=2).bfloat16()
    grad[0, :, :, : own + removed - wanted] = 0  # no query of an unwanted token is used
    d_x, d_b = torch.autograd.grad(exact, (x, b), grad.double())
    d_q = grad[0, :, :, own + removed - wanted :].contiguous()
    own_d_x, own_d_b = kernels.merge_heads(d_q, grad[1:].contiguous(), ids, own, count)
    close(own_d_x, d_x, 1.01)
    same_sum(own_d_b, d_b)
    swapped = kernels.swap_heads(grad[1].contiguous())
    assert torch.equal(swapped, grad[1].transpose(1, 2)) and torch.equal(
        kernels.swap_heads(swapped), grad[1]
    )


@needs_kernels
@pytest.mark.parametrize("dim", [1, 16, 17, 65, 257])
def test_softmax(dim):
    x, d_y = noise(6, 4, dim, scale=30).bfloat16(), noise(6, 4, dim, seed=1).bfloat16()
    exact = (0.3 * x.double()).softmax(-1)
    own = kernels.softmax_(x.clone(), 0.3)
    close(own, exact, 0.52)
    y = own.double()
    grad = 0.3 * y * (d_y.double() - (y * d_y.double()).sum(-1, keepdim=True))
    torch.testing.assert_close(
        kernels.softmax_backward_(own, d_y.clone(), 0.3).double(), grad, rtol=EPS, atol=1e-5
    )
    assert kernels.softmax_(torch.full((1, dim), float("nan")).bfloat16(), 1.0).isnan().all()


@needs_kernels
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_so(value):
    x = torch.full((2, 32), value)
    zero, one = torch.zeros(32), torch.ones(32)
    assert not kernels.norm_forward(x, one, zero, 1e-6)[0].isfinite().any()
    assert not kernels.gelu_forward(x.bfloat16(), zero).isfinite().any() or value < 0
    assert not kernels.add_forward(x[None], x.bfloat16(), zero, None).isfinite().any()
    assert not kernels.add_backward(x[None], None)[0].isfinite().any()


def halves(
    block: SparseBlock, dtype: torch.dtype, own: bool, low: bool, shared: bool, wanted: int | None
):
    """Output and all gradients of a block on 6 images of 17 tokens (`shared`: 8 more each)."""
    block = block.to(dtype)
    block.zero_grad()
    block.kernels, block.attn.fused_attn = (cpu_block.forward if own else None), False
    dim = block.norm1.weight.shape[0]
    x, table = (
        noise(*n, dim, seed=k).to(dtype).requires_grad_() for k, n in enumerate([(6, 17), (25,)])
    )
    ids = torch.rand(6, 25, generator=torch.Generator().manual_seed(2)).argsort(1)[:, :8]
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        out = block(x, (table, ids) if shared else None, wanted)
    out.backward(noise(*out.shape, seed=3).to(out.dtype))
    grads = {
        "x": x.grad,
        **({"table": table.grad} if shared else {}),
        **{n: p.grad for n, p in block.named_parameters()},
    }
    return {"out": out.detach().double(), **{name: g.double() for name, g in grads.items()}}


@needs_kernels
@pytest.mark.parametrize(
    "shared,wanted",
    [(False, None), (False, 7), (True, None), (True, 8), (True, 5), (True, 17), (True, 20)],
)
@pytest.mark.parametrize("dim,heads", [(64, 4), (96, 3)])
def test_a_block_by_the_kernels_is_as_near_the_exact_one_as_torchs_own(dim, heads, shared, wanted):
    torch.manual_seed(0)
    block = SparseBlock(dim, heads, mlp_ratio=4, qkv_bias=True, mlp_layer=Mlp)
    for p in block.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    exact = halves(block, torch.float64, False, False, shared, wanted)
    torchs = halves(block, torch.float32, False, True, shared, wanted)
    ours = halves(block, torch.float32, True, True, shared, wanted)
    assert ours.keys() == exact.keys() and not torch.equal(ours["out"], torchs["out"])
    ratios = []
    for name, value in exact.items():
        error, reference = ((other[name] - value).norm() / value.norm() for other in (ours, torchs))
        assert error < 0.03 and error < 2 * reference, name
        ratios.append(error / reference)
    assert sum(ratios) / len(ratios) < 1.1


@pytest.mark.parametrize(
    "rows,wide,narrow", [(8, 5, 3), (9, 5, 3), (9, 3, 5), (4, 700, 300), (4, 300, 700)]
)
def test_a_weight_gradient_in_every_order_of_products(rows, wide, narrow):
    d_out, x = noise(rows, wide).bfloat16(), noise(rows, narrow, seed=1).bfloat16()
    own = cpu_block._weight_gradient(d_out, x)
    assert own.dtype == torch.float32 and own.is_contiguous()
    exact = d_out.double().t() @ x.double()
    assert (own - exact).norm() < EPS * exact.norm()


@needs_kernels
def test_a_second_derivative_is_refused():
    block = SparseBlock(32, 2, qkv_bias=True)
    block.kernels = cpu_block.forward
    x = noise(2, 3, 32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        (grad,) = torch.autograd.grad(block(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"does not require grad|once_differentiable"):
        grad.sum().backward()


@needs_kernels
def test_stochastic_depth_scales_the_same_images():
    torch.manual_seed(0)
    block = SparseBlock(32, 2, qkv_bias=True, drop_path=0.5).train()
    x = noise(64, 5, 32)
    results = []
    for own in (False, True):
        block.kernels, block.attn.fused_attn = (cpu_block.forward if own else None), False
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            results.append(block(x.clone().requires_grad_()))
    untouched = [(r == x).flatten(1).all(1) for r in results]
    assert torch.equal(*untouched) and 5 < untouched[0].sum() < 30
    torch.testing.assert_close(results[1], results[0].float(), rtol=0.02, atol=0.02)
    results[1].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())


@needs_kernels
def test_tokens_in_bf16_are_left_to_torch():
    block = SparseBlock(32, 2, qkv_bias=True)
    x, results = noise(2, 3, 32).bfloat16(), []
    for own in (False, True):
        block.kernels, block.attn.fused_attn = (cpu_block.forward if own else None), False
        with torch.autocast("cpu", torch.bfloat16):
            results.append(block(x))
    assert torch.equal(*results)


@needs_kernels
def test_timms_own_forward_as_finetuning_calls_it_goes_through_them(monkeypatch):
    torch.manual_seed(0)
    model = build_encoder(
        small(embed_dim=32, depth=3), num_classes=10, global_pool="avg", drop_path_rate=0.3
    ).train()
    assert choose_kernels(model, CPU, "bf16") == ""
    calls, real, results = [], kernels._call, []
    monkeypatch.setattr(kernels, "_call", lambda name, *a: (calls.append(name), real(name, *a)))
    for own in (True, False):
        for block in model.blocks:
            block.kernels = cpu_block.forward if own else None
        model.zero_grad()
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(noise(16, 1, 8, 8)).float(), torch.arange(16) % 10)
        loss.backward()
        results.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    assert calls.count("gelu_forward") == calls.count("gelu_backward") == 3
    assert (results[0] - results[1]).norm() < 0.03 * results[1].norm()


def bf16_run(**fields) -> dict[str, torch.Tensor]:
    own = {
        "embed_dim": 32,
        "decoder_dim": 32,
        "batch_size": 16,
        "warmup_epochs": 0,
        "precision": "bf16",
        **fields,
    }
    return workers.steps(small(**own), 5)["weights"]


@needs_kernels
def test_training_takes_them_in_bf16_only_and_gives_the_same_bits_every_time(monkeypatch):
    calls = []
    real = kernels._call
    monkeypatch.setattr("lib.compute.device.has_bf16", lambda _: True)
    monkeypatch.setattr(kernels, "_call", lambda name, *a: (calls.append(name), real(name, *a)))
    first = bf16_run()
    assert {
        "norm_forward",
        "norm_backward",
        "gelu_backward",
        "merge_heads",
        "softmax_backward",
    } <= set(calls)
    assert same_tensors(bf16_run(), first)
    calls.clear()
    bf16_run(precision="fp32")
    assert calls == []


@pytest.mark.parametrize("broken", ["compiler", "source", "library"])
def test_without_a_compiler_torchs_operations_are_used_and_it_is_said(
    broken, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("lib.compute.device.has_bf16", lambda _: True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(kernels, "load", kernels.load.__wrapped__)
    if broken == "compiler":
        monkeypatch.setenv("CC", "no-such-compiler")
    elif broken == "source":
        source = tmp_path / "kernels.c"
        source.write_text("int main( {")
        monkeypatch.setattr(kernels, "SOURCE", source)
    else:

        def refuse(name):
            raise OSError("undefined symbol: GOMP_parallel")

        monkeypatch.setattr(subprocess, "run", lambda *a, **k: None)
        monkeypatch.setattr(ctypes, "CDLL", refuse)
        monkeypatch.setattr("lib.train.loop.keep_heap", lambda: False)
    weights = bf16_run()
    printed = capsys.readouterr().out
    reason = {"compiler": "no-such-compiler", "source": "rror", "library": "GOMP_parallel"}[broken]
    assert printed.count("CPU kernels: torch's operations instead") == 1 and reason in printed
    monkeypatch.setattr("lib.train.loop.choose_kernels", lambda *a, **k: "")
    assert weights.keys() == bf16_run().keys()
    assert not list(tmp_path.rglob("*.so"))


def test_a_width_that_fits_no_vector_is_left_to_torch():
    mae = MAE(small(embed_dim=48, num_heads=2))
    line = choose_kernels(mae, CPU, "bf16")
    assert "width 48 is not a multiple of 32" in line
    assert not any(block.kernels for block in mae.encoder.blocks)
    assert choose_kernels(mae, CPU, "fp32") == choose_kernels(mae, CPU, "bf16", compiled=True) == ""
    for name in ("digits-vit-nano", "cifar10-vit-micro", "cifar10-vit-tiny"):
        config = resolve(name)
        assert config.embed_dim % kernels.COLUMNS == config.decoder_dim % kernels.COLUMNS == 0


@needs_kernels
def test_compiled_once_and_found_again_where_the_cache_can_be_written(tmp_path):
    def loads(cache) -> Forked:
        return Forked(load_kernels, env=environment(XDG_CACHE_HOME=str(cache)))

    both = [loads(tmp_path) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    (library,) = (tmp_path / "umae-notebooks").iterdir()
    before = library.stat().st_mtime_ns
    assert loads(tmp_path).wait(60) == 0 and library.stat().st_mtime_ns == before
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert loads(blocked).wait(60) == 0 and blocked.read_text() == "not a folder"
