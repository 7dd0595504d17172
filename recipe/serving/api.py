"""Verb `api`: an OpenAI-style endpoint over the engine, for programs. On tornado, which Streamlit brings along.

/v1/chat/completions, /v1/models and /health. Prompts are built by recipe.chat_format, so that nothing a user writes
becomes a special token, and the only model is the run's own: no name in a request loads anything. docs/adr/0012 says
why it is not `transformers serve`.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import os
import signal
import threading
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.web import Application, RequestHandler

from recipe.chat_format import ROLES
from recipe.errors import RecipeError
from recipe.pipeline import stage
from recipe.serving.engine.reply import Reply, Sampling
from recipe.serving.model_host import ModelHost, refuse_taken, tell

PORT = 8000
MAX_BODY = 1 << 20  # bytes of a request
MAX_WAITING = 256  # replies on their way at which more are turned away
# What asks for something that this model cannot do, and the values that ask for nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1), "logprobs": (None, False), "top_logprobs": (None, 0), "tools": (None, []), "functions": (None, []),
    "frequency_penalty": (None, 0), "presence_penalty": (None, 0), "logit_bias": (None, {}), "modalities": (None,
    ["text"]),
    "response_format": (None, {"type": "text"}), "audio": (None,),
}  # fmt: skip


class Refused(Exception):  # noqa: N818 - it is what the client is told, and mostly no error of ours
    """An answer in OpenAI's shape. status: of HTTP."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


# --- What is asked ------------------------------------------------------------------------------------------------


def _number(body: dict[str, Any], name: str, low: float, high: float, default: Any, *, whole: bool = False) -> Any:
    value = body.get(name)
    if value is None:
        return default
    kind = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not low <= value <= high:
        raise Refused(400, f"{name} must be {kind} from {low:g} to {high:g}", param=name)
    return value


def _messages(body: dict[str, Any]) -> list[dict[str, str]]:
    content = body.get("messages")
    if not isinstance(content, list) or not content:
        raise Refused(400, "messages must be a list that is not empty", param="messages")
    messages = []
    for i, message in enumerate(content):
        where = f"messages[{i}]"
        if not isinstance(message, dict):
            raise Refused(400, f"{where} must be an object", param=where)
        role = {"developer": "system"}.get(str(message.get("role")), message.get("role"))
        if role not in ROLES:
            raise Refused(400, f"{where}.role must be one of {', '.join(ROLES)}", param=f"{where}.role")
        content = message.get("content")
        if isinstance(content, list):
            if not all(
                isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
                for part in content
            ):
                raise Refused(400, f"{where}.content: this model reads text alone", param=f"{where}.content")
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            raise Refused(400, f"{where}.content must be a text", param=f"{where}.content")
        messages.append({"role": role, "content": content})
    if messages[-1]["role"] != "user":
        raise Refused(400, "the last message must be the user's", param="messages")
    return messages


def _sampling(body: dict[str, Any], defaults: Sampling, longest: int) -> Sampling:
    for name, nothing in UNSUPPORTED.items():
        if body.get(name) not in nothing:
            raise Refused(400, f"{name} is not supported", param=name, code="unsupported_parameter")
    stop = body.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > 4 or not all(isinstance(text, str) and text for text in stop):
        raise Refused(400, "stop must be a text or up to 4 texts", param="stop")
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


# --- The handlers -------------------------------------------------------------------------------------------------


class Handler(RequestHandler):
    def initialize(self, served: ModelHost, key: str | None) -> None:
        self.served, self.key = served, key

    def set_default_headers(self) -> None:
        self.set_header("Server", "internlm2-identity")
        self.set_header("X-Content-Type-Options", "nosniff")

    def prepare(self) -> None:
        if self.key is None:
            # Without a key only this machine may ask, and no page of another site by a name that leads here.
            if not _loopback(self.request.host_name):
                raise Refused(403, "this endpoint has no key and answers on loopback names alone")
        elif not hmac.compare_digest(
            self.request.headers.get("Authorization", "").encode(), f"Bearer {self.key}".encode()
        ):
            raise Refused(401, "the API key is missing or wrong", code="invalid_api_key")

    def engine(self) -> Any:
        if self.served.engine is None or self.served.state != "ready":
            raise Refused(503, f"{self.served.state}: {self.served.message}")
        return self.served.engine

    def model_id(self) -> str:
        assert self.served.folder
        return self.served.folder.parent.name

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None))[1]
        refused = error if isinstance(error, Refused) else Refused(status_code, self._reason)
        self.set_status(refused.status)
        self.finish(refused.body)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, Refused):
            super().log_exception(typ, value, tb)


class Health(Handler):
    def prepare(self) -> None:  # a health check has no key
        pass

    def get(self) -> None:
        self.set_status(200 if self.served.state == "ready" else 503)
        self.finish({"state": self.served.state, "message": self.served.message})


class Missing(Handler):
    def prepare(self) -> None:
        super().prepare()
        raise Refused(404, f"there is no {self.request.method} {self.request.path} here")


class Models(Handler):
    def get(self, name: str | None = None) -> None:
        self.engine()
        model = {"id": self.model_id(), "object": "model", "created": 0, "owned_by": "internlm2-identity-recipe"}
        if name is None:
            self.finish({"object": "list", "data": [model]})
        elif name == model["id"]:
            self.finish(model)
        else:
            raise Refused(404, f"the model {name!r} is not here", param="model", code="model_not_found")


class Completions(Handler):
    reply: Reply | None = None

    def on_connection_close(self) -> None:
        if self.reply:
            self.reply.cancel()

    async def post(self) -> None:
        engine, body = self.engine(), self._body()
        if engine.busy >= MAX_WAITING:
            raise Refused(429, "too many replies are on their way: try again in a moment")
        if body.get("model") != self.model_id():
            raise Refused(
                404,
                f"the model {body.get('model')!r} is not here, {self.model_id()!r} is",
                param="model",
                code="model_not_found",
            )
        messages, sampling = _messages(body), _sampling(body, engine.defaults, engine.length)
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        try:
            self.reply = engine.reply(messages, sampling, on_change=lambda: loop.call_soon_threadsafe(changed.set))
        except RecipeError as error:
            raise Refused(400, str(error), param="messages", code="context_length_exceeded") from None
        reply = self.reply
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.model_id()}
        try:
            if body.get("stream"):
                usage = (body.get("stream_options") or {}).get("include_usage", False)
                await self._stream(head, reply, changed, usage=bool(usage))
            else:
                async for _ in _pieces(reply, changed):
                    pass
                if reply.error:
                    raise Refused(500, f"the reply failed: {reply.error}")
                message = {"role": "assistant", "content": reply.text, "refusal": None}
                choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.ended}
                self.finish(head | {"object": "chat.completion", "choices": [choice], "usage": _usage(reply)})
        except StreamClosedError:
            pass
        finally:
            reply.cancel()

    def _body(self) -> dict[str, Any]:
        # A page of another site may send a form or plain text here without asking, but not this.
        if self.request.headers.get("Content-Type", "").split(";")[0].strip().lower() != "application/json":
            raise Refused(415, "Content-Type must be application/json")
        try:
            body = json.loads(self.request.body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body is not JSON: {error}") from None
        if not isinstance(body, dict):
            raise Refused(400, "the body must be a JSON object")
        return body

    async def _stream(self, head: dict[str, Any], reply: Reply, changed: asyncio.Event, *, usage: bool) -> None:
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Accel-Buffering", "no")

        async def send(content: Any) -> None:
            self.write(f"data: {json.dumps(content, ensure_ascii=False)}\n\n")
            await self.flush()

        async def chunk(delta: dict[str, str], ended: str | None = None) -> None:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": ended}
            await send(head | {"object": "chat.completion.chunk", "choices": [choice]})

        await chunk({"role": "assistant", "content": ""})
        async for piece in _pieces(reply, changed):
            await chunk({"content": piece})
        if reply.error:
            await send(Refused(500, f"the reply failed: {reply.error}").body)
        else:
            await chunk({}, reply.ended)
            if usage:
                await send(head | {"object": "chat.completion.chunk", "choices": [], "usage": _usage(reply)})
        self.write("data: [DONE]\n\n")
        self.finish()


async def _pieces(reply: Reply, changed: asyncio.Event) -> AsyncIterator[str]:
    seen = 0
    while True:
        changed.clear()
        ended, text = reply.ended, reply.text  # in this order: nothing is added to an ended reply
        if len(text) > seen:
            yield text[seen:]
            seen = len(text)
        elif ended:
            return
        else:
            await changed.wait()


def _usage(reply: Reply) -> dict[str, int]:
    usage = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
    return usage | {"total_tokens": sum(usage.values())}


# --- The server ---------------------------------------------------------------------------------------------------


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def application(served: ModelHost, key: str | None) -> Application:
    given = {"served": served, "key": key}
    return Application(
        [
            (r"/health", Health, given),
            (r"/v1/models", Models, given),
            (r"/v1/models/([^/]+)", Models, given),
            (r"/v1/chat/completions", Completions, given),
        ],
        default_handler_class=Missing, default_handler_args=given, log_function=lambda _: None,
    )  # fmt: skip


def run(*, work: Path, run: str | None, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM. RecipeError: the port is taken, or others could reach it and there is no
    API_KEY."""
    key = os.environ.get("API_KEY") or None
    if key is None and not _loopback(host):
        raise RecipeError(f"API_KEY is missing: others can reach {host}, so choose a key and set it in the environment")
    refuse_taken(host, port, "API_PORT")
    served = ModelHost(work, run, port, verb="api", compare=False)
    tell(port, lambda: asyncio.run(_serve(host, port, served, key)))


async def _serve(host: str, port: int, served: ModelHost, key: str | None) -> None:
    server = HTTPServer(application(served, key), max_body_size=MAX_BODY)
    server.listen(port, host)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    stage.say("api", f"http://{host}:{port}/v1 (Ctrl-C stops it)")
    threading.Thread(target=served.watch, daemon=True).start()
    await stopped.wait()
    server.stop()
    if served.engine:
        served.engine.close()
    await server.close_all_connections()
