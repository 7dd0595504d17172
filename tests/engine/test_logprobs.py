"""Log probabilities are those of transformers' logits, whoever else speaks; a reply can go on from its beginning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_serving import CONVERSATIONS, WITHIN

from recipe.chat_format import assistant, prompt_ids, text_ids
from recipe.engine import Engine, Reply, Sampling
from recipe.engine.in_flight import InFlightStep
from recipe.engine.logprobs import MAX_TOP
from recipe.engine.text import Text
from recipe.evaluation import generation

BEGINNING = "I am"


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[Engine]:
    with Engine(*generation.load(tiny_model), slots=4) as engine:
        yield engine


def ended(reply: Reply) -> Reply:
    assert reply.wait(10**9, WITHIN)
    assert reply.error is None
    return reply


def by_transformers(folder: Path, ids: list[int], output_ids: list[int]) -> torch.Tensor:
    """(tokens, vocabulary), the log probabilities at each of `output_ids`."""
    model, _ = generation.load(folder)
    with torch.inference_mode():
        logits = model(torch.tensor([ids + output_ids])).logits[0, len(ids) - 1 : -1]
    return logits.float().log_softmax(-1)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(12, logprobs=5),
        Sampling(12, logprobs=MAX_TOP, temperature=1.5, top_p=0.9, seed=3, repetition_penalty=1.3),
        Sampling(1, logprobs=0),
    ],
    ids=["greedy", "sampled", "chosen alone"],
)
def test_log_probabilities_are_transformers(tiny: Engine, tiny_model: Path, sampling: Sampling) -> None:
    silent = tiny.reply(CONVERSATIONS[3], Sampling(30))  # who wants none runs beside
    replies = [ended(tiny.reply(conversation, sampling)) for conversation in CONVERSATIONS[:3]]
    assert ended(silent).logprobs == []
    for reply, conversation in zip(replies, CONVERSATIONS, strict=False):
        output_ids = [entry.token for entry in reply.logprobs]
        assert len(output_ids) == reply.completion_tokens > 0
        expected = by_transformers(tiny_model, prompt_ids(tiny.tokenizer, conversation), output_ids)
        for entry, logprobs in zip(reply.logprobs, expected, strict=True):
            assert entry.logprob == pytest.approx(logprobs[entry.token].item(), abs=1e-4)
            assert len(entry.top) == sampling.logprobs
            for token, logprob in entry.top:
                assert logprob == pytest.approx(logprobs[token].item(), abs=1e-4)
            best = logprobs.topk(MAX_TOP).values[: len(entry.top)].tolist()
            assert [logprob for _, logprob in entry.top] == pytest.approx(best, abs=1e-4)


def test_log_probabilities_are_right_where_a_step_runs_ahead(
    tiny: Engine, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: the next step is launched before the last one's are read."""
    scheduler = tiny.scheduler
    sampling = Sampling(10, logprobs=3)
    expected = [ended(tiny.reply(conversation, sampling)).logprobs for conversation in CONVERSATIONS[:3]]
    monkeypatch.setattr(scheduler, "_gpu", True)

    def copy(sequences: Any, tokens: Any, logprobs: Any = None) -> None:
        scheduler._in_flight.append(InFlightStep(sequences, tokens.clone(), logprobs=logprobs))

    monkeypatch.setattr(scheduler, "_copy_to_host", copy)
    with tiny._work:  # all of them are there when the engine looks
        together = [tiny.reply(conversation, sampling) for conversation in CONVERSATIONS[:3]]
    for reply, alone in zip(together, expected, strict=True):
        assert [entry.token for entry in ended(reply).logprobs] == [entry.token for entry in alone]
        assert [entry.logprob for entry in reply.logprobs] == pytest.approx([e.logprob for e in alone], abs=1e-4)


def test_a_reply_goes_on_from_its_beginning(tiny: Engine, tiny_model: Path) -> None:
    conversation = CONVERSATIONS[1]
    reply = ended(tiny.reply([*conversation, assistant(BEGINNING)], Sampling(12, logprobs=0)))
    ids = [*prompt_ids(tiny.tokenizer, conversation), *text_ids(tiny.tokenizer, BEGINNING)]
    assert reply.prompt_tokens == len(ids)
    output_ids = [entry.token for entry in reply.logprobs]
    assert by_transformers(tiny_model, ids, output_ids).argmax(-1).tolist() == output_ids


def test_what_goes_on_keeps_its_blank(tokenizer: Any) -> None:
    """A decoder strips the blank of a first token, and the reply's first is not the text's."""
    for whole, beginning in (("I am a friend", "I am"), ("你好 世界", "你好"), ("a  b", "a")):
        ids, before = text_ids(tokenizer, whole), text_ids(tokenizer, beginning)
        assert ids[: len(before)] == before
        text = Text(tokenizer, (), before)
        assert "".join(text.add(token) for token in ids[len(before) :]) + text.end() == whole[len(beginning) :]
