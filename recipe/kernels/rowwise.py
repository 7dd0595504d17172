"""The row-wise functions of a Llama layer, one pass over memory each: a Triton kernel on a GPU, PyTorch elsewhere.

Every function takes (tokens, features) tensors with any stride between rows, as `recipe.training.fast.linear`'s buffers
have. It computes in float32, or in float64 where its input is float64.

Shapes:
    tokens    rows: one per token
    features  columns; of gate or up alone where both are in one tensor
    head_dim  features of a head
    ranks     inner size of a low-rank product
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0


def _fused(x: Tensor) -> bool:
    return x.is_cuda


def _kernels() -> Any:
    from recipe.kernels import triton_kernels  # Triton is there only where PyTorch was built for a GPU

    return triton_kernels


def _power_of_2(size: int) -> int:
    return 1 << max(size - 1, 1).bit_length()


def _warps(block: int) -> int:
    return min(max(block // 512, 4), 16)


def upcast(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """out = x / sqrt(mean(x^2) + eps) * weight, rounded where transformers' LlamaRMSNorm rounds.

    Args:
        x, out: (tokens, features).
        weight: (features).
    """
    if _fused(x):
        block = _power_of_2(x.shape[1])
        _kernels().rms_norm[(len(x),)](
            x, weight, out, x.stride(0), out.stride(0), x.shape[1], eps, BLOCK=block, num_warps=_warps(block)
        )
        return
    value = upcast(x)
    out.copy_(weight * (value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + eps)).to(weight.dtype))


def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float, out: Tensor, residual: Tensor | None = None
) -> None:
    """out = the gradient of x, given that of rms_norm's result, plus `residual`. The weight is frozen.

    Args:
        grad: (tokens, features), contiguous.
        x, out: (tokens, features).
        weight: (features).
        residual: (tokens, features), the gradient that bypassed the norm.
    """
    if _fused(x):
        block = _power_of_2(x.shape[1])
        past = grad if residual is None else residual
        _kernels().rms_norm_backward[(len(x),)](
            grad, x, weight, past, out, x.stride(0), past.stride(0), out.stride(0), x.shape[1], eps,
            HAS_RESIDUAL=residual is not None, BLOCK=block, num_warps=_warps(block),
        )  # fmt: skip
        return
    value = upcast(x)
    scale = torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + eps)
    value = value * scale
    g = upcast(grad) * upcast(weight)
    result = scale * (g - value * (g * value).mean(-1, keepdim=True))
    out.copy_(result if residual is None else result + residual)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, *, inverse: bool = False) -> None:
    """Rotary embedding of every head in the columns of x.

    Args:
        x, out: (tokens, heads * head_dim); out may be x.
        cos, sin: (tokens, head_dim), contiguous, their two halves equal.
        inverse: whether to apply the inverse, which is also the gradient.
    """
    size = cos.shape[1]
    heads = x.shape[1] // size
    if _fused(x):
        _kernels().rotate[(len(x),)](
            x, out, cos, sin, x.stride(0), out.stride(0), heads, size // 2, -1.0 if inverse else 1.0,
            HEADS=_power_of_2(heads), HALF=_power_of_2(size // 2),
        )  # fmt: skip
        return
    first, second = x.unflatten(1, (heads, 2, size // 2)).unbind(2)  # (tokens, heads, head_dim / 2)
    c, s = cos[:, None, : size // 2], sin[:, None, : size // 2]
    s = -s if inverse else s
    out.copy_(torch.stack((first * c - second * s, second * c + first * s), 2).flatten(1))


class LowRank(NamedTuple):
    """A product that is still to be added: low x weight."""

    low: Tensor  # (tokens, ranks)
    weight: Tensor  # (ranks, features)

    def add_to(self, x: Tensor) -> Tensor:
        return torch.addmm(x, self.low, self.weight)


def swiglu(gate_up: Tensor, out: Tensor, lora: LowRank | None = None) -> None:
    """out = silu(gate) * up.

    Args:
        gate_up: (tokens, 2 * features).
        out: (tokens, features).
        lora: added to gate_up first; its weight is block-diagonal, half of its ranks for gate and half for up.
    """
    columns = out.shape[1]
    if _fused(out) and lora is not None and _fits(lora.low.shape[1] // 2):
        _kernels().swiglu_low[(-(-len(out) // 64), -(-columns // 128))](
            gate_up, lora.low, lora.weight, out, len(out), gate_up.stride(0), lora.low.stride(0), lora.weight.stride(1),
            out.stride(0), columns, RANK=lora.low.shape[1] // 2, ROWS=64, COLUMNS=128, num_warps=4,
        )  # fmt: skip
        return
    if lora is not None:
        gate_up = lora.add_to(gate_up)
    if _fused(out):
        block = min(_power_of_2(columns), 2048)
        _kernels().swiglu[(len(out), -(-columns // block))](
            gate_up, out, gate_up.stride(0), out.stride(0), columns, BLOCK=block
        )
        return
    gate, up = gate_up.chunk(2, 1)
    out.copy_(functional.silu(gate) * up)


def swiglu_backward(
    grad: Tensor, gate_up: Tensor, out: Tensor, lora: LowRank | None = None, grad_lora: LowRank | None = None
) -> None:
    """out = the gradient of gate_up, given that of swiglu's result. `grad` is overwritten with swiglu's result.

    Args:
        grad: (tokens, features).
        gate_up, out: (tokens, 2 * features).
        lora, grad_lora: added to gate_up and to grad first.
    """
    columns = grad.shape[1]
    if _fused(out) and lora is not None and grad_lora is not None and _fits(grad_lora.low.shape[1]):
        _kernels().swiglu_low_backward[(-(-len(out) // 64), -(-columns // 128))](
            grad, grad_lora.low, grad_lora.weight, gate_up, lora.low, lora.weight, out, len(out),
            grad.stride(0), grad_lora.low.stride(0), grad_lora.weight.stride(0), gate_up.stride(0), lora.low.stride(0),
            lora.weight.stride(1), out.stride(0), columns,
            RANK=grad_lora.low.shape[1], ROWS=64, COLUMNS=128, num_warps=4,
        )  # fmt: skip
        return
    if lora is not None:
        gate_up = lora.add_to(gate_up)
    if grad_lora is not None:
        grad.copy_(grad_lora.add_to(grad))
    if _fused(out):
        block = min(_power_of_2(columns), 2048)
        _kernels().swiglu_backward[(len(out), -(-columns // block))](
            grad, gate_up, out, grad.stride(0), gate_up.stride(0), out.stride(0), columns, BLOCK=block
        )
        return
    gate, up = gate_up.chunk(2, 1)
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    out[:, :columns] = grad * up * (sigmoid + silu * (1 - sigmoid))
    out[:, columns:] = grad * silu
    grad.copy_(silu * up)


def _fits(rank: int) -> bool:
    """Whether Triton's matrix product takes an inner size of `rank`."""
    return 16 <= rank <= 128 and rank == _power_of_2(rank)


def copy(x: Tensor, out: Tensor) -> None:
    """out = x, (tokens, features). PyTorch's own copy takes twice as long where rows are not contiguous."""
    if _fused(x):
        block = _power_of_2(x.shape[1])
        _kernels().copy[(len(x),)](x, out, x.stride(0), out.stride(0), x.shape[1], BLOCK=block, num_warps=_warps(block))
        return
    out.copy_(x)


def cross_entropy(logits: Tensor, targets: Tensor, scale: float) -> Tensor:
    """The cross-entropy of every row. The logits are overwritten with its gradient times `scale`.

    Args:
        logits: (tokens, vocab), contiguous.
        targets: (tokens) int64.

    Returns:
        (tokens) float32.
    """
    if _fused(logits):
        losses = torch.empty(len(logits), device=logits.device, dtype=torch.float32)
        block = min(_power_of_2(logits.shape[1]), 8192)
        _kernels().cross_entropy[(len(logits),)](
            logits, targets, losses, logits.shape[1], scale, BLOCK=block, num_warps=16
        )
        return losses
    log = functional.log_softmax(upcast(logits), -1)
    rows = torch.arange(len(log))
    grad = log.exp()
    grad[rows, targets] -= 1
    logits.copy_(grad * scale)
    return -log[rows, targets]


def dequantize_nf4(weight: Tensor, state: Any, out: Tensor) -> None:
    """Dequantise bitsandbytes' nf4 weight into `out`, (out features, in features).

    Args:
        weight: uint8, two values per byte.
        state: its QuantState, doubly quantised.
    """
    if _fused(weight) and state.nested and state.blocksize == 64 and state.state2.blocksize == 256:
        total = out.shape[0] * out.shape[1]
        _kernels().nf4[(-(-total // 4096),)](
            weight, state.absmax, state.code, state.state2.code, state.state2.absmax, state.offset,
            out, out.shape[1], out.stride(0), total, BLOCK=2048, num_warps=8,
        )  # fmt: skip
        return
    from bitsandbytes.functional import dequantize_4bit

    out.copy_(dequantize_4bit(weight, state))


def to_fp8(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to float8 by its own scale: x = values * scale to 1 part in 16.

    Args:
        x: (tokens, features).

    Returns:
        Values, (tokens, features) float8_e4m3fn, and scales, (tokens, 1) float32.
    """
    values = torch.empty(x.shape, device=x.device, dtype=FP8)
    scales = torch.empty((len(x), 1), device=x.device, dtype=torch.float32)
    if _fused(x):
        block = _power_of_2(x.shape[1])
        _kernels().to_fp8[(len(x),)](x, values, scales, x.stride(0), x.shape[1], BLOCK=block, num_warps=_warps(block))
        return values, scales
    scales.copy_(x.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / FP8_MAX)
    values.copy_((x.float() / scales).clamp(-FP8_MAX, FP8_MAX))
    return values, scales
