"""The chat format of InternLM2, in one place: training, evaluation, chat and the web page all build their prompts here.

    <s><|im_start|>user\\n{content}<|im_end|>\\n<|im_start|>assistant\\n{reply}<|im_end|>\\n …

It is the format of XTuner's `internlm2_chat` template and of the model's own `chat()`, and three rules keep it so:
one `<s>` at the very beginning, no system turn when there is no system prompt, and special tokens only ever inserted by
id, so that no text that a user types can become one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]

ROLES = ("system", "user", "assistant")
BOS, EOS = "<s>", "</s>"
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
# What tokenizer_config.json of InternLM2-Chat renames the last six entries of tokenizer.model to, in id order.
CHAT_TOKENS = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", IM_END, IM_START)
SPECIAL_TOKENS = (BOS, EOS, "<unk>", *CHAT_TOKENS)
# They as text, under their own names and those of tokenizer.model: in training data they would end or open a turn.
SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)) + r"|\[UNUSED_TOKEN_\d+\]")
# The label that PyTorch's cross entropy leaves out of the loss.
IGNORE_INDEX = -100

# For programs that only know Jinja templates (transformers' own pipeline, vLLM, llama.cpp): the same format as text.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] != 'system' or message['content'] %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def user(content: str) -> dict[str, str]:
    """A message of the user."""
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    """A message of the assistant."""
    return {"role": "assistant", "content": content}


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end a reply: `<|im_end|>` and `</s>`."""
    return [tokenizer.convert_tokens_to_ids(IM_END), tokenizer.convert_tokens_to_ids(EOS)]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of `text` as plain text: a literal `<|im_start|>` in it is spelt out, never turned into the token."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """The ids that ask for the next reply to `messages`: the conversation, then the assistant's header."""
    ids = [tokenizer.convert_tokens_to_ids(BOS)]
    for turn, _ in _turns(tokenizer, messages):
        ids += turn
    return ids + _header(tokenizer, "assistant")


def training_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    """The ids of a whole conversation and their labels, both of the same length.

    Only what the assistant says, with the `<|im_end|>` that ends it, bears a loss; all else is `IGNORE_INDEX`.
    """
    ids = [tokenizer.convert_tokens_to_ids(BOS)]
    labels = [IGNORE_INDEX]
    for turn, learnt in _turns(tokenizer, messages):
        ids += turn
        labels += [token if is_learnt else IGNORE_INDEX for token, is_learnt in zip(turn, learnt, strict=True)]
    return ids, labels


def _header(tokenizer: PreTrainedTokenizerBase, role: str) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(IM_START), *text_ids(tokenizer, f"{role}\n")]


def _turns(tokenizer: PreTrainedTokenizerBase, messages: Iterable[Message]) -> Iterable[tuple[list[int], list[bool]]]:
    """For each turn its ids, and for each id whether the model is to learn to say it."""
    end = tokenizer.convert_tokens_to_ids(IM_END)
    newline = text_ids(tokenizer, "\n")
    for message in messages:
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}")
        if role == "system" and not content:
            continue
        if role == "assistant":
            # The header ends a prompt, so the reply is tokenised on its own, as it is when it is generated.
            header, content_ids = _header(tokenizer, role), [*text_ids(tokenizer, content), end]
            yield (
                [*header, *content_ids, *newline],
                [False] * len(header) + [True] * len(content_ids) + [False] * len(newline),
            )
        else:
            start = tokenizer.convert_tokens_to_ids(IM_START)
            turn = [start, *text_ids(tokenizer, f"{role}\n{content}"), end, *newline]
            yield turn, [False] * len(turn)
