"""How far tuning moved the model where it should not: the Kullback-Leibler divergence on the base's own replies.

Shapes: replies = tokens of all replies in a batch; vocabulary = rows of the output head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recipe.chat_format import IGNORE_INDEX, Message, training_ids
from recipe.evaluation import generation
from recipe.evaluation.batches import by_length, predictions, rows_per_pass
from recipe.evaluation.metrics import Divergence
from recipe.pipeline.phases import phase


@phase("score")
def kl_per_token(base: Any, tuned: Any, tokenizer: Any, conversations: Sequence[Sequence[Message]]) -> Divergence:
    """KL(base || tuned) = sum p log(p / q) over the vocabulary, for every token of a reply.

    Args:
        base, tuned: models of transformers with the same vocabulary.
        tokenizer: of both.
        conversations: that end with replies; only these are measured.
    """
    import torch

    generation.release()  # both models' distributions want the memory
    samples = [training_ids(tokenizer, each) for each in conversations]
    means: list[float] = []
    total, tokens = 0.0, 0
    with torch.inference_mode():
        for batch in by_length([len(row) for row, _ in samples], rows_per_pass(base.device)):
            rows = [samples[i] for i in batch]
            both = (predictions(model, rows, tokenizer.pad_token_id) for model in (base, tuned))
            divergence = torch.cat([_divergence(p, q) for p, q in zip(*both, strict=True)]).cpu()  # (replies,)
            total += divergence.sum().item()
            tokens += len(divergence)
            lengths = [sum(label != IGNORE_INDEX for label in labels) for _, labels in rows]
            means += [each.mean().item() for each in divergence.split(lengths)]
    return Divergence(max(0.0, total / tokens), tokens, max(means))


def _divergence(base: Any, tuned: Any) -> Any:
    """KL(base || tuned) of each row, (rows,), of logits (rows, vocabulary)."""
    log_p, log_q = (logits.float().log_softmax(-1) for logits in (base, tuned))
    return (log_p.exp() * (log_p - log_q)).sum(-1)
