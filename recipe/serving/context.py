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
    while len(prompt_ids(tokenizer, [*system, *turns])) > room:
        if len(turns) <= 1:
            raise RecipeError(f"the message is longer than the {room} tokens that the model can read: shorten it")
        turns = turns[2:]  # a question and its answer
    return [*system, *turns]
