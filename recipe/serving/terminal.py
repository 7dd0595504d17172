"""Verb `chat`: a conversation in the terminal, or one answer for a script."""

from __future__ import annotations

import io
import sys
from pathlib import Path

from recipe.chat_format import assistant, user
from recipe.engine import Engine, Sampling
from recipe.errors import RecipeError
from recipe.evaluation import generation
from recipe.pipeline import stage
from recipe.plain_text import flaw, printable
from recipe.serving.context import fit

HELP = "/reset 清空对话 start over · /exit 退出 leave (Ctrl-D) · Ctrl-C 停止回答 stop the reply"


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
    loaded, tokenizer = generation.load(model, adapter)
    if any(stage.read_manifest(folder) is None for folder in (model, adapter or model)):
        generation.refuse_not_finite(loaded, adapter or model)  # no stage has looked at it
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
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no UTF-8 is refused below, and ends nothing
    messages = list(start)
    while True:
        try:
            question = input("\n你 you> ").strip()
        except (EOFError, KeyboardInterrupt):
            print(file=sys.stderr)
            return
        if question in ("/exit", "/quit"):
            return
        if question == "/reset":
            messages = list(start)
        elif fault := flaw(question):
            print(f"what you typed holds {fault}: it was not sent", file=sys.stderr)
        elif question:
            try:
                reply_text = reply([*messages, user(question)])
            except RecipeError as error:
                print(error, file=sys.stderr)
                continue
            messages += [user(question), assistant(reply_text)]
