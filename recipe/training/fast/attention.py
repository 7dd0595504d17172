"""Causal attention inside each conversation of a pack, without a mask, by kernels that come with PyTorch.

FlashAttention-2 takes the rows at which conversations start. The mask that transformers builds from the positions,
(1024, 1024) per pack, would rule that kernel out. Where each pack is one conversation, cuDNN's takes half the time.

Shapes:
    rows       tokens of all packs, end to end: batch * length
    heads      query heads; kv_heads: key/value heads; qkv_heads = heads + 2 * kv_heads
    head_dim   features of a head
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from recipe.kernels.rowwise import upcast

# Tokens of a conversation up to which three matrix products are faster on a CPU than the backward pass of PyTorch's
# kernel: 4 times at 51 tokens in bfloat16, 1.5 times in float32; at 400 they are slower.
SHORT = 256


class Group(NamedTuple):
    """Conversations of similar length, padded to the longest.

    rows: int64 row of each token, 0 in the padding.
    inside: bool, False in the padding.
    """

    rows: Tensor  # (conversations, longest)
    inside: Tensor  # (conversations, longest)


@dataclass(frozen=True)
class Packs:
    """Where the conversations of a batch lie.

    batch: packs.
    starts: the first row of each conversation, then the number of rows; int32.
    longest: tokens of the longest conversation.
    whole: whether every pack is one conversation.
    cos, sin: rotary embedding of each row.
    groups: conversations of similar length; None on a GPU.
    """

    batch: int
    starts: Tensor  # (conversations + 1)
    longest: int
    whole: bool
    cos: Tensor  # (rows, head_dim)
    sin: Tensor  # (rows, head_dim)
    groups: list[Group] | None

    @classmethod
    def of(cls, position_ids: Tensor, cos: Tensor, sin: Tensor) -> Packs:
        """Find the conversations of a batch by their positions.

        Args:
            position_ids: (batch, length) int64, 0 at the first token of each conversation.
            cos, sin: (batch, length, head_dim).
        """
        first = position_ids.eq(0)  # (batch, length)
        first[:, 0] = True
        first_rows = first.flatten().nonzero().flatten()  # (conversations); waits for the GPU, once a step
        starts = functional.pad(first_rows, (0, 1), value=first.numel())
        longest = int(starts.diff().max())
        groups = None if position_ids.is_cuda else _by_length(first_rows, starts.diff())
        size = cos.shape[-1]
        return cls(
            len(position_ids), starts.int(), longest, len(first_rows) == len(position_ids),
            cos.reshape(-1, size).contiguous(), sin.reshape(-1, size).contiguous(), groups,
        )  # fmt: skip


def split(qkv: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split qkv into queries, keys and values.

    Args:
        qkv: (rows, qkv_heads * head_dim).

    Returns:
        Views: (rows, heads, head_dim), and twice (rows, kv_heads, head_dim).
    """
    size = qkv.shape[1] // (heads + 2 * kv_heads)
    q, k, v = qkv.unflatten(1, (heads + 2 * kv_heads, size)).split((heads, kv_heads, kv_heads), 1)
    return q, k, v


def forward(qkv: Tensor, heads: int, kv_heads: int, packs: Packs) -> tuple[Tensor, tuple[Any, ...]]:
    """Attention inside each conversation.

    Args:
        qkv: (rows, qkv_heads * head_dim), rotated.

    Returns:
        The result, (rows, heads * head_dim), and what `backward` needs besides qkv and the result.
    """
    q, k, v = split(qkv, heads, kv_heads)
    if packs.groups is not None:
        return _grouped_attention(q, k, v, packs), ()
    if packs.whole and _cudnn():
        # (batch, heads or kv_heads, length, head_dim)
        parts = [part.unflatten(0, (packs.batch, -1)).transpose(1, 2) for part in (q, k, v)]
        result = torch.ops.aten._cudnn_attention_forward(
            *parts, None, None, None, packs.longest, packs.longest, True, 0.0, True, False
        )
        return result[0].transpose(1, 2).reshape(len(q), -1), (result[1], result[6], result[7])
    out, *saved = torch.ops.aten._flash_attention_forward(
        q, k, v, packs.starts, packs.starts, packs.longest, packs.longest, 0.0, True, False
    )
    return out.flatten(1), tuple(saved[:3])


def backward(
    grad: Tensor, qkv: Tensor, out: Tensor, saved: tuple[Any, ...], heads: int, kv_heads: int, packs: Packs
) -> tuple[Tensor, ...]:
    """The gradients of queries, keys and values.

    Args:
        grad: (rows, heads * head_dim), that of `forward`'s result.
        qkv, out, saved: the input and the results of `forward`.

    Returns:
        (rows, heads * head_dim), and twice (rows, kv_heads * head_dim).
    """
    q, k, v = split(qkv, heads, kv_heads)
    if packs.groups is not None:
        return _grouped_backward(grad.view(q.shape), q, k, v, packs)
    log_sum, state, unused = saved
    if packs.whole and _cudnn():
        parts = [
            part.reshape(len(q), -1, q.shape[2]).unflatten(0, (packs.batch, -1)).transpose(1, 2)
            for part in (grad, q, k, v, out)
        ]
        grads = torch.ops.aten._cudnn_attention_backward(
            *parts, log_sum, state, unused, None, None, None, packs.longest, packs.longest, 0.0, True
        )
        return tuple(part.transpose(1, 2).reshape(len(q), -1) for part in grads)
    grads = torch.ops.aten._flash_attention_backward(
        grad.view(q.shape), q, k, v, out.view(q.shape), log_sum, packs.starts, packs.starts,
        packs.longest, packs.longest, 0.0, True, state, unused,
    )  # fmt: skip
    return tuple(part.flatten(1) for part in grads)


def _cudnn() -> bool:
    """Whether to use cuDNN's attention, which was measured on Hopper alone."""
    return torch.backends.cudnn.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def _by_length(first_rows: Tensor, lengths: Tensor) -> list[Group]:
    """Group the conversations by the power of two of their lengths, so that little of a group is padding."""
    groups = []
    classes = lengths.sub(1).clamp(min=1).log2().floor()
    for each in classes.unique():
        chosen = classes == each
        at = torch.arange(int(lengths[chosen].max()), device=first_rows.device)
        inside = at < lengths[chosen, None]
        groups.append(Group((first_rows[chosen, None] + at).where(inside, 0), inside))
    return groups


def _grouped_attention(q: Tensor, k: Tensor, v: Tensor, packs: Packs) -> Tensor:
    """Attention by groups of conversations. Padding follows a conversation's end, so the causal mask is enough."""
    assert packs.groups is not None
    result = q.new_empty(len(q), q.shape[1] * q.shape[2])  # (rows, heads * head_dim)
    for rows, inside in packs.groups:
        # (conversations, heads or kv_heads, longest, head_dim)
        group_q, group_k, group_v = (part[rows].transpose(1, 2) for part in (q, k, v))
        out = functional.scaled_dot_product_attention(group_q, group_k, group_v, is_causal=True, enable_gqa=True)
        result = result.index_copy(0, rows[inside], out.transpose(1, 2).flatten(2)[inside])
    return result


def _grouped_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, packs: Packs) -> tuple[Tensor, ...]:
    """The gradients of `_grouped_attention`. grad: (rows, heads, head_dim), that of its result."""
    assert packs.groups is not None
    results = tuple(part.new_empty(len(part), part.shape[1] * part.shape[2]) for part in (q, k, v))
    for rows, inside in packs.groups:
        # (conversations, heads or kv_heads, longest, head_dim)
        parts = [part[rows].transpose(1, 2) for part in (grad, q, k, v)]
        parts[0].masked_fill_(~inside[:, None, :, None], 0)  # nobody reads the results of padding
        grads = _backward_by_products(*parts) if rows.shape[1] <= SHORT else _backward_by_kernel(*parts)
        for result, part in zip(results, grads, strict=True):
            result.index_copy_(0, rows[inside], part.transpose(1, 2)[inside].flatten(1))
    return results


def _backward_by_kernel(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """The gradients of causal attention. Shapes as in `_backward_by_products`."""
    with torch.enable_grad():
        q, k, v = (part.detach().requires_grad_() for part in (q, k, v))
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return torch.autograd.grad(out, (q, k, v), grad)


def _backward_by_products(grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """The gradients of causal attention, in float32 (or float64), by products of whole matrices.

    With P = softmax(s Q Kᵀ), s = head_dim^-1/2 and G the gradient of P V: dV = Pᵀ G, and with D the gradient of
    s Q Kᵀ, which softmax's backward pass makes of G Vᵀ: dQ = s D K, dK = s Dᵀ Q.

    Args:
        grad, q: (conversations, heads, longest, head_dim).
        k, v: (conversations, kv_heads, longest, head_dim).

    Returns:
        The gradients of q, k and v, in their shapes and precision.
    """
    shared = q.shape[1] // k.shape[1]  # queries that read the same keys, one below the other
    longest, size = q.shape[2:]
    scale = size**-0.5
    like_q, like_k = q, k
    # (conversations * kv_heads, shared * longest, head_dim), and the same without `shared`
    grad, q = (upcast(part).reshape(-1, shared * longest, size) for part in (grad, q))
    k, v = (upcast(part).reshape(-1, longest, size) for part in (k, v))
    later = q.new_full((longest, longest), -torch.inf).triu(1).repeat(shared, 1)
    weights = torch.baddbmm(later, q, k.mT, alpha=scale).softmax(-1)
    dv = weights.mT @ grad
    scores = torch.ops.aten._softmax_backward_data(grad @ v.mT, weights, -1, weights.dtype).mul_(scale)
    return (scores @ k).view_as(like_q).to(like_q.dtype), *(
        part.view_as(like_k).to(like_k.dtype) for part in (scores.mT @ q, dv)
    )
