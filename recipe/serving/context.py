"""Cuts a conversation to the tokens that a model can read."""

from __future__ import annotations

from typing import Any

from recipe.chat_format import prompt_ids
from recipe.errors import RecipeError


def fit(tokenizer: Any, messages: list[dict[str, str]], room: int) -> list[dict[str, str]]:
    """The latest turns of a conversation that fit, a question always with its answer.

    Args:
        tokenizer: of the model.
        messages: the conversation; a system message stays.
        room: tokens of the prompt at most.

    Raises:
        RecipeError: not even the last message fits.
    """
    system = [message for message in messages[:1] if message["role"] == "system"]
    turns = messages[len(system) :]
    left, first = room - len(prompt_ids(tokenizer, system)), len(turns)
    empty = len(prompt_ids(tokenizer, []))
    # From the end, so that the time does not grow with what is cut away.
    while first and (left := left - (len(prompt_ids(tokenizer, [turns[first - 1]])) - empty)) >= 0:
        first -= 1
    if first > len(turns) - 1:
        raise RecipeError(f"the message is longer than the {room} tokens that the model can read: shorten it")
    return [*system, *turns[first + first % 2 :]]  # a question and its answer go together
