"""What a request of the API asks for: prompts for the engine, and how the tokens of their replies are chosen.

`request_fields` has the schema; what is here is checked by it before.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from recipe.engine.reply import Sampling
from recipe.serving import request_fields
from recipe.serving.request_checks import RequestError, check, refuse_flaw

if TYPE_CHECKING:
    from recipe.engine import Engine
    from recipe.engine.engine import Prompt

TEXT_TOKENS = 16  # of a reply of /v1/completions where the request has no limit, as at OpenAI


@dataclass(frozen=True)
class Request:
    """A request that was checked.

    Attributes:
        prompts: each is replied to `choices` times.
        choices: replies to each prompt.
        sampling: of the first choice of each prompt.
        streamed: whether the replies are sent in pieces.
        with_usage: whether a last piece has their usage.
    """

    prompts: list[Prompt]
    choices: int
    sampling: Sampling
    streamed: bool
    with_usage: bool

    def samplings(self) -> list[tuple[Prompt, Sampling]]:
        """The prompt and the sampling of every reply, in the order of their indices."""
        own, seed = self.sampling, self.sampling.seed
        return [
            (prompt, own if seed is None else replace(own, seed=seed + i))
            for prompt in self.prompts
            for i in range(self.choices)
        ]


def chat_request(body: dict[str, Any], engine: Engine) -> Request:
    """What a request of /v1/chat/completions asks for.

    Args:
        body: of the request.
        engine: of the model that answers.

    Raises:
        RequestError: the request is malformed, or a field is not supported.
    """
    check(body, request_fields.CHAT)
    conversation = [_message(f"messages[{i}]", message) for i, message in enumerate(body["messages"])]
    turns = conversation[:-1] if conversation[-1]["role"] == "assistant" else conversation
    if not turns or turns[-1]["role"] != "user":
        raise RequestError(
            400, "the last of messages must be the user's, or the assistant's after the user's", param="messages"
        )
    _check_prefix(body["messages"])
    top = int(body.get("top_logprobs") or 0)
    if top and not body.get("logprobs"):
        raise RequestError(400, "top_logprobs is for logprobs: true", param="top_logprobs")
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or -1
    sampling = _sampling(body, engine, limit, logprobs=top if body.get("logprobs") else None)
    return _request(body, sampling, [engine.prompt(conversation)])


def text_request(body: dict[str, Any], engine: Engine) -> Request:
    """What a request of /v1/completions asks for; see `chat_request`."""
    check(body, request_fields.TEXT)
    texts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
    for text in texts:
        refuse_flaw("prompt", text)
    if len(texts) * (body.get("n") or 1) > request_fields.MAX_REPLIES:
        raise RequestError(
            400, f"a request has {request_fields.MAX_REPLIES} replies at most: n for each prompt", param="n"
        )
    top = body.get("logprobs")
    limit = body.get("max_tokens") or TEXT_TOKENS
    sampling = _sampling(body, engine, limit, logprobs=None if top is None else int(top))
    return _request(body, sampling, [engine.text_prompt(text) for text in texts])


def _request(body: dict[str, Any], sampling: Sampling, prompts: list[Prompt]) -> Request:
    options = body.get("stream_options") or {}
    streamed, with_usage = bool(body.get("stream")), bool(options.get("include_usage"))
    return Request(prompts, int(body.get("n") or 1), sampling, streamed, with_usage)


def _message(where: str, message: dict[str, Any]) -> dict[str, str]:
    """A message as `recipe.chat_format` takes it."""
    role = "system" if message["role"] == "developer" else message["role"]
    content = message["content"] or ""
    if not isinstance(content, str):
        content = "".join(part["text"] for part in content)
    refuse_flaw(f"{where}.content", content, control=role != "assistant")
    return {"role": role, "content": content}


def _check_prefix(messages: list[dict[str, Any]]) -> None:
    """Check `prefix`, by which Mistral, DeepSeek and LiteLLM mark the message that the reply goes on from."""
    for i, message in enumerate(messages):
        continued = i == len(messages) - 1 and message["role"] == "assistant"
        if message.get("prefix") not in (None, continued):
            where = f"messages[{i}].prefix"
            raise RequestError(
                400, f"{where} must be {json.dumps(continued)}: the reply goes on from the assistant's last message",
                param=where,
            )  # fmt: skip


def _sampling(body: dict[str, Any], engine: Engine, limit: int, *, logprobs: int | None) -> Sampling:
    """How the tokens of a reply are chosen, and where it ends. limit: of its tokens; -1 is the model's own."""
    defaults = engine.defaults

    def value(name: str, default: Any) -> Any:
        return default if body.get(name) is None else body[name]

    stop = body.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    for text in stop:
        refuse_flaw("stop", text)
    return Sampling(
        max_new_tokens=engine.length if limit == -1 else min(int(limit), engine.length),
        temperature=value("temperature", defaults.temperature),
        top_p=max(value("top_p", defaults.top_p), 1e-6),  # of 0 the likeliest token is left
        top_k=max(int(value("top_k", defaults.top_k)), 0),
        min_p=value("min_p", defaults.min_p),
        repetition_penalty=value("repetition_penalty", defaults.repetition_penalty),
        seed=None if body.get("seed") is None else int(body["seed"]),
        stop=tuple(stop),
        logprobs=logprobs,
    )
