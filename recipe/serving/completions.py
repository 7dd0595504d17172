"""/v1/chat/completions and /v1/completions: replies of the engine, whole or as a stream.

`protocol` has what a request asks for, `reply_shapes` what a reply looks like.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

from tornado.iostream import StreamClosedError

from recipe.engine import Engine
from recipe.engine.reply import NotServedError, Reply
from recipe.errors import RecipeError
from recipe.panics import PanicError
from recipe.serving.handler import Handler
from recipe.serving.protocol import Request
from recipe.serving.reply_shapes import ChatShape, Piece, Shape, TextShape, usage
from recipe.serving.request_checks import RequestError, parse

MAX_WAITING = 256  # requests on their way at which more are refused
MAX_BODY = 1 << 20  # bytes of a request
LONG_BODY = 1 << 16  # bytes of a request that may take more than a tenth of a second to become tokens


class Completions(Handler):
    """Replies to one request, in one piece or as a stream."""

    replies: list[Reply]
    left = False  # the client

    def initialize(  # type: ignore[override]  # the arguments are those of the route
        self,
        read: Callable[[dict[str, Any], Engine], Request],
        shape: type[ChatShape | TextShape],
        prompt_field: str,
        **arguments: Any,
    ) -> None:
        super().initialize(**arguments)
        self.read, self.shape, self.prompt_field = read, shape, prompt_field
        self.replies = []

    def on_connection_close(self) -> None:
        self.left = True
        self._cancel()

    def on_finish(self) -> None:
        self.settings["running"].discard(self)

    def _cancel(self) -> None:
        for reply in self.replies:
            reply.cancel()

    async def post(self) -> None:
        engine = self.engine()
        self._check_body()
        if len(self.settings["running"]) >= MAX_WAITING:
            raise RequestError(429, "too many replies are on their way: try again in a moment")
        self.settings["running"].add(self)
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            loop.call_soon_threadsafe(changed.set)

        # A megabyte of text takes seconds to become tokens, in which the replies of others would stand still. Long
        # requests wait for each other, so that a dozen of them do not take all threads from the short ones.
        executor = self.settings["long_requests"] if len(self.request.body) > LONG_BODY else None
        request, self.replies = await loop.run_in_executor(executor, self._start, engine, notify)
        if self.left:
            self._cancel()
        head = {"id": uuid.uuid4().hex, "created": int(time.time()), "model": self.model_id()}
        shape = self.shape(engine.tokenizer, request.sampling.logprobs is not None)
        head["id"] = f"{shape.prefix}-{head['id']}"
        try:
            if request.streamed:
                await self._stream(head, shape, changed, request)
            else:
                await self._send_whole(head, shape, changed, request)
        except StreamClosedError:
            pass
        finally:
            self._cancel()

    def _check_body(self) -> None:
        # A page of another site may send a form or plain text here without asking, but not this.
        if len(self.request.body) > MAX_BODY:
            raise RequestError(413, f"the body is larger than {MAX_BODY} bytes")
        if self.request.headers.get("Content-Type", "").split(";")[0].strip().lower() != "application/json":
            raise RequestError(415, "Content-Type must be application/json")

    def _start(self, engine: Engine, on_change: Callable[[], None]) -> tuple[Request, list[Reply]]:
        """Check the request and start its replies; in a thread of its own."""
        if self.left or engine.closed:  # while others were before it
            raise RequestError(503, "the model is no longer served")
        body = parse(self.request.body)
        if isinstance(name := body.get("model"), str) and name != self.model_id():
            message = f"the model {name!r} is not here, {self.model_id()!r} is"
            raise RequestError(404, message, param="model", code="model_not_found")
        replies: list[Reply] = []
        try:
            request = self.read(body, engine)
            for prompt, sampling in request.samplings():
                replies.append(engine.start(prompt.ids, sampling, on_change=on_change, continued=prompt.continued))
        except NotServedError as error:
            raise RequestError(503, str(error)) from None
        except PanicError as error:
            raise RequestError(500, str(error)) from None
        except RecipeError as error:
            for reply in replies:
                reply.cancel()
            message = f"{self.prompt_field}: {error}"
            raise RequestError(400, message, param=self.prompt_field, code="context_length_exceeded") from None
        return request, replies

    async def _send_whole(self, head: dict[str, Any], shape: Shape, changed: asyncio.Event, request: Request) -> None:
        async for piece in _pieces(self.replies, changed):
            if piece.ended and (failure := _failure(self.replies[piece.index])):
                raise failure
        choices = [
            shape.choice(Piece(i, reply.text, reply.logprobs, reply.ended)) for i, reply in enumerate(self.replies)
        ]
        answer = head | {"object": shape.kind, "choices": choices, "usage": usage(self.replies, request.choices)}
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(json.dumps(answer, ensure_ascii=False))  # as streamed: a reply of curl is for people too

    async def _stream(self, head: dict[str, Any], shape: Shape, changed: asyncio.Event, request: Request) -> None:
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Accel-Buffering", "no")

        async def send(content: Any) -> None:
            self.write(f"data: {json.dumps(content, ensure_ascii=False)}\n\n")
            await self.flush()

        head = head | {"object": shape.chunk_kind}
        for index in range(len(self.replies)):
            for choice in shape.opening(index):
                await send(head | {"choices": [choice]})
        failure = None
        async for piece in _pieces(self.replies, changed):
            if piece.ended and (failure := _failure(self.replies[piece.index])):
                await send(failure.body)
                break
            await send(head | {"choices": [shape.chunk(piece)]})
        if request.with_usage and not failure:
            await send(head | {"choices": [], "usage": usage(self.replies, request.choices)})
        self.write("data: [DONE]\n\n")
        self.finish()


def _failure(reply: Reply) -> RequestError | None:
    """What a client that is still there hears in place of the reply; None where the reply is complete."""
    if reply.error:
        return RequestError(500, f"the reply failed: {reply.error}")
    if reply.ended == "cancelled":
        return RequestError(503, "the server stops, and the reply was not complete: ask again in a moment")
    return None


async def _pieces(replies: list[Reply], changed: asyncio.Event) -> AsyncIterator[Piece]:
    """The replies as they come; the last piece of each has how it ended. changed: set whenever a reply has."""
    texts, logprobs = [0] * len(replies), [0] * len(replies)  # how much of each was yielded
    growing = list(range(len(replies)))
    while growing:
        changed.clear()
        pieces = []
        for i in list(growing):
            # In this order: nothing is added to an ended reply, and log probabilities are never behind the text.
            ended, text, entries = replies[i].ended, replies[i].text, replies[i].logprobs
            fresh = entries[logprobs[i] :]
            if len(text) > texts[i]:
                pieces.append(Piece(i, text[texts[i] :], fresh))
            elif ended:
                pieces.append(Piece(i, "", fresh, ended))
                growing.remove(i)
            else:
                continue
            texts[i], logprobs[i] = len(text), logprobs[i] + len(fresh)
        for piece in pieces:
            yield piece
        if not pieces:
            await changed.wait()
