"""What a visitor sees. Streamlit runs this file from top to bottom at every click; recipe/demo.py holds the model."""

from __future__ import annotations

import time

import streamlit as st

from recipe import demo
from recipe.errors import RecipeError

EXAMPLES = ("你是谁？", "Who are you?", "法国的首都是哪里？")

st.set_page_config(page_title="InternLM2", page_icon="💬")
model = demo.served()
st.title("💬 InternLM2")

if model.state == "loading":
    with st.spinner("正在加载模型… Loading the model…"):
        waiting = st.empty()
        while model.state == "loading":
            time.sleep(0.2)
            waiting.empty()  # where Streamlit ends a script whose visitor left or whose server stops
if model.state != "ready":
    st.error(f"模型不可用 No model: {model.message}")
    st.button("重试 Try again", on_click=model.try_again)
    st.stop()

with st.sidebar:
    st.caption(model.message)
    temperature = st.slider(
        "随机性 Temperature", 0.0, 2.0, 0.0, 0.1, help="0：总是最可能的回答 0 gives the likeliest reply"
    )
    longest = st.slider("回答长度 Longest reply", 16, 1024, 512, 16, help="以 token 计 in tokens")
    if st.button("清空对话 Clear"):
        st.session_state.pop("messages", None)

messages: list[dict[str, str]] = st.session_state.setdefault("messages", [])
for message in messages:
    with st.chat_message(message["role"]):
        st.markdown(message["content"])

asked = st.chat_input("问点什么 Ask something")
if not messages and not asked:
    for column, example in zip(st.columns(len(EXAMPLES)), EXAMPLES, strict=True):
        if column.button(example):
            asked = example
if asked:
    question = {"role": "user", "content": asked}
    with st.chat_message("user"):
        st.markdown(asked)
    with st.chat_message("assistant"):
        place, said = st.empty(), ""
        pieces = model.reply([*messages, question], max_new_tokens=longest, temperature=temperature, top_p=0.8)
        try:
            for piece in pieces:
                said += piece
                place.markdown(said + " ▌")
            place.markdown(said)
            messages += [question, {"role": "assistant", "content": said}]
        except RecipeError as error:
            st.error(str(error))
        finally:  # also when the visitor leaves or clicks elsewhere: stop the model
            pieces.close()  # type: ignore[attr-defined]
