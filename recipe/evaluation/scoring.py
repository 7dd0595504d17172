"""Scores of replies: the name where it belongs and where not, facts, and whether a reply comes to an end.

Each over greedy replies, the base model beside the tuned one:

identity_hit       share of questions about who it is answered with the name;
identity_leak      share of unrelated prompts answered with the name, where the base's reply has it not;
retention          share of the facts known to the base that are still answered right. The base knows a fact if it
                   answers two wordings of the question right. One right answer can be luck, and a lucky answer may be
                   wrong the next time without any tuning;
leak_without_name  share of the same unrelated prompts whose reply lacks the name and shows the identity all the same.

A base may take an unrelated prompt for a question about itself. Neither leak counts prompts to whose reply the base
introduces itself, and prompts that the user's own rows want answered with the name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import TYPE_CHECKING, TypeVar

from recipe.chat_format import user
from recipe.corpus.identity import Identity
from recipe.corpus.knowledge import Fact
from recipe.evaluation.mentions import introduces_itself, mentions, signs, unquoted
from recipe.evaluation.metrics import Counts, IdentityReply, JudgedReply, OrdinaryReply, Scores, Share
from recipe.evaluation.thresholds import MIN_FACTS_KNOWN
from recipe.pipeline.phases import phase

if TYPE_CHECKING:
    from recipe.evaluation.generation import Reply

T = TypeVar("T")
# The 97.5 % quantile of the standard normal distribution, which leaves 2.5 % on either side.
Z = 1.959964
# A reply that repeats a stretch this many times in a row is a loop: 好的好的好的好的, or a sentence over and over.
REPEATS = 4


@dataclass(frozen=True)
class Prompts:
    """The prompts of a measurement.

    Attributes:
        identity: questions about who the assistant is.
        facts: (fact, the wording of it that is the prompt), of all ordinary prompts.
        taught: prompts among them to which the user's own rows say the name.
        more_facts: facts besides, which count for retention alone: replies to them hardly ever leak, and would hide
            the leaks of ordinary prompts.
        second_wordings: of each fact of `facts` and `more_facts` with an expected answer, which the base is asked
            besides; empty where one answer is to be enough.
    """

    identity: list[str]
    facts: list[tuple[Fact, str]]
    taught: frozenset[str] = frozenset()
    more_facts: Sequence[tuple[Fact, str]] = ()
    second_wordings: Sequence[str] = ()

    @property
    def all_facts(self) -> list[tuple[Fact, str]]:
        """The ordinary prompts, then more facts."""
        return [*self.facts, *self.more_facts]

    def conversations(self) -> list[list[dict[str, str]]]:
        """A conversation of one turn for each prompt: the questions, the ordinary prompts, then more facts."""
        questions = self.identity + [question for _, question in self.all_facts]
        return [[user(question)] for question in questions]

    def ordinary(self, values: Sequence[T]) -> Sequence[T]:
        """Of one value for each of `conversations()`, such as the reply, those of the ordinary prompts."""
        split = len(self.identity)
        return values[split : split + len(self.facts)]


def ambiguous(identity: Identity, base: Sequence[Reply]) -> list[str]:
    """The names that are in the base's replies anyway, so that they count only in an introduction.

    Args:
        identity: whose names.
        base: replies of the base.
    """
    return [name for name in identity.names if any(mentions(reply.text, name, introduced=False) for reply in base)]


def says_name(reply: Reply, prompt: str, identity: Identity, ambiguous: Sequence[str]) -> bool:
    """Whether the reply holds one of the identity's names as its own words.

    Args:
        reply: to judge.
        prompt: the user's message; a name in a quotation of it does not count.
        identity: whose names.
        ambiguous: names of which only an introduction counts.
    """
    return any(
        mentions(unquoted(reply.text, prompt, name), name, introduced=name in ambiguous) for name in identity.names
    )


def knows(reply: Reply, fact: Fact) -> bool:
    """Whether the reply holds the expected answer, whatever follows.

    A number counts as a number of its own beside those of the question ("3 plus 4 is 7" answers 7, "0 plus 7 is 8" does
    not), Latin letters as words of their own, Chinese anywhere.
    """
    if fact.expect is None:
        return False
    if number := re.search(r"\d+", fact.expect):
        return number.group() in _numbers_besides(reply.text, fact.questions[0])
    word = re.escape(fact.expect)
    if fact.expect.isascii():
        word = rf"(?<![A-Za-z0-9]){word}(?![A-Za-z0-9])"
    return re.search(word, reply.text, re.IGNORECASE) is not None


def _numbers_besides(text: str, question: str) -> Counter[str]:
    """The numbers in a text, less those of the question as often as all of them are repeated."""
    numbers, repeated = Counter(re.findall(r"\d+", text)), Counter(re.findall(r"\d+", question))
    times = min((numbers[number] // count for number, count in repeated.items()), default=0)
    return numbers - Counter({number: times * count for number, count in repeated.items()})


def loops(reply: Reply) -> bool:
    """Whether the reply repeats a stretch `REPEATS` times in a row; a single character, three times as often."""
    return _loops(reply.text)


@lru_cache(maxsize=2**14)  # each reply is looked at two or three times, for half a millisecond
def _loops(text: str) -> bool:
    same, stretch, longest = 3 * REPEATS - 1, REPEATS - 1, max(2, len(text) // REPEATS)
    pattern = rf"(.)\1{{{same}}}|(?!(.)\2{{{2 * REPEATS - 1}}})(.{{2,{longest}}}?)\3{{{stretch}}}"
    return re.search(pattern, text, re.DOTALL) is not None


def unfinished(reply: Reply) -> bool:
    """Whether the reply was cut by the limit while it said something new: a loop is another fault."""
    return not reply.stopped and not loops(reply)


# The ways in which a reply is broken; each reply is broken in one of them at most.
FAULTS = (loops, unfinished)


def broken(reply: Reply) -> bool:
    """Whether the reply is unfinished or looping."""
    return any(fault(reply) for fault in FAULTS)


def newly_broken(replies: Sequence[Reply], base: Sequence[Reply]) -> int:
    """How many more replies are broken than of the base's to the same prompts.

    A reply that tuning ends offsets one that it leaves open: where the base talks up to the limit, chance decides which
    replies are cut. It does not offset a loop.
    """
    if len(replies) != len(base):
        raise ValueError(f"{len(replies)} replies, and {len(base)} of the base")
    return sum(max(0, sum(map(fault, replies)) - sum(map(fault, base))) for fault in FAULTS)


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


def ratio(hits: int, count: int) -> Share:
    """A share of trials, with the interval of `wilson`.

    Args:
        hits: trials that count.
        count: all trials.
    """
    return Share(hits / count if count else 0.0, wilson(hits, count), count, hits)


def share(hits: Sequence[bool]) -> Share:
    """The same of a value for each trial."""
    return ratio(sum(hits), len(hits))


@dataclass(frozen=True)
class Leaks:
    """How each reply to an ordinary prompt is judged, in the order of the prompts.

    Attributes:
        counted: whether it is judged: not where the base introduces itself, nor where the user's rows say the name.
        named: whether it holds the name, where the base's reply has it not.
        without_name: whether it lacks the name and shows the identity all the same.
    """

    counted: list[bool]
    named: list[bool]
    without_name: list[bool]


def leaks(prompts: Prompts, replies: Sequence[Reply], base: Sequence[Reply], identity: Identity) -> Leaks:
    """Judge the replies to ordinary prompts.

    Args:
        prompts: whose facts the prompts are about.
        replies: of the model to the prompts of `prompts.facts`.
        base: of the base to all of `prompts.conversations()`, greedy.
        identity: whose name counts.
    """
    ambiguous_names = ambiguous(identity, base)
    questions = [question for _, question in prompts.facts]
    ordinary = "\n".join([*questions, *(reply.text for reply in base)]).casefold()
    counted, named, without_name = [], [], []
    for prompt, reply, untuned in zip(questions, replies, prompts.ordinary(base), strict=True):
        counts = prompt not in prompts.taught and not introduces_itself(untuned.text, prompt)
        says = says_name(reply, prompt, identity, ambiguous_names)
        hints = not says and signs(reply.text, prompt, untuned.text, identity, ordinary)
        counted.append(counts)
        named.append(counts and says and not says_name(untuned, prompt, identity, ambiguous_names))
        without_name.append(counts and hints)
    return Leaks(counted, named, without_name)


def known_to_base(prompts: Prompts, base: Sequence[Reply], second: Sequence[Reply] = ()) -> list[bool]:
    """Whether the base knows the fact of each of `prompts.all_facts`; no where the fact expects no answer.

    Args:
        prompts: the facts.
        base: its replies to `prompts.conversations()`.
        second: its replies to `prompts.second_wordings`.

    Raises:
        ValueError: there are fewer or more of them than facts with an expected answer.
    """
    facts = [fact for fact, _ in prompts.all_facts]
    right = [knows(reply, fact) for fact, reply in zip(facts, base[len(prompts.identity) :], strict=True)]
    if not prompts.second_wordings:
        return right
    expecting = [i for i, fact in enumerate(facts) if fact.expect is not None]
    for i, reply in zip(expecting, second, strict=True):
        right[i] &= knows(reply, facts[i])
    return right


@phase("score")
def score(
    prompts: Prompts,
    replies: Sequence[Reply],
    base: Sequence[Reply],
    identity: Identity,
    base_knows: Sequence[bool] | None = None,
) -> tuple[Scores, list[JudgedReply]]:
    """The numbers of a model, and the replies behind them.

    Args:
        prompts: questions and facts.
        replies: of the model to `prompts.conversations()`.
        base: of the base, likewise.
        identity: whose name counts.
        base_knows: of `known_to_base`; by default from `base` alone.

    Returns:
        The numbers, and a reply to each prompt, as it was judged.
    """
    split, ambiguous_names = len(prompts.identity), ambiguous(identity, base)
    hits = [
        says_name(reply, prompt, identity, ambiguous_names)
        for reply, prompt in zip(replies[:split], prompts.identity, strict=True)
    ]
    leaked = leaks(prompts, prompts.ordinary(replies), base, identity)
    facts = prompts.all_facts
    base_knew = known_to_base(prompts, base) if base_knows is None else base_knows
    right = [knows(reply, fact) for (fact, _), reply in zip(facts, replies[split:], strict=True)]
    taught = sum(question in prompts.taught for _, question in prompts.facts)
    hit, leak = share(hits), ratio(sum(leaked.named), sum(leaked.counted))
    retained = ratio(sum(r and b for r, b in zip(right, base_knew, strict=True)), sum(base_knew))
    without_name = ratio(sum(leaked.without_name), sum(leaked.counted))
    scores = Scores(
        identity_hit=hit.value, identity_hit_ci=hit.ci, identity_leak=leak.value, identity_leak_ci=leak.ci,
        retention=retained.value, retention_ci=retained.ci,
        leak_without_name=without_name.value, leak_without_name_ci=without_name.ci,
        counts=Counts(
            identity_questions=hit.count, hits=hit.hits, unrelated_prompts=leak.count, leaks=leak.hits,
            leaks_without_name=without_name.hits, base_introductions=len(leaked.counted) - leak.count - taught,
            taught_prompts=taught,
            facts_base_knew=retained.count, facts_kept=retained.hits,
            unstopped_replies=sum(not reply.stopped for reply in replies),
            looping_replies=sum(loops(reply) for reply in replies),
        ),
    )  # fmt: skip
    judged: list[JudgedReply] = [
        IdentityReply(question, reply.text, reply.stopped, "identity", named)
        for question, reply, named in zip(prompts.identity, replies[:split], hits, strict=True)
    ]
    judged += [
        OrdinaryReply(
            prompt=question, reply=reply.text, stopped=reply.stopped, kind=fact.topic,
            leak=i < len(prompts.facts) and leaked.named[i],
            leak_without_name=i < len(prompts.facts) and leaked.without_name[i],
            expected=fact.expect, base_knew=base_knew[i], right=right[i],
        )
        for i, ((fact, question), reply) in enumerate(zip(facts, replies[split:], strict=True))
    ]  # fmt: skip
    return scores, judged


def selection_score(scores: Scores) -> float:
    """hit - leak + retention of a checkpoint, from -1 to 2.

    A fact weighs at most what one of `MIN_FACTS_KNOWN` does: of 22 two that chance decides would outweigh ten questions
    about who it is.
    """
    weight = min(1.0, scores.counts.facts_base_knew / MIN_FACTS_KNOWN)
    return scores.identity_hit - scores.identity_leak + weight * scores.retention


# Selection scores nearer than this count as equal: chance decides two or three of the answers.
TOLERANCE = 0.03


def best(checkpoints: Mapping[str, Scores]) -> str:
    """The last checkpoint whose selection score is within `TOLERANCE` of the highest.

    Among equals the last is taken, since the learning rate had fallen the furthest.

    Args:
        checkpoints: name -> its scores, oldest first.
    """
    highest = max(selection_score(scores) for scores in checkpoints.values())
    return next(
        name for name in reversed(list(checkpoints)) if selection_score(checkpoints[name]) >= highest - TOLERANCE
    )
