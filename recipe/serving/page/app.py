"""What a visitor sees. Streamlit runs this file from top to bottom at every click; recipe/serving/demo.py holds the
model.

A reply that grows lives in the visitor's session as `pending`, so that a click elsewhere does not end it; only Stop
does, and leaving. It becomes a turn of the conversation when it has ended, and nothing of it stays when it fails.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import StopException

from recipe.engine.reply import Reply, Sampling
from recipe.errors import RecipeError
from recipe.languages import LANGUAGES, NAMES
from recipe.serving import demo
from recipe.serving.page import conversation
from recipe.serving.page.browser import bring_copy_script, copy_button, icon, preferred_language, send_running
from recipe.serving.page.conversation import BASE, MAX_CHARACTERS, TUNED, BadFileError, Turn
from recipe.serving.page.markdown import escaped, streamlit_markdown
from recipe.serving.page.notes import failure, note
from recipe.serving.page.words import EXAMPLES, words

# Seconds between two views of a reply, at the least and at the most: Streamlit notices a click when the next is sent.
REFRESH, IMPATIENT = 0.05, 0.2
# Under a reply that grows, Stop would run away from the pointer: it stands still above the input.
STAND_STILL = """<style>.stChatMessage button[kind="primary"] {position: fixed; bottom: 7.5rem; z-index: 100}</style>"""

model = demo.model_host()
widgets: Any = st.session_state

# One object, read once: when a visitor leaves, Streamlit empties the session while this script may still run.
state = widgets.get("visitor") or SimpleNamespace(
    turns=[],
    pending=None,  # (question, {who: Reply})
    replaced=None,  # the turn that the pending one takes the place of
    message=None,  # (kind, text) to show once
    editing=False,
    language=preferred_language(),
    # Streamlit takes a widget whose label or value changes for another one. So the settings' widgets begin anew in each
    # version, from `initial`: their values before the language changed, or a file was read.
    version=0,
    initial={"compare": False, "seed": -1, "system": ""},
)
widgets.visitor = state
title = model.title(widgets.get("language") or state.language)
st.set_page_config(page_title=title, page_icon=icon(title))  # an emoji as its icon would be fetched from a CDN


def setting(name: str) -> Any:
    """The present value of a setting."""
    return widgets.get(f"{name}{state.version}", state.initial[name])


def renew(**changes: Any) -> None:
    """Begin a new version of every setting, with its present value but for `changes`."""
    state.initial = {name: setting(name) for name in state.initial} | changes
    state.version += 1


# --- What the buttons do ------------------------------------------------------------------------------------------


def ask(question: str) -> None:
    """Start the replies to `question`; where one cannot start, there is a message and nothing else changes."""
    if fault := conversation.fault(question, setting("system")):
        state.message = "error", say(fault.key, **fault.values)
        return
    who = [TUNED, BASE] if setting("compare") and model.can_compare else [TUNED]
    sampling = Sampling(
        max_new_tokens=setting("longest"),
        temperature=setting("temperature"),
        top_p=setting("top_p"),
        repetition_penalty=setting("penalty"),
        seed=setting("seed") if setting("seed") >= 0 else None,
    )
    replies: dict[str, Reply] = {}
    try:
        for each in who:
            sent = conversation.messages(setting("system"), state.turns, question, who=each)
            replies[each] = model.ask(sent, sampling, base=each == BASE)
    except RecipeError as error:
        for reply in replies.values():
            reply.cancel()
        state.message = "error", say("too_long", why=error)
        return
    state.pending, state.editing = (question, replies), False


def ask_typed() -> None:
    """Ask the question in the input below; it ends the reply to the last."""
    stop()
    commit()
    ask(widgets.typed)


# A second click, on a button that is about to go, does nothing.


def ask_example(question: str) -> None:
    """Ask an example, at the beginning of a conversation."""
    if not (state.pending or state.turns):
        ask(question)


def ask_edited() -> None:
    """Ask the last question as it was edited."""
    if state.editing and widgets.edited.strip():
        ask_last(widgets.edited)


def regenerate() -> None:
    """Ask the last question again."""
    if not state.pending:
        ask_last(state.turns[-1].question)


def stop() -> None:
    """End the pending replies; their text so far stays."""
    for reply in state.pending[1].values() if state.pending else ():
        reply.cancel()


def ask_last(question: str) -> None:
    """Ask in place of the last question; where the reply cannot start, fails or is empty, the turn stays."""
    state.replaced = state.turns.pop()
    ask(question)
    if state.pending is None:
        restore()


def restore() -> None:
    """Put the turn that was to be replaced back."""
    if state.replaced:
        state.turns.append(state.replaced)
        state.replaced = None


def clear() -> None:
    """Begin a new conversation."""
    stop()
    state.turns, state.pending, state.replaced, state.editing = [], None, None, False


def take_file() -> None:
    """Take over the conversation in the uploaded file."""
    file = widgets[f"upload{state.version}"]
    if file is None:
        return
    try:
        system, turns = conversation.from_json(file.getvalue())
    except BadFileError as error:
        state.message = "error", say("not_imported", file=file.name, why=say(error.key, **error.values))
        renew()  # an empty uploader again
        return
    clear()
    state.turns = turns
    renew(system=system)
    state.message = "success", say("imported", turns=len(turns))


# --- Replies ------------------------------------------------------------------------------------------------------


def commit() -> None:
    """Make the pending replies a turn once they have ended, unless one failed or all are empty."""
    if not state.pending:
        return
    question, replies = state.pending
    state.pending = None
    for reply in replies.values():
        reply.join()
    failed = [reply.error for reply in replies.values() if reply.error]
    if failed:
        state.message = "error", failure(failed[0], say)
        restore()
    elif any(reply.text or reply.ended != "cancelled" for reply in replies.values()):
        texts = {who: reply.text for who, reply in replies.items()}
        state.turns.append(Turn(question, texts, {who: note(reply, say) for who, reply in replies.items()}))
        state.replaced = None
    else:
        restore()


def places(who: list[str]) -> dict[str, Any]:
    """A place for each reply: side by side where there are two."""
    if len(who) == 1:
        return {who[0]: st.container()}
    columns = st.columns(len(who))
    for column, each in zip(columns, who, strict=True):
        column.caption(say(each))
    return dict(zip(who, columns, strict=True))


def show(turn: Turn) -> None:
    """Show a turn that has ended."""
    with st.chat_message("user"):
        st.markdown(streamlit_markdown(turn.question))
    with st.chat_message("assistant"):
        for who, place in places(list(turn.replies)).items():
            place.markdown(streamlit_markdown(turn.replies[who]) or say("empty_reply"))
            button = copy_button(turn.replies[who], say("copy")) if turn.replies[who] else ""
            if line := f"{turn.notes.get(who, '')} {button}".strip():
                place.caption(line, unsafe_allow_html=True)


def show_growing(question: str, replies: dict[str, Reply]) -> None:
    """Show the replies as they grow, until every one has ended.

    At the next thing shown, Streamlit raises an exception where the visitor left, which ends the replies, and another
    where there was a click, which does not.
    """
    send_running()
    with st.chat_message("user"):
        st.markdown(streamlit_markdown(question))
    with st.chat_message("assistant"):
        growing = {who: place.empty() for who, place in places(list(replies)).items()}
        st.markdown(STAND_STILL, unsafe_allow_html=True)
        st.button(say("stop"), on_click=stop, key="stop", type="primary")
    for _ in range(3):  # in place of old elements, which Streamlit leaves there, faded, until the run ends
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


# --- The page -----------------------------------------------------------------------------------------------------

with st.sidebar:
    chosen = st.radio(
        words("en")("language"), LANGUAGES, LANGUAGES.index(state.language),
        format_func=NAMES.__getitem__, key="language", horizontal=True, on_change=renew,
    )  # fmt: skip
language = chosen or state.language
say = words(language)
st.title(escaped(title))

if model.state == "loading":
    with st.spinner(say("loading", what=escaped(model.label))):
        st.caption(say("loading_hint"))
        waiting = st.empty()
        while model.state == "loading":
            time.sleep(0.2)
            waiting.empty()  # here Streamlit ends a script whose visitor left or whose server stops
    st.experimental_rerun()
if model.state != "ready":
    st.error(f"{say(model.state)}: {escaped(model.message)}")
    st.button(say("again"), on_click=model.try_again)
    st.stop()


def widget(kind: Any, name: str, *limits: Any, **options: Any) -> None:
    """Show the setting `name` as a widget of that kind."""
    value = state.initial[name]
    kind(say(name), *limits, value=value, key=f"{name}{state.version}", help=say(f"{name}_help"), **options)


defaults, longest = model.defaults, model.longest
state.initial = {
    "temperature": float(defaults.temperature),
    "top_p": float(defaults.top_p),
    "penalty": float(defaults.repetition_penalty),
    "longest": min(512, longest // 2),
} | state.initial
with st.sidebar:
    st.button(say("new_chat"), on_click=clear, disabled=not state.turns and not state.pending)
    st.caption(escaped(model.label))
    if model.can_compare:
        widget(st.checkbox, "compare")
    elif model.alone:
        st.caption(say("no_compare"))
    with st.expander(say("settings")):
        widget(st.slider, "temperature", 0.0, 2.0, step=0.05)
        widget(st.slider, "top_p", 0.05, 1.0, step=0.05)
        widget(st.number_input, "longest", 1, longest - 1, step=64)
        widget(st.slider, "penalty", 1.0, 2.0, step=0.05)
        widget(st.number_input, "seed", -1, 2**31 - 1)
        widget(st.text_area, "system")
    with st.expander(say("conversation")):
        exported = conversation.to_json(setting("system"), state.turns)
        st.download_button(say("export"), exported, "conversation.json", "application/json", disabled=not state.turns)
        st.file_uploader(
            say("import"), type="json", key=f"upload{state.version}", on_change=take_file, help=say("import_help")
        )

with st.sidebar:
    bring_copy_script()
st.chat_input(say("ask"), key="typed", max_chars=MAX_CHARACTERS, on_submit=ask_typed)
if state.message:
    kind, text = state.message
    state.message = None
    getattr(st, kind)(escaped(text))
for turn in state.turns:
    show(turn)
if state.pending:
    show_growing(*state.pending)
    commit()
    st.experimental_rerun()
elif state.editing and state.turns:
    with st.form("edit"):
        st.text_area(say("edit_question"), state.turns[-1].question, key="edited")
        send, leave, _ = st.columns([1, 1, 4])
        send.form_submit_button(say("send"), type="primary", on_click=ask_edited)
        leave.form_submit_button(say("cancel"), on_click=setattr, args=(state, "editing", False))
elif state.turns:
    again, edit, new = st.columns([1, 1, 2])
    again.button(say("regenerate"), on_click=regenerate)
    edit.button(say("edit"), on_click=setattr, args=(state, "editing", True))
    new.button(say("new_chat"), on_click=clear, key="new")  # where the sidebar is closed, as on a phone
else:
    st.caption(say("examples"))
    for i, example in enumerate(EXAMPLES[language]):
        if i % 2 == 0:
            row = st.columns(2)
        row[i % 2].button(example, on_click=ask_example, args=(example,), use_container_width=True)
