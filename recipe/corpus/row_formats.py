"""The formats in which people have conversations, and how each becomes turns: one table, `FORMATS`.

openai          {"messages": [{"role", "content", "weight"}]}: https://platform.openai.com/docs/guides/fine-tuning
sharegpt        {"conversations": [{"from", "value"}]}
xtuner          {"conversation": [{"system", "input", "output"}]}: XTuner's own, and the InternLM course's
alpaca          {"instruction", "input", "output", "system", "history"}: Taori et al. (2023), "Stanford Alpaca"
prompt          {"prompt", "completion"}: texts, or lists of messages as TRL has them

A row of any format may have a `system` of its own. Keys that nothing here takes are refused where they carry meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from recipe.chat_format import ROLES


@dataclass(frozen=True)
class Turn:
    """One turn of a row.

    Attributes:
        role: system, user or assistant.
        content: what is said; its type is checked.
        field: of the row, in which the content stands, for errors.
        role_field: likewise of the role.
        learnt: False for an assistant's turn that bears no loss.
    """

    role: str
    content: str
    field: str
    role_field: str = ""
    learnt: bool = True


@dataclass(frozen=True)
class Format:
    """A format of rows.

    Attributes:
        name: in the log.
        keys: by which a row is recognised; all must be there.
        optional: further keys that are taken.
        turns: makes turns of a row. It raises ValueError: the field, and what is wrong with it.
    """

    name: str
    keys: tuple[str, ...]
    optional: tuple[str, ...]
    turns: Callable[[Mapping[str, Any]], list[Turn]]


SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant",
    "assistant": "assistant", "bing": "assistant", "bard": "assistant",
}  # fmt: skip

# What to do about keys that say something which the training would not follow.
_TOOLS = "tool calls are not trained here; remove the key if the answer calls none, else the row"
_PREFERENCE = "one answer is learnt, and preferences between answers are not; keep the right answer and remove the key"
_MEDIA = "the model reads text alone; remove the row"
_LOSS = 'write "weight": 0 into each assistant\'s turn that is not to be learnt'
_THOUGHTS = "what a model thinks before its answer is not trained here; write it into the answer, or remove the key"
_DOCUMENTS = "the model would not see it; write it into the user's turn"
UNSUPPORTED_KEYS = (
    dict.fromkeys(("tools", "functions", "function_call", "tool_calls", "tool_call_id", "tool_choice"), _TOOLS)
    | dict.fromkeys(("chosen", "rejected", "chosen_response", "rejected_response", "rejected_messages"), _PREFERENCE)
    | dict.fromkeys(("preferred_output", "non_preferred_output", "kto_tag", "score_chosen"), _PREFERENCE)
    | dict.fromkeys(("image", "images", "video", "videos", "audio", "audios", "objects", "bbox"), _MEDIA)
    | dict.fromkeys(("loss", "loss_mask", "loss_scale", "loss_weight", "weight", "weights"), _LOSS)
    | dict.fromkeys(("reasoning", "reasoning_content", "thinking"), _THOUGHTS)
    | dict.fromkeys(("documents", "context"), _DOCUMENTS)
)


def turns_of(row: Mapping[str, Any]) -> tuple[Format, list[Turn], list[str]]:
    """Make turns of a row of any format.

    Args:
        row: an object of the user's file.

    Returns:
        Its format, its turns, and the keys that are not trained on.

    Raises:
        ValueError: the field, what is wrong with it, and what to do.
    """
    for key, value in row.items():
        if remedy := _remedy(key, value):
            raise ValueError(f"{key}: is not supported; {remedy}")
    chosen = _format_of(row)
    taken = {*chosen.keys, *chosen.optional, "system"}
    return chosen, _with_system(row.get("system"), chosen.turns(row)), [key for key in row if key not in taken]


def short(text: str) -> str:
    """The text, cut to what a line has room for."""
    return text if len(text) <= 60 else f"{text[:60]}…"


def kind(value: Any) -> str:
    """What a JSON value is, in words."""
    return {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}.get(
        type(value), "a number"
    )


def _format_of(row: Mapping[str, Any]) -> Format:
    matching = [each for each in FORMATS if all(key in row for key in each.keys)]
    if len(matching) > 1:  # exports of tables write null where a row lacks a column
        matching = [each for each in matching if row[each.keys[0]] is not None] or matching[:1]
    if len(matching) > 1:
        keys = [each.keys[0] for each in matching]
        raise ValueError(f"{keys[1]}: the row has {keys[0]} as well, and one of them is trained: remove the other")
    if matching:
        return matching[0]
    partly = [each for each in FORMATS if any(key in row for key in each.keys)]
    missing = next((key for each in partly for key in each.keys if key not in row), "messages")
    remedy = "" if partly else f"; the shortest row is {SHORTEST_ROW}, and docs/data.md has the other formats"
    raise ValueError(f"{missing}: missing (the row has {short(', '.join(map(repr, row))) or 'nothing'}){remedy}")


def _remedy(key: str, value: Any) -> str | None:
    """What to do about a key that carries meaning; None where it carries none. Exports of tables fill in empty ones."""
    if value is None or value in ("", [], {}):
        return None
    if key.lower() == "label":  # of KTO: whether the answer is a good one; elsewhere the name of a class
        return _PREFERENCE if isinstance(value, bool) else None
    return UNSUPPORTED_KEYS.get(key.lower())


def _with_system(value: Any, turns: list[Turn]) -> list[Turn]:
    """The turns with the row's own system turn before them."""
    if value is None or not text_of("system", value).strip():
        return turns
    if turns and turns[0].role == "system":
        if turns[0].content != value:
            raise ValueError(f"system: is another system turn than that of {turns[0].field}: keep one of them")
        return turns
    return [Turn("system", value, "system", "system"), *turns]


def text_of(field: str, value: Any) -> str:
    """The value, which must be text. ValueError: it is not."""
    if not isinstance(value, str):
        raise ValueError(f"{field}: must be text, not {kind(value)}")
    return value


def _object(field: str, value: Any, keys: tuple[str, ...], also: Iterable[str]) -> Mapping[str, Any]:
    """The value, which must be an object with texts for all `keys`. Keys in `also` it may have, no others but null."""
    named = " and ".join(keys)
    if not isinstance(value, dict):
        raise ValueError(f"{field}: must be an object with {named}, not {kind(value)}")
    for key in keys:
        if key not in value:
            raise ValueError(f"{field}.{key}: missing")
        text_of(f"{field}.{key}", value[key])
    for key in sorted(set(value) - {*keys, *also}):
        if value[key] is not None:
            remedy = _remedy(key, value[key]) or f"a turn has {named}"
            raise ValueError(f"{field}.{short(repr(key)[1:-1])}: not supported; {remedy}")
    return value


def _list(field: str, value: Any, what: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{field}: must be a list of at least {what}")
    return value


def _message_turns(
    field: str, value: Any, keys: tuple[str, str] = ("role", "content"), roles: Mapping[str, str] | None = None
) -> list[Turn]:
    """The turns of a list of messages, whose keys are those of role and content."""
    role_key, content_key = keys
    roles = roles or {role: role for role in ROLES}
    turns = []
    for i, each in enumerate(_list(field, value, "one user's and one assistant's turn")):
        message, where = _object(f"{field}[{i}]", each, keys, ("weight",)), f"{field}[{i}].{role_key}"
        if message[role_key] not in roles:
            calls = f"; {_TOOLS}" if message[role_key] in ("tool", "function", "function_call", "observation") else ""
            raise ValueError(f"{where}: {short(repr(message[role_key]))} is none of {', '.join(roles)}{calls}")
        role = roles[message[role_key]]
        learnt = _is_learnt(f"{field}[{i}].weight", message.get("weight"), role)
        turns.append(Turn(role, message[content_key], f"{field}[{i}].{content_key}", where, learnt=learnt))
    return turns


def _is_learnt(field: str, weight: Any, role: str) -> bool:
    """Whether a turn of that weight is learnt; others than the assistant's never are."""
    if weight is None:
        return True
    if isinstance(weight, bool) or weight not in (0, 1):
        raise ValueError(f"{field}: must be 1, or 0 for a turn that is not to be learnt")
    if weight and role != "assistant":
        raise ValueError(f"{field}: only what the assistant says is learnt; remove the weight")
    return bool(weight) or role != "assistant"


def _openai(row: Mapping[str, Any]) -> list[Turn]:
    return _message_turns("messages", row["messages"])


def _sharegpt(row: Mapping[str, Any]) -> list[Turn]:
    return _message_turns("conversations", row["conversations"], ("from", "value"), SHAREGPT_ROLES)


def _xtuner(row: Mapping[str, Any]) -> list[Turn]:
    turns: list[Turn] = []
    system = ""
    for i, each in enumerate(_list("conversation", row["conversation"], "one exchange with input and output")):
        field = f"conversation[{i}]"
        exchange = _object(field, each, ("input", "output"), ("system", "output_with_loss"))
        opening = text_of(f"{field}.system", exchange.get("system") or "")
        if opening.strip() and opening != system:
            if i:
                raise ValueError(f"{field}.system: a system turn can only come first")
            system = opening
            turns.append(Turn("system", opening, f"{field}.system"))
        learnt = exchange.get("output_with_loss", True)
        if not isinstance(learnt, bool):
            raise ValueError(f"{field}.output_with_loss: must be true or false")
        turns.append(Turn("user", exchange["input"], f"{field}.input"))
        turns.append(Turn("assistant", exchange["output"], f"{field}.output", learnt=learnt))
    return turns


def _alpaca(row: Mapping[str, Any]) -> list[Turn]:
    turns = []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise ValueError(f"history: must be a list of pairs [question, answer], not {kind(history)}")
    for i, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"history[{i}]: must be a pair [question, answer]")
        for j, role in enumerate(("user", "assistant")):
            turns.append(Turn(role, text_of(f"history[{i}][{j}]", pair[j]), f"history[{i}][{j}]"))
    values = {"instruction": row["instruction"], "input": row.get("input") or ""}
    parts = [text_of(key, value) for key, value in values.items()]
    question = "\n".join(part for part in parts if part.strip())
    answer = text_of("output", row["output"])
    if answer.strip() == "<nooutput>":
        raise ValueError("output: is <nooutput>, Alpaca's mark for a row without an answer: remove the row")
    return [*turns, Turn("user", question, "instruction"), Turn("assistant", answer, "output")]


def _prompt(row: Mapping[str, Any]) -> list[Turn]:
    if not isinstance(row["prompt"], list):
        texts = {key: text_of(key, row[key]) for key in ("prompt", "completion")}
        return [Turn("user", texts["prompt"], "prompt"), Turn("assistant", texts["completion"], "completion")]
    # TRL learns the completion alone.
    given = [replace(turn, learnt=turn.role != "assistant") for turn in _message_turns("prompt", row["prompt"])]
    return [*given, *_message_turns("completion", row["completion"])]


FORMATS = (
    Format("OpenAI messages", ("messages",), (), _openai),
    Format("ShareGPT conversations", ("conversations",), (), _sharegpt),
    Format("XTuner conversation", ("conversation",), (), _xtuner),
    Format("Alpaca instruction and output", ("instruction", "output"), ("input", "history"), _alpaca),
    Format("prompt and completion", ("prompt", "completion"), (), _prompt),
)
SHORTEST_ROW = '{"prompt": "…", "completion": "…"}'
