"""Who sends nothing, or too much, or comes by a wrong name, holds nobody up."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from small_endpoint import ASK, WITHIN, Endpoint, health, listen, replies_of, server
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.web import Application

from recipe.chat_format import prompt_ids
from recipe.engine.text import StopText
from recipe.serving import endpoints, listener
from recipe.serving.listener import HostRouter
from recipe.serving.model_host import ModelHost

FEW_DESCRIPTORS = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))"
NO_ADDRESS = "from streamlit import net_util; net_util._make_blocking_http_get = lambda *_, **__: print('connects out')"
UPGRADE = {
    "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Protocol":
    "streamlit", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}  # fmt: skip


@pytest.fixture(scope="module")
def endpoint(model_host: ModelHost) -> Iterator[Endpoint]:
    yield from listen(model_host)


def slow_prompts(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Events: a prompt is becoming token ids; it may be done with that."""
    inside, go_on = threading.Event(), threading.Event()

    def slow(*args: Any) -> list[int]:
        inside.set()
        assert go_on.wait(WITHIN)
        return prompt_ids(*args)

    monkeypatch.setattr("recipe.engine.engine.prompt_ids", slow)
    return inside, go_on


def test_a_long_prompt_holds_nobody_up(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it becomes token ids, others are answered."""
    inside, go_on = slow_prompts(monkeypatch)
    with ThreadPoolExecutor(1) as client:
        long = client.submit(endpoint.post, ASK | {"max_tokens": 1})
        try:
            assert inside.wait(WITHIN)
            assert health(endpoint.url) == 200
        finally:
            go_on.set()
        assert long.result()[0] == 200


def test_many_long_prompts_hold_no_short_one_up(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than the threads that make token ids of prompts."""
    inside, go_on = threading.Event(), threading.Event()

    def slow(tokenizer: Any, messages: Any) -> list[int]:
        if len(messages[0]["content"]) > 1000:
            inside.set()
            assert go_on.wait(WITHIN)
            return [1] * 10_000
        return prompt_ids(tokenizer, messages)

    monkeypatch.setattr("recipe.engine.engine.prompt_ids", slow)
    long = ASK | {"messages": [{"role": "user", "content": "a" * 100_000}]}
    with ThreadPoolExecutor(40) as clients:
        answers = [clients.submit(endpoint.post, long) for _ in range(40)]
        try:
            assert inside.wait(WITHIN)
            time.sleep(1)  # the others have come by then
            assert endpoint.post(ASK | {"max_tokens": 1})[0] == 200
        finally:
            go_on.set()
        assert {answer.result()[0] for answer in answers} == {400}


def test_a_client_who_leaves_before_his_reply_began_frees_the_engine(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on = slow_prompts(monkeypatch)
    monkeypatch.setattr(endpoint.engine.scheduler, "stops", set())
    replies = replies_of(endpoint.engine, monkeypatch)
    left = threading.Event()
    on_connection_close = endpoints.Completions.on_connection_close

    def notice(self: endpoints.Completions) -> None:
        on_connection_close(self)
        left.set()

    monkeypatch.setattr(endpoints.Completions, "on_connection_close", notice)
    client = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=WITHIN)
    body = json.dumps(ASK | {"max_tokens": 1900})
    client.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
    assert inside.wait(WITHIN)
    client.close()
    assert left.wait(WITHIN)
    go_on.set()
    end = time.monotonic() + WITHIN
    while not replies and time.monotonic() < end:
        time.sleep(0.01)
    replies[0].join()
    assert replies[0].ended == "cancelled"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_long_is_413_in_the_usual_shape(endpoint: Endpoint, chunked: bool) -> None:
    client = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=WITHIN)
    body = b" " * (3 * endpoints.MAX_BODY)
    headers = {"Content-Type": "application/json"}
    client.request("POST", "/v1/chat/completions", iter([body]) if chunked else body, headers, encode_chunked=chunked)
    answer = client.getresponse()
    error = json.loads(answer.read())["error"]
    assert (answer.status, error["type"]) == (413, "invalid_request_error")
    assert str(endpoints.MAX_BODY) in error["message"]


def test_connections_that_send_nothing_keep_no_one_out(served_work: Path, tmp_path: Path) -> None:
    with server(FEW_DESCRIPTORS, served_work, tmp_path) as (process, endpoint):
        half_open = []
        for i in range(400):
            half_open.append(socket.create_connection(("127.0.0.1", endpoint.port), timeout=WITHIN))
            half_open[-1].sendall(
                (b"", b"POST /v1/chat", b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 9\r\n\r\n")[i % 3]
            )
        status, body = endpoint.post(ASK)
        assert (status, body["choices"][0]["finish_reason"]) == (200, "stop")
        for client in half_open:
            client.close()
        assert process.poll() is None
    assert len((tmp_path / "log").read_bytes()) < 2000


LITTLE_TIME = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96));" + (
    "from recipe.serving import listener; listener.LOOK = 0.2; listener.SILENCE = {silence}"
)
ANSWERS = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 400  # more than a socket's buffers hold


def unread(port: int) -> socket.socket:
    """A connection that asks for much and reads nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.setblocking(False)
    client.send(ANSWERS)
    return client


def test_connections_that_read_nothing_keep_no_one_out(served_work: Path, tmp_path: Path) -> None:
    with server(LITTLE_TIME.format(silence=600), served_work, tmp_path) as (process, endpoint):
        clients = [unread(endpoint.port) for _ in range(40)]
        end = time.monotonic() + WITHIN
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if health(endpoint.url) == 200:
                    break
            time.sleep(0.2)
        assert endpoint.post(ASK)[0] == 200
        for client in clients:
            client.close()
        assert process.poll() is None


def test_who_reads_nothing_is_not_waited_for(served_work: Path, tmp_path: Path) -> None:
    with server(LITTLE_TIME.format(silence=1), served_work, tmp_path) as (_, endpoint), unread(endpoint.port) as client:
        client.settimeout(WITHIN)
        time.sleep(5)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(1 << 20):
                received += len(part)
        assert 0 < received < 400 * 20_000


def upgraded(port: int, **headers: str) -> int:
    """The status of a request to open the page's WebSocket."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=WITHIN)
    client.request("GET", "/_stcore/stream", headers=UPGRADE | headers)
    status = client.getresponse().status
    client.close()
    return status


def test_the_page_answers_to_its_own_names_and_pages_and_asks_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGE_HOSTS", "chat.example, other.example")
    (tmp_path / "work").mkdir()
    with server(NO_ADDRESS, tmp_path / "work", tmp_path, "demo") as (process, endpoint):
        port = endpoint.port
        here = f"127.0.0.1:{port}"
        assert upgraded(port, Host=here, Origin=f"http://{here}") == 101
        assert upgraded(port, Host=here) == 101  # no browser
        assert upgraded(port, Host=f"localhost:{port}", Origin="http://localhost:7000") == 101  # another port: a tunnel
        assert upgraded(port, Host="192.0.2.7:6006", Origin="http://192.0.2.7:6006") == 101  # its address elsewhere
        assert upgraded(port, Host="[::1]:6006", Origin="http://[::1]:6006") == 101
        assert upgraded(port, Host="chat.example", Origin="https://chat.example") == 101
        assert upgraded(port, Host=here, Origin="https://chat.example") == 101  # a proxy that rewrites Host
        for origin in ("http://evil.example", "null", "http://192.0.2.7", "http://[", "http://localhost.evil.example"):
            assert upgraded(port, Host=here, Origin=origin) == 403
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
            assert upgraded(port, Host=host, Origin=f"http://{host}") == 403
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=WITHIN)
        client.request("GET", "/", headers={"Host": "evil.example"})
        answer = client.getresponse()
        assert (answer.status, "PAGE_HOSTS=evil.example" in answer.read().decode()) == (403, True)
        assert process.poll() is None
    log = (tmp_path / "log").read_text()
    assert "connects out" not in log
    assert "Traceback" not in log
    for once in ("there is no page by the name evil.example here", "a page of evil.example calls here"):
        assert log.count(f"[demo] refused: {once}: ") == 1


def test_refusals_fill_no_log(capsys: pytest.CaptureFixture[str]) -> None:
    router = HostRouter(Application(), [])
    for i in range(listener.REFUSALS + 5):
        headers = HTTPHeaders({"Host": "127.0.0.1", "Origin": f"http://{i}.\x1b{'x' * 500}"})
        router.find_handler(HTTPServerRequest("GET", "/", headers=headers, connection=Mock(context=None)))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == listener.REFUSALS
    assert all(len(line) < listener.LONGEST + 30 and "\x1b" not in line for line in lines)


def test_a_stop_text_is_found_in_pieces_without_reading_any_twice() -> None:
    stop = StopText("a" * 100_000 + "b")
    for _ in range(200):
        assert stop.find("a" * 1000) is None
    assert stop.matched == 100_000
    assert stop.find("ab") == 1 - 100_000
