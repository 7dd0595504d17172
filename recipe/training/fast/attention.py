"""Causal attention inside each conversation of a pack, without a mask, by kernels that PyTorch brings along.

FlashAttention-2 takes the rows at which conversations start; a [1024, 1024] mask a pack, which is what transformers
builds from the positions, would cost that kernel. Where every pack is one conversation cuDNN's kernel takes half the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Group(NamedTuple):
    """Conversations of like length side by side. rows: [conversations, longest], 0 behind the end of the shorter ones.

    inside: where `rows` is a token.
    """

    rows: Tensor
    inside: Tensor


@dataclass(frozen=True)
class Packs:
    """Where the conversations of a batch lie; rows are the tokens of all packs, end to end.

    starts: the first row of each, and the number of rows, int32. longest: tokens of the longest. whole: whether every
    pack is one conversation. cos, sin: rotary embedding of each row [rows, head size]. groups: conversations of like
    length; only where there is no GPU.
    """

    batch: int
    starts: Tensor
    longest: int
    whole: bool
    cos: Tensor
    sin: Tensor
    groups: list[Group] | None

    @classmethod
    def of(cls, position_ids: Tensor, cos: Tensor, sin: Tensor) -> Packs:
        """position_ids: [batch, length], 0 at the first token of each conversation, as `recipe.training.dataset` makes them."""
        first = position_ids.eq(0)
        first[:, 0] = True
        begins = first.flatten().nonzero().flatten()  # waits for the GPU, once a step
        starts = functional.pad(begins, (0, 1), value=first.numel())
        longest = int(starts.diff().max())
        groups = None if position_ids.is_cuda else _by_length(begins, starts.diff())
        size = cos.shape[-1]
        return cls(
            len(position_ids), starts.int(), longest, len(begins) == len(position_ids), cos.reshape(-1, size).contiguous(),
            sin.reshape(-1, size).contiguous(), groups,
        )  # fmt: skip


def split(qkv: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values [rows, heads, head size] as views of qkv [rows, (heads + 2 kv_heads) * head size]."""
    size = qkv.shape[1] // (heads + 2 * kv_heads)
    q, k, v = qkv.unflatten(1, (heads + 2 * kv_heads, size)).split((heads, kv_heads, kv_heads), 1)
    return q, k, v


def forward(qkv: Tensor, heads: int, kv_heads: int, packs: Packs) -> tuple[Tensor, tuple[Any, ...]]:
    """(result [rows, heads * head size], what `backward` needs beside qkv and the result)."""
    q, k, v = split(qkv, heads, kv_heads)
    if packs.groups is not None:
        return _plain(q, k, v, packs), ()
    if packs.whole and _cudnn():
        parts = [part.unflatten(0, (packs.batch, -1)).transpose(1, 2) for part in (q, k, v)]
        result = torch.ops.aten._cudnn_attention_forward(
            *parts, None, None, None, packs.longest, packs.longest, True, 0.0, True, False
        )
        return result[0].transpose(1, 2).reshape(len(q), -1), (result[1], result[6], result[7])
    out, *rest = torch.ops.aten._flash_attention_forward(
        q, k, v, packs.starts, packs.starts, packs.longest, packs.longest, 0.0, True, False
    )
    return out.flatten(1), tuple(rest[:3])


def backward(
    grad: Tensor, qkv: Tensor, out: Tensor, rest: tuple[Any, ...], heads: int, kv_heads: int, packs: Packs
) -> tuple[Tensor, ...]:
    """The gradients of queries, keys and values, [rows, heads * head size] each."""
    q, k, v = split(qkv, heads, kv_heads)
    if packs.groups is not None:
        with torch.enable_grad():
            q, k, v = (part.detach().requires_grad_() for part in (q, k, v))
            result = _plain(q, k, v, packs)
        return tuple(part.flatten(1) for part in torch.autograd.grad(result, (q, k, v), grad))
    log_sum, state, unused = rest
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
    """cuDNN's attention was measured on Hopper alone."""
    return torch.backends.cudnn.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def _by_length(begins: Tensor, lengths: Tensor) -> list[Group]:
    """The conversations grouped by the power of two that their lengths reach, so that little of a group is padding."""
    groups = []
    classes = lengths.sub(1).clamp(min=1).log2().floor()
    for each in classes.unique():
        chosen = classes == each
        at = torch.arange(int(lengths[chosen].max()), device=begins.device)
        inside = at < lengths[chosen, None]
        groups.append(Group((begins[chosen, None] + at).where(inside, 0), inside))
    return groups


def _plain(q: Tensor, k: Tensor, v: Tensor, packs: Packs) -> Tensor:
    """What comes behind a conversation's end is later than all of it, so that being causal is mask enough."""
    assert packs.groups is not None
    result = q.new_empty(len(q), q.shape[1] * q.shape[2])
    for rows, inside in packs.groups:
        of_q, of_k, of_v = (part[rows].transpose(1, 2) for part in (q, k, v))
        out = functional.scaled_dot_product_attention(of_q, of_k, of_v, is_causal=True, enable_gqa=True)
        result = result.index_copy(0, rows[inside], out.transpose(1, 2).flatten(2)[inside])
    return result
