"""A conversation in the terminal: what fits is sent whole, stdout holds replies alone, and Ctrl-C stops a reply
only."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from damage import full_card
from small_serving import WITHOUT_MODEL

from recipe.engine import Engine, Reply, Sampling
from recipe.errors import RecipeError
from recipe.evaluation import generation
from recipe.paths import ROOT
from recipe.plain_text import misread
from recipe.serving import terminal
from recipe.serving.terminal import HELP, WHOLE_HELP

Messages = list[dict[str, str]]


def conversation(*contents: str, system: str | None = None) -> Messages:
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def run(model: Path, prompt: str | None = None, **changes: Any) -> None:
    terminal.run(
        **{
            "model": model, "adapter": None, "prompt": prompt, "system": "", "temperature": 0.0, "top_p": 1.0,
            "max_new_tokens": 8,
        } | changes
    )  # fmt: skip


def test_one_prompt_gives_the_reply_and_nothing_else_on_stdout(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny_model, "你好")
    (reply,) = generation.answer(*generation.load(tiny_model), [conversation("你好")], max_new_tokens=8)
    assert capsys.readouterr().out == reply.text + "\n"


def test_a_full_card_is_one_line_with_the_way_out(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "load", full_card)
    with pytest.raises(RecipeError, match=r"CUDA out of memory.*CUDA_VISIBLE_DEVICES= .*CPU$"):
        run(tiny_model, "你好")


def test_an_adapter_speaks_where_one_is_given(
    tiny_model: Path, adapter_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny_model, "你好", adapter=adapter_folder)
    (reply,) = generation.answer(*generation.load(tiny_model, adapter_folder), [conversation("你好")], max_new_tokens=8)
    assert capsys.readouterr().out == reply.text + "\n"


@pytest.mark.parametrize("count", [2048, 5000])
def test_a_reply_as_long_as_the_model_reads_is_refused(tiny_model: Path, count: int) -> None:
    with pytest.raises(RecipeError, match="leaves no room for a question: the model reads 2048 in all"):
        run(tiny_model, "你好", max_new_tokens=count)


def test_a_prompt_that_is_too_long_is_refused(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecipeError, match="shorten it"):
        run(tiny_model, "你好" * 2000)
    assert capsys.readouterr().out.strip() == ""


class Terminal:
    """A user who types these lines, and a model that answers each with its number and remembers what it was sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lines: list[str | type[BaseException]]) -> None:
        self.lines = iter(lines)
        self.sent: list[Messages] = []
        self.closed = 0
        self.interrupt = False
        monkeypatch.setattr("builtins.input", self.type)
        monkeypatch.setattr(Engine, "reply", self.reply)

    def type(self, prompt: str) -> str:
        line = next(self.lines)
        if isinstance(line, str):
            return line
        raise line

    def reply(self, messages: Messages, sampling: Sampling) -> Any:
        self.sent.append(list(messages))

        class Spoken:
            @staticmethod
            def pieces() -> Iterator[str]:
                try:
                    yield "reply "
                    if self.interrupt:
                        raise KeyboardInterrupt
                    yield str(len(self.sent))
                finally:
                    self.closed += 1

        return Spoken


@pytest.fixture
def at_terminal(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Terminal]:
    def start(*lines: str | type[BaseException], interrupt: bool = False, **changes: Any) -> Terminal:
        terminal = Terminal(monkeypatch, list(lines))
        terminal.interrupt = interrupt
        run(tiny_model, **changes)
        return terminal

    return start


def test_a_conversation_goes_on(at_terminal: Callable[..., Terminal], capsys: pytest.CaptureFixture[str]) -> None:
    terminal = at_terminal("a", "  b ", "/exit", system="be brief")
    assert terminal.sent == [conversation("a", system="be brief"), conversation("a", "reply 1", "b", system="be brief")]
    output = capsys.readouterr()
    assert output.out == "reply 1\nreply 2\n"
    assert HELP in output.err


def test_reset_starts_over_with_the_system_turn(at_terminal: Callable[..., Terminal]) -> None:
    terminal = at_terminal("a", "/reset", "b", "/quit", system="be brief")
    assert terminal.sent[1] == conversation("b", system="be brief")


@pytest.mark.parametrize("command", ["/rest", "/reset now", "/Exit", "/帮助", "/1"])
def test_an_unknown_command_is_named_and_never_sent(
    at_terminal: Callable[..., Terminal], capsys: pytest.CaptureFixture[str], command: str
) -> None:
    terminal = at_terminal("a", command, "b", "/exit")
    assert terminal.sent == [conversation("a"), conversation("a", "reply 1", "b")]
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "is no command" in line)
    assert line.startswith(command.split()[0])


@pytest.mark.parametrize("text", ["/etc/hosts 是什么", "// a comment", "/", "/* a */", "/exit\nand more", "1/2", "/-5"])
def test_what_only_looks_like_a_command_is_sent(at_terminal: Callable[..., Terminal], text: str) -> None:
    assert at_terminal(text, "/exit").sent == [conversation(text)]


def test_help_names_every_command(at_terminal: Callable[..., Terminal], capsys: pytest.CaptureFixture[str]) -> None:
    assert at_terminal("/help", "/exit").sent == []
    output = capsys.readouterr()
    assert output.err.count(WHOLE_HELP) == 1
    for command in (*terminal.RESET, *terminal.LEAVE, *terminal.SHOW_HELP):
        assert command in WHOLE_HELP
    assert output.out == ""


@pytest.mark.parametrize("end", ["/exit", "/quit", EOFError, KeyboardInterrupt])
def test_a_user_can_leave(at_terminal: Callable[..., Terminal], end: Any) -> None:
    assert at_terminal("", "  ", end).sent == []  # and an empty line asks nothing


def test_ctrl_c_stops_the_reply_and_not_the_conversation(
    at_terminal: Callable[..., Terminal], capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = at_terminal("a", "b", "/exit", interrupt=True)
    assert terminal.closed == 2
    assert terminal.sent[1] == conversation("a", "reply ", "b")  # what was said counts
    assert capsys.readouterr().out == "reply  …\nreply  …\n"


def test_ctrl_c_ends_the_answer_to_a_script(at_terminal: Callable[..., Terminal]) -> None:
    with pytest.raises(KeyboardInterrupt):
        at_terminal(interrupt=True, prompt="a")


def test_a_message_that_is_too_long_is_told_and_forgotten(
    at_terminal: Callable[..., Terminal], capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = at_terminal("你好" * 2000, "b", "/exit")
    assert terminal.sent == [conversation("b")]
    assert "shorten it" in capsys.readouterr().err


def test_the_settings_reach_the_model(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samplings: list[Sampling] = []

    def reply(self: Engine, messages: Messages, sampling: Sampling) -> Reply:
        samplings.append(sampling)
        ended = Reply()
        ended.end("stop")
        return ended

    monkeypatch.setattr(Engine, "reply", reply)
    run(tiny_model, "a", temperature=0.7, top_p=0.5, max_new_tokens=3)
    assert samplings == [Sampling(temperature=0.7, top_p=0.5, max_new_tokens=3)]


# --- Text that is none --------------------------------------------------------------------------------------------


def chat(
    model: Path, *options: bytes, typed: bytes = b"", patch: str = "", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """`python -m recipe chat`, changed by a patch, with what the user types."""
    program = f"{patch}import runpy; runpy.run_module('recipe', run_name='__main__', alter_sys=True)"
    command: list[str | bytes] = [sys.executable, "-c", program, "chat", "--model", str(model), *options]
    command += ["--max-new-tokens", "3"]
    own = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONUTF8": "0", "LC_ALL": "C.UTF-8"}
    return subprocess.run(command, cwd=ROOT, env=own | environment, input=typed, check=False, capture_output=True)


def test_what_is_no_text_is_not_sent_and_the_conversation_goes_on(tiny_model: Path) -> None:
    done = chat(tiny_model, typed=b"\x1b[31mred\n" + b"\xff\xfe\n" + "你好\n".encode())
    errors = done.stderr.decode()
    assert "what you typed holds the control character U+001B at character 1: it was not sent" in errors
    assert "what you typed holds the byte 0xFF, which is no UTF-8, at character 1" in errors
    assert "Traceback" not in errors
    assert done.stdout.decode().count("you> ") == 4
    assert done.returncode == 0


@pytest.mark.parametrize("option", [b"--prompt", b"--system"])
def test_an_option_that_is_no_text_is_one_line(tiny_model: Path, option: bytes) -> None:
    done = chat(tiny_model, option, "你好".encode() + b"\xe4\xbd")
    why = "it holds the byte 0xE4, which is no UTF-8, at character 3; remove it"
    assert (done.returncode, done.stderr.decode().splitlines()) == (1, [f"error: {option.decode()} is no text: {why}"])


def test_an_output_that_cannot_show_the_reply_is_one_line(miniature: Path) -> None:
    done = chat(miniature, b"--prompt", "你是谁？".encode(), PYTHONIOENCODING="ascii")
    *beats, error = done.stderr.decode().splitlines()
    assert all(beat.startswith("[load] ") for beat in beats)  # a slow machine's heartbeat
    assert (done.returncode, error.startswith("error: the output, in ascii, cannot show '\\u")) == (1, True)
    assert error.endswith("set PYTHONIOENCODING=utf-8")


# `chat` sets PYTHONUTF8=0.
REMEDY = "set PYTHONUTF8=1, or a locale such as LC_ALL=C.UTF-8, and run it again"


@pytest.mark.parametrize("option", [b"--prompt", b"--system", b"--run"])
def test_a_sound_text_that_the_locale_misreads_is_one_line(tiny_model: Path, option: bytes) -> None:
    done = chat(tiny_model, option, "你好".encode(), LC_ALL="C")
    fault = "the locale (LC_ALL=C, PYTHONUTF8=0) reads text as ascii, and this is UTF-8"
    assert (done.returncode, done.stderr.decode().splitlines()) == (1, [f"error: {option.decode()}: {fault}: {REMEDY}"])


def test_an_output_that_the_locale_cannot_show_is_one_line(tiny_model: Path) -> None:
    for options in ([], [b"--help"]):  # the prompt of a conversation, and help
        done = chat(tiny_model, *options, typed=b"hi\n", patch=WITHOUT_MODEL, LC_ALL="C")
        error = done.stderr.decode().splitlines()[-1]
        assert done.returncode == 1
        assert error.startswith("error: ascii, of the locale (LC_ALL=C, PYTHONUTF8=0), has no '\\u")
        assert error.endswith(REMEDY)
        assert b"Traceback" not in done.stderr


def test_a_text_read_in_the_encoding_it_was_typed_in_is_taken() -> None:
    assert misread("Zo\xeb", "latin-1") is None
    assert misread("浣犲ソ", "gbk") is not None  # 你好, typed as UTF-8
    assert misread("你好", "gbk") is None
    assert misread("你好", "utf-8") is None
    assert misread("plain", "ascii") is None


def test_a_help_that_cannot_be_shown_is_one_line() -> None:
    command = [sys.executable, "-m", "recipe", "--help"]
    own = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, env=own, check=False, capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "set PYTHONIOENCODING=utf-8" in done.stderr
