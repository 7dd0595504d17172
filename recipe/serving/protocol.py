"""OpenAI's chat completions as this recipe speaks them: what a request may hold, and the shape of replies and errors.

https://platform.openai.com/docs/api-reference/chat has the fields. A request for something that this model cannot do is
an error; fields that are not known here are ignored.
"""

from __future__ import annotations

from typing import Any

from recipe.chat_format import ROLES
from recipe.engine.reply import Reply, Sampling
from recipe.plain_text import flaw

# Fields that ask for something that this model cannot do, and the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1), "logprobs": (None, False), "top_logprobs": (None, 0), "tools": (None, []), "functions": (None, []),
    "frequency_penalty": (None, 0), "presence_penalty": (None, 0), "logit_bias": (None, {}), "modalities": (None,
    ["text"]),
    "response_format": (None, {"type": "text"}), "audio": (None,),
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
    content = message.get("content")
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
    for name, neutral in UNSUPPORTED.items():
        if body.get(name) not in neutral:
            raise RequestError(400, f"{name} is not supported", param=name, code="unsupported_parameter")
    stop = body.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > MAX_STOPS or not all(isinstance(text, str) and text for text in stop):
        raise RequestError(400, f"stop must be a text or up to {MAX_STOPS} texts", param="stop")
    if any(len(text) > MAX_STOP for text in stop):
        raise RequestError(400, f"a stop text may have {MAX_STOP} characters", param="stop")
    for text in stop:
        _refuse_flaw("stop", text)
    limit = _number(body, "max_completion_tokens", 1, 2**31, None, whole=True)
    limit = limit or _number(body, "max_tokens", 1, 2**31, longest, whole=True)
    return Sampling(
        max_new_tokens=min(limit, longest),
        temperature=_number(body, "temperature", 0, 2, defaults.temperature),
        top_p=_number(body, "top_p", 1e-6, 1, defaults.top_p),
        repetition_penalty=_number(body, "repetition_penalty", 0.1, 10, defaults.repetition_penalty),
        seed=_number(body, "seed", -(2**63), 2**63 - 1, None, whole=True),
        stop=tuple(stop),
    )


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
