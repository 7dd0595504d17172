"""The page in front of an endpoint: what it sends there, and what it shows of it and its secrets."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_server import Handler, LocalServer
from small_endpoint import WITHIN, server
from streamlit.proto.BackMsg_pb2 import BackMsg  # type: ignore[attr-defined]
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg  # type: ignore[attr-defined]
from tornado.websocket import websocket_connect

from recipe.engine import Sampling
from recipe.errors import RecipeError
from recipe.serving.model_host import state_file
from recipe.serving.page.markdown import escaped
from recipe.serving.remote import Remote

MODEL = "evil [click](https://evil.example) ![x](https://evil.example/x.png) :red[x] \x1b]0;title\x07"
SECRETS = ("pa@ss", "pa%40ss", "sk-query", "sk-key", "somebody")


class Other(LocalServer):
    """An endpoint of somebody else.

    Attributes:
        requests: (path, Authorization) of each.
        models: that it lists.
        asked: the models that replies were wanted of.
        events: of the replies it streams.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.models: list[Any] = [{"id": MODEL}]
        self.asked: list[str] = []
        self.events: list[Any] = []
        super().__init__(Answer)


class Answer(Handler):
    server: Other

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Authorization", "")))
        self.send(200, json.dumps({"data": self.server.models}).encode())

    def do_POST(self) -> None:
        self.server.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["model"])
        if self.server.events:
            self.send(200, "".join(f"data: {json.dumps(event)}\n\n" for event in self.server.events).encode())
        else:
            words = f"wrong key {self.headers['Authorization']} sk-query\n\x1b[31m" + "x" * 10_000
            self.send(400, json.dumps({"error": {"message": words}}).encode())


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[Other]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Other() as listening:
        yield listening


async def page(port: int) -> bytes:
    """All that the page sends a visitor until its script has run."""
    visitor = await websocket_connect(f"ws://127.0.0.1:{port}/_stcore/stream")
    message = BackMsg()
    message.rerun_script.query_string = ""
    await visitor.write_message(message.SerializeToString(), binary=True)
    content = b""
    while True:
        received = await asyncio.wait_for(visitor.read_message(), WITHIN)
        assert isinstance(received, bytes)
        content += received
        if ForwardMsg.FromString(received).WhichOneof("type") == "script_finished":
            visitor.close()
            return content


def test_no_secret_of_the_address_and_no_markup_of_the_model_reaches_the_page_or_the_log(
    other: Other, tmp_path: Path
) -> None:
    url = f"http://somebody:pa%40ss@127.0.0.1:{other.server_port}/v1/?key=sk-query"
    with server("pass", tmp_path / "work", tmp_path, "demo", OPENAI_BASE_URL=url) as (_, endpoint):
        state = tmp_path.joinpath(*state_file(endpoint.port).parts[-2:])  # its own folder of temporary files
        end = time.monotonic() + WITHIN
        while not state.exists() and time.monotonic() < end:
            time.sleep(0.05)
        published = state.read_text(encoding="utf-8")
        shown = asyncio.run(page(endpoint.port)).decode("utf-8", "replace")
    user = base64.b64encode(b"somebody:pa@ss").decode()
    assert other.requests == [("/v1/models?key=sk-query", f"Basic {user}")]
    log = (tmp_path / "log").read_text(encoding="utf-8")
    assert json.loads(published)["state"] == "ready"
    for text in (published, shown, log):
        assert "evil" in text
        assert not any(secret in text for secret in SECRETS)
        assert "\x1b]0" not in text
    assert "[click](" not in shown
    assert ":red[" not in shown


def test_what_an_endpoint_says_is_short_and_repeats_no_secret(other: Other) -> None:
    remote = Remote(f"http://somebody:pa%40ss@127.0.0.1:{other.server_port}/v1?key=sk-query", "sk-key", 3)
    reply = remote.ask([{"role": "user", "content": "hi"}], Sampling())
    reply.join()
    text = str(reply.error)
    assert "wrong key Bearer …" in text
    assert not any(secret in text for secret in SECRETS)
    assert "\x1b" not in text
    assert "\n" not in text
    assert len(text) < 400


def test_a_secret_is_left_out_however_an_endpoint_spells_it() -> None:
    remote = Remote("http://somebody:pa%40s%20s@127.0.0.1:1/v1?key=a%2Fb", 'k"ey', 3)
    basic = base64.b64encode(b"somebody:pa@s s").decode()
    text = remote._shown(f'pa@s s pa%40s%20s pa%40s+s a/b a%2Fb k"ey k\\"ey k%22ey Basic {basic} else')
    assert text == "… … … … … … … … Basic … else"


@pytest.mark.parametrize(
    "events", [[["no object"]], [3], [{"choices": ["x"]}], [{"choices": [{"delta": "x"}]}], [{"error": "no object"}]]
)
def test_events_of_another_shape_end_the_reply(other: Other, events: list[Any]) -> None:
    other.events = events
    reply = Remote(f"http://127.0.0.1:{other.server_port}/v1", None, 3).ask([], Sampling())
    assert reply.wait(10**9, WITHIN)
    assert (reply.ended, isinstance(reply.error, RecipeError)) == ("error", True)


def test_a_key_that_is_no_text_is_refused_without_being_shown() -> None:
    with pytest.raises(RecipeError, match=r"OPENAI_API_KEY holds .* U\+0007 at character 4") as caught:
        Remote("http://127.0.0.1:9/v1", "sk-\x07key", 3)
    assert "sk-" not in str(caught.value)


def test_a_key_that_no_header_takes_is_said(other: Other) -> None:
    remote = Remote(f"http://127.0.0.1:{other.server_port}/v1", "sk-\nkey", 3)
    remote.load()
    assert (remote.state, "sk-" in remote.message) == ("failed", False)


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_no_proxy_is_asked_for_an_endpoint_of_this_machine(
    other: Other, monkeypatch: pytest.MonkeyPatch, variable: str, host: str
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    remote = Remote(f"http://{host}:{other.server_port}/v1", None, 3)
    remote.load()
    assert remote.state == "ready"
    assert [path for path, _ in other.requests] == ["/v1/models"]


def test_a_proxy_is_asked_for_an_endpoint_elsewhere(other: Other, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{other.server_port}")
    monkeypatch.setenv("no_proxy", "")
    remote = Remote("http://model.example/v1", None, 3)
    remote.load()
    assert [path for path, _ in other.requests] == ["http://model.example/v1/models"]


@pytest.mark.parametrize(
    ("model", "title"),
    [("quickstart", "quickstart"), ("/models/小明-1_8b/", "小明-1_8b"), ("a b", "InternLM2"), ("", "InternLM2"),
     ("x/:red[x]", "InternLM2"), ("sk-key", "InternLM2")],
)  # fmt: skip
def test_the_title_is_the_models_plain_name(model: str, title: str) -> None:
    remote = Remote("http://127.0.0.1:8000/v1", "sk-key", 3)
    remote.name = model
    assert remote.title("en") == title


@pytest.mark.parametrize(("owner", "asked"), [("vllm", "main"), ("sglang", "miniature:main")])
def test_an_adapter_and_its_base_are_told_apart(other: Other, owner: str, asked: str) -> None:
    """The lists of vLLM 0.31 and SGLang 0.5.23, which begin with the base. SGLang takes `main` for the base too."""
    other.models = [
        {"id": "miniature", "root": "/work/models/miniature", "parent": None, "owned_by": owner},
        {"id": "main", "root": "/work/main/adapter", "parent": "miniature", "owned_by": owner},
    ]
    other.events = [{"choices": [{"delta": {"content": "hi"}}]}]
    remote = Remote(f"{other.url}/v1", None, 3)
    assert not remote.can_compare
    remote.load()
    assert (remote.can_compare, remote.title("en"), remote.label) == (True, "main", f"main ({other.url}/v1)")
    for base in (False, True):
        remote.ask([], Sampling(), base=base).join()
    assert other.asked == [asked, "miniature"]


def test_without_an_adapter_the_first_model_answers_alone(other: Other) -> None:
    other.models = [{"id": "first", "parent": None}, {"id": "second", "parent": "elsewhere"}]
    remote = Remote(f"{other.url}/v1", None, 3)
    remote.load()
    assert (remote.model, remote.can_compare) == ("first", False)


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000/v1", "ftp://sk-key@host/v1", "http://", "http://[::1", "http://h:x/", "http://h/\x1b[31mv1",
     "http://h/\udcff"],
)  # fmt: skip
def test_an_address_that_is_none_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(RecipeError, match="OPENAI_BASE_URL is no address") as caught:
        Remote(url, None, 3)
    assert "sk-key" not in str(caught.value)


def test_what_is_no_markdown_is_shown_as_it_is() -> None:
    assert escaped("a_b [c](d)\n`e`") == r"a\_b \[c\]\(d\) \`e\`"
