"""What all endpoints of the API share: the key, pages of other origins, and errors in OpenAI's shape."""

from __future__ import annotations

import hmac
from typing import Any

from tornado.web import RequestHandler

from recipe.serving.listener import is_loopback
from recipe.serving.model_host import ModelHost
from recipe.serving.request_checks import RequestError


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
        methods, message = ", ".join(self._methods()), self._reason
        if status_code == 405:
            self.set_header("Allow", methods)
            message = f"{self.request.path} takes {methods}, not {self.request.method}"
        request_error = error if isinstance(error, RequestError) else RequestError(status_code, message)
        self.set_status(request_error.status)
        self.finish(request_error.body)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, RequestError):
            super().log_exception(typ, value, tb)
