"""What the page says about a reply: the line below it, or the message about its failure."""

from __future__ import annotations

from recipe.engine.reply import Reply
from recipe.serving.page.words import Words


def note(reply: Reply, say: Words) -> str:
    """The line below a reply: its tokens, seconds to the first and speed; and how it ended, if not by itself.

    Args:
        reply: that has ended.
        say: the texts in the visitor's language.
    """
    speed = reply.tokens_per_second
    if speed is None or reply.first_at is None:
        text = say("note_short", tokens=reply.completion_tokens)
    else:
        first = f"{reply.first_at - reply.asked_at:.2f}"
        text = say("note", tokens=reply.completion_tokens, first=first, speed=f"{speed:.0f}")
    ending = {"cancelled": "stopped", "length": "cut"}.get(reply.ended or "")
    return f"{text} · {say(ending)}" if ending else text


def failure(error: Exception, say: Words) -> str:
    """The message about a reply that ended with `error`.

    Args:
        error: of the reply.
        say: the texts in the visitor's language.
    """
    if "out of memory" in str(error) or isinstance(error, MemoryError):
        return say("out_of_memory")
    return say("reply_failed", why=str(error).splitlines()[0] if str(error) else repr(error))
