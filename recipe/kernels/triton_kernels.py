"""Triton kernels of the functions in `rowwise`: float32 inside, one rounding on storing.

Shapes:
    x, grad, residual  (tokens, columns); `*_stride` is the distance between rows, in elements
    gate_up            (tokens, 2 * columns): gate, then up
    cos, sin           (tokens, 2 * HALF), where 2 * HALF is head_dim
    lora_low           (tokens, 2 * RANK) for gate and up; grad_lora_low: (tokens, RANK)
    lora_weight        (2 * RANK, 2 * columns), transposed in memory; grad_lora_weight: (RANK, columns)
    logits             (tokens, columns), where columns is the vocabulary

One program computes one row, or one block of a row. In `swiglu_low*` it computes a tile of ROWS x COLUMNS, in `nf4` a
block of 2 * BLOCK values.
"""

from __future__ import annotations

# The arguments are pointers and sizes that only Triton's compiler reads, those in capitals while it compiles.
# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
import triton
import triton.language as tl


@triton.jit
def rms_norm(x, weight, out, x_stride, out_stride, columns, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    value = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value) / columns + eps)
    w = tl.load(weight + at, mask=inside, other=0.0)
    normed = (value * scale).to(w.dtype).to(tl.float32)  # transformers rounds here too
    tl.store(out + row * out_stride + at, (normed * w.to(tl.float32)).to(out.dtype.element_ty), mask=inside)


@triton.jit
def rms_norm_backward(
    grad, x, weight, residual, out, x_stride, residual_stride, out_stride, columns, eps,
    HAS_RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    value = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad + row * columns + at, mask=inside, other=0.0).to(tl.float32)
    g *= tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value) / columns + eps)
    value *= scale
    result = scale * (g - value * (tl.sum(g * value) / columns))
    if HAS_RESIDUAL:
        result += tl.load(residual + row * residual_stride + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + at, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def rotate(src, out, cos, sin, src_stride, out_stride, heads, half, sign, HEADS: tl.constexpr, HALF: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, HALF)
    head = tl.arange(0, HEADS)[:, None]
    inside = (head < heads) & (at[None, :] < half)
    c = tl.load(cos + row * 2 * half + at, mask=at < half, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + row * 2 * half + at, mask=at < half, other=0.0).to(tl.float32)[None, :] * sign
    place = head * (2 * half) + at[None, :]
    first = tl.load(src + row * src_stride + place, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(src + row * src_stride + place + half, mask=inside, other=0.0).to(tl.float32)
    kind = out.dtype.element_ty
    tl.store(out + row * out_stride + place, (first * c - second * s).to(kind), mask=inside)
    tl.store(out + row * out_stride + place + half, (second * c + first * s).to(kind), mask=inside)


@triton.jit
def swiglu(gate_up, out, in_stride, out_stride, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < columns
    gate = tl.load(gate_up + row * in_stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * in_stride + columns + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + at, (gate * tl.sigmoid(gate) * up).to(out.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward(grad, gate_up, out, grad_stride, in_stride, out_stride, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < columns
    g = tl.load(grad + row * grad_stride + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_up + row * in_stride + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * in_stride + columns + at, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    kind = out.dtype.element_ty
    tl.store(out + row * out_stride + at, (g * up * (sigmoid + silu * (1.0 - sigmoid))).to(kind), mask=inside)
    tl.store(out + row * out_stride + columns + at, (g * silu).to(kind), mask=inside)
    tl.store(grad + row * grad_stride + at, (silu * up).to(kind), mask=inside)


@triton.jit
def swiglu_low(
    gate_up, lora_low, lora_weight, out, tokens, in_stride, lora_low_stride, lora_weight_stride, out_stride, columns,
    RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`swiglu` of gate_up + lora_low x lora_weight; `lora_weight_stride` is the distance between columns."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    at = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANK)
    inside_rows, inside_columns = row < tokens, (at < columns)[None, :]
    inside = inside_rows & inside_columns
    low_of_gate = tl.load(lora_low + row * lora_low_stride + rank[None, :], mask=inside_rows, other=0.0)
    low_of_up = tl.load(lora_low + row * lora_low_stride + RANK + rank[None, :], mask=inside_rows, other=0.0)
    weight_of_gate = tl.load(
        lora_weight + at[None, :] * lora_weight_stride + rank[:, None], mask=inside_columns, other=0.0
    )
    weight_of_up = tl.load(
        lora_weight + (columns + at)[None, :] * lora_weight_stride + RANK + rank[:, None],
        mask=inside_columns,
        other=0.0,
    )
    gate = tl.load(gate_up + row * in_stride + at[None, :], mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * in_stride + columns + at[None, :], mask=inside, other=0.0).to(tl.float32)
    gate += tl.dot(low_of_gate, weight_of_gate)
    up += tl.dot(low_of_up, weight_of_up)
    result = gate * tl.sigmoid(gate) * up
    tl.store(out + row * out_stride + at[None, :], result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_low_backward(
    grad, grad_lora_low, grad_lora_weight, gate_up, lora_low, lora_weight, out, tokens,
    grad_stride, grad_lora_low_stride, grad_lora_weight_stride,
    in_stride, lora_low_stride, lora_weight_stride, out_stride, columns,
    RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`swiglu_backward` of grad + grad_lora_low x grad_lora_weight and of gate_up + lora_low x lora_weight."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    at = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANK)
    inside_rows, inside_columns = row < tokens, (at < columns)[None, :]
    inside = inside_rows & inside_columns
    low_of_grad = tl.load(grad_lora_low + row * grad_lora_low_stride + rank[None, :], mask=inside_rows, other=0.0)
    weight_of_grad = tl.load(
        grad_lora_weight + rank[:, None] * grad_lora_weight_stride + at[None, :], mask=inside_columns, other=0.0
    )
    low_of_gate = tl.load(lora_low + row * lora_low_stride + rank[None, :], mask=inside_rows, other=0.0)
    low_of_up = tl.load(lora_low + row * lora_low_stride + RANK + rank[None, :], mask=inside_rows, other=0.0)
    weight_of_gate = tl.load(
        lora_weight + at[None, :] * lora_weight_stride + rank[:, None], mask=inside_columns, other=0.0
    )
    weight_of_up = tl.load(
        lora_weight + (columns + at)[None, :] * lora_weight_stride + RANK + rank[:, None],
        mask=inside_columns,
        other=0.0,
    )
    g = tl.load(grad + row * grad_stride + at[None, :], mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_up + row * in_stride + at[None, :], mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * in_stride + columns + at[None, :], mask=inside, other=0.0).to(tl.float32)
    g += tl.dot(low_of_grad, weight_of_grad)
    gate += tl.dot(low_of_gate, weight_of_gate)
    up += tl.dot(low_of_up, weight_of_up)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    kind = out.dtype.element_ty
    place = out + row * out_stride + at[None, :]
    tl.store(place, (g * up * (sigmoid + silu * (1.0 - sigmoid))).to(kind), mask=inside)
    tl.store(place + columns, (g * silu).to(kind), mask=inside)
    tl.store(grad + row * grad_stride + at[None, :], (silu * up).to(kind), mask=inside)


@triton.jit
def copy(x, out, x_stride, out_stride, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    value = tl.load(x + row * x_stride + at, mask=at < columns)
    tl.store(out + row * out_stride + at, value, mask=at < columns)


@triton.jit
def cross_entropy(logits, targets, losses, columns, scale, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    start = logits + row * columns
    target_logit = tl.load(start + target).to(tl.float32)
    largest = -float("inf")
    total = 0.0
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        value = tl.load(start + at, mask=at < columns, other=-float("inf")).to(tl.float32)
        new = tl.maximum(largest, tl.max(value))
        total = total * tl.exp(largest - new) + tl.sum(tl.exp(value - new))
        largest = new
    log_sum = largest + tl.log(total)
    tl.store(losses + row, log_sum - target_logit)
    tl.debug_barrier()  # every thread has read `target_logit` before the gradient overwrites it
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        value = tl.load(start + at, mask=at < columns, other=-float("inf")).to(tl.float32)
        grad = (tl.exp(value - log_sum) - tl.where(at == target, 1.0, 0.0)) * scale
        tl.store(start + at, grad.to(logits.dtype.element_ty), mask=at < columns)


@triton.jit
def nf4(packed, absmax, code, absmax_code, absmax_scale, offset, out, columns, out_stride, total, BLOCK: tl.constexpr):
    """Two values per byte, the first in the high half; 64 share an 8-bit absmax, 256 of these a float32 one."""
    byte = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = byte * 2 < total
    pair = tl.load(packed + byte, mask=inside, other=0).to(tl.int32)
    block = byte // 32
    level = tl.load(absmax + block, mask=inside, other=0).to(tl.int32)
    scale = tl.load(absmax_code + level) * tl.load(absmax_scale + block // 256, mask=inside, other=0.0)
    scale += tl.load(offset)
    values = tl.interleave(tl.load(code + (pair >> 4)) * scale, tl.load(code + (pair & 15)) * scale)
    at = tl.program_id(0) * (2 * BLOCK) + tl.arange(0, 2 * BLOCK)
    place = (at // columns).to(tl.int64) * out_stride + at % columns
    tl.store(out + place, values.to(out.dtype.element_ty), mask=at < total)


@triton.jit
def to_fp8(x, out, scales, x_stride, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < columns
    value = tl.load(x + row * x_stride + at, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value)), 1e-12) / 448.0
    tl.store(scales + row, scale)
    tl.store(out + row * columns + at, (value / scale).to(out.dtype.element_ty), mask=inside)
