"""How a turn of the conversation looks: a question, its reply or two, and what stands below them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import StopException

from recipe.engine.reply import Reply
from recipe.serving.page.browser import copy_button, send_running
from recipe.serving.page.conversation import Turn
from recipe.serving.page.markdown import escaped, streamlit_markdown
from recipe.serving.page.words import Words

# Seconds between two views of a reply, at the least and at the most: Streamlit notices a click when the next is sent.
REFRESH, IMPATIENT = 0.05, 0.2
# Under a reply that grows, Stop would run away from the pointer: it stands still above the input.
STAND_STILL = """<style>.stChatMessage .stButton button[kind="primary"] {
  position: fixed; bottom: 7.5rem; z-index: 100
}</style>"""
# The buttons below questions are many, so they look like the line below a reply.
LOOK = """<style>.stChatMessage .stButton button[kind="secondary"] {
  border: 0; background: none; padding: 0; min-height: 1.75rem; opacity: .7
}
.stChatMessage .stButton button[kind="secondary"] p {font-size: 14px}</style>"""


def places(who: list[str], say: Words) -> dict[str, Any]:
    """A place for each reply: side by side where there are two."""
    if len(who) == 1:
        return {who[0]: st.container()}
    columns = st.columns(len(who))
    for column, each in zip(columns, who, strict=True):
        column.caption(say(each))
    return dict(zip(who, columns, strict=True))


def show_examples(examples: Collection[str], say: Words, ask: Callable[[str], None]) -> None:
    """Show questions to begin with, two in a row; `ask` takes the one that is chosen."""
    st.caption(say("examples"))
    for i, example in enumerate(examples):
        if i % 2 == 0:
            row = st.columns(2)
        row[i % 2].button(example, on_click=ask, args=(example,), use_container_width=True)


def show_question(question: str) -> None:
    """Show what the visitor asked."""
    st.markdown(streamlit_markdown(question))


def show_form(
    number: int, question: str, label: str, say: Words, send: Callable[[], None], leave: Callable[[None], None]
) -> None:
    """Show the form in which the question of a turn is edited.

    Args:
        number: of the turn; the text is the widget `edited{number}`.
        question: as it is.
        label: of its field.
        say: the texts in the visitor's language.
        send, leave: what the buttons do.
    """
    with st.form("edit"):
        st.text_area(label, question, key=f"edited{number}")
        left, right, _ = st.columns([1, 1, 3])
        left.form_submit_button(say("send"), type="primary", on_click=send)
        right.form_submit_button(say("cancel"), on_click=leave, args=(None,))


def show_replies(turn: Turn, say: Words, present: Collection[str]) -> None:
    """Show the replies of a turn that has ended.

    Args:
        turn: of the conversation.
        say: the texts in the visitor's language.
        present: what the model that answers now is called; a reply of any other says so.
    """
    with st.chat_message("assistant"):
        for who, place in places(list(turn.replies), say).items():
            place.markdown(streamlit_markdown(turn.replies[who]) or say("empty_reply"))
            button = copy_button(turn.replies[who], say("copy")) if turn.replies[who] else ""
            line = turn.notes.get(who, "")
            if turn.model and turn.model not in present:
                line = say("answered_by", model=escaped(turn.model))
            if line := f"{line} {button}".strip():
                place.caption(line, unsafe_allow_html=True)


def show_growing(question: str, replies: dict[str, Reply], say: Words, stop: Callable[[], None]) -> None:
    """Show the replies as they grow, until every one has ended.

    At the next thing shown, Streamlit raises an exception where the visitor left, which ends the replies, and another
    where there was a click, which does not.

    Args:
        question: that they answer.
        replies: by model.
        say: the texts in the visitor's language.
        stop: ends them.
    """
    send_running()
    # Each `empty` that nothing fills is in place of an old element: Streamlit leaves those there until the run ends.
    with st.chat_message("user"):
        show_question(question)
        st.empty()  # New chat, or Edit
    with st.chat_message("assistant"):
        growing = {}
        for who, place in places(list(replies), say).items():
            growing[who] = place.empty()
            place.empty()  # the line below the reply that this one replaces
        st.markdown(STAND_STILL, unsafe_allow_html=True)
        st.button(say("stop"), on_click=stop, key="stop", type="primary")
    for _ in range(3):
        st.empty()
    try:
        while True:
            going = [reply for reply in replies.values() if not reply.ended]
            for who, place in growing.items():
                place.markdown(streamlit_markdown(replies[who].text) + (" ▌" if replies[who] in going else ""))
            if not going:
                break
            time.sleep(REFRESH)
            going[0].wait(len(going[0].text), IMPATIENT)
    except StopException:  # where it was Streamlit's own Stop button, the next run commits the text so far
        for reply in replies.values():
            reply.cancel()
        raise
