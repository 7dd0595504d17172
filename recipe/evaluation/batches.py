"""Conversations of similar length together, for passes over text that is there already.

Shapes: batch = rows; width = tokens of the longest of them; chosen = tokens whose prediction is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from recipe.chat_format import IGNORE_INDEX

if TYPE_CHECKING:
    from torch import Tensor, device

# Conversations in a pass on a GPU, which fewer leave idle, and on a CPU.
GPU_ROWS, CPU_ROWS = 64, 16
# Rows of logits at a time: of 151,936 words 300 MB in float32.
HEAD_ROWS = 512


def rows_per_pass(device: device) -> int:
    """How many conversations a model on `device` takes in a pass, for `by_length`."""
    return GPU_ROWS if device.type == "cuda" else CPU_ROWS


def by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Rows in batches of at most `size`, the shortest first.

    Args:
        lengths: tokens of each row; a row of none is left out.
        size: rows of a batch.

    Returns:
        The rows' indices, batch by batch.
    """
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: lengths[i])
    return [order[start : start + size] for start in range(0, len(order), size)]


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """The rows as one tensor with padding at the end, where causal attention does not look.

    Args:
        rows: token ids, or one number for each of them.
        value: the padding.

    Returns:
        (batch, width) int64.
    """
    import torch

    tensor = torch.full((len(rows), max(map(len, rows))), value)
    for i, row in enumerate(rows):
        tensor[i, : len(row)] = torch.tensor(row)
    return tensor


def predictions(model: Any, rows: Sequence[tuple[Sequence[int], Sequence[int]]], pad_id: int) -> Iterator[Tensor]:
    """What a causal model predicts for the loss tokens of some conversations.

    The head computes these alone: of a prompt's tokens nobody reads the logits, the largest tensor of the pass.

    Args:
        model: of transformers, without or with an adapter.
        rows: ids and labels of each conversation.
        pad_id: a token for the padding.

    Yields:
        (chosen, vocabulary) logits, at most `HEAD_ROWS` of them at a time, in the rows' order.
    """
    from recipe.engine.weights import base_of

    ids = padded([row for row, _ in rows], pad_id)  # (batch, width)
    mask = padded([[1] * len(row) for row, _ in rows], 0)
    wanted = padded([labels for _, labels in rows], IGNORE_INDEX) != IGNORE_INDEX  # (batch, width)
    llm = base_of(model)
    states = llm.model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    # The state before a token predicts it.
    chosen = states.last_hidden_state[:, :-1][wanted[:, 1:].to(model.device)]  # (chosen, hidden)
    for part in chosen.split(HEAD_ROWS):
        yield llm.lm_head(part)
