"""recipe.training.fast on a real GPU: its kernels in bfloat16 against float64, its loss against transformers'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import small_bases
import torch
from small_training import adapted, distance, gradients, llama
from torch import Tensor

from recipe.device import has_gpu
from recipe.kernels import rowwise
from recipe.kernels.rowwise import LowRank
from recipe.training.fast import attention, graphs
from recipe.training.fast.linear import scaled_product
from recipe.training.fast.model import FusedLlama

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU")]

NAN = float("nan")


def tied_llama(**shape: Any) -> Any:
    return small_bases.random_model("llama", std=0.02, use_cache=False, **shape)


def qwen2(**shape: Any) -> Any:
    return small_bases.random_model("qwen2", std=0.02, use_cache=False, **shape)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def buffer(tokens: int, columns: int, like: Tensor) -> Tensor:
    """Rows 64 numbers apart, poisoned."""
    return torch.full((tokens, columns + 64), NAN, device=like.device, dtype=like.dtype)[:, :columns]


def norms(x: Tensor, weight: Tensor, grad: Tensor, past: Tensor) -> list[Tensor]:
    out, back = buffer(300, 2048, x), buffer(300, 2048, x)
    rowwise.rms_norm(x, weight, 1e-5, out)
    rowwise.rms_norm_backward(grad, x, weight, 1e-5, back, past)
    return [out, back]


def turns(x: Tensor, half: Tensor) -> list[Tensor]:
    out, back = buffer(300, x.shape[1], x), buffer(300, x.shape[1], x)
    cos, sin = half.repeat(1, 2), half.flip(1).repeat(1, 2)
    rowwise.rotate(x, cos, sin, out)
    rowwise.rotate(x, cos, sin, back, inverse=True)
    return [out, back]


def gates(gate_up: Tensor, grad: Tensor) -> list[Tensor]:
    out, back = buffer(300, 8192, grad), buffer(300, 16384, grad)
    rowwise.swiglu(gate_up, out)
    rowwise.swiglu_backward(grad, gate_up, back)
    return [out, back, grad]


def gates_with_rest(gate_up: Tensor, grad: Tensor, low: Tensor, b: Tensor, grad_low: Tensor, a: Tensor) -> list[Tensor]:
    out, back = buffer(300, 8192, grad), buffer(300, 16384, grad)
    b = b.clone()
    b[:8192, 64:] = b[8192:, :64] = 0
    rowwise.swiglu(gate_up, out, LowRank(low, b.T))
    rowwise.swiglu_backward(grad, gate_up, back, LowRank(low, b.T), LowRank(grad_low, a))
    return [out, back, grad]


def losses(logits: Tensor) -> list[Tensor]:
    targets = torch.arange(300, device=logits.device) * 300
    return [rowwise.cross_entropy(logits, targets, 1 / 300), logits]


@pytest.mark.parametrize(
    ("function", "shapes"),
    [
        (norms, [(300, 2048), (2048,), (300, 2048), (300, 2048)]),
        (turns, [(300, 2048), (300, 64)]),
        (turns, [(300, 1600), (300, 40)]),  # heads of 80 features
        (gates, [(300, 16384), (300, 8192)]),
        (gates_with_rest, [(300, 16384), (300, 8192), (300, 128), (16384, 128), (300, 64), (64, 8192)]),
        (losses, [(300, 92544)]),
    ],
)
def test_a_kernel_is_its_formula(function: Callable[..., list[Tensor]], shapes: list[tuple[int, ...]]) -> None:
    tensors = [normal(*shape) / (8 if 64 in shape or 128 in shape else 1) for shape in shapes]
    expected = function(*(tensor.cpu().double() for tensor in tensors))
    for actual, wanted in zip(function(*tensors), expected, strict=True):
        assert distance(actual.cpu(), wanted) < 4e-3  # of bfloat16's 8 bits


def test_four_bits_are_bitsandbytes() -> None:
    """But for an absmax that one of them rounds once more, and its last bit."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight, state = quantize_4bit(normal(8192, 2048), quant_type="nf4", compress_statistics=True)
    out = buffer(8192, 2048, normal(1))
    rowwise.dequantize_nf4(weight, state, out)
    expected = dequantize_4bit(weight, state)
    assert distance(out, expected) < 1e-4
    assert (out == expected).double().mean() > 0.9999


def test_a_float8_product_is_right_to_a_25th() -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU with float8")
    a, b = normal(512, 2048), normal(1024, 2048)
    actual = scaled_product(rowwise.to_fp8(a), rowwise.to_fp8(b), torch.bfloat16)
    assert distance(actual, a.double() @ b.double().T) < 0.04


@pytest.mark.parametrize("lengths", [[100, 1, 500, 423], [1024]], ids=["packed", "whole"])
def test_attention_is_that_of_each_conversation(lengths: list[int]) -> None:
    positions = torch.cat([torch.arange(length) for length in lengths]).repeat(2, 1)
    nothing = torch.zeros(2, 1024, 128)
    qkv, grad = normal(2048, 4096), normal(2048, 2048)
    on_gpu = attention.Packs.of(positions.cuda(), nothing.cuda(), nothing.cuda())
    on_cpu = attention.Packs.of(positions, nothing, nothing)
    out, log_sums = attention.forward(qkv, 16, 8, on_gpu)
    wanted, _ = attention.forward(qkv.cpu().float(), 16, 8, on_cpu)
    assert distance(out.cpu(), wanted) < 4e-3
    actual = attention.backward(grad, qkv, out, log_sums, 16, 8, on_gpu)
    expected = attention.backward(grad.cpu().float(), qkv.cpu().float(), wanted, (), 16, 8, on_cpu)
    assert max(distance(a.cpu(), b) for a, b in zip(actual, expected, strict=True)) < 6e-3


@pytest.mark.parametrize("build", [llama, tied_llama, qwen2])
@pytest.mark.parametrize(("fp8", "loss_within", "gradient_within"), [(False, 2e-3, 0.06), (True, 1e-2, 0.25)])
def test_loss_and_gradients_are_near_float32s(
    build: Callable[..., Any], fp8: bool, loss_within: float, gradient_within: float
) -> None:
    if fp8 and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU with float8")
    shape = {"hidden_size": 512, "intermediate_size": 1024, "vocab_size": 4096, "max_position_embeddings": 512}
    ids = torch.randint(3, 4096, (4, 256), generator=torch.Generator().manual_seed(0)).cuda()
    positions = torch.cat([torch.arange(100), torch.arange(156)]).repeat(4, 1).cuda()
    batch = {"input_ids": ids, "labels": ids, "position_ids": positions}
    plain = adapted(build(**shape), r=16).cuda()
    expected = plain(**batch).loss
    wanted = gradients(plain, expected)
    quick = adapted(build(**shape).bfloat16(), r=16).cuda()
    loss = FusedLlama(quick, fp8=fp8).loss(**batch, recompute=False)
    actual = gradients(quick, loss)
    assert loss.item() == pytest.approx(expected.item(), rel=loss_within)
    # Large random biases cost transformers' own bfloat16 more than what is allowed.
    plain = adapted(build(**shape).bfloat16(), r=16).cuda()
    rounded = gradients(plain, plain(**batch).loss)
    for name, gradient in wanted.items():
        allowed = max(gradient_within, 1.5 * distance(rounded[name], gradient))
        assert distance(actual[name], gradient) < allowed, name


@pytest.mark.parametrize("build", [llama, qwen2])
def test_captured_layers_compute_what_their_kernels_do(
    build: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {"hidden_size": 512, "intermediate_size": 1024, "vocab_size": 4096, "max_position_embeddings": 512}
    model = adapted(build(**shape).bfloat16(), r=16).cuda()
    captured, launched = (FusedLlama(model, fp8=False) for _ in range(2))
    optimizer = torch.optim.SGD([each for each in model.parameters() if each.requires_grad], lr=0.1)
    generator = torch.Generator().manual_seed(0)
    for step, lengths in enumerate([[100, 156], [200, 56], [256 - 30, 29, 1], [100, 156], [50, 50, 50, 50, 56]]):
        ids = torch.randint(3, 4096, (4, 256), generator=generator).cuda()
        positions = torch.cat([torch.arange(length) for length in lengths]).repeat(4, 1).cuda()
        batch = {"input_ids": ids, "labels": ids, "position_ids": positions}
        losses, sums = [], []
        for fast, most in ((captured, 4096), (launched, 0)):
            monkeypatch.setattr(graphs, "MOST_TOKENS", most)
            model.zero_grad()
            for _ in range(2):  # two batches' gradients are added
                loss = fast.loss(**batch, recompute=False)
                loss.backward()
            losses.append(loss.item())
            sums.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
        assert all(distance(a, b) < 1e-2 for a, b in zip(*sums, strict=True))
        assert len(captured.graphs) == int(2 * (step + 1) > graphs.WARM_UP)
        optimizer.step()
    assert not launched.graphs
