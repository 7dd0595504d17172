"""How far tuning moved the model where it should not: the Kullback-Leibler divergence on the base's own replies.

Shapes: batch = conversations; width = tokens of the longest of them; replies = tokens of all replies in a batch;
vocabulary = rows of the output head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recipe.chat_format import IGNORE_INDEX, Message, training_ids
from recipe.evaluation import generation

# Conversations at a time: 8 of 60 tokens on 92,544 words are 180 MB of logits a model.
BATCH = 8


def kl_per_token(base: Any, tuned: Any, tokenizer: Any, conversations: Sequence[Sequence[Message]]) -> dict[str, Any]:
    """KL(base || tuned) = sum p log(p / q) over the vocabulary, for every token of a reply.

    Args:
        base, tuned: models of transformers with the same vocabulary.
        tokenizer: of both.
        conversations: that end with replies; only these are measured.

    Returns:
        kl_per_token: the mean over all tokens, in nats; 0 where both models predict the same.
        kl_tokens: how many tokens.
        kl_worst: the largest mean of one conversation, in nats.
    """
    import torch

    generation.release()  # both models' distributions want the memory
    samples = sorted((training_ids(tokenizer, each) for each in conversations), key=lambda row: len(row[0]))
    total, tokens, worst = 0.0, 0, 0.0
    with torch.inference_mode():
        for start in range(0, len(samples), BATCH):
            batch = samples[start : start + BATCH]
            width = max(len(ids) for ids, _ in batch)
            ids = torch.full((len(batch), width), tokenizer.pad_token_id)
            reply_mask = torch.zeros((len(batch), width), dtype=torch.bool)
            for i, (row, labels) in enumerate(batch):
                ids[i, : len(row)] = torch.tensor(row)  # padding comes last, where causal attention does not look
                reply_mask[i, : len(row)] = torch.tensor(labels) != IGNORE_INDEX
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
    return {"kl_per_token": max(0.0, total / tokens), "kl_tokens": tokens, "kl_worst": worst}
