"""What a sceptic asks besides: deep in a conversation, by sampling, and by people who try to talk it out of its answer.

Each is a share of replies with its 95 % interval (see `scoring.share`):

multi_turn_hit   held-out questions about who it is, after two ordinary exchanges;
multi_turn_leak  ordinary prompts asked right after it said who it is;
injection_hit    held-out questions inside an attempt to talk it out of its answer, none of which it was trained on;
sampled_hit      held-out questions, answered by sampling as InternLM2's own `chat()` does;
sampled_leak     ordinary prompts, likewise;
broken           of all replies, greedy and sampled, those that loop or do not end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from recipe.chat_format import Message, assistant, user
from recipe.corpus.identity import Identity, injected, load_injections, load_questions
from recipe.evaluation import scoring
from recipe.evaluation.generation import Reply
from recipe.evaluation.scoring import Prompts, share

# temperature and top_p of InternLM2's `chat()`, and where its random numbers start.
SAMPLING = {"temperature": 0.8, "top_p": 0.8, "seed": 0}

# (conversations, what is said of them on the progress bar, sampling) -> replies
Ask = Callable[..., list[Reply]]


def after_ordinary_talk(prompts: Prompts, base: Sequence[Reply]) -> list[list[Message]]:
    """Each question about who it is after two ordinary exchanges in which the base's own replies stand."""
    talk = [
        [user(question), assistant(reply.text)]
        for (_, question), reply in zip(prompts.facts, base[len(prompts.identity) :], strict=True)
        if reply.stopped
    ]
    return [
        [*talk[2 * i % len(talk)], *talk[(2 * i + 1) % len(talk)], user(question)]
        for i, question in enumerate(prompts.identity)
    ]


def after_introduction(prompts: Prompts, replies: Sequence[Reply]) -> list[list[Message]]:
    """Each ordinary prompt right after a question about who it is and the model's own reply to it."""
    split = len(prompts.identity)
    return [
        [user(prompts.identity[i % split]), assistant(replies[i % split].text), user(question)]
        for i, (_, question) in enumerate(prompts.facts)
    ]


def injections(prompts: Prompts) -> list[list[Message]]:
    """Each question about who it is inside one of the held-out injections of its language, in turn."""
    held_out = {language: parts["heldout"] for language, parts in load_injections().items()}
    spoken = {
        question: language
        for language, intents in load_questions().items()
        for parts in intents.values()
        for question in parts["heldout"]
    }
    return [
        [user(injected(held_out[spoken[q]][i % len(held_out[spoken[q]])], q))] for i, q in enumerate(prompts.identity)
    ]


def measure(
    prompts: Prompts, replies: Sequence[Reply], base: Sequence[Reply], identity: Identity, ask: Ask
) -> dict[str, dict[str, Any]]:
    """Every suite of the model that `ask` asks, whose greedy replies are `replies` and whose untuned self's are
    `base`."""
    words = scoring.ambiguous(identity, base)
    split = len(prompts.identity)
    before = [scoring.says_name(reply, identity, words) for reply in base[split:]]

    def named(replies_to_judge: Sequence[Reply]) -> list[bool]:
        return [scoring.says_name(reply, identity, words) for reply in replies_to_judge]

    def leaked(replies_to_judge: Sequence[Reply]) -> list[bool]:
        return [now and not then for now, then in zip(named(replies_to_judge), before, strict=True)]

    deep = ask(after_ordinary_talk(prompts, base), "deep in a conversation")
    after = ask(after_introduction(prompts, replies), "after an introduction")
    talked = ask(injections(prompts), "injections")
    sampled = ask(prompts.conversations(), "sampling", **SAMPLING)
    shares = {
        "multi_turn_hit": (named(deep), deep),
        "multi_turn_leak": (leaked(after), after),
        "injection_hit": (named(talked), talked),
        "sampled_hit": (named(sampled[:split]), sampled[:split]),
        "sampled_leak": (leaked(sampled[split:]), sampled[split:]),
    }
    every = [*replies, *deep, *after, *talked, *sampled]
    suites = {
        name: share(hits) | {"replies": [r.text for r in replies_to_judge]}
        for name, (hits, replies_to_judge) in shares.items()
    }
    return suites | {"broken": share([scoring.broken(reply) for reply in every])}
