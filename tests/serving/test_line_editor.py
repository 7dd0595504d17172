"""Verb `chat` at a pseudo-terminal: the line editor, pasted text, and what it leaves behind.

Here each reply is the question that the model was sent, in ASCII."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_serving import WITHOUT_MODEL

from recipe.paths import ROOT
from recipe.serving.terminal import PROMPT, WHOLE_HELP

WITHIN = 120  # seconds that nothing here takes
UP, LEFT, BACKSPACE, CTRL_C, CTRL_D = b"\x1b[A", b"\x1b[D", b"\x7f", b"\x03", b"\x04"
BRACKETS_OFF = "\x1b[?2004l"  # what the editor sends last
ECHO = """
import sys
from recipe.cli import main
from recipe.engine import Engine, Reply
from recipe.serving import terminal

def reply(self, messages, sampling):
    reply = Reply()
    reply.add(f"<{messages[-1]['content']!a}>")
    reply.end("stop")
    return reply

Engine.reply = reply
terminal.fit = lambda tokenizer, messages, room: messages
sys.exit(main(sys.argv[1:]))
"""
# As a signal leaves it that comes between the editor's change of the terminal and what would undo it.
INTERRUPTED = """
from prompt_toolkit.input.vt100 import raw_mode
raw_mode.__exit__ = lambda *_: None
"""


class Screen:
    """A terminal of 80 columns, in which `chat` runs."""

    def __init__(self, *options: str, patch: str = "", **environment: str) -> None:
        self.fd, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        own = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8", "TERM": "xterm"}
        own |= environment
        command = [sys.executable, "-c", patch + ECHO, "chat", *options]

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C is a signal

        self.process = subprocess.Popen(
            command, cwd=ROOT, env=own, stdin=child, stdout=child, stderr=child, preexec_fn=take_terminal
        )
        self.modes = termios.tcgetattr(child)
        self.child = child  # held open, so that its modes can be read once `chat` has ended
        self.output = b""

    def wait_for(self, text: str) -> bytes:
        """The output up to `text`, which is taken away."""
        end = time.monotonic() + WITHIN
        while text.encode() not in self.output:
            assert time.monotonic() < end, (text, self.output)
            if select.select([self.fd], [], [], 0.1)[0]:
                self.output += os.read(self.fd, 65536)
        before, _, self.output = self.output.partition(text.encode())
        return before

    def type(self, typed: bytes) -> bytes:
        """Type once there is a prompt; what the terminal shows meanwhile is read, or it would stop.

        The editor shows its prompt once more when a line ends. Who types then types between two prompts, where the
        terminal itself edits the line. So a line is typed only after the editor has left the last one.

        Returns:
            What was shown before the prompt's last word.
        """
        shown, ends = self.wait_for("you>"), typed.endswith(b"\r")
        while typed:
            readable, writable, _ = select.select([self.fd], [self.fd], [], WITHIN)
            if readable:
                self.output += os.read(self.fd, 65536)
            if writable:
                typed = typed[os.write(self.fd, typed[:256]) :]
        if ends:
            self.wait_for(BRACKETS_OFF)
        return shown

    def ask(self, typed: bytes) -> str:
        """What the model was sent."""
        self.type(typed)
        self.wait_for("<'")
        return "'" + self.wait_for("'>").decode() + "'"


@pytest.fixture(scope="module")
def start(served_work: Path) -> Iterator[Callable[..., Screen]]:
    screens: list[Screen] = []

    def start(patch: str = "", **environment: str) -> Screen:
        screens.append(Screen("--work", str(served_work), patch=patch, **environment))
        return screens[-1]

    yield start
    for each in screens:
        each.process.kill()
        each.process.wait()
        os.close(each.fd)
        os.close(each.child)


@pytest.fixture(scope="module")
def running(start: Callable[..., Screen]) -> Screen:
    return start()


@pytest.fixture
def chat(running: Screen) -> Screen:
    """A conversation at its beginning."""
    running.type(b"/reset\r")
    return running


def test_the_prompt_stands_out_and_nothing_asks_the_terminal(running: Screen) -> None:
    shown = running.type(b"\r")
    assert shown.endswith(b";1m" + PROMPT.partition("you>")[0].encode())  # bold
    assert b"\x1b[6n" not in shown  # where the cursor is


def test_a_question_is_edited_and_brought_back(chat: Screen) -> None:
    assert chat.ask("你号界".encode() + LEFT + BACKSPACE + "好世".encode() + b"\r") == ascii("你好世界")
    chat.type(b"/reset\r")
    assert chat.ask(UP + UP + LEFT + LEFT + "，".encode() + b"\r") == ascii("你好，世界")


def test_what_is_pasted_is_one_question_however_long(chat: Screen) -> None:
    lines = ["def 问(x):", "\treturn x", *(f"# {i} {'很长' * 40}" for i in range(100)), "/reset"]
    pasted = "\n".join(lines)
    assert len(pasted.encode()) > 4096 * 4  # a terminal's own line ends at 4096 bytes
    assert chat.ask(b"\x1b[200~" + pasted.encode() + b"\x1b[201~\r") == ascii(pasted)
    assert chat.ask("好".encode() * 3000 + b"\r") == ascii("好" * 3000)


def test_what_is_no_text_is_not_sent(chat: Screen) -> None:
    chat.type(b"\xff\xfe\r")
    chat.wait_for("what you typed holds the byte 0xFF, which is no UTF-8, at character 1: it was not sent")
    assert chat.ask("你好\r".encode()) == ascii("你好")


def test_commands_are_answered_and_never_sent(chat: Screen) -> None:
    chat.type(b"/help\r")
    chat.wait_for(WHOLE_HELP.replace("\n", "\r\n"))
    chat.type(b"/rest\r")
    chat.wait_for("/rest is no command, and was not sent: /help lists the commands")
    assert chat.ask("/etc/passwd 是什么\r".encode()) == ascii("/etc/passwd 是什么")


@pytest.mark.parametrize("leaving", [CTRL_D, b"half a question" + CTRL_C, signal.SIGTERM])
def test_leaving_gives_the_terminal_back_and_writes_no_history(
    start: Callable[..., Screen], tmp_path: Path, leaving: bytes | signal.Signals
) -> None:
    # The signal comes to a process with the engine's threads.
    chat = start("" if leaving == signal.SIGTERM else WITHOUT_MODEL, HOME=str(tmp_path))
    chat.ask(b"secret\r")
    if isinstance(leaving, bytes):
        chat.type(leaving)
    else:
        chat.type(b"half a question")
        chat.process.send_signal(leaving)
    chat.wait_for(BRACKETS_OFF)
    assert chat.process.wait(WITHIN) == 0
    assert termios.tcgetattr(chat.child) == chat.modes
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"secret" in file.read_bytes()]


def test_an_interrupted_editor_leaves_no_raw_terminal(start: Callable[..., Screen]) -> None:
    chat = start(WITHOUT_MODEL + INTERRUPTED)
    chat.type(b"half a question")
    chat.process.send_signal(signal.SIGTERM)
    chat.wait_for(BRACKETS_OFF)
    assert chat.process.wait(WITHIN) == 0
    assert termios.tcgetattr(chat.child) == chat.modes
