"""A conversation of the page: turns of a question and its replies, saved as OpenAI messages and loaded again."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from recipe.chat_format import assistant, user
from recipe.plain_text import flaw

Messages = list[dict[str, str]]
TUNED, BASE = "tuned", "base"
MAX_BYTES = 1_000_000  # 1 MB, as Streamlit's uploader counts it in the browser
MAX_MESSAGES = 400  # of an imported conversation; each is sent to the browser again at every click
MAX_CHARACTERS = 100_000  # of a question or a system prompt: three times the tokens that any base here reads


@dataclass
class Turn:
    """A question and its replies.

    Attributes:
        question: of the user.
        replies: by model, TUNED and, where it answered too, BASE.
        notes: by model, a line about its reply.
        model: the name and run of the model that answered; empty where it is not known, as from a file.
    """

    question: str
    replies: dict[str, str]
    notes: dict[str, str] = field(default_factory=dict)
    model: str = ""


class BadFileError(Exception):
    """A file that is no conversation, or a typed text that is no question.

    Attributes:
        key: of the text in `words` that says what is wrong.
        values: for that text.
    """

    def __init__(self, key: str, **values: object) -> None:
        super().__init__(key)
        self.key, self.values = key, values


def fault(*typed: str) -> BadFileError | None:
    """What is wrong with texts that a visitor typed; None where nothing is."""
    if max(map(len, typed)) > MAX_CHARACTERS:
        return BadFileError("too_many_characters", most=MAX_CHARACTERS)
    fault = next((fault for text in typed if (fault := flaw(text))), None)
    return BadFileError("not_text", what=fault) if fault else None


def messages(system: str, turns: list[Turn], question: str | None = None, *, who: str = TUNED) -> Messages:
    """The conversation as a model reads it.

    Args:
        system: the system prompt; empty for none.
        turns: so far.
        question: the next one, if any.
        who: which model. Its own replies stand where it gave any, the other's where not.
    """
    conversation: Messages = [{"role": "system", "content": system}] if system.strip() else []
    for turn in turns:
        reply = turn.replies.get(who) or next(iter(turn.replies.values()), "")
        conversation += [user(turn.question), assistant(reply)]
    return conversation if question is None else [*conversation, user(question)]


def to_json(system: str, turns: list[Turn]) -> str:
    """The conversation as a file: {"messages": […]}."""
    return json.dumps({"messages": messages(system, turns)}, ensure_ascii=False, indent=2) + "\n"


def from_json(content: bytes) -> tuple[str, list[Turn]]:
    """Read a file of `to_json`, or a bare list of messages.

    Args:
        content: of the file.

    Returns:
        (system prompt, turns).

    Raises:
        BadFileError: it is neither.
    """
    if len(content) > MAX_BYTES:
        raise BadFileError("too_big")
    try:
        parsed = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise BadFileError("not_json") from None
    conversation = parsed.get("messages") if isinstance(parsed, dict) else parsed
    if not isinstance(conversation, list):
        raise BadFileError("no_messages")
    if len(conversation) > MAX_MESSAGES:
        raise BadFileError("too_many", most=MAX_MESSAGES)
    for number, message in enumerate(conversation, 1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise BadFileError("bad_message", number=number, role="user / assistant")
        if fault := flaw(message["content"], control=False):
            raise BadFileError("bad_text", number=number, what=fault)
    system = conversation.pop(0)["content"] if conversation and conversation[0].get("role") == "system" else ""
    first = 2 if system else 1
    for i, message in enumerate(conversation):
        role = ("user", "assistant")[i % 2]
        if message.get("role") != role:
            raise BadFileError("bad_message", number=first + i, role=role)
    if len(conversation) % 2:
        raise BadFileError("unfinished")
    pairs = zip(conversation[::2], conversation[1::2], strict=True)
    return system, [Turn(question["content"], {TUNED: answer["content"]}) for question, answer in pairs]
