"""The endpoints of verb `api`: /v1/chat/completions, /v1/models and /health, on tornado.

`protocol` has what a request may hold. Prompts are built by recipe.chat_format, so that nothing a user writes becomes a
special token. The only model is the run's own: no name in a request loads anything.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Collection
from functools import partial
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import Application, RequestHandler

from recipe.engine.reply import NotServedError, Reply
from recipe.errors import RecipeError
from recipe.pipeline import stage
from recipe.serving import protocol
from recipe.serving.listener import is_loopback
from recipe.serving.model_host import ModelHost
from recipe.serving.protocol import RequestError

MAX_WAITING = 256  # completions on their way at which more requests are refused
MAX_BODY = 1 << 20  # bytes of a request
READ_BODY = 1 << 26  # bytes that are read of a longer one, so that its sender hears what is wrong


class Handler(RequestHandler):
    """What all endpoints share: the key, and errors in OpenAI's shape."""

    def initialize(self, model_host: ModelHost, key: str | None) -> None:
        self.model_host, self.key = model_host, key

    def set_default_headers(self) -> None:
        self.set_header("Server", "internlm2-identity")
        self.set_header("X-Content-Type-Options", "nosniff")
        if self.settings["origins"]:
            self.set_header("Vary", "Origin")
        if self._origin_allowed():
            self.set_header("Access-Control-Allow-Origin", self.request.headers["Origin"])

    def prepare(self) -> None:
        if self.key is None:
            # Without a key only this machine may ask, and no page of another site by a name that leads here.
            if not is_loopback(self.request.host_name):
                raise RequestError(403, "this endpoint has no key and answers on loopback names alone")
        elif not self._has_key() and self.request.method != "OPTIONS":  # a browser asks that before it sends the key
            raise RequestError(401, "the API key is missing or wrong", code="invalid_api_key")

    def _has_key(self) -> bool:
        scheme, _, key = self.request.headers.get("Authorization", "").partition(" ")
        given = key.strip().encode("latin-1", "replace")  # the bytes that came: tornado reads headers as Latin-1
        return scheme.lower() == "bearer" and hmac.compare_digest(given, (self.key or "").encode())

    def options(self, *_: str) -> None:
        """What may be done here; a browser asks it for a page of another origin."""
        self.set_header("Allow", ", ".join(self._methods()))
        if self._origin_allowed():
            self.set_header("Access-Control-Allow-Methods", ", ".join(self._methods()))
            wanted = self.request.headers.get("Access-Control-Request-Headers", "Authorization, Content-Type")
            self.set_header("Access-Control-Allow-Headers", wanted)
            self.set_header("Access-Control-Max-Age", "600")
        self.set_status(204)

    def _methods(self) -> list[str]:
        own = [method for method in ("get", "head", "post") if method in vars(type(self))]
        return [*(method.upper() for method in own), "OPTIONS"]

    def _origin_allowed(self) -> bool:
        return self.request.headers.get("Origin") in self.settings["origins"]

    def engine(self) -> Any:
        """The engine of the model.

        Raises:
            RequestError: there is none yet.
        """
        if self.model_host.engine is None or self.model_host.state != "ready":
            raise RequestError(503, f"{self.model_host.state}: {self.model_host.message}")
        return self.model_host.engine

    def model_id(self) -> str:
        """The name of the run."""
        assert self.model_host.folder
        return self.model_host.folder.parent.name

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None))[1]
        request_error = error if isinstance(error, RequestError) else RequestError(status_code, self._reason)
        self.set_status(request_error.status)
        if request_error.status == 405:
            self.set_header("Allow", ", ".join(self._methods()))
        self.finish(request_error.body)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, RequestError):
            super().log_exception(typ, value, tb)


class Health(Handler):
    """/health: 200 once the model is loaded."""

    def prepare(self) -> None:  # a health check has no key
        pass

    def get(self) -> None:
        self.set_status(200 if self.model_host.state == "ready" else 503)
        self.finish({"state": self.model_host.state, "message": self.model_host.message})

    head = get


class Missing(Handler):
    """Any other path."""

    def prepare(self) -> None:
        super().prepare()
        raise RequestError(404, f"there is no {self.request.method} {self.request.path} here")


class Models(Handler):
    """/v1/models, and /v1/models/NAME."""

    def get(self, name: str | None = None) -> None:
        length = self.engine().length
        assert self.model_host.folder
        model = {
            "id": self.model_id(), "object": "model", "owned_by": "internlm2-identity-recipe",
            "created": int((self.model_host.folder / stage.MANIFEST).stat().st_mtime),
            "context_length": length, "max_model_len": length,
        }  # fmt: skip
        if name is None:
            self.finish({"object": "list", "data": [model]})
        elif name == model["id"]:
            self.finish(model)
        else:
            raise RequestError(404, f"the model {name!r} is not here", param="model", code="model_not_found")

    head = get


class Completions(Handler):
    """/v1/chat/completions, in one piece or as a stream."""

    reply: Reply | None = None
    left = False  # the client

    def on_connection_close(self) -> None:
        self.left = True
        if self.reply:
            self.reply.cancel()

    def on_finish(self) -> None:
        self.settings["running"].discard(self)

    async def post(self) -> None:
        engine, body = self.engine(), self._body()
        if len(self.settings["running"]) >= MAX_WAITING:
            raise RequestError(429, "too many replies are on their way: try again in a moment")
        self.settings["running"].add(self)
        if body.get("model") != self.model_id():
            raise RequestError(
                404,
                f"the model {body.get('model')!r} is not here, {self.model_id()!r} is",
                param="model",
                code="model_not_found",
            )
        messages, sampling = protocol.messages(body), protocol.sampling(body, engine.defaults, engine.length)
        in_pieces, with_usage = protocol.streaming(body)
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        start = partial(engine.reply, messages, sampling, on_change=lambda: loop.call_soon_threadsafe(changed.set))
        try:
            # A megabyte of text takes seconds to become tokens, in which the replies of others would stand still.
            self.reply = reply = await loop.run_in_executor(None, start)
        except NotServedError as error:
            raise RequestError(503, str(error)) from None
        except RecipeError as error:
            raise RequestError(400, str(error), param="messages", code="context_length_exceeded") from None
        if self.left:
            reply.cancel()
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.model_id()}
        try:
            if in_pieces:
                await self._stream(head, reply, changed, with_usage=with_usage)
            else:
                async for _ in _pieces(reply, changed):
                    pass
                if failure := _failure(reply):
                    raise failure
                message = {"role": "assistant", "content": reply.text, "refusal": None}
                choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.ended}
                self.finish(head | {"object": "chat.completion", "choices": [choice], "usage": protocol.usage(reply)})
        except StreamClosedError:
            pass
        finally:
            reply.cancel()

    def _body(self) -> dict[str, Any]:
        # A page of another site may send a form or plain text here without asking, but not this.
        if len(self.request.body) > MAX_BODY:
            raise RequestError(413, f"the body is larger than {MAX_BODY} bytes")
        if self.request.headers.get("Content-Type", "").split(";")[0].strip().lower() != "application/json":
            raise RequestError(415, "Content-Type must be application/json")
        try:
            body = json.loads(self.request.body)
        except (ValueError, RecursionError) as error:
            raise RequestError(400, f"the body is not JSON: {error}") from None
        if not isinstance(body, dict):
            raise RequestError(400, "the body must be a JSON object")
        return body

    async def _stream(self, head: dict[str, Any], reply: Reply, changed: asyncio.Event, *, with_usage: bool) -> None:
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
        if failure := _failure(reply):
            await send(failure.body)
        else:
            await chunk({}, reply.ended)
            if with_usage:
                await send(head | {"object": "chat.completion.chunk", "choices": [], "usage": protocol.usage(reply)})
        self.write("data: [DONE]\n\n")
        self.finish()


def _failure(reply: Reply) -> RequestError | None:
    """What a client that is still there is told in place of the reply; None where the reply is complete."""
    if reply.error:
        return RequestError(500, f"the reply failed: {reply.error}")
    if reply.ended == "cancelled":
        return RequestError(503, "the server stops, and the reply was not complete: ask again in a moment")
    return None


async def _pieces(reply: Reply, changed: asyncio.Event) -> AsyncIterator[str]:
    """The text as it comes. changed: set whenever the reply has."""
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


def application(model_host: ModelHost, key: str | None, origins: Collection[str] = ()) -> Application:
    """The endpoints as a tornado application.

    Args:
        model_host: the model that answers.
        key: that requests must carry; None lets this machine alone ask.
        origins: of other sites, such as https://chat.example.com, whose pages may ask from a visitor's browser.
    """
    arguments = {"model_host": model_host, "key": key}
    return Application(
        [
            (r"/health", Health, arguments),
            (r"/v1/models", Models, arguments),
            (r"/v1/models/([^/]+)", Models, arguments),
            (r"/v1/chat/completions", Completions, arguments),
        ],
        default_handler_class=Missing, default_handler_args=arguments, log_function=lambda _: None, running=set(),
        origins=frozenset(origins),
    )  # fmt: skip


async def drain(endpoints: Application, within: float) -> None:
    """Wait until no completion is on its way, but no longer than `within` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while endpoints.settings["running"] and loop.time() < end:
        await asyncio.sleep(0.02)
