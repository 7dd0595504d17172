"""The divergence is that of the definition, over reply tokens alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from recipe.chat_format import IGNORE_INDEX, training_ids
from recipe.evaluation import batches, generation
from recipe.evaluation.batches import CPU_ROWS, predictions
from recipe.evaluation.divergence import kl_per_token

CONVERSATIONS = [
    [{"role": "user", "content": "你好" * (i % 3 + 1)}, {"role": "assistant", "content": "很高兴见到你。"[: i % 6 + 1]}]
    for i in range(CPU_ROWS + 3)
]


@pytest.fixture(scope="module")
def models(tiny_model: Path, adapter_folder: Path) -> tuple[Any, Any, Any]:
    base, tokenizer = generation.load(tiny_model)
    tuned, _ = generation.load(tiny_model, adapter_folder)
    return base, tuned, tokenizer


def test_it_is_the_definition_one_conversation_at_a_time(models: tuple[Any, Any, Any]) -> None:
    base, tuned, tokenizer = models
    sums, counts = [], []
    for conversation in CONVERSATIONS:
        ids, labels = training_ids(tokenizer, conversation)
        with torch.inference_mode():
            p, q = (m(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1) for m in (base, tuned))
        in_reply = torch.tensor(labels[1:]) != IGNORE_INDEX
        sums.append((p.exp() * (p - q))[in_reply].sum().item())
        counts.append(int(in_reply.sum()))
    measured = kl_per_token(base, tuned, tokenizer, CONVERSATIONS)
    assert measured.kl_tokens == sum(counts)
    assert measured.kl_per_token == pytest.approx(sum(sums) / sum(counts), rel=1e-3)
    assert measured.kl_worst == pytest.approx(max(s / c for s, c in zip(sums, counts, strict=True)), rel=1e-3)
    assert measured.kl_worst > measured.kl_per_token > 0


def test_a_model_does_not_diverge_from_itself(models: tuple[Any, Any, Any]) -> None:
    base, _, tokenizer = models
    assert kl_per_token(base, base, tokenizer, CONVERSATIONS).kl_per_token == pytest.approx(0.0, abs=1e-7)


def test_predictions_are_the_model_s_for_the_loss_tokens_a_few_at_a_time(
    models: tuple[Any, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned, tokenizer = models
    monkeypatch.setattr(batches, "HEAD_ROWS", 5)
    rows = [training_ids(tokenizer, conversation) for conversation in CONVERSATIONS[:4]]
    for model in (base, tuned):
        with torch.inference_mode():
            parts = list(predictions(model, rows, tokenizer.pad_token_id))
            expected = [
                model(torch.tensor([ids])).logits[0, :-1][torch.tensor(labels[1:]) != IGNORE_INDEX]
                for ids, labels in rows
            ]
        assert {len(part) for part in parts[:-1]} == {5}
        torch.testing.assert_close(torch.cat(parts), torch.cat(expected), atol=1e-4, rtol=1e-4)
