"""Cross-entropy of a language model's head without its logits: only learnt tokens, a block of rows at a time.

Logits of 8 x 1,024 tokens over 92,544 words are 3 GB in float32. Here a block of them becomes its own gradient in place
and is gone before the next; the head is frozen, so that gradient is needed for the hidden state alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recipe.chat_format import IGNORE_INDEX
from recipe.kernels import rowwise

# Rows whose logits exist at a time: 180 MiB in bfloat16 over 92,544 words, and enough to fill a GPU.
ROWS = 1024


class HeadLoss(torch.autograd.Function):
    """The mean loss over `rows`, from the last layer's output [tokens, hidden]; the final norm is part of it."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, rows: Tensor, targets: Tensor, norm: Tensor, eps: float, head: Tensor
    ) -> Tensor:
        """rows: int64 indices of the tokens that predict `targets` [rows]. norm: [hidden]. head: [vocabulary, hidden]."""
        loss_hidden = hidden[rows]
        normed = torch.empty_like(loss_hidden)
        rowwise.rms_norm(loss_hidden, norm, eps, normed)
        total = torch.zeros((), device=hidden.device, dtype=torch.float32)
        for start in range(0, len(rows), ROWS):
            block = slice(start, start + ROWS)
            logits = normed[block] @ head.T
            total += rowwise.cross_entropy(logits, targets[block], 1 / len(rows)).sum()
            torch.mm(logits, head, out=normed[block])  # the block is read for the last time above
        rowwise.rms_norm_backward(normed, loss_hidden, norm, eps, normed)
        ctx.saved = normed, rows, hidden.shape
        return total / max(len(rows), 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (hidden_grad, rows, shape), ctx.saved = ctx.saved, None
        grad = hidden_grad.new_zeros(shape)
        grad[rows] = hidden_grad * grads[0].to(hidden_grad.dtype)
        return grad, None, None, None, None, None


def loss_tokens(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, targets): which tokens of a batch predict something that counts, and what. labels: [batch, length].

    Token t predicts label t + 1 of its own pack, as in transformers.
    """
    following = torch.full_like(labels, IGNORE_INDEX)
    following[:, :-1] = labels[:, 1:]
    flat = following.flatten()
    rows = flat.ne(IGNORE_INDEX).nonzero().flatten()  # waits for the GPU, once a step
    return rows, flat[rows]
