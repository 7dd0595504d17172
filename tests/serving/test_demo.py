"""The page's model: which one is shown, how it says how it is, and what it is loaded from. One real server, without a
model."""

from __future__ import annotations

import asyncio
import gc
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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from local_server import Handler, LocalServer, free_port, server_environment
from streamlit.runtime.uploaded_file_manager import UploadedFileManager, UploadedFileRec
from tornado.websocket import WebSocketClosedError

from recipe import cli
from recipe.chat_format import prompt_ids
from recipe.corpus.identity import Identity
from recipe.engine import Engine, Reply, Sampling
from recipe.errors import RecipeError
from recipe.evaluation import generation
from recipe.paths import ROOT
from recipe.pipeline import stage
from recipe.plain_text import flaw
from recipe.serving import demo, model_host
from recipe.serving.model_host import ModelHost

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


def published_state(port: int = PORT) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(model_host.state_file(port).read_text(encoding="utf-8"))
    return content


# --- Which model --------------------------------------------------------------------------------------------------


def test_no_work_folder_and_an_empty_one_hold_no_model(tmp_path: Path, work: Path) -> None:
    assert model_host.newest_merged(tmp_path / "missing", None) is None
    assert model_host.newest_merged(work, None) is None
    assert model_host.newest_merged(work, "main") is None


def test_the_run_that_merged_last_is_shown(work: Path) -> None:
    first, second = merged(work, "b", at=1_000_000_000), merged(work, "a", at=1_000_000_001)
    assert model_host.newest_merged(work, None) == second
    os.utime(first / stage.MANIFEST, (1_000_000_002, 1_000_000_002))
    assert model_host.newest_merged(work, None) == first


def test_a_run_that_is_named_is_shown_whatever_merged_last(work: Path) -> None:
    older = merged(work, "older", at=1_000_000_000)
    merged(work, "newer", at=1_000_000_001)
    assert model_host.newest_merged(work, "older") == older
    assert model_host.newest_merged(work, "neither") is None


def test_an_incomplete_folder_is_no_model(work: Path) -> None:
    complete, incomplete = merged(work, "complete"), merged(work, "incomplete", at=2_000_000_000)
    (incomplete / stage.MANIFEST).unlink()
    (work / "stopped" / ".merged.partial").mkdir(parents=True)
    (work / "stopped" / ".merged.partial" / stage.MANIFEST).write_text("{}", encoding="utf-8")
    assert model_host.newest_merged(work, None) == complete
    assert model_host.newest_merged(work, "incomplete") is None


# --- How it is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "where"), [(None, "RUN/merged"), ("main", "main/merged")])
def test_without_a_model_it_says_what_to_run(
    work: Path, run: str | None, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_host.ModelHost(work, run, PORT)
    model.load()
    assert (model.state, model.engine) == ("missing", None)
    assert model.message.startswith(f"no model in {work / where} yet: run `python -m recipe quickstart --work ")
    assert capsys.readouterr().err.splitlines() == [f"[demo] missing: {model.message}"]
    model.load()
    assert capsys.readouterr().err == ""  # a visitor who tries again adds nothing to the log


def test_a_run_without_a_model_names_the_run_that_has_one(work: Path) -> None:
    merged(work, "older"), merged(work, "newer", at=2_000_000_000)
    model = model_host.ModelHost(work, "typo", PORT)
    model.load()
    assert model.message.endswith("first; RUN=newer has one")


def test_without_a_run_the_folders_are_looked_through_once(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str | None] = []
    monkeypatch.setattr(model_host, "newest_merged", lambda _, run: looked.append(run))
    model_host.ModelHost(work, None, PORT).load()
    assert looked == [None]
    model_host.ModelHost(work, "typo", PORT).load()
    assert looked[1:] == ["typo", None]


def test_a_model_is_loaded_once(work: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = merged(work, "main", tiny_model)
    model = model_host.ModelHost(work, None, PORT)
    states: list[dict[str, Any]] = []
    load = generation.load

    def watched(model: Path) -> Any:
        states.append(published_state())
        return load(model)

    monkeypatch.setattr(generation, "load", watched)
    for _ in range(2):
        model.load()
    assert [state["state"] for state in states] == ["loading"]
    assert (model.state, model.message, model.folder) == ("ready", str(folder), folder)
    assert model.engine
    assert model.engine.decoder.head_dim == 4


def test_a_broken_model_is_told_and_a_good_one_in_its_place_is_shown(
    work: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = merged(work, "main")
    model = model_host.ModelHost(work, None, PORT)
    model.load()
    assert (model.state, model.engine) == ("failed", None)
    assert str(broken) in model.message
    assert "\n" not in model.message
    assert published_state()["state"] == "failed"
    good = merged(work, "again", tiny_model, at=1_000_000_001)
    model.load()
    assert (model.state, model.folder, published_state()["state"]) == ("ready", good, "ready")
    states = re.findall(r"^\[demo\] (\w+):", capsys.readouterr().err, re.MULTILINE)
    assert states == ["loading", "failed", "loading", "ready"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("CUDA out of memory.\nTried to allocate"), "CUDA out of memory."),
        (MemoryError(), "not enough memory for the model: end what else uses it, then try again (MemoryError())"),
        (RuntimeError(""), "RuntimeError"),
    ],
)
def test_whatever_fails_while_loading_is_one_line(
    work: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def fail(folder: Path) -> Any:
        raise error

    merged(work, "main")
    monkeypatch.setattr(generation, "load", fail)
    model = model_host.ModelHost(work, None, PORT)
    model.load()
    assert model.state == "failed"
    assert message in model.message
    assert "\n" not in model.message


def test_a_model_that_appears_is_found(work: Path, tiny_model: Path) -> None:
    model = model_host.ModelHost(work, "main", PORT)
    model.load()
    assert published_state()["state"] == "missing"
    merged(work, "main", tiny_model)
    model.load()
    assert published_state()["state"] == "ready"


def test_many_visitors_load_one_model(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merged(work, "main")
    inside, go_on = threading.Event(), threading.Event()
    calls: list[Path] = []

    def slow(self: model_host.ModelHost, folder: Path) -> str:
        calls.append(folder)
        inside.set()
        assert go_on.wait(10)
        return "engine"

    monkeypatch.setattr(model_host.ModelHost, "_start", slow)
    model = model_host.ModelHost(work, None, PORT)
    first = threading.Thread(target=model.load)
    first.start()
    assert inside.wait(10)
    others = [threading.Thread(target=model.load) for _ in range(8)]
    for other in others:
        other.start()
    for other in others:  # they return at once, while the first is still at it
        other.join(10)
        assert not other.is_alive()
    assert (model.state, len(calls)) == ("loading", 1)
    go_on.set()
    first.join(10)
    model.load()
    assert (model.state, str(model.engine), len(calls)) == ("ready", "engine", 1)


def test_the_state_file_is_whole_at_any_time_and_one_for_each_port(work: Path) -> None:
    for port in (6006, 6007):
        model_host.ModelHost(work, f"of{port}", port).load()
    for port in (6006, 6007):
        state = published_state(port)
        assert state.keys() == {"state", "message", "pid"}
        assert (state["state"], state["pid"]) == ("missing", os.getpid())
        assert f"of{port}" in state["message"]
    assert sorted(path.name for path in model_host.state_file(PORT).parent.iterdir()) == [
        "recipe-demo-6006.json",
        "recipe-demo-6007.json",
    ]


@pytest.mark.parametrize("planted", ["a link", "a file", "others may write"])
def test_the_state_is_not_written_where_another_user_laid_something(work: Path, tmp_path: Path, planted: str) -> None:
    folder, elsewhere = model_host.state_file(PORT).parent, tmp_path / "elsewhere"
    elsewhere.mkdir()
    if planted == "a link":
        folder.symlink_to(elsewhere)
    elif planted == "a file":
        folder.touch()
    else:
        folder.mkdir()
        folder.chmod(0o777)
    with pytest.raises(RecipeError, match="is not this user's own folder"):
        model_host.announce("demo", PORT, "ready", "so")
    assert list(elsewhere.iterdir()) == []


# --- What it is loaded from ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(adapter_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder whose run `main` holds adapter and merged model."""
    from recipe.stages import merge

    work = tmp_path_factory.mktemp("served")
    shutil.copytree(adapter_folder, work / "main" / "adapter")
    merge.make(work / "main" / "merged", adapter_folder=work / "main" / "adapter", identity_names=())
    return work


def ask(model: model_host.ModelHost, question: str = "你好", *, base: bool = False, longest: int = 8) -> Reply:
    reply = model.ask([{"role": "user", "content": question}], Sampling(max_new_tokens=longest), base=base)
    reply.join()
    return reply


@pytest.mark.parametrize(
    ("cores", "omp_num_threads", "left"), [(8, None, [7]), (2, None, [1]), (1, None, [1]), (8, "8", [])]
)
def test_a_core_is_left_to_the_server_unless_one_says_otherwise(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, cores: int, omp_num_threads: str | None, left: list[int]
) -> None:
    threads: list[int] = []
    monkeypatch.setattr("torch.get_num_threads", lambda: cores)
    monkeypatch.setattr("torch.set_num_threads", threads.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if omp_num_threads:
        monkeypatch.setenv("OMP_NUM_THREADS", omp_num_threads)
    model = model_host.ModelHost(run_folder, "main", PORT)
    model.load()
    assert model.engine
    model.engine.close()
    assert threads == left


def test_base_and_adapter_are_loaded_where_they_are_there(run_folder: Path, tiny_model: Path) -> None:
    model = model_host.ModelHost(run_folder, "main", PORT)
    model.load()
    assert (model.state, model.can_compare, model.alone) == ("ready", True, False)
    assert model_host.base_and_adapter(run_folder / "main" / "merged") == (tiny_model, run_folder / "main" / "adapter")
    for folder, base in ((run_folder / "main" / "merged", False), (tiny_model, True)):
        with Engine(*generation.load(folder)) as alone:
            expected = alone.reply([{"role": "user", "content": "你好"}], Sampling(max_new_tokens=8))
            expected.join()
        assert ask(model, base=base).text == expected.text
    assert ask(model).text != ask(model, base=True).text
    model.engine.close()  # type: ignore[union-attr]


@pytest.mark.parametrize("missing", ["adapter", "another adapter", "not asked for"])
def test_the_merged_model_alone_is_loaded_where_they_are_not(run_folder: Path, tmp_path: Path, missing: str) -> None:
    work = Path(shutil.copytree(run_folder, tmp_path / "copy"))
    if missing == "adapter":
        shutil.rmtree(work / "main" / "adapter")
    elif missing == "another adapter":
        file = work / "main" / "adapter" / stage.MANIFEST
        manifest = json.loads(file.read_text(encoding="utf-8"))
        manifest["results"]["checkpoint_sha256"] = "0" * 64
        file.write_text(json.dumps(manifest), encoding="utf-8")
    model = model_host.ModelHost(work, "main", PORT, compare=missing != "not asked for")
    model.load()
    assert (model.state, model.can_compare, model.alone) == ("ready", False, True)
    assert ask(model).completion_tokens == 8
    model.engine.close()  # type: ignore[union-attr]


def test_the_latest_turns_that_leave_room_for_the_reply_are_sent(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_host.ModelHost(run_folder, "main", PORT)
    model.load()
    engine = model.engine
    assert engine
    sent: list[Any] = []
    monkeypatch.setattr(engine, "reply", lambda messages, *_, **__: sent.append(messages))
    one, two = ({"role": "user", "content": text} for text in ("one", "two"))
    turns = [one, {"role": "assistant", "content": "1"}, two]
    needed = len(prompt_ids(engine.tokenizer, turns))
    for longest in (engine.length - needed, engine.length - needed + 1):
        model.ask(turns, Sampling(max_new_tokens=longest))
    assert sent == [turns, turns[2:]]
    with pytest.raises(
        RecipeError, match=f"longer than the {engine.length - 8} tokens that the model can read: shorten"
    ):
        model.ask([{"role": "user", "content": "x y " * engine.length}], Sampling(max_new_tokens=8))
    engine.close()


# --- The server ---------------------------------------------------------------------------------------------------


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening


def test_a_taken_port_is_told_with_the_next_one(work: Path, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with pytest.raises(RecipeError, match=f"port {port} is taken: .*PORT={port + 1}$"):
        demo.run(work=work, run=None, host="127.0.0.1", port=port)
    assert not model_host.state_file(port).exists()


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
    async def dies(host: str, port: int, model: model_host.ModelHost, *_: object) -> None:
        model.load()
        assert published_state(port)["state"] == "missing"
        raise OSError("died")

    monkeypatch.setattr(demo, "_serve", dies)
    port = free_port()
    with pytest.raises(OSError, match="died"):
        demo.run(work=work, run=None, host="127.0.0.1", port=port)
    assert not model_host.state_file(port).exists()


def environment(tmp_path: Path, **changes: str) -> dict[str, str]:
    return server_environment(tmp_path / "tmp", PYTHONPATH=str(ROOT), **changes)


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
    connections = []
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        table = Path(f"/proc/{pid}/net/{protocol}")
        for row in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = row.split()
            if fields[9] in own:
                connections.append((fields[1], fields[2], fields[3]))
    return connections


def test_the_page_on_an_empty_work_folder(tmp_path: Path, work: Path) -> None:
    """One process, since starting it takes seconds: it answers, is not healthy, stays on this machine, and ends when
    told."""
    port = free_port()
    before = healthcheck(tmp_path, port)
    assert before.returncode == 1
    assert before.stderr.startswith("the page does not answer: ")

    command = [sys.executable, "-m", "recipe", "demo", "--port", str(port), "--work", str(work)]
    state, log = tmp_path / "tmp" / f"recipe-{os.getuid()}" / f"recipe-demo-{port}.json", tmp_path / "log"
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
            assert checked.stdout.startswith(
                f"missing: no model in {work}/RUN/merged yet: run `python -m recipe quickstart --work "
            )
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
            assert server.wait(timeout=60) == 0, log.read_text()
        finally:
            server.kill()
    assert "Traceback" not in log.read_text()
    assert not state.exists()


def test_the_page_stops_where_nobody_reads_its_output_any_more(tmp_path: Path) -> None:
    """`make demo | tee log` and Ctrl-C: tee may end first."""
    port = free_port()
    command = [sys.executable, "-m", "recipe", "demo", "--port", str(port), "--work", str(tmp_path / "work")]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stderr
            assert server.stdout
            lines = [server.stderr.readline(), server.stderr.readline()]
            assert lines[1].startswith("[demo] missing: "), lines
            server.stdout.close()
            server.stderr.close()
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()


def test_only_that_a_visitor_left_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(error: Exception) -> None:
        raise error

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(demo._report)
        for error in (WebSocketClosedError(), ValueError("a defect")):
            task = loop.create_task(fail(error))
            await asyncio.wait([task])
            del task  # nobody asks how it went

    asyncio.run(serve())
    gc.collect()
    assert "a defect" in caplog.text
    assert "WebSocketClosedError" not in caplog.text


# --- The healthcheck ----------------------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path: Path) -> Iterator[tuple[int, Callable[[str], None]]]:
    """The port of something that answers as the page does, and how to set the state of the model behind it."""

    class Page(Handler):
        def do_GET(self) -> None:
            self.send(200 if self.path == "/_stcore/health" else 404)

    with LocalServer(Page) as server:
        port = server.server_port
        file = tmp_path / "tmp" / f"recipe-{os.getuid()}" / f"recipe-demo-{port}.json"

        def become(state: str) -> None:
            file.parent.mkdir(mode=0o700, exist_ok=True)
            file.write_text(json.dumps({"state": state, "message": "so"}), encoding="utf-8")

        yield port, become


def test_healthy_is_ready_and_nothing_else(tmp_path: Path, page: tuple[int, Callable[[str], None]]) -> None:
    port, become = page
    assert healthcheck(tmp_path, port).returncode == 1  # it answers, and nothing is known of its model
    for state, status in (("loading", 1), ("failed", 1), ("ready", 0)):
        become(state)
        process = healthcheck(tmp_path, port)
        assert (process.returncode, process.stdout, process.stderr) == (status, f"{state}: so\n", "")


def test_a_proxy_is_not_asked_for_the_page_s_health(tmp_path: Path, page: tuple[int, Callable[[str], None]]) -> None:
    port, become = page
    become("ready")
    assert healthcheck(tmp_path, port, http_proxy="http://127.0.0.1:9").returncode == 0


def test_the_healthcheck_needs_the_standard_library_alone() -> None:
    names = set(re.findall(r"^(?:import|from) (\w+)", HEALTHCHECK.read_text(encoding="utf-8"), re.MULTILINE))
    assert names
    assert names <= sys.stdlib_module_names


# --- Who it is ----------------------------------------------------------------------------------------------------


def rows_of(work: Path, run: str, identity: Identity, *, at: int, **results: Any) -> None:
    """A complete folder of stage `data`, written `at`."""

    def write(out: Path) -> dict[str, Any]:
        (out / "identity.json").write_text(json.dumps(asdict(identity), ensure_ascii=False), encoding="utf-8")
        return {"rows": 1, "file": "train.jsonl", "mode": "balanced"} | results

    folder = work / run / "data"
    stage.run("data", folder, inputs={}, settings={}, work=write)
    os.utime(folder / stage.MANIFEST, (at, at))


@pytest.mark.parametrize(
    ("identity", "titles"),
    [(Identity("小明"), ("小明的小助手", "小明's assistant")), (Identity("小明", "小智"), ("小智", "小智"))],
)
def test_the_page_is_called_as_the_assistant_is(work: Path, identity: Identity, titles: tuple[str, str]) -> None:
    merged(work, "run", at=1_000_000_000)
    rows_of(work, "run", identity, at=900_000_000)
    model = ModelHost(work, None, PORT)
    model.load()  # the folder holds no model: the name is there all the same
    assert (model.title("zh"), model.title("en")) == titles
    assert model.label == "run"


@pytest.mark.parametrize("what", ["later", "taught nothing", "broken", "missing"])
def test_a_name_that_may_not_be_the_models_is_not_shown(
    work: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    folder = merged(work, "run", at=1_000_000_000)
    if what != "missing":
        taught = {"identity_taught": what != "taught nothing"}
        rows_of(work, "run", Identity("小明"), at=1_100_000_000 if what == "later" else 900_000_000, **taught)
    if what == "broken":
        (work / "run" / "data" / "identity.json").write_text("[]", encoding="utf-8")
    capsys.readouterr()
    assert model_host.identity_of(folder) is None
    assert ("the page has no assistant's name" in capsys.readouterr().err) == (what == "broken")
    assert ModelHost(work, None, PORT).title("en") == "InternLM2"


@pytest.mark.parametrize(
    ("variable", "value", "what"),
    [
        ("STREAMLIT_SERVER_BASE_URL_PATH", "/../(", "is no path"),
        ("STREAMLIT_SERVER_BASE_URL_PATH", "chat\x1b[31m", "is no path"),
        ("STREAMLIT_SERVER_BASE_URL_PATH", "a//b", "is no path"),
        ("PAGE_HOSTS", "fine.example https://chat.example.com", "is no name of a host"),
        ("PAGE_HOSTS", "chat.example.com:8443", "is no name of a host"),
        ("PAGE_HOSTS", "a\x1b[31m", "is no name of a host"),
        ("PAGE_HOSTS", "a\udcff", "is no name of a host"),
    ],
)
def test_a_variable_that_holds_no_name_or_path_is_said_before_anything_is_loaded(
    variable: str, value: str, what: str, work: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(RecipeError, match=f"{variable}: .* {what}") as error:
        demo.run(work=work, run=None, host="127.0.0.1", port=port)
    assert not flaw(str(error.value))


def test_one_visitor_s_files_do_not_fill_the_memory() -> None:
    manager = UploadedFileManager()  # type: ignore[no-untyped-call]
    demo.keep_few_uploads(manager)
    file = UploadedFileRec(0, "conversation.json", "application/json", b"{}")
    first = manager.add_file("quiet", "upload0", file)
    for i in range(200):
        manager.add_file("loud", f"upload{i % 7}", file)
    assert len(manager.get_stats()) == 1 + demo.UPLOADS
    assert manager.get_all_files("quiet", "upload0") == [first]
    latest = manager.add_file("quiet", "upload0", file)
    assert manager.get_all_files("quiet", "upload0") == [latest]
    for i in range(200):
        manager.add_file(f"visitor {i}", "upload0", file)
    assert len(manager.get_stats()) == demo.ALL_UPLOADS
    assert len(manager._files_by_id) == demo.ALL_UPLOADS
