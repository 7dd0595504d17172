"""The page's model: which one is shown, how it says how it is, and visitors who take turns. One real server, without a model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recipe import cli, demo, generate, stage
from recipe.chat_format import prompt_ids
from recipe.errors import RecipeError
from recipe.paths import ROOT

PORT = 6006
HEALTHCHECK = ROOT / "docker" / "healthcheck.py"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
Done = subprocess.CompletedProcess[str]


@pytest.fixture(autouse=True)
def _own_state_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def merged(work: Path, run: str, model: Path | None = None, *, at: int = 1_000_000_000) -> Path:
    """A complete folder of stage `merge`, written `at`; it holds what `model` holds, or nothing that is a model."""

    def write(out: Path) -> None:
        for file in model.iterdir() if model else ():
            if file.is_file() and file.name != stage.MANIFEST:
                shutil.copyfile(file, out / file.name)

    folder = work / run / "merged"
    stage.run("merge", folder, inputs={}, settings={}, work=write)
    os.utime(folder / stage.MANIFEST, (at, at))
    return folder


def told(port: int = PORT) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(demo.state_file(port).read_text(encoding="utf-8"))
    return content


# --- Which model --------------------------------------------------------------------------------------------------


def test_no_work_folder_and_an_empty_one_hold_no_model(tmp_path: Path, work: Path) -> None:
    assert demo.newest(tmp_path / "missing", None) is None
    assert demo.newest(work, None) is None
    assert demo.newest(work, "main") is None


def test_the_run_that_merged_last_is_shown(work: Path) -> None:
    first, second = merged(work, "b", at=1_000_000_000), merged(work, "a", at=1_000_000_001)
    assert demo.newest(work, None) == second
    os.utime(first / stage.MANIFEST, (1_000_000_002, 1_000_000_002))
    assert demo.newest(work, None) == first


def test_a_run_that_is_named_is_shown_whatever_merged_last(work: Path) -> None:
    older = merged(work, "older", at=1_000_000_000)
    merged(work, "newer", at=1_000_000_001)
    assert demo.newest(work, "older") == older
    assert demo.newest(work, "neither") is None


def test_an_incomplete_folder_is_no_model(work: Path) -> None:
    complete, incomplete = merged(work, "complete"), merged(work, "incomplete", at=2_000_000_000)
    (incomplete / stage.MANIFEST).unlink()
    (work / "stopped" / ".merged.partial").mkdir(parents=True)
    (work / "stopped" / ".merged.partial" / stage.MANIFEST).write_text("{}", encoding="utf-8")
    assert demo.newest(work, None) == complete
    assert demo.newest(work, "incomplete") is None


# --- How it is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "where"), [(None, "RUN/merged"), ("main", "main/merged")])
def test_without_a_model_it_says_what_to_run(
    work: Path, run: str | None, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    served = demo.Served(work, run, PORT)
    served.load()
    assert (served.state, served.loaded) == ("missing", None)
    assert served.message.startswith(f"no model in {work / where} yet: run `make ")
    assert capsys.readouterr().err.splitlines() == [f"[demo] missing: {served.message}"]
    served.load()
    assert capsys.readouterr().err == ""  # a visitor who tries again adds nothing to the log


def test_a_model_is_loaded_once(work: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = merged(work, "main", tiny_model)
    served = demo.Served(work, None, PORT)
    seen: list[dict[str, Any]] = []
    load = generate.load

    def watched(model: Path) -> Any:
        seen.append(told())
        return load(model)

    monkeypatch.setattr(generate, "load", watched)
    for _ in range(2):
        served.load()
    assert [state["state"] for state in seen] == ["loading"]
    assert (served.state, served.message, served.folder) == ("ready", str(folder), folder)
    assert served.loaded.config.hidden_size == 16


def test_a_broken_model_is_told_and_a_good_one_in_its_place_is_shown(
    work: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = merged(work, "main")
    served = demo.Served(work, None, PORT)
    served.load()
    assert (served.state, served.loaded) == ("failed", None)
    assert str(broken) in served.message
    assert "\n" not in served.message
    assert told()["state"] == "failed"
    good = merged(work, "again", tiny_model, at=1_000_000_001)
    served.load()
    assert (served.state, served.folder, told()["state"]) == ("ready", good, "ready")
    states = re.findall(r"^\[demo\] (\w+):", capsys.readouterr().err, re.MULTILINE)
    assert states == ["loading", "failed", "loading", "ready"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("CUDA out of memory.\nTried to allocate"), "CUDA out of memory."),
        (MemoryError(), "MemoryError()"),
        (RuntimeError(""), "RuntimeError"),
    ],
)
def test_whatever_fails_while_loading_is_one_line(
    work: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(folder: Path) -> Any:
        raise error

    merged(work, "main")
    monkeypatch.setattr(generate, "load", fail)
    served = demo.Served(work, None, PORT)
    served.load()
    assert served.state == "failed"
    assert message in served.message
    assert "\n" not in served.message


def test_a_model_that_appears_is_found(work: Path, tiny_model: Path) -> None:
    served = demo.Served(work, "main", PORT)
    served.load()
    assert told()["state"] == "missing"
    merged(work, "main", tiny_model)
    served.load()
    assert told()["state"] == "ready"


def test_many_visitors_load_one_model(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merged(work, "main")
    inside, go_on = threading.Event(), threading.Event()
    calls: list[Path] = []

    def slow(folder: Path) -> tuple[str, str]:
        calls.append(folder)
        inside.set()
        assert go_on.wait(10)
        return "model", "tokenizer"

    monkeypatch.setattr(generate, "load", slow)
    served = demo.Served(work, None, PORT)
    first = threading.Thread(target=served.load)
    first.start()
    assert inside.wait(10)
    others = [threading.Thread(target=served.load) for _ in range(8)]
    for other in others:
        other.start()
    for other in others:  # they return at once, while the first is still at it
        other.join(10)
        assert not other.is_alive()
    assert (served.state, len(calls)) == ("loading", 1)
    go_on.set()
    first.join(10)
    served.load()
    assert (served.state, served.loaded, len(calls)) == ("ready", "model", 1)


def test_the_state_file_is_whole_at_any_time_and_one_for_each_port(work: Path) -> None:
    for port in (6006, 6007):
        demo.Served(work, f"of{port}", port).load()
    for port in (6006, 6007):
        state = told(port)
        assert state.keys() == {"state", "message", "pid"}
        assert (state["state"], state["pid"]) == ("missing", os.getpid())
        assert f"of{port}" in state["message"]
    assert sorted(path.name for path in demo.state_file(PORT).parent.iterdir()) == [
        "recipe-demo-6006.json",
        "recipe-demo-6007.json",
    ]


# --- Talking ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talking(tiny_model: Path) -> demo.Served:
    served = demo.Served(Path("unused"), None, PORT)
    served.loaded, served.tokenizer = generate.load(tiny_model)
    return served


def asked(text: str = "你好") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_a_reply_comes_in_pieces_and_is_what_the_model_says(talking: demo.Served) -> None:
    (expected,) = generate.answer(talking.loaded, talking.tokenizer, [asked()], max_new_tokens=12)
    pieces = list(talking.reply(asked(), max_new_tokens=12, temperature=0.0, top_p=0.8))
    assert len(pieces) > 1
    assert "".join(pieces).strip() == expected.text.strip()


def fake_stream(monkeypatch: pytest.MonkeyPatch, heard: list[str], pieces: int) -> None:
    """Replies that take long enough for another one to come between."""

    def stream(model: Any, tokenizer: Any, conversation: Any, **sampling: Any) -> Iterator[str]:
        for _ in range(pieces):
            heard.append(conversation[-1]["content"])
            time.sleep(0.01)
            yield "x"

    monkeypatch.setattr(generate, "stream", stream)


def test_visitors_take_turns(talking: demo.Served, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    fake_stream(monkeypatch, heard, 5)
    start = threading.Barrier(3)

    def visit(name: str) -> None:
        start.wait(10)
        assert "".join(talking.reply(asked(name), max_new_tokens=5)) == "xxxxx"

    visitors = [threading.Thread(target=visit, args=(name,)) for name in "abc"]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(10)
    assert len(heard) == 15
    assert all(len(set(heard[turn : turn + 5])) == 1 for turn in (0, 5, 10)), heard


def test_a_visitor_who_leaves_lets_the_next_one_speak(talking: demo.Served, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []
    fake_stream(monkeypatch, heard, 5)
    pieces = talking.reply(asked("left"), max_new_tokens=5)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    next_ = threading.Thread(target=lambda: list(talking.reply(asked("next"), max_new_tokens=5)), daemon=True)
    next_.start()
    next_.join(10)
    assert heard == ["left", *["next"] * 5]


def test_a_reply_that_failed_lets_the_next_one_speak(talking: demo.Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Iterator[str]:
        raise RuntimeError("CUDA error")
        yield

    heard: list[str] = []
    monkeypatch.setattr(generate, "stream", fail)
    with pytest.raises(RuntimeError, match="CUDA error"):
        list(talking.reply(asked(), max_new_tokens=1))
    fake_stream(monkeypatch, heard, 1)
    next_ = threading.Thread(target=lambda: list(talking.reply(asked("next"), max_new_tokens=1)), daemon=True)
    next_.start()
    next_.join(10)
    assert heard == ["next"]


def test_the_latest_turns_that_leave_room_for_the_reply_are_sent(
    talking: demo.Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []

    def stream(model: Any, tokenizer: Any, conversation: Any, **_: Any) -> Iterator[str]:
        sent.append(conversation)
        return iter("x")

    monkeypatch.setattr(generate, "stream", stream)
    turns = [*asked("one"), {"role": "assistant", "content": "1"}, *asked("two")]
    reads = talking.loaded.config.max_position_embeddings
    needed = len(prompt_ids(talking.tokenizer, turns))
    for longest in (reads - needed, reads - needed + 1):
        list(talking.reply(turns, max_new_tokens=longest))
    assert sent == [turns, turns[2:]]


def test_a_message_that_does_not_fit_is_told_and_lets_the_next_one_speak(talking: demo.Served) -> None:
    reads = talking.loaded.config.max_position_embeddings
    with pytest.raises(RecipeError, match=f"longer than the {reads - 8} tokens that the model can read: shorten it"):
        list(talking.reply(asked("x y " * reads), max_new_tokens=8))
    assert not talking._speaking.locked()


# --- The server ---------------------------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken


def test_a_taken_port_is_told_with_the_next_one(work: Path, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with pytest.raises(RecipeError, match=f"port {port} is taken: .*PORT={port + 1}$"):
        demo.run(work=work, run=None, host="127.0.0.1", port=port)
    assert not demo.state_file(port).exists()


def test_a_number_that_is_no_port_is_no_traceback(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    try:
        status = cli.main(["demo", "--port", "70000", "--work", str(work)])
    except SystemExit as exit_:
        status = int(str(exit_.code))
    assert status in (1, 2)


def test_an_address_of_another_machine_is_told(work: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot listen on 192\.0\.2\.1 port 6006: \w+"):
        demo.run(work=work, run=None, host="192.0.2.1", port=PORT)


def test_a_server_that_died_leaves_no_state_behind(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def dies(host: str, port: int, model: demo.Served) -> None:
        model.load()
        assert told(port)["state"] == "missing"
        raise OSError("died")

    monkeypatch.setattr(demo, "_serve", dies)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(OSError, match="died"):
        demo.run(work=work, run=None, host="127.0.0.1", port=port)
    assert not demo.state_file(port).exists()


def environment(tmp_path: Path, **changes: str) -> dict[str, str]:
    # Without the proxies of this machine: what the page answers to itself goes through none.
    own = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    own |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path / "tmp"), "CUDA_VISIBLE_DEVICES": ""}
    return own | changes


def healthcheck(tmp_path: Path, port: int, **changes: str) -> Done:
    return subprocess.run(
        [sys.executable, str(HEALTHCHECK)], env=environment(tmp_path, PORT=str(port), **changes),
        check=False, capture_output=True, text=True,
    )  # fmt: skip


def get(port: int, path: str) -> tuple[int, str]:
    with DIRECT.open(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.status, answer.read().decode()


def sockets(pid: int) -> list[tuple[str, str, str]]:
    """(local address, remote address, state) in hexadecimal of every IP socket of a process: proc(5), /proc/net/tcp."""
    links = (str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir())
    own = {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:[")}
    found = []
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        table = Path(f"/proc/{pid}/net/{protocol}")
        for row in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = row.split()
            if fields[9] in own:
                found.append((fields[1], fields[2], fields[3]))
    return found


def test_the_page_on_an_empty_work_folder(tmp_path: Path, work: Path) -> None:
    """One process, since starting it takes seconds: it answers, is not healthy, stays on this machine, and ends when told."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    before = healthcheck(tmp_path, port)
    assert before.returncode == 1
    assert before.stderr.startswith("the page does not answer: ")

    command = [sys.executable, "-m", "recipe", "demo", "--port", str(port), "--work", str(work)]
    state, log = tmp_path / "tmp" / f"recipe-demo-{port}.json", tmp_path / "log"
    with (
        log.open("w") as written,
        subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path), stdout=written, stderr=written) as server,
    ):
        try:
            deadline = time.monotonic() + 60
            while not state.exists() and server.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            assert json.loads(state.read_text(encoding="utf-8"))["pid"] == server.pid, log.read_text()

            status, page = get(port, "/")
            assert (status, "<title>Streamlit</title>" in page) == (200, True)
            assert get(port, "/_stcore/health") == (200, "ok")
            checked = healthcheck(tmp_path, port)
            assert (checked.returncode, checked.stderr) == (1, "")
            assert checked.stdout.startswith(f"missing: no model in {work}/RUN/merged yet: run `make ")
            assert log.read_text().splitlines() == [
                f"[demo] http://127.0.0.1:{port} (Ctrl-C stops it)",
                f"[demo] {checked.stdout.rstrip()}",
            ]

            loopback = f"0100007F:{port:04X}"
            open_ = sockets(server.pid)
            assert [local for local, _, state_ in open_ if state_ == "0A"] == [loopback]  # 0A: it listens
            assert {local for local, _, _ in open_} == {loopback}  # and every other is an answer to a call on it
            assert list(work.iterdir()) == []

            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=10) == 0, log.read_text()
        finally:
            server.kill()
    assert "Traceback" not in log.read_text()
    assert not state.exists()


# --- The healthcheck ----------------------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path: Path) -> Iterator[tuple[int, Callable[[str], None]]]:
    """The port of something that answers as the page does, and how to set the state of the model behind it."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/_stcore/health" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        port = server.server_port
        file = tmp_path / "tmp" / f"recipe-demo-{port}.json"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

        def become(state: str) -> None:
            file.write_text(json.dumps({"state": state, "message": "so"}), encoding="utf-8")

        yield port, become
        server.shutdown()


def test_healthy_is_ready_and_nothing_else(tmp_path: Path, page: tuple[int, Callable[[str], None]]) -> None:
    port, become = page
    assert healthcheck(tmp_path, port).returncode == 1  # it answers, and nothing is known of its model
    for state, status in (("loading", 1), ("failed", 1), ("ready", 0)):
        become(state)
        done = healthcheck(tmp_path, port)
        assert (done.returncode, done.stdout, done.stderr) == (status, f"{state}: so\n", "")


def test_a_proxy_is_not_asked_for_the_page_s_health(tmp_path: Path, page: tuple[int, Callable[[str], None]]) -> None:
    port, become = page
    become("ready")
    assert healthcheck(tmp_path, port, http_proxy="http://127.0.0.1:9").returncode == 0


def test_the_healthcheck_needs_the_standard_library_alone() -> None:
    names = set(re.findall(r"^(?:import|from) (\w+)", HEALTHCHECK.read_text(encoding="utf-8"), re.MULTILINE))
    assert names
    assert names <= sys.stdlib_module_names
