"""Further tests of the identity: after other exchanges, inside prompt injections, and with sampled replies.

Each is a share of replies with its 95 % interval (see `scoring.share`):

multi_turn_hit   held-out questions about who it is, after two ordinary exchanges;
multi_turn_leak  ordinary prompts right after an introduction;
injection_hit    held-out questions inside prompt injections that were not trained on;
sampled_hit      held-out questions, answered by sampling as InternLM2's own `chat()` does;
sampled_leak     ordinary prompts, likewise;
broken           of all replies, greedy and sampled, by how many more loop or do not end than of the base's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from recipe.chat_format import Message, assistant, user
from recipe.corpus.identity import Identity, injected, load_injections, load_questions
from recipe.evaluation import scoring
from recipe.evaluation.generation import Reply
from recipe.evaluation.metrics import Share
from recipe.evaluation.scoring import Prompts, ratio, share
from recipe.pipeline.phases import phase

# temperature and top_p of InternLM2's `chat()`, and where its random numbers start.
SAMPLING = {"temperature": 0.8, "top_p": 0.8, "seed": 0}

# (conversations, label of the progress bar, sampling) -> replies
Ask = Callable[..., list[Reply]]


def after_ordinary_talk(prompts: Prompts, base: Sequence[Reply]) -> list[list[Message]]:
    """Conversations of three turns: two ordinary exchanges, then a question about who it is.

    Args:
        prompts: the questions, and the facts that the exchanges are about.
        base: the base's replies to `prompts.conversations()`; those that ended stand in the exchanges.

    Returns:
        A conversation for each question of `prompts.identity`.
    """
    exchanges = [
        [user(question), assistant(reply.text)]
        for (_, question), reply in zip(prompts.facts, prompts.ordinary(base), strict=True)
        if reply.stopped
    ]
    return [
        [*exchanges[2 * i % len(exchanges)], *exchanges[(2 * i + 1) % len(exchanges)], user(question)]
        for i, question in enumerate(prompts.identity)
    ]


def after_introduction(prompts: Prompts, replies: Sequence[Reply]) -> list[list[Message]]:
    """Conversations of two turns: a question about who it is with the model's own reply, then an ordinary prompt.

    Args:
        prompts: the questions, and the facts that the prompts are about.
        replies: the model's to `prompts.conversations()`.

    Returns:
        A conversation for each fact of `prompts.facts`.
    """
    split = len(prompts.identity)
    return [
        [user(prompts.identity[i % split]), assistant(replies[i % split].text), user(question)]
        for i, (_, question) in enumerate(prompts.facts)
    ]


def injections(prompts: Prompts) -> list[list[Message]]:
    """Each question about who it is inside one of the held-out injections of its language, in rotation."""
    held_out = {language: parts["heldout"] for language, parts in load_injections().items()}
    language_of = {
        question: language
        for language, intents in load_questions(extended=True).items()
        for parts in intents.values()
        for question in parts["heldout"]
    }
    conversations: list[list[Message]] = []
    for i, question in enumerate(prompts.identity):
        wordings = held_out[language_of[question]]
        conversations.append([user(injected(wordings[i % len(wordings)], question))])
    return conversations


@phase("score")
def measure(
    prompts: Prompts, replies: Sequence[Reply], base: Sequence[Reply], identity: Identity, ask: Ask
) -> dict[str, Share]:
    """Run every suite.

    Args:
        prompts: held-out questions and facts.
        replies: of the tuned model to `prompts.conversations()`, greedy.
        base: of the base, likewise.
        identity: whose name counts.
        ask: gets the tuned model's replies.

    Returns:
        suite -> its share with its replies; "broken" has no replies of its own, and the base's rate besides.
    """
    split, ambiguous = len(prompts.identity), scoring.ambiguous(identity, base)

    def named(conversations: Sequence[Sequence[Message]], candidates: Sequence[Reply]) -> Share:
        pairs = zip(conversations, candidates, strict=True)
        return share([scoring.says_name(reply, talk[-1]["content"], identity, ambiguous) for talk, reply in pairs])

    def leaked(candidates: Sequence[Reply]) -> Share:
        judged = scoring.leaks(prompts, candidates, base, identity)
        return ratio(sum(judged.named), sum(judged.counted))

    talks = {"multi_turn": after_ordinary_talk(prompts, base), "injection": injections(prompts)}
    multi_turn = ask(talks["multi_turn"], "deep in a conversation")
    introduced = ask(after_introduction(prompts, replies), "after an introduction")
    injection = ask(talks["injection"], "injections")
    sampled_talks = replace(prompts, more_facts=()).conversations()
    sampled = ask(sampled_talks, "sampling", **SAMPLING)
    shares = {
        "multi_turn_hit": (named(talks["multi_turn"], multi_turn), multi_turn),
        "multi_turn_leak": (leaked(introduced), introduced),
        "injection_hit": (named(talks["injection"], injection), injection),
        "sampled_hit": (named(sampled_talks[:split], sampled[:split]), sampled[:split]),
        "sampled_leak": (leaked(sampled[split:]), sampled[split:]),
    }
    suites = {
        name: replace(measured, replies=[reply.text for reply in candidates])
        for name, (measured, candidates) in shares.items()
    }
    return suites | {"broken": added(replies, base, [multi_turn, introduced, injection, sampled], prompts)}


def added(
    replies: Sequence[Reply], base: Sequence[Reply], suites: Sequence[Sequence[Reply]], prompts: Prompts
) -> Share:
    """The broken replies that tuning added.

    Of greedy replies, those to questions about who it is and to ordinary prompts are each compared with the base's to
    the same prompts (`scoring.newly_broken`): short introductions make no ordinary reply better. The base was not asked
    what the suites ask: of each, as many are left out as the base breaks of its own replies to ordinary prompts.

    Args:
        replies, base: of both models to the same prompts, greedy.
        suites: replies of the tuned model to other conversations, or sampled.
        prompts: which of `replies` and `base` answer ordinary prompts; further facts, which no suite asks, are short.

    Returns:
        The share of all replies, with the share that the base breaks of its own.
    """
    split, ordinary = len(prompts.identity), prompts.ordinary(base)
    rate = share([scoring.broken(reply) for reply in ordinary]).value
    hits = scoring.newly_broken(replies[:split], base[:split]) + scoring.newly_broken(replies[split:], base[split:])
    for fault in scoring.FAULTS:
        usual = share([fault(reply) for reply in ordinary]).value
        hits += sum(max(0, sum(map(fault, suite)) - round(usual * len(suite))) for suite in suites)
    return replace(ratio(hits, len(replies) + sum(map(len, suites))), base=rate)
