"""llama.cpp itself, out of the package `xllamacpp`: a server on a GGUF file, asked over HTTP."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tools_table import LLAMA_CPP

sys.path.append(str(LLAMA_CPP))
xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is not here: make tools-table brings it")


class Server:
    """Asks a running server. address: of it, with http://."""

    def __init__(self, address: str) -> None:
        self.address = address

    def post(self, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
        """Status and answer of one request."""
        request = urllib.request.Request(
            self.address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def ids(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of a text. special: names of control tokens become them, as in a rendered conversation."""
        body: list[int] = self.post("/tokenize", content=text, add_special=False, parse_special=special)[1]["tokens"]
        return body

    def reply_ids(self, prompt: list[int], tokens: int) -> list[int]:
        """The ids of a greedy reply, with the one that ends it."""
        body: list[int] = self.post(
            "/completion", prompt=prompt, temperature=0, n_predict=tokens, return_tokens=True, cache_prompt=False
        )[1]["tokens"]
        return body

    def top(self, prompt: list[int], count: int) -> dict[int, float]:
        """The likeliest next tokens: id -> log probability in nats. Empty where a reply would end at once."""
        _, body = self.post("/completion", prompt=prompt, temperature=0, n_predict=1, n_probs=count, cache_prompt=False)
        first = body.get("completion_probabilities", [{"top_logprobs": []}])[0]
        return {each["id"]: each["logprob"] for each in first["top_logprobs"]}


@contextmanager
def serve(file: Path) -> Iterator[Server]:
    """A server on a GGUF file, one thread, 1,024 tokens of context."""
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.port = 1024, 1, 0
    params.cpuparams.n_threads = 1
    params.warmup = False
    params.verbosity = 0
    server = xllamacpp.Server(params)
    try:
        yield Server(server.listening_address)
    finally:
        del server
