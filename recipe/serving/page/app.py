"""What a visitor sees. Streamlit runs this file from top to bottom at every click; recipe/serving/demo.py holds the
model.

A reply that grows lives in the visitor's session as `pending`, so that a click elsewhere does not end it; only Stop
does, and leaving. It becomes a turn of the conversation when it has ended, and nothing of it stays when it fails.
"""

from __future__ import annotations

import time
import uuid
from types import SimpleNamespace
from typing import Any

import streamlit as st

from recipe.engine.reply import Reply, Sampling
from recipe.errors import RecipeError
from recipe.languages import LANGUAGES, NAMES
from recipe.serving import demo
from recipe.serving.page import conversation, history
from recipe.serving.page.browser import bring_scripts, icon, preferred_language
from recipe.serving.page.conversation import BASE, MAX_CHARACTERS, TUNED, BadFileError, Turn
from recipe.serving.page.markdown import escaped
from recipe.serving.page.notes import failure, note
from recipe.serving.page.turn_view import LOOK, show_examples, show_form, show_growing, show_question, show_replies
from recipe.serving.page.words import EXAMPLES, words

model = demo.model_host()
widgets: Any = st.session_state

# One object, read once: when a visitor leaves, Streamlit empties the session while this script may still run.
state = widgets.get("visitor") or SimpleNamespace(
    turns=[],
    pending=None,  # (question, {who: Reply})
    replaced=[],  # the turns that the pending one takes the place of
    message=None,  # (kind, text) to show once
    session=uuid.uuid4().hex,
    open_id="",  # of the conversation in the history; empty for a new one
    order=None,  # the latest to the history
    event=0,  # the number of the history's latest that was dealt with
    editing=None,  # the number of the turn whose question is edited; that of the next turn for an unanswered question
    unanswered="",  # the question whose reply was cut off when the page was loaded anew or the server ended
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
    state.pending, state.editing = (question, replies), None


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
    """Ask a question as it was edited; what followed it goes."""
    if state.editing is not None and (question := widgets[f"edited{state.editing}"]).strip():
        ask_again(state.editing, question)


def regenerate() -> None:
    """Ask the last question again."""
    if not state.pending:
        ask_again(len(state.turns) - 1, state.turns[-1].question)


def stop() -> None:
    """End the pending replies; their text so far stays."""
    for reply in state.pending[1].values() if state.pending else ():
        reply.cancel()


def ask_again(number: int, question: str) -> None:
    """Ask in place of a turn and all after it; where the reply cannot start, fails or is empty, they stay."""
    state.turns, state.replaced = state.turns[:number], state.turns[number:]
    ask(question)
    if state.pending is None:
        restore()


def restore() -> None:
    """Put the turns that were to be replaced back."""
    state.turns, state.replaced = state.turns + state.replaced, []


def edit(number: int | None) -> None:
    """Edit the question of a turn, or none; a click that comes while a reply grows does nothing."""
    if not state.pending:
        state.editing = number


def clear() -> None:
    """Begin a new conversation."""
    stop()
    state.turns, state.pending, state.replaced, state.editing = [], None, [], None
    state.open_id = ""


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
    if turns:
        keep()
    state.message = "success", say("imported", turns=len(turns))


# --- Earlier conversations ----------------------------------------------------------------------------------------


def order(record: str | None) -> None:
    """Let the visitor's browser store `record` of the conversation on the screen, or delete it where it is empty."""
    number = state.order.number + 1 if state.order else 1
    state.order = history.Order(number, state.open_id, record)


def keep() -> None:
    """Keep the conversation on the screen in the visitor's browser."""
    state.open_id = state.open_id or uuid.uuid4().hex
    order(history.to_record(setting("system"), state.turns))


def take_event(event: history.Event | None) -> None:
    """Open the conversation that was chosen in the history, or leave the one that was deleted there."""
    if event is None or event.number <= state.event:
        return
    state.event = event.number
    if event.automatic and (state.turns or state.pending):  # the visitor was quicker than the browser
        return
    if event.record is None:
        if event.unanswered or event.id == state.open_id:
            clear()
            offer_again(event.unanswered)
            st.experimental_rerun()
        return
    stop()
    commit()
    clear()
    state.open_id = event.id
    try:
        system, state.turns = history.from_record(event.record)
    except BadFileError as error:
        state.message = "error", say("not_opened", why=say(error.key, **error.values))
        order("")
        state.open_id = ""
    else:
        renew(system=system)
    offer_again(event.unanswered)
    st.experimental_rerun()


def offer_again(question: str) -> None:
    """Let the visitor send a question again to which no reply came; empty for none."""
    state.unanswered, state.editing = question, len(state.turns) if question else None


def waiting_question() -> str:
    """The question that has no reply yet; empty where there is none, or where its last reply is made anew."""
    if state.pending:
        return "" if state.replaced and state.replaced[0].question == state.pending[0] else str(state.pending[0])
    return state.unanswered if state.editing == len(state.turns) else ""


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
        notes = {who: note(reply, say) for who, reply in replies.items()}
        state.turns.append(Turn(question, texts, notes, model_name(language)))
        state.replaced = []
        keep()
    else:
        restore()


def model_name(language: str) -> str:
    """The name and run of the model that answers now."""
    return f"{model.title(language)} · {model.label}"[: history.MAX_NAME]


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
    event = history.show_list(state.session, state.open_id, state.order, waiting_question(), say)
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
    bring_scripts()
take_event(event)
st.chat_input(say("ask"), key="typed", max_chars=MAX_CHARACTERS, on_submit=ask_typed)
if state.message:
    kind, text = state.message
    state.message = None
    getattr(st, kind)(escaped(text))
st.markdown(LOOK, unsafe_allow_html=True)
present = {model_name(each) for each in LANGUAGES}
for number, turn in enumerate(state.turns):
    with st.chat_message("user"):
        if number == state.editing:
            show_form(number, turn.question, say("edit_question"), say, ask_edited, edit)
        else:
            show_question(turn.question)
            st.button(say("edit"), f"edit{number}", on_click=edit, args=(number,), disabled=bool(state.pending))
    show_replies(turn, say, present)
if state.pending:
    question, replies = state.pending
    show_growing(question, replies, say, stop)
    commit()
    st.experimental_rerun()
elif question := waiting_question():
    with st.chat_message("user"):
        show_form(len(state.turns), question, say("unanswered"), say, ask_edited, edit)
elif state.turns and state.editing is None:
    again, new = st.columns([1, 3])
    again.button(say("regenerate"), on_click=regenerate)
    new.button(say("new_chat"), on_click=clear, key="new")  # where the sidebar is closed, as on a phone
elif not state.turns:
    show_examples(EXAMPLES[language], say, ask_example)
