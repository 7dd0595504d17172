"""Several replies, log probabilities, replies that go on from a beginning, and plain texts: whole and as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from small_endpoint import HELLO, Endpoint, listen

from recipe.chat_format import assistant
from recipe.engine import Sampling
from recipe.serving.model_host import ModelHost

ODD: Any = [{"role": "user", "content": "什么是 zqx？"}]  # of anything else the model is too sure to vary


@pytest.fixture(scope="module")
def endpoint(model_host: ModelHost) -> Iterator[Endpoint]:
    yield from listen(model_host)


def test_each_of_several_choices_has_a_seed_of_its_own(endpoint: Endpoint) -> None:
    ask = endpoint.client().chat.completions.create

    def texts(seed: int, n: int, **options: Any) -> list[str]:
        answer = ask(model="quickstart", messages=ODD, temperature=2, max_tokens=8, seed=seed, n=n, **options)
        if not options:
            assert answer.usage
            assert answer.usage.prompt_tokens < 30  # the prompt counts once
            return [choice.message.content or "" for choice in answer.choices]
        pieces = [""] * n
        for chunk in answer:
            for choice in chunk.choices:
                pieces[choice.index] += choice.delta.content or ""
        return pieces

    together = texts(5, 4)
    assert together == [texts(5 + i, 1)[0] for i in range(4)]
    assert texts(5, 4, stream=True) == together
    assert len(set(together)) > 1


def test_log_probabilities_are_the_engine_s_whole_and_in_pieces(endpoint: Endpoint) -> None:
    engine = endpoint.engine
    reply = engine.reply(HELLO, Sampling(20, logprobs=2))
    reply.join()
    ask = endpoint.client().chat.completions.create
    options: Any = {"model": "quickstart", "messages": HELLO, "max_tokens": 20, "logprobs": True, "top_logprobs": 2}
    whole = ask(**options, temperature=0).choices[0].logprobs
    chunks = [choice for chunk in ask(**options, temperature=0, stream=True) for choice in chunk.choices]
    in_pieces = [entry for choice in chunks if choice.logprobs for entry in choice.logprobs.content or ()]
    assert whole
    assert whole.content
    for entries in (whole.content, in_pieces):
        assert b"".join(bytes(entry.bytes or ()) for entry in entries).decode().strip() == reply.text.strip()
        assert [entry.logprob for entry in entries] == pytest.approx([e.logprob for e in reply.logprobs], abs=1e-3)
        assert [len(entry.top_logprobs) for entry in entries] == [2] * len(reply.logprobs)
        assert all(entry.top_logprobs[0].logprob == entry.logprob for entry in entries)  # greedy


def test_a_whole_answer_is_written_as_people_read_it(endpoint: Endpoint) -> None:
    raw = endpoint.client().chat.completions.with_raw_response.create(model="quickstart", messages=HELLO, temperature=0)
    reply = raw.parse().choices[0].message.content or ""
    assert not reply.isascii()
    assert reply.encode() in raw.content
    assert raw.headers["Content-Type"] == "application/json; charset=UTF-8"


def test_a_reply_goes_on_from_its_beginning(endpoint: Endpoint) -> None:
    ask = endpoint.client().chat.completions.create
    whole = ask(model="quickstart", messages=HELLO, temperature=0).choices[0].message.content or ""
    messages: Any = [*HELLO, assistant(whole[:2])]
    continuation = ask(model="quickstart", messages=messages, temperature=0).choices[0].message.content
    assert whole[:2] + (continuation or "") == whole


def test_a_text_is_gone_on_from(endpoint: Endpoint) -> None:
    ask = endpoint.client().completions.create
    texts = ["你好", "What is"]
    answer = ask(model="quickstart", prompt=texts, max_tokens=5, temperature=0, n=2, logprobs=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for i, text in enumerate(texts):
        prompt = endpoint.engine.text_prompt(text)
        reply = endpoint.engine.start(prompt.ids, Sampling(5), continued=prompt.continued)
        reply.join()
        assert {answer.choices[2 * i + choice].text for choice in (0, 1)} == {reply.text}
    logprobs = answer.choices[0].logprobs
    assert logprobs
    assert logprobs.tokens
    assert len(logprobs.tokens) == len(logprobs.token_logprobs or ()) == len(logprobs.text_offset or ())
    assert (logprobs.text_offset or [1])[0] == 0
    pieces = ask(model="quickstart", prompt=texts[0], max_tokens=5, temperature=0, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == answer.choices[0].text


@pytest.mark.parametrize("change", [{"echo": True}, {"prompt": [1, 2]}, {"prompt": ""}, {"n": 5}, {"suffix": "x"}])
def test_what_a_text_cannot_have_is_refused(endpoint: Endpoint, change: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        endpoint.client().completions.create(**{"model": "quickstart", "prompt": ["a", "b"] * 5} | change)
    assert caught.value.param == next(iter(change))
