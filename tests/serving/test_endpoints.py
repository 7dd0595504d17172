"""What goes wrong in the engine, as a client of the API meets it: every request ends, and nothing claims to be
healthy that is not."""

from __future__ import annotations

import http.client
import json
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from small_endpoint import ASK, HELLO, WITHIN, Endpoint, health, listen, server, stream, write_served
from tokenizers import Tokenizer, decoders, models

from recipe.engine import Engine, Sampling
from recipe.engine.decoder import Decoder
from recipe.engine.sampling import Sampler
from recipe.engine.text import Text
from recipe.serving.model_host import ModelHost


@pytest.fixture(scope="module")
def endpoint(model_host: ModelHost) -> Iterator[Endpoint]:
    yield from listen(model_host)


@pytest.fixture
def fresh_endpoint(served_work: Path) -> Iterator[Endpoint]:
    """An endpoint whose engine a test may break."""
    model_host = ModelHost(served_work, None, 3, verb="api", compare=False)
    model_host.load()
    yield from listen(model_host)


def lose_device(decoder: Decoder, *_: Any, **__: Any) -> Any:
    """As after an illegal memory access: this call fails, and all that follow."""

    class Lost:
        def __getitem__(self, _: Any) -> Any:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        def __setitem__(self, *_: Any) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    decoder.positions = decoder.active = decoder.tokens = decoder.adapted = Lost()
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


# --- A device that fails ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["decode", "prefill"])
def test_a_lost_device_ends_every_request_and_the_health(
    fresh_endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    assert health(fresh_endpoint.url) == 200
    monkeypatch.setattr(Decoder, step, lose_device)
    # More than there are slots, so that some wait.
    crowd = fresh_endpoint.engine.decoder.slots + 4
    with ThreadPoolExecutor(crowd) as clients:
        answers = list(clients.map(fresh_endpoint.post, [ASK] * crowd))
    assert {status for status, _ in answers} <= {500, 503}
    assert any("illegal memory access" in body["error"]["message"] for _, body in answers)
    assert health(fresh_endpoint.url) == 503
    status, body = fresh_endpoint.post(ASK)
    assert (status, "the engine failed" in body["error"]["message"]) == (503, True)


def test_a_failure_that_passes_ends_its_requests_alone(
    fresh_endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise MemoryError("no room")

    with monkeypatch.context() as broken:
        broken.setattr(Decoder, "decode", fail)
        assert fresh_endpoint.post(ASK)[0] == 500
    assert health(fresh_endpoint.url) == 200
    assert fresh_endpoint.post(ASK)[0] == 200


def test_a_thread_that_ends_by_itself_is_not_called_healthy(
    fresh_endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SystemExit, as a library may raise it, ends a thread without a word."""

    def leave(*_: Any, **__: Any) -> Any:
        raise SystemExit(1)

    monkeypatch.setattr(Decoder, "decode", leave)
    status, body = fresh_endpoint.post(ASK)
    assert (status, "SystemExit" in body["error"]["message"]) == (500, True)
    assert health(fresh_endpoint.url) == 503


def panic() -> None:
    """Make the tokenizers library panic: what it cuts off a blank is longer than the blank."""
    tokenizer = Tokenizer(models.BPE({" ": 0}, []))
    tokenizer.decoder = decoders.Strip(" ", 1, 1)
    tokenizer.decode([0])


@pytest.mark.parametrize("function", ["decode", "__call__"])
def test_a_panic_in_the_tokenizer_ends_its_request_alone(
    fresh_endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    tokenizer = type(fresh_endpoint.engine.tokenizer)
    with monkeypatch.context() as broken:
        broken.setattr(tokenizer, function, lambda *_, **__: panic())
        status, body = fresh_endpoint.post(ASK)
    assert (status, "panic" in body["error"]["message"]) == (500, True)
    assert health(fresh_endpoint.url) == 200
    assert fresh_endpoint.post(ASK)[0] == 200


BAD_SETTING, BAD_TEXT, BAD_CHOICE = {"temperature": 1.25}, {"stop": ["never said"]}, {"temperature": 1.75}


@pytest.mark.parametrize("bad", [BAD_SETTING, BAD_TEXT, BAD_CHOICE], ids=["setting", "text", "choice"])
def test_what_fails_for_one_request_ends_that_one_alone(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, bad: dict[str, Any]
) -> None:
    set_, add, choose = Sampler.set, Text.add, Sampler.choose

    def bad_set(self: Sampler, slot: int, sampling: Sampling, prompt: list[int]) -> None:
        if sampling.temperature == BAD_SETTING["temperature"]:
            raise ValueError("a bad setting")
        set_(self, slot, sampling, prompt)

    def bad_choose(self: Sampler, logits: Any, slots: slice, *, plain: bool) -> Any:
        if (self.temperature[slots] == BAD_CHOICE["temperature"]).all():
            raise ValueError("a bad choice")
        return choose(self, logits, slots, plain=plain)

    def bad_add(self: Text, token: int) -> str:
        if self._stop == ("never said",):
            raise ValueError("a bad token")
        return add(self, token)

    monkeypatch.setattr(endpoint.engine.scheduler, "stops", set())
    monkeypatch.setattr(Sampler, "set", bad_set)
    monkeypatch.setattr(Sampler, "choose", bad_choose)
    monkeypatch.setattr(Text, "add", bad_add)
    with stream(endpoint.url, max_tokens=600) as neighbour:
        next(neighbour)
        next(neighbour)  # it speaks
        status, body = endpoint.post(ASK | bad)
        assert (status, "a bad" in body["error"]["message"]) == (500, True)
        assert not any("error" in event for event in neighbour)
    assert endpoint.post(ASK | {"max_tokens": 1})[0] == 200


def test_a_reader_that_fails_stops_no_other(model_host: ModelHost) -> None:
    engine = model_host.engine
    assert engine

    def fail() -> None:
        raise RuntimeError("the loop is closed")

    first = engine.reply(HELLO, Sampling(max_new_tokens=20), on_change=fail)
    second = engine.reply(HELLO, Sampling(max_new_tokens=20))
    for reply in (first, second):
        assert reply.wait(10**9, WITHIN)
        assert reply.ended in ("stop", "length")


# --- The process --------------------------------------------------------------------------------------------------

ENDLESS = "from recipe.engine import engine; engine.stop_ids = lambda _: []"
DEVICE_LOST = (
    "import sys; sys.path += ['tests', 'tests/serving']; from test_endpoints import lose_device;"
    "from recipe.engine.decoder import Decoder; Decoder.decode = lose_device"
)


def test_a_server_whose_device_is_lost_answers_and_exits_with_an_error(served_work: Path, tmp_path: Path) -> None:
    with server(DEVICE_LOST, served_work, tmp_path) as (process, endpoint):
        status, body = endpoint.post(ASK)
        assert (status, "illegal memory access" in body["error"]["message"]) == (500, True)
        assert process.wait(WITHIN) == 1
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last.startswith("error: the engine failed and the server ends")
    assert not list(tmp_path.glob("recipe-*/*"))


NOBODY_READS = (
    DEVICE_LOST + ";import os; from recipe.serving.model_host import ModelHost; fail = ModelHost._fail;"
    "end = os.pipe();"
    "ModelHost._fail = lambda *given: (os.close(end[0]), os.dup2(end[1], 2), os.close(end[1]), fail(*given))"
)
FOLDER_OPEN = (
    DEVICE_LOST + ";from recipe.serving import model_host; fail = model_host.ModelHost._fail;"
    "model_host.ModelHost._fail = lambda self, error: ("
    "model_host.state_file(self.port).parent.chmod(0o755), fail(self, error))"
)


@pytest.mark.parametrize("change", [NOBODY_READS, FOLDER_OPEN], ids=["log", "state file"])
def test_a_server_whose_device_is_lost_exits_also_where_it_cannot_say_so(
    served_work: Path, tmp_path: Path, change: str
) -> None:
    with server(change, served_work, tmp_path) as (process, endpoint), ThreadPoolExecutor(8) as clients:
        statuses = [status for status, _ in clients.map(endpoint.post, [ASK] * 8)]
        assert set(statuses) <= {500, 503}
        assert process.wait(WITHIN) != 0


def test_what_a_stopped_server_did_not_finish_is_no_success(served_work: Path, tmp_path: Path) -> None:
    with server(ENDLESS, served_work, tmp_path) as (process, endpoint):
        with stream(endpoint.url, max_tokens=1900) as events:
            next(events)
            whole = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=WITHIN)
            body = json.dumps(ASK | {"max_tokens": 1900})
            whole.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            for _ in range(100):  # both are on their way by then
                next(events)
            process.send_signal(signal.SIGTERM)
            *_, last = events
        assert last["error"]["type"] == "server_error"
        answer = whole.getresponse()
        assert (answer.status, "the server stops" in json.loads(answer.read())["error"]["message"]) == (503, True)
        assert process.wait(WITHIN) == 0


def test_a_model_whose_folder_has_gone_is_served_and_listed(tmp_path: Path) -> None:
    """As after `make clean`, or while `merge` puts another one in its place."""
    work = write_served(tmp_path)
    model_host = ModelHost(work, None, 4, verb="api", compare=False)
    model_host.load()
    for endpoint in listen(model_host):
        before = endpoint.client().models.list().data
        shutil.rmtree(work)
        assert endpoint.client().models.list().data == before
        assert endpoint.post(ASK)[0] == 200
    assert model_host.engine
    model_host.engine.close()


def test_a_closed_engine_is_no_fault_of_the_request(fresh_endpoint: Endpoint) -> None:
    engine: Engine = fresh_endpoint.engine
    engine.close()
    status, body = fresh_endpoint.post(ASK)
    assert (status, body["error"]["type"]) == (503, "server_error")
