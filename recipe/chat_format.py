"""ChatML, in one place: training, evaluation, chat and the web page all build their prompts here.

    <s><|im_start|>user\\n{content}<|im_end|>\\n<|im_start|>assistant\\n{reply}<|im_end|>\\n …

So InternLM2's own `chat()` writes it, and XTuner's template `internlm2_chat`. Which tokens begin, end and pad is the
base's own tokenizer's: SmolLM2's and Qwen2's format is the same without `<s>`. Three rules: a BOS only at the very
beginning, and only where the format has one; no system turn when there is no system prompt; control tokens only ever
inserted by id, so that no text that a user types can become one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from recipe.panics import panics_as_errors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts for role and content; "weight": 0 in an assistant's message that is not to be learnt.
Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant")
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
# InternLM2's own.
BOS, EOS = "<s>", "</s>"
# What tokenizer_config.json of InternLM2-Chat renames the last six entries of tokenizer.model to, in id order.
CHAT_TOKENS = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", IM_END, IM_START)
SPECIAL_TOKENS = (BOS, EOS, "<unk>", *CHAT_TOKENS)
# They as text, under their own names and those of tokenizer.model: in training data they would end or open a turn.
SPECIAL = re.compile("|".join(map(re.escape, SPECIAL_TOKENS)) + r"|\[UNUSED_TOKEN_\d+\]")
# What every conversation holds besides its own texts, as texts.
FORMAT_TEXTS = ("assistant\n", "\n")
NOTHING: Mapping[str, list[int]] = MappingProxyType({})
# The label that PyTorch's cross entropy leaves out of the loss.
IGNORE_INDEX = -100

# Key of tokenizer_config.json: what ends a reply besides `<|im_end|>` and the tokenizer's eos_token.
STOP_TOKENS = "stop_tokens"
# For programs that only know Jinja templates (transformers' own pipeline, vLLM, llama.cpp): the same format as text.
# Content may be text, nothing, or OpenAI's parts; `developer` is OpenAI's newer name of `system`. What the format has
# no place for is refused. `generation` marks what bears a loss, for transformers' assistant masks.
CHAT_TEMPLATE_WITHOUT_BOS = (
    "{% if tools %}{{ raise_exception('this chat format has no tools: leave tools out') }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'system' if message['role'] == 'developer' else message['role'] %}"
    "{% if role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('role ' + role + ' is none of system, developer, user, assistant') }}{% endif %}"
    "{% if message['tool_calls'] %}"
    "{{ raise_exception('this chat format has no tools: leave tool_calls out') }}{% endif %}"
    "{% set turn = namespace(text='') %}"
    "{% if message['content'] is string %}{% set turn.text = message['content'] %}"
    "{% elif message['content'] %}{% for part in message['content'] %}"
    "{% if part['type'] != 'text' %}"
    "{{ raise_exception('this model reads text alone, no content of another type') }}{% endif %}"
    "{% set turn.text = turn.text + part['text'] %}{% endfor %}{% endif %}"
    "{% if role == 'assistant' %}{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ turn.text + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% elif role != 'system' or turn.text %}{{ '<|im_start|>' + role + '\\n' + turn.text + '<|im_end|>\\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHAT_TEMPLATE = "{{ bos_token }}" + CHAT_TEMPLATE_WITHOUT_BOS


def user(content: str) -> dict[str, str]:
    """A message of the user."""
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    """A message of the assistant."""
    return {"role": "assistant", "content": content}


def stop_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end a reply: `<|im_end|>`, the tokenizer's EOS and the base's other stop tokens, each once."""
    names = [IM_END, tokenizer.special_tokens_map.get("eos_token"), *tokenizer.init_kwargs.get(STOP_TOKENS, ())]
    return list(dict.fromkeys(tokenizer.convert_tokens_to_ids([name for name in names if name])))


@lru_cache(maxsize=8)
def control_tokens(tokenizer: PreTrainedTokenizerBase) -> Mapping[int, str]:
    """id -> text of the tokens that text must not become: the special ones, and other added tokens that are markup.

    Qwen2.5 calls neither `<|fim_prefix|>` nor `<tool_call>` special. Added tokens without brackets are vocabulary:
    runs of spaces, for example.
    """
    return {
        i: token.content
        for i, token in tokenizer.added_tokens_decoder.items()
        if len(token.content) > 1 and (token.special or (token.content[0] + token.content[-1]) in ("<>", "[]"))
    }


def control_token_in(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """The first control token that stands in `text` as text, or None."""
    return next((token for token in control_tokens(tokenizer).values() if token in text), None)


@panics_as_errors()
def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of `text` as plain text: a literal `<|im_start|>` in it is spelt out, never turned into the token."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    control = control_tokens(tokenizer)
    if control.keys().isdisjoint(ids):
        return ids
    # `split_special_tokens` leaves added tokens that are not called special, and what the vocabulary lacks becomes the
    # unknown token, which is `<|endoftext|>` in SmolLM2's. The former are cut in two, of the latter nothing is left.
    if len(text) <= 1:
        return []
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    cuts = sorted({min(max((start + end) // 2, 1), len(text) - 1) for i, (start, end) in spans if i in control})
    pieces = [text[start:end] for start, end in pairwise((0, *cuts, len(text)))]
    ids_of = {piece: text_ids(tokenizer, piece) for piece in set(pieces)}  # one token typed a million times is quick
    return [i for piece in pieces for i in ids_of[piece]]


@panics_as_errors()
def ids_of_texts(
    tokenizer: PreTrainedTokenizerBase, conversations: Iterable[Iterable[Message]]
) -> dict[str, list[int]]:
    """Text -> its `text_ids`, of all texts in some conversations in one call of the library: three times as fast."""
    texts = [_text(message) for messages in conversations for message in messages]
    if not texts:
        return {}
    distinct = list(dict.fromkeys([*FORMAT_TEXTS, *texts]))
    encoded = tokenizer(distinct, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False)
    control = control_tokens(tokenizer)
    return {
        text: ids if control.keys().isdisjoint(ids) else text_ids(tokenizer, text)
        for text, ids in zip(distinct, encoded["input_ids"], strict=True)
    }


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, ids_of: Mapping[str, list[int]] = NOTHING
) -> list[int]:
    """The ids that ask for the next reply to `messages`: the conversation, then the assistant's header.

    ids_of: as in `training_ids`.
    """
    ids = _bos_ids(tokenizer)
    for turn, _ in _turns(tokenizer, messages, ids_of):
        ids += turn
    return ids + _header(tokenizer, "assistant", ids_of)


def text_prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text that a model is to go on from as it stands, without any turn."""
    return [*_bos_ids(tokenizer), *text_ids(tokenizer, text)]


def training_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    ended: bool = True,
    ids_of: Mapping[str, list[int]] = NOTHING,
) -> tuple[list[int], list[int]]:
    """The ids of a whole conversation and their labels, both of the same length.

    Only what the assistant says, with the `<|im_end|>` that ends it, bears a loss. All else is `IGNORE_INDEX`, and so
    is a message with "weight": 0.

    Args:
        messages: the conversation, the last of them the assistant's.
        ended: False where that last reply was cut at a limit: then no `<|im_end|>` follows it.
        ids_of: what `ids_of_texts` returned for this and other conversations.
    """
    ids = _bos_ids(tokenizer)
    labels = [IGNORE_INDEX] * len(ids)
    for turn, learnt in _turns(tokenizer, messages, ids_of):
        ids += turn
        labels += [token if is_learnt else IGNORE_INDEX for token, is_learnt in zip(turn, learnt, strict=True)]
    if not ended:
        end = len(labels) - next(i for i, label in enumerate(reversed(labels)) if label != IGNORE_INDEX) - 1
        del ids[end:], labels[end:]
    return ids, labels


def _bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The BOS, or nothing. Stage `model` names a bos_token only where the format begins with one."""
    bos = tokenizer.special_tokens_map.get("bos_token")
    return [tokenizer.convert_tokens_to_ids(bos)] if bos and bos != IM_START else []


def _header(tokenizer: PreTrainedTokenizerBase, role: str, ids_of: Mapping[str, list[int]] = NOTHING) -> list[int]:
    text = f"{role}\n"
    return [tokenizer.convert_tokens_to_ids(IM_START), *(ids_of.get(text) or text_ids(tokenizer, text))]


def _text(message: Message) -> str:
    """What of a message is tokenised on its own: its header, too, but for a reply's.

    That header ends a prompt, so the reply is tokenised as it is when it is generated.
    """
    content: str = message["content"]
    return content if message["role"] == "assistant" else f"{message['role']}\n{content}"


def _turns(
    tokenizer: PreTrainedTokenizerBase, messages: Iterable[Message], ids_of: Mapping[str, list[int]] = NOTHING
) -> Iterable[tuple[list[int], list[bool]]]:
    """For each turn its ids, and for each id whether the model is to learn to say it."""
    end = tokenizer.convert_tokens_to_ids(IM_END)
    newline = ids_of.get("\n") or text_ids(tokenizer, "\n")
    for message in messages:
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise ValueError(f"role {role!r} is none of {', '.join(ROLES)}")
        if role == "system" and not content:
            continue
        text = _text(message)
        ids = ids_of[text] if text in ids_of else text_ids(tokenizer, text)
        if role == "assistant":
            header, content_ids = _header(tokenizer, role, ids_of), [*ids, end]
            learnt = message.get("weight", 1) != 0
            yield (
                [*header, *content_ids, *newline],
                [False] * len(header) + [learnt] * len(content_ids) + [False] * len(newline),
            )
        else:
            start = tokenizer.convert_tokens_to_ids(IM_START)
            turn = [start, *ids, end, *newline]
            yield turn, [False] * len(turn)
