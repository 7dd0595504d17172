"""What is cut from a conversation that is too long: whole turns, the oldest first, never the system turn or the
last."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.chat_format import prompt_ids
from recipe.errors import RecipeError
from recipe.serving import context

Messages = list[dict[str, str]]


def conversation(*contents: str, system: str | None = None) -> Messages:
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def needed(tokenizer: Any, messages: Messages) -> int:
    return len(prompt_ids(tokenizer, messages))


def test_what_fits_is_left_as_it_is(tokenizer: Any) -> None:
    messages = conversation("你好", "你好！", "再见", system="be brief")
    assert context.fit(tokenizer, messages, needed(tokenizer, messages)) == messages


def test_the_oldest_pair_goes_first(tokenizer: Any) -> None:
    messages = conversation("one", "1", "two", "2", "three")
    assert context.fit(tokenizer, messages, needed(tokenizer, messages) - 1) == messages[2:]
    assert context.fit(tokenizer, messages, needed(tokenizer, messages[2:])) == messages[2:]
    assert context.fit(tokenizer, messages, needed(tokenizer, messages[2:]) - 1) == messages[4:]


def test_the_system_turn_stays(tokenizer: Any) -> None:
    messages = conversation("one", "1", "two", "2", "three", system="be brief")
    fitted = context.fit(tokenizer, messages, needed(tokenizer, messages) - 1)
    assert fitted == [messages[0], *messages[3:]]
    assert context.fit(tokenizer, messages, needed(tokenizer, [messages[0], messages[-1]])) == [
        messages[0],
        messages[-1],
    ]


@given(
    contents=st.lists(st.text(max_size=20), min_size=1, max_size=11).filter(lambda c: len(c) % 2 == 1),
    system=st.none() | st.text(min_size=1, max_size=10),
    room=st.integers(1, 200),
)
@settings(max_examples=150)
def test_whole_turns_are_kept_as_many_as_fit(
    tokenizer: Any, contents: list[str], system: str | None, room: int
) -> None:
    messages = conversation(*contents, system=system)
    head, turns = (messages[:1], messages[1:]) if system else ([], messages)
    candidates = [[*head, *turns[start:]] for start in range(0, len(turns), 2)]  # from all turns to the last alone
    fitting = [candidate for candidate in candidates if needed(tokenizer, candidate) <= room]
    if fitting:
        assert context.fit(tokenizer, messages, room) == fitting[0]
    else:
        with pytest.raises(RecipeError, match=f"longer than the {room} tokens"):
            context.fit(tokenizer, messages, room)


def test_a_last_message_that_is_too_long_is_refused_and_not_cut(tokenizer: Any) -> None:
    messages = conversation("one", "1", "两" * 100)
    with pytest.raises(RecipeError, match="shorten it"):
        context.fit(tokenizer, messages, needed(tokenizer, messages[2:]) - 1)


def test_the_conversation_itself_is_not_changed(tokenizer: Any) -> None:
    messages = conversation("one", "1", "two")
    context.fit(tokenizer, messages, needed(tokenizer, messages[2:]))
    assert messages == conversation("one", "1", "two")
