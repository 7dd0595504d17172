"""How far tuning moved the model where it should not: the Kullback-Leibler divergence on the base's own replies.

Shapes: batch = conversations; width = tokens of the longest of them; replies = tokens of all replies in a batch;
vocabulary = rows of the output head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recipe.chat_format import IGNORE_INDEX, Message, training_ids
from recipe.evaluation import generation
from recipe.evaluation.batches import by_length, padded
from recipe.evaluation.metrics import Divergence
from recipe.pipeline.phases import phase

# Conversations at a time: 8 of 60 tokens on 92,544 words are 180 MB of logits a model.
BATCH = 8


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
    total, tokens, worst = 0.0, 0, 0.0
    with torch.inference_mode():
        for batch in by_length([len(row) for row, _ in samples], BATCH):
            ids = padded([samples[i][0] for i in batch], tokenizer.pad_token_id)  # (batch, width)
            reply_mask = padded([samples[i][1] for i in batch], IGNORE_INDEX) != IGNORE_INDEX  # (batch, width)
            # The logits before a token predict it: (batch, width - 1).
            predicts_reply = reply_mask[:, 1:].to(base.device)
            log_p, log_q = (  # (replies, vocabulary) each
                model(ids.to(model.device)).logits[:, :-1][predicts_reply].float().log_softmax(-1)
                for model in (base, tuned)
            )
            divergence = (log_p.exp() * (log_p - log_q)).sum(-1).cpu()  # (replies,)
            total += divergence.sum().item()
            tokens += len(divergence)
            lengths = reply_mask[:, 1:].sum(1).tolist()
            worst = max([worst, *(each.mean().item() for each in divergence.split(lengths))])
    return Divergence(max(0.0, total / tokens), tokens, worst)
