"""OpenAI's chat completions as this recipe speaks them: what a request may hold, and the shape of replies and errors.

https://platform.openai.com/docs/api-reference/chat has the fields; top_k, min_p and repetition_penalty are vLLM's.
A field that asks for what this model cannot do is an error, and so is one that is not known here.
"""

from __future__ import annotations

from typing import Any

from recipe.chat_format import ROLES
from recipe.engine.reply import Reply, Sampling
from recipe.plain_text import flaw

# Fields that have an effect.
SUPPORTED = {
    "model", "messages", "stream", "stream_options", "stop", "max_tokens", "max_completion_tokens", "temperature",
    "top_p", "top_k", "min_p", "repetition_penalty", "seed",
}  # fmt: skip
# Fields about the request that ask nothing of the reply.
NOTES = {"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier"}
# Fields that ask for something that this model cannot do, and the values, besides null, that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "logprobs": (False,), "top_logprobs": (0,), "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "parallel_tool_calls": (True, False),
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "modalities": (["text"],),
    "response_format": ({"type": "text"},), "store": (False,), "reasoning_effort": ("none",), "verbosity": ("medium",),
    "echo": (False,), "stop_token_ids": ([],), "ignore_eos": (False,), "skip_special_tokens": (True,),
}  # fmt: skip
# The same of a message.
MESSAGE_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tool_calls": ([],), "function_call": (), "audio": (), "refusal": ("",), "annotations": ([],)
}  # fmt: skip
MAX_STOPS, MAX_STOP = 16, 1000  # stop texts of a request, characters of each


class RequestError(Exception):
    """A request that is not answered with a reply.

    Args:
        status: of HTTP.
        message: what is wrong.
        param: the field that it is about.
        code: OpenAI's word for it.

    Attributes:
        body: the answer in OpenAI's shape.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def messages(body: dict[str, Any]) -> list[dict[str, str]]:
    """The conversation of a request, as `recipe.chat_format` takes it.

    Args:
        body: of the request.

    Raises:
        RequestError: a message is malformed, or the last is not the user's.
    """
    conversation = body.get("messages")
    if not isinstance(conversation, list) or not conversation:
        raise RequestError(400, "messages must be a list that is not empty", param="messages")
    checked = [_message(f"messages[{i}]", message) for i, message in enumerate(conversation)]
    if checked[-1]["role"] != "user":
        raise RequestError(400, "the last message must be the user's", param="messages")
    return checked


def _message(where: str, message: Any) -> dict[str, str]:
    if not isinstance(message, dict):
        raise RequestError(400, f"{where} must be an object", param=where)
    role = {"developer": "system"}.get(str(message.get("role")), message.get("role"))
    if role not in ROLES:
        raise RequestError(400, f"{where}.role must be one of {', '.join(ROLES)}", param=f"{where}.role")
    _refuse_unsupported(message, {"role", "content", "name"}, MESSAGE_UNSUPPORTED, f"{where}.")
    content = message.get("content")
    if content is None and role == "assistant" and "content" in message:
        content = ""  # as other models answer with a call of a tool alone
    if isinstance(content, list):
        if not all(
            isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
            for part in content
        ):
            raise RequestError(400, f"{where}.content: this model reads text alone", param=f"{where}.content")
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise RequestError(400, f"{where}.content must be a text", param=f"{where}.content")
    _refuse_flaw(f"{where}.content", content, control=role != "assistant")
    return {"role": role, "content": content}


def _refuse_flaw(where: str, text: str, *, control: bool = True) -> None:
    if found := flaw(text, control=control):
        raise RequestError(400, f"{where} is no text: it holds {found}", param=where)


def sampling(body: dict[str, Any], defaults: Sampling, longest: int) -> Sampling:
    """How the tokens of the reply are chosen, and where it ends.

    Args:
        body: of the request.
        defaults: for the fields that it leaves out.
        longest: tokens of a reply at most.

    Raises:
        RequestError: a value is out of range, or a field is not supported.
    """
    # Tools that are not to be called have no effect.
    no_calls = {"tools"} if body.get("tool_choice") == "none" else set()
    no_calls |= {"functions"} if body.get("function_call") == "none" else set()
    _refuse_unsupported(body, SUPPORTED | NOTES | no_calls, UNSUPPORTED)
    stop = body.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > MAX_STOPS or not all(isinstance(text, str) and text for text in stop):
        raise RequestError(400, f"stop must be a text or up to {MAX_STOPS} texts", param="stop")
    if any(len(text) > MAX_STOP for text in stop):
        raise RequestError(400, f"a stop text may have {MAX_STOP} characters", param="stop")
    for text in stop:
        _refuse_flaw("stop", text)
    limit = _count(body, "max_completion_tokens") or _count(body, "max_tokens") or longest
    return Sampling(
        max_new_tokens=min(limit, longest),
        temperature=_number(body, "temperature", 0, 2, defaults.temperature),
        top_p=max(_number(body, "top_p", 0, 1, defaults.top_p), 1e-6),  # of 0 the likeliest token is left
        top_k=max(_number(body, "top_k", -1, 2**31 - 1, defaults.top_k, whole=True), 0),
        min_p=_number(body, "min_p", 0, 1, defaults.min_p),
        repetition_penalty=_number(body, "repetition_penalty", 0.1, 10, defaults.repetition_penalty),
        seed=_number(body, "seed", -(2**63), 2**63 - 1, None, whole=True),
        stop=tuple(stop),
    )


def streaming(body: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the reply is sent in pieces, and whether its usage follows them.

    Args:
        body: of the request.

    Raises:
        RequestError: `stream` or `stream_options` is of another shape.
    """
    options = body.get("stream_options")
    if not (options is None or isinstance(options, dict)):
        raise RequestError(400, "stream_options must be an object", param="stream_options")
    options = options or {}
    _refuse_unsupported(options, {"include_usage"}, {"include_obfuscation": (False,)}, "stream_options.")
    return _flag(body, "stream"), _flag(options, "include_usage", "stream_options.")


def _refuse_unsupported(
    fields: dict[str, Any], supported: set[str], neutral: dict[str, tuple[Any, ...]], where: str = ""
) -> None:
    for name, value in fields.items():
        if name not in supported and not (value is None or _is_one_of(value, neutral.get(name, ()))):
            raise RequestError(
                400, f"{where}{name} is not supported", param=f"{where}{name}", code="unsupported_parameter"
            )


def _is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    """Whether `value` is among JSON values, in which true is no number."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in values)


def _flag(fields: dict[str, Any], name: str, where: str = "") -> bool:
    value = fields.get(name)
    if not (value is None or isinstance(value, bool)):
        raise RequestError(400, f"{where}{name} must be true or false", param=f"{where}{name}")
    return bool(value)


def _count(body: dict[str, Any], name: str) -> int | None:
    """A limit of tokens; None where there is none, which some clients write as -1."""
    value: int | None = None if body.get(name) == -1 else _number(body, name, 1, 2**31, None, whole=True)
    return value


def _number(body: dict[str, Any], name: str, low: float, high: float, default: Any, *, whole: bool = False) -> Any:
    value = body.get(name)
    if value is None:
        return default
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not low <= value <= high:
        raise RequestError(400, f"{name} must be {kind} from {low:g} to {high:g}", param=name)
    return value


def usage(reply: Reply) -> dict[str, int]:
    """The tokens of prompt and reply, counted."""
    counts = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
    return counts | {"total_tokens": sum(counts.values())}
