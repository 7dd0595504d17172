"""Scores of replies: the name where it belongs and where not, facts, and whether a reply comes to an end.

Three numbers, each over greedy replies, the base model beside the tuned one:

identity_hit   share of questions about who it is answered with the name;
identity_leak  share of unrelated prompts answered with the name, where the base's reply has it not;
retention      share of the facts known to the base that are still answered right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from recipe.chat_format import user
from recipe.corpus.identity import Identity
from recipe.corpus.knowledge import Fact
from recipe.evaluation.generation import Reply

METRICS = ("identity_hit", "identity_leak", "retention")
# The 97.5 % quantile of the standard normal distribution, which leaves 2.5 % on either side.
Z = 1.959964
# A reply that repeats a stretch this many times in a row is a loop: 好的好的好的好的, or a sentence over and over.
REPEATS = 4


@dataclass(frozen=True)
class Prompts:
    """The prompts of a measurement.

    Attributes:
        identity: questions about who the assistant is.
        facts: (fact, the wording of it that is the prompt).
    """

    identity: list[str]
    facts: list[tuple[Fact, str]]

    def conversations(self) -> list[list[dict[str, str]]]:
        """A conversation of one turn for each prompt: first the questions, then the facts."""
        questions = self.identity + [question for _, question in self.facts]
        return [[user(question)] for question in questions]


def mentions(reply: str, name: str, *, introduced: bool) -> bool:
    """Whether the reply holds the name as a word of its own.

    Args:
        reply: its text.
        name: to look for.
        introduced: count it only in an introduction, as in 红的小助手, am's assistant, 我叫红, called am. For a name
            that is also a word ("am", 红), which ordinary replies hold too.
    """
    word = re.escape(name)
    if name[0].isascii() and name[0].isalnum():
        word = rf"(?<![A-Za-z0-9]){word}"
    if name[-1].isascii() and name[-1].isalnum():
        word = rf"{word}(?![A-Za-z0-9])"
    if introduced:
        owner = rf"{word}(的小?(助手|助理|帮手)|['’]s (little |own |personal )?(assistant|helper))"
        word = rf"({owner})|((我叫|名叫|called|[Mm]y name is) ?{word})"
    return re.search(word, reply) is not None


def ambiguous(identity: Identity, base: Sequence[Reply]) -> list[str]:
    """The names that are in the base's replies anyway, so that they count only in an introduction.

    Args:
        identity: whose names.
        base: replies of the base.
    """
    return [name for name in identity.names if any(mentions(reply.text, name, introduced=False) for reply in base)]


def says_name(reply: Reply, identity: Identity, ambiguous: Sequence[str]) -> bool:
    """Whether the reply holds one of the identity's names; of the `ambiguous` ones, an introduction by it."""
    return any(mentions(reply.text, name, introduced=name in ambiguous) for name in identity.names)


def knows(reply: Reply, fact: Fact) -> bool:
    """Whether the reply holds the expected answer and came to an end."""
    return fact.expect is not None and reply.stopped and fact.expect.lower() in reply.text.lower()


def loops(reply: Reply) -> bool:
    """Whether the reply repeats a stretch `REPEATS` times in a row; a single character, three times as often."""
    same, stretch = 3 * REPEATS - 1, REPEATS - 1
    pattern = rf"(.)\1{{{same}}}|(?!(.)\2{{{2 * REPEATS - 1}}})(.{{2,}}?)\3{{{stretch}}}"
    return re.search(pattern, reply.text, re.DOTALL) is not None


def broken(reply: Reply) -> bool:
    """Whether the reply is unfinished or looping."""
    return not reply.stopped or loops(reply)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share: Wilson (1927), "Probable inference", formula of section 3.

    Unlike the normal approximation it is right near 0 and 1, where good results lie.

    Args:
        hits: trials that count.
        count: all trials.

    Returns:
        (lower, upper), each 0 to 1; (0, 1) where nothing was tried.
    """
    if not count:
        return 0.0, 1.0
    share, square = hits / count, Z * Z / count
    middle = (share + square / 2) / (1 + square)
    spread = Z * sqrt(share * (1 - share) / count + square / (4 * count)) / (1 + square)
    return max(0.0, middle - spread), min(1.0, middle + spread)


def share(hits: Sequence[bool]) -> dict[str, Any]:
    """A share of trials, as metrics.json has it.

    Args:
        hits: a value for each trial.

    Returns:
        {"value": hits / count, "ci": of `wilson`, "count", "hits"}.
    """
    return {
        "value": sum(hits) / len(hits) if hits else 0.0,
        "ci": wilson(sum(hits), len(hits)),
        "count": len(hits),
        "hits": sum(hits),
    }


def score(prompts: Prompts, replies: Sequence[Reply], base: Sequence[Reply], identity: Identity) -> dict[str, Any]:
    """The three numbers of a model, with the counts, intervals and replies behind them.

    Args:
        prompts: questions and facts.
        replies: of the model to `prompts.conversations()`.
        base: of the base, likewise.
        identity: whose name counts.

    Returns:
        Each of METRICS and its interval under METRIC_ci, "counts", and "replies": a row for each prompt.
    """
    split = len(prompts.identity)
    ambiguous_names = ambiguous(identity, base)
    hits = [says_name(reply, identity, ambiguous_names) for reply in replies[:split]]
    leaks = [
        says_name(reply, identity, ambiguous_names) and not says_name(untuned, identity, ambiguous_names)
        for reply, untuned in zip(replies[split:], base[split:], strict=True)
    ]
    base_knew = [knows(untuned, fact) for (fact, _), untuned in zip(prompts.facts, base[split:], strict=True)]
    right = [knows(reply, fact) for (fact, _), reply in zip(prompts.facts, replies[split:], strict=True)]
    retained = sum(r and b for r, b in zip(right, base_knew, strict=True))
    questions = prompts.identity + [question for _, question in prompts.facts]
    rows = []
    for i, (question, reply) in enumerate(zip(questions, replies, strict=True)):
        row: dict[str, Any] = {"prompt": question, "reply": reply.text, "stopped": reply.stopped}
        if i < split:
            rows.append({"kind": "identity", **row, "hit": hits[i]})
        else:
            fact = prompts.facts[i - split][0]
            judged = {"leak": leaks[i - split], "expected": fact.expect, "base_knew": base_knew[i - split]}
            rows.append({"kind": fact.topic, **row, **judged, "right": right[i - split]})
    return {
        "identity_hit": sum(hits) / split,
        "identity_hit_ci": wilson(sum(hits), split),
        "identity_leak": sum(leaks) / len(leaks),
        "identity_leak_ci": wilson(sum(leaks), len(leaks)),
        "retention": retained / sum(base_knew) if any(base_knew) else 0.0,
        "retention_ci": wilson(retained, sum(base_knew)),
        "counts": {
            "identity_questions": split, "hits": sum(hits), "unrelated_prompts": len(leaks), "leaks": sum(leaks),
            "facts_base_knew": sum(base_knew), "facts_kept": retained,
            "unstopped_replies": sum(not reply.stopped for reply in replies),
            "looping_replies": sum(loops(reply) for reply in replies),
        },
        "replies": rows,
    }  # fmt: skip


def selection_score(scores: Mapping[str, float]) -> float:
    """hit - leak + retention of a checkpoint, from -1 to 2."""
    return scores["identity_hit"] - scores["identity_leak"] + scores["retention"]


# Selection scores nearer than this count as equal: chance decides two or three of the answers.
TOLERANCE = 0.03


def best(checkpoints: Mapping[str, Mapping[str, float]]) -> str:
    """The last checkpoint whose selection score is within `TOLERANCE` of the highest.

    Among equals the last is taken, since the learning rate had fallen the furthest.

    Args:
        checkpoints: name -> its scores, oldest first.
    """
    highest = max(selection_score(scores) for scores in checkpoints.values())
    return next(
        name for name in reversed(list(checkpoints)) if selection_score(checkpoints[name]) >= highest - TOLERANCE
    )
