"""Cross-entropy, or divergence from a teacher, of a language model's head on the loss tokens, a block at a time.

Logits of 8 x 1,024 tokens over 92,544 words take 3 GB in float32. Here a block of logits becomes its own gradient in
place and is freed before the next block. The head is frozen, so only the hidden state needs that gradient.

Shapes:
    tokens  all tokens of a batch, end to end: batch * length
    rows    loss tokens: those whose next token counts in the loss
    hidden  features of the residual stream
    vocab   rows of the head
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from recipe.chat_format import IGNORE_INDEX
from recipe.kernels import rowwise
from recipe.training.sizes import LOSS_ROWS
from recipe.training.teacher import Teacher, divergence


class HeadLoss(torch.autograd.Function):
    """Final norm, head and mean loss over `rows`, for autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        rows: Tensor,
        targets: Tensor,
        norm: Tensor,
        eps: float,
        head: Tensor,
        taught: Teacher | None = None,
    ) -> Tensor:
        """Compute the mean loss: cross-entropy, and divergence from the teacher on the last rows.

        Args:
            hidden: (tokens, hidden), the last layer's output.
            rows: (rows) int64, indices of the loss tokens.
            targets: (rows) int64, the tokens that these predict.
            norm: (hidden), the final norm's weight.
            eps: the final norm's epsilon.
            head: (vocab, hidden).
            taught: the teacher's distributions for the last `len(taught.ids)` of the rows; None without a teacher.

        Returns:
            A float32 scalar; 0 where there are no rows.
        """
        loss_hidden = hidden[rows]  # (rows, hidden)
        normed = torch.empty_like(loss_hidden)
        rowwise.rms_norm(loss_hidden, norm, eps, normed)
        total = torch.zeros((), device=hidden.device, dtype=torch.float32)
        by_words = len(rows) - (len(taught.ids) if taught else 0)
        for start, end in _blocks(by_words, len(rows)):
            block = slice(start, end)
            logits = normed[block] @ head.T  # (LOSS_ROWS, vocab)
            if taught and start >= by_words:
                of_teacher = slice(start - by_words, end - by_words)
                total += _diverge(logits, targets[block], taught, of_teacher, 1 / len(rows))
            else:
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
        return grad, None, None, None, None, None, None


def _blocks(by_words: int, rows: int) -> Iterator[tuple[int, int]]:
    """(start, end) of blocks of at most LOSS_ROWS rows, none of which holds rows of both kinds."""
    for first, last in ((0, by_words), (by_words, rows)):
        for start in range(first, last, LOSS_ROWS):
            yield start, min(start + LOSS_ROWS, last)


def _diverge(logits: Tensor, targets: Tensor, taught: Teacher, block: slice, scale: float) -> Tensor:
    """The weighted divergence of rows from their teacher. The logits are overwritten with its gradient times `scale`.

    Args:
        logits: (rows, vocab).
        targets: (rows) int64.
        taught: see `HeadLoss.forward`; block: the rows of it.
    """
    ids = taught.ids[block].long()  # (rows, K)
    before = logits.gather(1, targets[:, None])[:, 0].float()
    likely = logits.gather(1, ids)  # (rows, K), before the logits become a gradient
    log_sum = rowwise.cross_entropy(logits, targets, 1.0) + before  # the logits are now q, less 1 at the target
    logits.scatter_add_(1, targets[:, None], torch.ones_like(likely[:, :1]))
    weights = taught.weights[block]
    divergences, at_likely, of_others = divergence(likely, log_sum, taught.log_probs[block].float())
    logits.mul_((of_others * weights * scale).to(logits.dtype)[:, None])
    logits.scatter_(1, ids, (at_likely * (weights * scale)[:, None]).to(logits.dtype))
    return (divergences * weights).sum()


def loss_tokens(labels: Tensor, teacher_rows: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Find the tokens that count in the loss. Token t predicts label t + 1 of its own pack, as in transformers.

    Args:
        labels: (batch, length) int64; IGNORE_INDEX does not count.
        teacher_rows: (batch, length) int64, the teacher's row for each label, -1 where it is learnt by its words.

    Returns:
        Indices of the tokens in the flattened batch and the labels they predict, (rows) int64 each; those with a
        teacher come last, and of these the teacher's rows, (rows with a teacher) int64 or None.
    """
    flat = _following(labels, IGNORE_INDEX)
    rows = flat.ne(IGNORE_INDEX).nonzero().flatten()  # waits for the GPU, once a step
    if teacher_rows is None:
        return rows, flat[rows], None
    at = _following(teacher_rows, -1)[rows]
    taught = at.ge(0)
    rows = torch.cat((rows[~taught], rows[taught]))
    return rows, flat[rows], at[taught]


def _following(values: Tensor, last: int) -> Tensor:
    """(batch * length): for each token the value of the next one in its pack."""
    following = torch.full_like(values, last)
    following[:, :-1] = values[:, 1:]
    return following.flatten()
