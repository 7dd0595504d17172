"""Earlier conversations, kept in the visitor's own browser: the server holds only the one on the screen.

history_component/index.html stores them in localStorage, lists them, and sends one back when it is opened. What comes
from there is read as distrustfully as a file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.plain_text import flaw
from recipe.serving.page import conversation
from recipe.serving.page.conversation import BASE, BadFileError, Turn
from recipe.serving.page.words import Words

VERSION = 1  # of a record; the component's keys in localStorage have it too
MAX_RECORDS = 50
MAX_CHARACTERS = 200_000  # of a record: 50 of them may pass a browser's 5 million, which then says that it is full
MAX_NAME = 200  # characters of a title, of a model's label, of an id
FOLDER = Path(__file__).parent / "history_component"
# Texts of the component.
LABELS = (
    "history", "history_where", "history_keep", "history_off", "history_unavailable", "history_full", "history_long",
    "history_damaged", "delete", "delete_all", "sure", "conversation",
)  # fmt: skip


@dataclass(frozen=True)
class Order:
    """What the component is to do, once.

    Attributes:
        number: of the order within the session, from 1.
        id: of the conversation.
        record: to store; None to say that the conversation is too long, and empty to delete what is stored.
    """

    number: int
    id: str
    record: str | None


@dataclass(frozen=True)
class Event:
    """What a visitor did in the list.

    Attributes:
        number: of the event within the session, from 1.
        id: of the conversation.
        record: of the conversation to open; None where it was deleted, or there is none yet.
        automatic: whether the page was loaded anew, and nobody clicked.
        unanswered: the question of that conversation whose reply was under way then; empty where none was.
    """

    number: int
    id: str
    record: str | None
    automatic: bool
    unanswered: str = ""


def to_record(system: str, turns: list[Turn]) -> str | None:
    """A conversation as it is stored: an exported file, and what the file leaves out.

    Args:
        system: the system prompt; empty for none.
        turns: at least one.

    Returns:
        JSON; None where it is longer than MAX_CHARACTERS.
    """
    record = {
        "version": VERSION,
        "title": " ".join(turns[0].question[:MAX_NAME].split())[:60],
        "messages": conversation.messages(system, turns),
        "base": [turn.replies.get(BASE) for turn in turns],
        "models": [turn.model[:MAX_NAME] for turn in turns],
    }
    text = json.dumps(record, ensure_ascii=False)
    return text if len(text) <= MAX_CHARACTERS else None


def from_record(text: str) -> tuple[str, list[Turn]]:
    """Read a record of `to_record`.

    Args:
        text: from a browser, so that it may be anything.

    Returns:
        (system prompt, turns).

    Raises:
        BadFileError: it is no such record.
    """
    if len(text) > MAX_CHARACTERS:
        raise BadFileError("too_big")
    content = text.encode(errors="surrogatepass")
    system, turns = conversation.from_json(content)
    record = json.loads(content)
    if not isinstance(record, dict) or record.get("version") != VERSION or not turns:
        raise BadFileError("no_messages")
    base, models = record.get("base"), record.get("models")
    if not isinstance(base, list) or not isinstance(models, list) or not len(base) == len(models) == len(turns):
        raise BadFileError("no_messages")
    for number, (turn, reply, model) in enumerate(zip(turns, base, models, strict=True), 1):
        if not isinstance(model, str) or len(model) > MAX_NAME or not isinstance(reply, str | None):
            raise BadFileError("no_messages")
        if fault := flaw(model) or flaw(reply or "", control=False):
            raise BadFileError("bad_text", number=number, what=fault)
        turn.model = model
        if reply is not None:
            turn.replies[BASE] = reply
    return system, turns


def read_event(value: Any, session: str) -> Event | None:
    """What the component sent, if anything.

    Args:
        value: of the component, which the browser may have made up.
        session: of this visitor. The browser may still have an event of another, from before the server was restarted.
    """
    if not isinstance(value, dict) or value.get("session") != session:
        return None
    number, id_, record = (value.get(key) for key in ("number", "id", "record"))
    if type(number) is not int or not isinstance(id_, str) or len(id_) > MAX_NAME or not isinstance(record, str | None):
        return None
    unanswered = value.get("unanswered")
    if not isinstance(unanswered, str) or conversation.fault(unanswered):
        unanswered = ""
    return Event(number, id_, record, value.get("automatic") is True, unanswered)


def show_list(session: str, open_id: str, order: Order | None, waiting: str, say: Words) -> Event | None:
    """Show the list of conversations and hand an order over.

    Args:
        session: of this visitor.
        open_id: of the conversation on the screen; empty where it has none yet.
        order: the latest.
        waiting: the question that has no reply yet, which the tab keeps until it has one; empty where there is none.
        say: the texts in the visitor's language.

    Returns:
        The latest event, which comes again at every run.
    """
    from streamlit.components.v1 import declare_component

    value = declare_component("recipe_history", path=str(FOLDER))(
        session=session,
        open=open_id,
        order=vars(order) if order else None,
        waiting=waiting,
        limits={"version": VERSION, "records": MAX_RECORDS, "characters": MAX_CHARACTERS},
        words={key: say(key, most=MAX_RECORDS) for key in LABELS},
        key="history",
    )
    return read_event(value, session)
