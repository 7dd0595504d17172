"""How far tuning moved the model where it should have stayed: the Kullback-Leibler divergence on the base's own
replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recipe.chat_format import IGNORE_INDEX, Message, training_ids

# Conversations at a time: 8 of 60 tokens on 92,544 words are 180 MB of logits a model.
BATCH = 8


def kl_per_token(base: Any, tuned: Any, tokenizer: Any, conversations: Sequence[Sequence[Message]]) -> dict[str, Any]:
    """{"kl_per_token", "kl_tokens", "kl_worst"}: KL(base || tuned) in nats, the mean over the tokens of all replies in
    the conversations.

    kl_tokens: how many. kl_worst: the largest mean of a single conversation. 0 where both models predict the same.
    """
    import torch

    rows = sorted((training_ids(tokenizer, each) for each in conversations), key=lambda row: len(row[0]))
    total, tokens, worst = 0.0, 0, 0.0
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            chosen = rows[start : start + BATCH]
            width = max(len(ids) for ids, _ in chosen)
            ids = torch.full((len(chosen), width), tokenizer.pad_token_id)
            reply_mask = torch.zeros((len(chosen), width), dtype=torch.bool)
            for i, (row, labels) in enumerate(chosen):
                ids[i, : len(row)] = torch.tensor(row)  # padded behind, where causal attention does not look
                reply_mask[i, : len(row)] = torch.tensor(labels) != IGNORE_INDEX
            predicts_reply = reply_mask[:, 1:].to(base.device)  # the logits before a token predict it
            p, q = (
                model(ids.to(model.device)).logits[:, :-1][predicts_reply].float().log_softmax(-1)
                for model in (base, tuned)
            )
            divergence = (p.exp() * (p - q)).sum(-1).cpu()
            total += divergence.sum().item()
            tokens += len(divergence)
            worst = max([worst, *(part.mean().item() for part in divergence.split(reply_mask[:, 1:].sum(1).tolist()))])
    return {"kl_per_token": max(0.0, total / tokens), "kl_tokens": tokens, "kl_worst": worst}
