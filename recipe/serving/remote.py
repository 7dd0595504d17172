"""A model behind an OpenAI-style endpoint, for the page: this recipe's `api`, vLLM or any other."""

from __future__ import annotations

import base64
import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote, urlsplit

from recipe.engine.reply import Reply, Sampling
from recipe.errors import RecipeError
from recipe.plain_text import flaw, printable
from recipe.serving import model_host
from recipe.serving.listener import is_loopback

TIMEOUT = (5, 120)  # seconds to connect, and between two pieces


LONGEST = 300  # characters of an endpoint's words that are shown


class _Bearer:
    """The key of every request. As `auth`, since requests would else prefer a key of ~/.netrc."""

    def __init__(self, key: str) -> None:
        self._header = f"Bearer {key}".encode()

    def __call__(self, request: Any) -> Any:
        request.headers["Authorization"] = self._header
        return request


def _parse(url: str) -> tuple[str, str, tuple[str, str] | None]:
    """(address without any secret, query with its question mark, (user, password) if any) of OPENAI_BASE_URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if flaw(url) or not host or parts.scheme not in ("http", "https"):
        raise RecipeError("OPENAI_BASE_URL is no address: it is like http://127.0.0.1:8000/v1")
    host = f"[{host}]" if ":" in host else host
    address = f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path.rstrip('/')}"
    user = (unquote(parts.username or ""), unquote(parts.password or "")) if parts.username or parts.password else None
    return address, f"?{parts.query}" if parts.query else "", user


def _spellings(secrets: Sequence[str | None], user: tuple[str, str] | None) -> list[str]:
    """Secrets as an endpoint may repeat them: as they are, as in an address, as in JSON, as in a header of `user`."""
    header = [base64.b64encode(":".join(user).encode()).decode()] if user else []
    as_they_are = [secret for secret in secrets if secret]
    spelt = {
        spell(each) for each in as_they_are for spell in (str, quote, quote_plus, lambda text: json.dumps(text)[1:-1])
    }
    return sorted([*spelt, *header], key=len, reverse=True)  # one may hold another


def _adapter_and_base(models: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], str | None]:
    """(model that answers, name of its base where that answers too), of an endpoint's list of models.

    The first model answers, unless one is an adapter of another: vLLM and SGLang name the other as its `parent`.
    """
    names = [model["id"] for model in models]
    for model in models:
        if model.get("parent") in names:
            return model, str(model["parent"])
    return models[0], None


class Remote:
    """What `model_host.ModelHost` is to the page, over HTTP.

    Args:
        url: such as http://127.0.0.1:8000/v1. User, password and query in it are sent and never shown.
        key: of the endpoint, if it wants one.
        port: of the page, for the health check.

    Raises:
        RecipeError: the URL is none.

    Attributes:
        state, message: see ModelHost.
        name: of the model that answers, as the endpoint lists it.
        model: the same, as requests name it.
        base: the name of the model without its adapter, where the endpoint has both.
    """

    alone = False
    on_failure: Callable[[], object]  # never called: no engine is here
    defaults = Sampling()
    longest = 32768  # an endpoint that has less room answers with an error

    def __init__(self, url: str, key: str | None, port: int) -> None:
        import requests

        self._address, self._query, user = _parse(url)
        if key and (fault := flaw(key)):
            raise RecipeError(f"OPENAI_API_KEY holds {fault}: set the key as the endpoint gave it")
        self.url, self.port = self._address, port  # what is shown
        self.state, self.message = "loading", ""
        self.name, self.model = "", ""
        self.base: str | None = None
        self._http = requests.Session()
        self._http.auth = user
        # HTTP_PROXY leads to other machines, and would ask itself for an endpoint of this one.
        self._http.trust_env = not is_loopback(urlsplit(self._address).hostname or "")
        self._secrets = _spellings([key, *(value for _, value in parse_qsl(self._query[1:])), *(user or ())[1:]], user)
        if key:
            self._http.auth = _Bearer(key)

    def watch(self) -> None:
        """Call the endpoint until it answers; for a thread of its own."""
        while self.state != "ready":
            self.load()
            time.sleep(model_host.LOOK_AGAIN)

    def load(self) -> None:
        """Look which models the endpoint has: its first adapter is taken, or else its first model."""
        try:
            model, base = _adapter_and_base(self._call("GET", "/models").json()["data"])
            self.name, self.base = str(model["id"]), base
            # SGLang answers a request for the adapter's own name as the base, without a word.
            self.model = f"{base}:{self.name}" if base and model.get("owned_by") == "sglang" else self.name
            self._become("ready", f"{self._shown(self.name)} ({self.url})")
        except RecipeError as error:
            self._become("failed", str(error))
        except Exception:  # whatever the endpoint sends, the page lives to say so
            self._become(
                "failed", f"{self.url}/models does not answer as an OpenAI endpoint does: check OPENAI_BASE_URL"
            )

    def _shown(self, text: object) -> str:
        """What the endpoint wrote, for page and log: one line, short, without what it may repeat of a secret."""
        line = printable(" ".join(str(text).split()))
        for secret in self._secrets:
            line = line.replace(secret, "…")
        return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"

    @property
    def can_compare(self) -> bool:
        """Whether the base can answer beside the tuned model."""
        return self.base is not None

    @property
    def label(self) -> str:
        """The model and its address, or what is wrong."""
        return self.message or self.url

    def title(self, language: str) -> str:  # noqa: ARG002 - as `ModelHost.title`
        """The model's name, which endpoints often give as a path; InternLM2 where it is no plain name."""
        name = self.name.rstrip("/").rpartition("/")[2]
        return name if re.fullmatch(r"[\w.-]{1,80}", name) and name == self._shown(name) else "InternLM2"

    def raise_failure(self) -> None:
        """Nothing to raise: an endpoint that fails may come back."""

    def try_again(self) -> None:
        """Nothing to do: `watch` tries again by itself."""

    def _become(self, state: str, message: str) -> None:
        if (state, message) != (self.state, self.message):
            self.state, self.message = state, message
            model_host.announce_anyway("demo", self.port, state, message)

    def _call(self, method: str, path: str, **options: Any) -> Any:
        """The endpoint's response. RecipeError: there is none, or it is an error; then the message is the
        endpoint's."""
        import requests

        try:
            address = self._address + path + self._query
            response = self._http.request(method, address, timeout=TIMEOUT, **options)
        except requests.RequestException as error:
            raise RecipeError(f"{self.url} cannot be reached ({type(error).__name__}): check OPENAI_BASE_URL") from None
        if response.status_code == 401:
            raise RecipeError(f"{self.url} refuses the key: check OPENAI_API_KEY")
        if not response.ok:
            try:
                message = self._shown(response.json()["error"]["message"])
            except (ValueError, LookupError, TypeError):
                message = self._shown(response.reason)
            raise RecipeError(f"{self.url}: {message}")
        return response

    def ask(self, messages: Sequence[dict[str, str]], sampling: Sampling, *, base: bool = False) -> Reply:
        """Start the reply, which grows in a thread; an error of the endpoint becomes the reply's.

        Args:
            messages: the conversation, as `recipe.chat_format` takes it.
            sampling: how tokens are chosen; `stop` is not sent.
            base: let the base answer, without the adapter; only where `can_compare`.

        Returns:
            The reply, which grows.
        """
        body: dict[str, Any] = {
            "model": self.base if base else self.model, "messages": list(messages), "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p,
        }  # fmt: skip
        if sampling.seed is not None:
            body["seed"] = sampling.seed
        if sampling.repetition_penalty != 1:  # vLLM's name for it, and this recipe's
            body["repetition_penalty"] = sampling.repetition_penalty
        reply = Reply()
        threading.Thread(target=self._receive, args=(reply, body), daemon=True).start()
        return reply

    def _receive(self, reply: Reply, body: dict[str, Any]) -> None:
        ended = "stop"
        try:
            with self._call("POST", "/chat/completions", json=body, stream=True) as response:
                for line in response.iter_lines():
                    if reply.cancelled:  # leaving closes the connection, which ends the reply there
                        ended = "cancelled"
                        break
                    if not line.startswith(b"data: ") or line == b"data: [DONE]":
                        continue
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise RecipeError(f"{self.url}: {self._shown(event['error']['message'])}")
                    for choice in event.get("choices", ()):
                        if piece := choice.get("delta", {}).get("content"):
                            reply.add(piece)
                        ended = choice.get("finish_reason") or ended
                    if usage := event.get("usage"):
                        reply.prompt_tokens, reply.completion_tokens = (
                            usage["prompt_tokens"],
                            usage["completion_tokens"],
                        )
            reply.end(ended)
        except RecipeError as error:
            reply.end("error", error)
        except Exception as error:  # the connection, or an event of another shape: nobody must wait for ever
            reply.end("error", RecipeError(f"{self.url}: the reply broke off ({type(error).__name__})"))
