"""A conversation of the page: turns of a question and its replies, to a file and back as OpenAI messages."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from recipe.chat_format import assistant, user

Messages = list[dict[str, str]]
TUNED, BASE = "tuned", "base"
MAX_BYTES = 1 << 20


@dataclass
class Turn:
    """replies: by who said it, TUNED and where it was asked BASE. notes: a line about each."""

    question: str
    replies: dict[str, str]
    notes: dict[str, str] = field(default_factory=dict)


class BadFileError(Exception):
    """key: the page's word for what is wrong; values: what it is about."""

    def __init__(self, key: str, **values: object) -> None:
        super().__init__(key)
        self.key, self.values = key, values


def messages(system: str, turns: list[Turn], question: str | None = None, *, who: str = TUNED) -> Messages:
    """What `who` is to read: its own replies where it gave any, the other's where not."""
    messages_out: Messages = [{"role": "system", "content": system}] if system.strip() else []
    for turn in turns:
        reply = turn.replies.get(who) or next(iter(turn.replies.values()), "")
        messages_out += [user(turn.question), assistant(reply)]
    return messages_out if question is None else [*messages_out, user(question)]


def to_json(system: str, turns: list[Turn]) -> str:
    return json.dumps({"messages": messages(system, turns)}, ensure_ascii=False, indent=2) + "\n"


def from_json(content: bytes) -> tuple[str, list[Turn]]:
    """The system prompt and the turns in a file of `to_json`, or a bare list of messages. BadFileError: it is none."""
    if len(content) > MAX_BYTES:
        raise BadFileError("too_big")
    try:
        content_json = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise BadFileError("not_json") from None
    messages_out = content_json.get("messages") if isinstance(content_json, dict) else content_json
    if not isinstance(messages_out, list):
        raise BadFileError("no_messages")
    for number, message in enumerate(messages_out, 1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise BadFileError("bad_message", number=number, role="user / assistant")
    system = messages_out.pop(0)["content"] if messages_out and messages_out[0].get("role") == "system" else ""
    first = 2 if system else 1
    for i, message in enumerate(messages_out):
        role = ("user", "assistant")[i % 2]
        if message.get("role") != role:
            raise BadFileError("bad_message", number=first + i, role=role)
    if len(messages_out) % 2:
        raise BadFileError("unfinished")
    pairs = zip(messages_out[::2], messages_out[1::2], strict=True)
    return system, [Turn(question["content"], {TUNED: answer["content"]}) for question, answer in pairs]
