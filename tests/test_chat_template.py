"""The chat template, which other programs read: what it makes of every shape of message, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import small_bases
from jinja2.exceptions import TemplateError
from test_chat_format import CONVERSATIONS, chat

from recipe.chat_format import IGNORE_INDEX, training_ids
from recipe.stages import model

Conversation = list[dict[str, Any]]
HI = {"role": "user", "content": "Hi"}
RENDERED_HI = "<|im_start|>user\nHi<|im_end|>\n"
ASK = "<|im_start|>assistant\n"
# Conversation -> its text, without the BOS that InternLM2's begins with.
GOLDEN: dict[str, tuple[Conversation, str]] = {
    "text": ([HI], RENDERED_HI + ASK),
    "system": (
        [{"role": "system", "content": "Be brief."}, HI],
        "<|im_start|>system\nBe brief.<|im_end|>\n" + RENDERED_HI + ASK,
    ),
    "developer": (
        [{"role": "developer", "content": "Be brief."}, HI],
        "<|im_start|>system\nBe brief.<|im_end|>\n" + RENDERED_HI + ASK,
    ),
    "empty system": ([{"role": "system", "content": ""}, HI], RENDERED_HI + ASK),
    "system of null": ([{"role": "system", "content": None}, HI], RENDERED_HI + ASK),
    "system without parts": ([{"role": "system", "content": []}, HI], RENDERED_HI + ASK),
    "parts": (
        [{"role": "user", "content": [{"type": "text", "text": "你好，"}, {"type": "text", "text": "Hi\n"}]}],
        "<|im_start|>user\n你好，Hi\n<|im_end|>\n" + ASK,
    ),
    "parts of a system prompt": (
        [{"role": "developer", "content": [{"type": "text", "text": " a "}]}, HI],
        "<|im_start|>system\n a <|im_end|>\n" + RENDERED_HI + ASK,
    ),
    "null": ([HI, {"role": "assistant", "content": None}, HI], f"{RENDERED_HI}{ASK}<|im_end|>\n{RENDERED_HI}{ASK}"),
    "no content": ([HI, {"role": "assistant"}, HI], f"{RENDERED_HI}{ASK}<|im_end|>\n{RENDERED_HI}{ASK}"),
    "no tool calls": (
        [HI, {"role": "assistant", "content": "b", "tool_calls": []}, HI],
        f"{RENDERED_HI}{ASK}b<|im_end|>\n{RENDERED_HI}{ASK}",
    ),
    "white space": (
        [{"role": "user", "content": "  a\n\n"}, {"role": "assistant", "content": " b "}, HI],
        f"<|im_start|>user\n  a\n\n<|im_end|>\n{ASK} b <|im_end|>\n{RENDERED_HI}{ASK}",
    ),
}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "of today", "parameters": {}}}
REFUSED: dict[str, tuple[Conversation, str]] = {
    "a tool": ([{"role": "tool", "content": "sunny"}], "role tool is none of system, developer, user, assistant"),
    "tool calls": ([HI, {"role": "assistant", "content": None, "tool_calls": [CALL]}], "leave tool_calls out"),
    "an image": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}],
        "this model reads text alone",
    ),
}


@pytest.fixture(scope="session", params=["internlm2", "llama", "qwen2"])
def any_tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    if request.param == "internlm2":
        return request.getfixturevalue("tokenizer")
    work = tmp_path_factory.mktemp("template")
    model.make(work / "models" / "base", model=str(small_bases.write(work / "source", request.param)))
    return AutoTokenizer.from_pretrained(work / "models" / "base")


@pytest.mark.parametrize("name", GOLDEN)
def test_a_conversation_is_the_text_written_down(any_tokenizer: Any, name: str) -> None:
    conversation, text = GOLDEN[name]
    rendered = any_tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    assert rendered == (any_tokenizer.special_tokens_map.get("bos_token") or "") + text
    ended = any_tokenizer.apply_chat_template(conversation, tokenize=False)
    assert rendered == ended + ASK


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_format_has_no_place_for_is_refused(any_tokenizer: Any, name: str) -> None:
    conversation, reason = REFUSED[name]
    with pytest.raises(TemplateError, match=reason):
        any_tokenizer.apply_chat_template(conversation, tokenize=False)


def test_tools_are_refused_and_not_dropped(any_tokenizer: Any) -> None:
    with pytest.raises(TemplateError, match="leave tools out"):
        any_tokenizer.apply_chat_template([HI], tools=[TOOL], tokenize=False)
    assert any_tokenizer.apply_chat_template([HI], tools=[], tokenize=False).endswith(RENDERED_HI)


@pytest.mark.parametrize("messages", [*CONVERSATIONS.values(), chat("a", "b", "c", "", system="d")])
def test_assistant_masks_are_what_training_learns(any_tokenizer: Any, messages: Conversation) -> None:
    encoded = any_tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    ids, labels = training_ids(any_tokenizer, messages)
    assert encoded["input_ids"] == ids
    assert encoded["assistant_masks"] == [int(label != IGNORE_INDEX) for label in labels]
