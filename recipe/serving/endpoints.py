"""The endpoints of verb `api`, on tornado: /v1/chat/completions, /v1/completions, /v1/models, /health, /openapi.json.

Prompts are built by recipe.chat_format, so that nothing a user writes becomes a special token. The only model is the
run's own: no name in a request loads anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from tornado.web import Application

from recipe.serving import openapi
from recipe.serving.completions import MAX_BODY, Completions
from recipe.serving.handler import Handler
from recipe.serving.model_host import ModelHost
from recipe.serving.protocol import chat_request, text_request
from recipe.serving.reply_shapes import ChatShape, TextShape
from recipe.serving.request_checks import RequestError

__all__ = ["MAX_BODY", "READ_BODY", "Completions", "application", "drain"]

READ_BODY = 1 << 26  # bytes that are read of a longer one, so that its sender hears what is wrong


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
        raise RequestError(404, f"there is no {self.request.path} here: /openapi.json has the paths")


class Models(Handler):
    """/v1/models, and /v1/models/NAME."""

    def get(self, name: str | None = None) -> None:
        length = self.engine().length
        model = {
            "id": self.model_id(), "object": "model", "owned_by": "internlm2-identity-recipe",
            "created": self.model_host.merged_at,
            "context_length": length, "max_model_len": length,
        }  # fmt: skip
        if name is None:
            self.finish({"object": "list", "data": [model]})
        elif name == model["id"]:
            self.finish(model)
        else:
            raise RequestError(404, f"the model {name!r} is not here", param="model", code="model_not_found")

    head = get


class Description(Handler):
    """/openapi.json: what requests may hold, for programs and people that read OpenAPI."""

    def get(self) -> None:
        self.finish(openapi.description())

    head = get


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
            (r"/openapi.json", Description, arguments),
            (
                r"/v1/chat/completions", Completions,
                {"read": chat_request, "shape": ChatShape, "prompt_field": "messages"} | arguments,
            ),
            (
                r"/v1/completions", Completions,
                {"read": text_request, "shape": TextShape, "prompt_field": "prompt"} | arguments,
            ),
        ],
        default_handler_class=Missing, default_handler_args=arguments, log_function=lambda _: None, running=set(),
        long_requests=ThreadPoolExecutor(1, "long requests"),
        origins=frozenset(origins),
    )  # fmt: skip


async def drain(endpoints: Application, within: float) -> None:
    """Wait until no completion is on its way, but no longer than `within` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while endpoints.settings["running"] and loop.time() < end:
        await asyncio.sleep(0.02)
