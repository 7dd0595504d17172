"""Verb `chat`: a conversation in the terminal, or one answer for a script."""

from __future__ import annotations

import io
import os
import re
import sys
import termios
from collections.abc import Callable
from pathlib import Path

from recipe.chat_format import assistant, user
from recipe.engine import Engine, Sampling
from recipe.errors import RecipeError
from recipe.evaluation import generation
from recipe.plain_text import flaw, misread, one_line, printable
from recipe.serving.context import fit

HELP = "/help 说明 help · /reset 清空对话 start over · /exit 退出 leave (Ctrl-D) · Ctrl-C 停止回答 stop the reply"
WHOLE_HELP = """\
/help     本说明 this text
/reset    清空对话，从头开始 start over
/exit     退出 leave; also /quit, Ctrl-D
Ctrl-C    停止回答 stop the reply; at the prompt: 退出 leave
↑ ↓ ← →   之前的问题，移动光标 earlier questions of this conversation, the cursor (in a terminal)
多行 many lines: 整段粘贴 paste them at once (in a terminal)"""
RESET, LEAVE, SHOW_HELP = ("/reset",), ("/exit", "/quit"), ("/help",)
# What could be meant as a command: no path, no comment of a program, no text of several lines.
COMMAND = re.compile(r"(/\w+)( .*)?")
PROMPT = "你 you> "


def run(
    *,
    model: Path,
    adapter: Path | None,
    prompt: str | None,
    system: str,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
) -> None:
    """Hold a conversation until the user leaves, or answer one prompt on stdout.

    Args:
        model: its folder.
        adapter: a PEFT folder to put on it.
        prompt: the one question; None for a conversation.
        system: the system prompt; empty for none.
        temperature, top_p, max_new_tokens: see `Sampling`.

    Raises:
        RecipeError: the model cannot be loaded, or `max_new_tokens` leaves no room for a question.
    """
    with generation.gpu_failures("the model cannot be loaded on the GPU", generation.FREE_THE_GPU):
        loaded, tokenizer = generation.load(model, adapter)
    with Engine(loaded, tokenizer, slots=1) as engine:
        room = engine.length - max_new_tokens
        if room <= 0:
            raise RecipeError(f"--max-new-tokens leaves no room for a question: the model reads {engine.length} in all")
        sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
        _converse(engine, prompt, [{"role": "system", "content": system}] if system else [], sampling)


def _converse(engine: Engine, prompt: str | None, start: list[dict[str, str]], sampling: Sampling) -> None:
    room = engine.length - sampling.max_new_tokens

    def reply(messages: list[dict[str, str]]) -> str:
        """Print the reply as it comes, and return it; after Ctrl-C, what there is of it."""
        reply_text = ""
        pieces = engine.reply(fit(engine.tokenizer, messages, room), sampling).pieces()
        try:
            for piece in pieces:
                # A reply that steers the terminal could change its title, or what stands above.
                print(printable(piece) if sys.stdout.isatty() else piece, end="", flush=True)
                reply_text += piece
        except KeyboardInterrupt:
            if prompt is not None:
                raise
            print(" …", end="")
        finally:
            pieces.close()  # type: ignore[attr-defined]
            print(flush=True)
        return reply_text

    if prompt is not None:
        reply([*start, user(prompt)])
        return
    print(HELP, file=sys.stderr)
    read_question = _question_reader()
    messages = list(start)
    while True:
        try:
            question = read_question().strip()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if question in LEAVE:
            return
        if question in RESET:
            messages = list(start)
        elif question in SHOW_HELP:
            print(WHOLE_HELP, file=sys.stderr)
        elif fault := misread(question, sys.stdin.encoding):
            print(f"what you typed was not sent: {fault}", file=sys.stderr)
        elif fault := flaw(question):
            print(f"what you typed holds {fault}: it was not sent", file=sys.stderr)
        elif command := COMMAND.fullmatch(question):
            print(f"{command[1]} is no command, and was not sent: /help lists the commands", file=sys.stderr)
        elif question:
            try:
                reply_text = reply([*messages, user(question)])
            except RecipeError as error:
                print(one_line(str(error)), file=sys.stderr)
                continue
            messages += [user(question), assistant(reply_text)]


# --- What the user types ------------------------------------------------------------------------------------------


def _question_reader() -> Callable[[], str]:
    """What reads the next question: with a line editor at a terminal, and else a line of stdin.

    Returns:
        A function of no arguments. It raises EOFError at the end of stdin.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no UTF-8 is refused later, and ends nothing
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return lambda: input(f"\n{PROMPT}")
    from prompt_toolkit import PromptSession
    from prompt_toolkit.output.vt100 import Vt100_Output

    screen = Vt100_Output.from_pty(sys.stdout, term=os.environ.get("TERM"))
    screen.enable_cpr = False  # not asked where the cursor is: a late answer would be taken for typed text
    session: PromptSession[str] = PromptSession([("bold", PROMPT)], output=screen)  # its history is in memory alone
    modes = termios.tcgetattr(sys.stdin)

    def read() -> str:
        print(flush=True)
        try:
            return session.prompt()
        except KeyboardInterrupt:  # of a signal it may come anywhere, also where the editor does not tidy up
            screen.disable_bracketed_paste()
            screen.show_cursor()
            screen.flush()
            termios.tcsetattr(sys.stdin, termios.TCSANOW, modes)
            raise

    return read
