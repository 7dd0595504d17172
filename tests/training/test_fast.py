"""recipe.training.fast against transformers and PEFT: the same loss and gradients, packed, recomputed, nf4, float8."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import LENGTHS, adapted, assert_same_training, batch, distance, gradients, in_four_bits, llama
from torch import Tensor

from recipe.kernels import rowwise
from recipe.kernels.rowwise import LowRank
from recipe.paths import ROOT
from recipe.training.fast import attention, graphs
from recipe.training.fast.layer import run
from recipe.training.fast.linear import scaled_product
from recipe.training.fast.loss import HeadLoss, loss_tokens
from recipe.training.fast.merged import merges
from recipe.training.fast.model import FusedLlama, _keep_layout, check


@pytest.fixture(params=[False, True], ids=["one matrix", "merged"], autouse=True)
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether LoRA is merged follows the device; here each way is tested on the CPU."""
    monkeypatch.setattr("recipe.training.fast.model.merges", lambda *_: request.param)


@pytest.mark.parametrize("recompute", [False, True])
def test_loss_and_gradients_are_transformers_and_pefts(recompute: bool) -> None:
    assert_same_training(adapted(llama()), recompute=recompute, loss_error=1e-6, gradient_error=1e-5)


def test_in_bfloat16_on_a_cpu_they_are_near_those_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recipe.training.fast.model.merges", merges)  # never, in bfloat16
    model = adapted(llama())
    expected = model(**batch()).loss
    wanted = gradients(model, expected)
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data if "lora_" in name else parameter.data.bfloat16()
    fast = FusedLlama(model, fp8=False)
    loss = fast.loss(**batch(), recompute=False)
    actual = gradients(model, loss)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-2)
    assert {each.dtype for each in actual.values()} == {torch.float32}
    assert max(distance(actual[name], wanted[name]) for name in wanted) < 0.05


@pytest.mark.parametrize("longest", [1, 7])
def test_both_ways_through_attention_backwards_are_one(longest: int) -> None:
    generator = torch.Generator().manual_seed(3)
    q, grad = (torch.randn(2, 6, longest, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    k, v = (torch.randn(2, 3, longest, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    ways = attention._backward_by_products(grad, q, k, v), attention._backward_by_kernel(grad, q, k, v)
    for actual, wanted in zip(*ways, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_a_long_conversation_takes_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(llama())
    expected = gradients(model, FusedLlama(model, fp8=False).loss(**batch(), recompute=False))
    monkeypatch.setattr(attention, "SHORT", 4)
    actual = gradients(model, FusedLlama(model, fp8=False).loss(**batch(), recompute=False))
    assert max(distance(actual[name], expected[name]) for name in expected) < 1e-5


def test_a_step_of_the_optimizer_reaches_the_next_loss() -> None:
    model = adapted(llama())
    fast = FusedLlama(model, fp8=False)
    fast.loss(**batch(), recompute=False).backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5).step()
    expected = model(**batch()).loss
    assert fast.loss(**batch(), recompute=False).item() == pytest.approx(expected.item(), rel=1e-6)


def test_conversations_of_a_pack_do_not_see_each_other() -> None:
    model = adapted(llama())
    fast = FusedLlama(model, fp8=False)
    whole = batch()
    total, count = 0.0, 0
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            part = {key: value[row : row + 1, start : start + length] for key, value in whole.items()}
            if number := int(part["labels"][:, 1:].ne(-100).sum()):
                total += number * fast.loss(**part, recompute=False).item()
                count += number
            start += length
            if start < 20 and whole["labels"][row, start] != -100:  # a pack's tokens also predict across the border
                before = {key: value[row : row + 1, start - length : start + 1].clone() for key, value in whole.items()}
                before["labels"][:, :-1] = -100
                total += fast.loss(**before, recompute=False).item()
                count += 1
    assert fast.loss(**whole, recompute=False).item() == pytest.approx(total / count, rel=1e-5)


def test_generation_and_saving_see_the_weights_where_they_were() -> None:
    model = adapted(llama())
    ids = batch()["input_ids"]
    before, names = model(input_ids=ids).logits, {k: v.clone() for k, v in model.state_dict().items()}
    FusedLlama(model, fp8=False)
    torch.testing.assert_close(model(input_ids=ids).logits, before)
    assert all(torch.equal(value, names[name]) for name, value in model.state_dict().items())


def test_only_learnt_tokens_count_and_none_is_no_loss() -> None:
    rows, targets, taught = loss_tokens(torch.tensor([[-100, 5, -100, 6], [7, 8, -100, -100]]))
    assert rows.tolist() == [0, 2, 4]
    assert targets.tolist() == [5, 6, 8]
    assert taught is None
    hidden = torch.randn(8, 4, requires_grad=True)
    nothing = torch.empty(0, dtype=torch.int64)
    loss = HeadLoss.apply(hidden, nothing, nothing, torch.ones(4), 1e-5, torch.randn(9, 4))
    loss.backward()
    assert loss.item() == 0
    assert not hidden.grad.any()


def test_more_rows_than_a_block_of_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    from recipe.training.fast import loss as module

    model = adapted(llama())
    fast = FusedLlama(model, fp8=False)
    expected = gradients(model, fast.loss(**batch(), recompute=False))
    monkeypatch.setattr(module, "LOSS_ROWS", 5)
    actual = gradients(model, fast.loss(**batch(), recompute=False))
    assert max(distance(actual[name], expected[name]) for name in expected) < 1e-5


@pytest.fixture
def four_bit(tmp_path: Path) -> Any:
    return in_four_bits(llama(), tmp_path)


@pytest.mark.parametrize("recompute", [False, True])
def test_four_bits_are_bitsandbytes(recompute: bool, four_bit: Any) -> None:
    assert_same_training(adapted(four_bit), recompute=recompute, loss_error=1e-5, gradient_error=1e-4)


def test_four_bits_stay_what_they_were_when_the_model_has_replied(four_bit: Any) -> None:
    """On a CPU with AVX-512 bf16 bitsandbytes would lay them out anew: the training then learns on another base."""
    _keep_layout(four_bit)
    model = adapted(four_bit)
    before = FusedLlama(model, fp8=False).loss(**batch(), recompute=False).item()
    model.eval()
    with torch.inference_mode():
        model(input_ids=batch()["input_ids"])
    model.train()
    assert FusedLlama(model, fp8=False).loss(**batch(), recompute=False).item() == before


def test_eight_bits_are_near() -> None:
    """A gradient is a sum of few terms here; in the real model's width the rounding averages out."""
    assert_same_training(adapted(llama()), fp8=True, loss_error=0.01, gradient_error=0.2)


def test_float8_rounds_every_row_by_its_own_scale() -> None:
    x = torch.randn(5, 64) * torch.tensor([1e-6, 1.0, 1e4, 1.0, 0.0])[:, None]
    values, scales = rowwise.to_fp8(x)
    assert values.dtype == torch.float8_e4m3fn
    back = values.double() * scales
    assert torch.isfinite(back).all()
    small = x.abs() < x.abs().amax(1, keepdim=True) / 448 / 2**6  # below the format's normal numbers
    assert ((back - x).abs() <= x.abs() / 16 + small * scales / 2**9).all()
    torch.testing.assert_close(back.abs().amax(1), x.abs().amax(1).double(), rtol=1e-6, atol=0)


def test_a_float8_product_is_right_to_a_25th() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, 256, generator=generator, dtype=torch.float64) for rows in (32, 48))
    actual = scaled_product(rowwise.to_fp8(a.float()), rowwise.to_fp8(b.float()), torch.float32)
    assert distance(actual, a @ b.T) < 0.04


def rows(*shape: int, seed: int = 0, apart: int = 3) -> Tensor:
    """Random rows that lie `apart` numbers from each other."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape[:-1], shape[-1] + apart, generator=generator)[..., : shape[-1]]


def every_function() -> list[Tensor]:
    """What each row-wise function makes of fixed inputs, odd sizes and strided rows included."""
    x, weight, grad, past = rows(5, 48), rows(48, seed=1), rows(5, 48, apart=0, seed=2), rows(5, 48, seed=3)
    normed, back, turned, moved = rows(5, 48), rows(5, 48), rows(5, 48), rows(5, 48)
    rowwise.rms_norm(x, weight, 1e-5, normed)
    rowwise.rms_norm_backward(grad, x, weight, 1e-5, back, past)
    rowwise.rms_norm_backward(grad, x, weight, 1e-5, grad)
    third = rows(5, 3, seed=11, apart=0)  # of heads of 6 features, no power of 2
    of_sixes = rows(5, 48)
    rowwise.rotate(x, third.cos().repeat(1, 2), third.sin().repeat(1, 2), of_sixes)
    half = rows(5, 4, seed=4, apart=0)
    cos, sin = half.cos().repeat(1, 2), half.sin().repeat(1, 2)
    rowwise.rotate(x, cos, sin, turned)
    rowwise.rotate(turned, cos, sin, turned, inverse=True)
    torch.testing.assert_close(turned, x)
    rowwise.rotate(x, cos, sin, turned)
    rowwise.copy(x, moved)
    actual = [normed, back, grad, of_sixes, turned, moved]
    gate_up, dy = rows(70, 260, seed=5), rows(70, 130, seed=6)
    b = rows(260, 32, seed=7)
    b[:130, 16:] = b[130:, :16] = 0
    low_rank = LowRank(rows(70, 32, seed=8), b.T)
    grad_rest = LowRank(rows(70, 16, seed=9), rows(16, 130, seed=10))
    for added in ((None, None), (low_rank, grad_rest)):
        out, d_gate_up, again = rows(70, 130), rows(70, 260), dy.clone()
        rowwise.swiglu(gate_up, out, added[0])
        rowwise.swiglu_backward(again, gate_up, d_gate_up, *added)
        torch.testing.assert_close(again, out)
        actual += [out, d_gate_up]
    logits = rows(4, 9001, apart=0)
    actual += [rowwise.cross_entropy(logits, torch.tensor([0, 9000, 17, 8192]), 0.25), logits]
    actual.append(rowwise.to_fp8(rows(5, 48))[1])
    return actual


def compare_kernels() -> None:
    """What a process with TRITON_INTERPRET=1 runs: the kernels, by Triton's interpreter, against the formulas."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    expected = every_function()
    rowwise._fused = lambda x: True
    for actual, wanted in zip(every_function(), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)
    weight, state = quantize_4bit(rows(40, 192, apart=0).contiguous(), quant_type="nf4", compress_statistics=True)
    out = rows(40, 192)
    rowwise.dequantize_nf4(weight, state, out)
    torch.testing.assert_close(out, dequantize_4bit(weight, state))


@pytest.mark.parametrize("products", [False], ids=[""], indirect=True)  # a process of its own, which has no model
def test_the_kernels_are_the_formulas() -> None:
    pytest.importorskip("triton")
    code = "from test_fast import compare_kernels; compare_kernels(); print('equal')"
    # TRITON_INTERPRET is read once, when triton is imported.
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT / "tests" / "training", env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.parametrize(
    ("model", "lora", "message"),
    [
        ({"attention_bias": True}, {}, "without biases"),
        ({"hidden_act": "gelu"}, {}, "without biases"),
        ({}, {"target_modules": ["q_proj"]}, "plain LoRA on all of"),
        ({}, {"use_dora": True}, "plain LoRA on all of"),
        ({}, {"lora_dropout": 0.1}, "no dropout"),
    ],
)
def test_what_it_would_compute_wrongly_is_refused(model: dict[str, Any], lora: dict[str, Any], message: str) -> None:
    wrapped = adapted(llama(**model), **lora)
    with pytest.raises(ValueError, match=message):
        check(wrapped, wrapped.peft_config["default"], fp8=False)


def test_xtuners_model_saves_the_same_tensors(lora_config: Path, tiny_model: Path) -> None:
    from mmengine.config import Config
    from xtuner.registry import BUILDER

    from recipe.stages import config
    from recipe.training.without_gpu import for_cpu

    resolved = config.load_preset("fast")
    config.fill(resolved, model=tiny_model, files=[], seed=0)
    for_cpu(resolved)
    config.override(resolved, ["r=4", "lora_alpha=8"])
    quick, plain = (BUILDER.build(Config(dict(c.items())).model) for c in (resolved, Config.fromfile(lora_config)))
    shapes = {name: tensor.shape for name, tensor in quick.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in plain.state_dict().items()}
    quick.load_state_dict(plain.state_dict(), strict=False)
    ids = torch.tensor([[5, 6, 7, 8]])
    data = {"input_ids": ids, "labels": ids, "position_ids": torch.arange(4)[None]}
    quick.train()
    torch.testing.assert_close(quick(data, mode="loss")["loss"], plain(data, mode="loss")["loss"])
    assert quick.train() is quick
    assert not quick.eval().llm.training


def test_layers_are_captured_after_the_warm_up_once_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, int]] = []

    class Captured:
        """What `LayerGraphs` is on a GPU."""

        def __init__(self, layers: Any, hidden: Tensor, packs: Any) -> None:
            shapes.append((packs.batch, len(hidden)))
            self.layers = layers

        def run(self, hidden: Tensor, packs: Any) -> Tensor:
            return run(self.layers, hidden, packs, recompute=False)

    monkeypatch.setattr(graphs, "capturable", lambda *_, **__: True)
    monkeypatch.setattr(graphs, "LayerGraphs", Captured)
    whole = batch()
    half = {name: part[:1] for name, part in whole.items()}
    fast = FusedLlama(adapted(llama()), fp8=False)
    losses = [fast.loss(**part, recompute=False).item() for part in (whole, whole, half, whole, half, half, whole)]
    assert shapes == [(2, 40), (1, 20)]
    assert losses == pytest.approx([losses[i] for i in (0, 0, 2, 0, 2, 2, 0)])


def test_captured_gradients_are_added_to_those_of_batches_before() -> None:
    """Autograd's own, of a batch that was not captured, and those of an earlier replay, which lie where the next one
    writes."""

    class Backward:
        """What a captured backward pass is on a GPU: it writes its gradients over the last ones."""

        def replay(self) -> None:
            captured.grads.copy_(torch.arange(10.0) * captured.dy[0, 0])

    captured = object.__new__(graphs.LayerGraphs)
    captured.parameters = [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(4))]
    captured.grads, captured.dy, captured.backward_graph = torch.zeros(10), torch.zeros(1, 1), Backward()
    first, second = captured.grads.split([6, 4])
    captured.views = [first.view(2, 3), second]

    def gradients() -> Tensor:
        return torch.cat([part.grad.flatten() for part in captured.parameters if part.grad is not None])

    captured.backward(torch.ones(1, 1))
    torch.testing.assert_close(gradients(), torch.arange(10.0))
    captured.backward(torch.full((1, 1), 10.0))
    torch.testing.assert_close(gradients(), 11 * torch.arange(10.0))
    torch.optim.SGD(captured.parameters).zero_grad()
    sum(part.sum() for part in captured.parameters).backward()
    captured.backward(torch.ones(1, 1))
    torch.testing.assert_close(gradients(), 1 + torch.arange(10.0))


def test_nothing_is_captured_without_a_gpu() -> None:
    fast = FusedLlama(adapted(llama()), fp8=False)
    for _ in range(graphs.WARM_UP + 1):
        fast.loss(**batch(), recompute=False).backward()
    assert not fast.graphs
