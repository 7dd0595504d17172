"""Cross-entropy of a language model's head on the loss tokens alone, one block of logits at a time.

Logits of 8 x 1,024 tokens over 92,544 words take 3 GB in float32. Here a block of logits becomes its own gradient in
place and is freed before the next block. The head is frozen, so only the hidden state needs that gradient.

Shapes:
    tokens  all tokens of a batch, end to end: batch * length
    rows    loss tokens: those whose next token counts in the loss
    hidden  features of the residual stream
    vocab   rows of the head
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
    """Final norm, head and mean cross-entropy over `rows`, for autograd."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, rows: Tensor, targets: Tensor, norm: Tensor, eps: float, head: Tensor
    ) -> Tensor:
        """Compute the mean loss.

        Args:
            hidden: (tokens, hidden), the last layer's output.
            rows: (rows) int64, indices of the loss tokens.
            targets: (rows) int64, the tokens that these predict.
            norm: (hidden), the final norm's weight.
            eps: the final norm's epsilon.
            head: (vocab, hidden).

        Returns:
            A float32 scalar; 0 where there are no rows.
        """
        loss_hidden = hidden[rows]  # (rows, hidden)
        normed = torch.empty_like(loss_hidden)
        rowwise.rms_norm(loss_hidden, norm, eps, normed)
        total = torch.zeros((), device=hidden.device, dtype=torch.float32)
        for start in range(0, len(rows), ROWS):
            block = slice(start, start + ROWS)
            logits = normed[block] @ head.T  # (ROWS, vocab)
            total += rowwise.cross_entropy(logits, targets[block], 1 / len(rows)).sum()
            torch.mm(logits, head, out=normed[block])  # this block of `normed` is not read again
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
    """Find the tokens that count in the loss. Token t predicts label t + 1 of its own pack, as in transformers.

    Args:
        labels: (batch, length) int64; IGNORE_INDEX does not count.

    Returns:
        Indices of the tokens in the flattened batch and the labels they predict, (rows) int64 each.
    """
    following = torch.full_like(labels, IGNORE_INDEX)
    following[:, :-1] = labels[:, 1:]
    flat = following.flatten()
    rows = flat.ne(IGNORE_INDEX).nonzero().flatten()  # waits for the GPU, once a step
    return rows, flat[rows]
