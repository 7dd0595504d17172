"""The content of metrics.json: what was measured of base, tuned model and every checkpoint.

Shares are from 0 to 1, divergences in nats a token. recipe/evaluation/scoring.py says what each share is of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recipe import files, json_reader
from recipe.errors import RecipeError
from recipe.pipeline.stage import shown
from recipe.records import INLINE, OMITTED, to_json

FILE = "metrics.json"
METRICS = ("identity_hit", "identity_leak", "retention")
# The suites that have a threshold.
JUDGED_SUITES = ("multi_turn_hit", "injection_hit", "broken")
# Of each share, the counts it is the quotient of.
_COUNTED = {
    "identity_hit": ("hits", "identity_questions"),
    "identity_leak": ("leaks", "unrelated_prompts"),
    "retention": ("facts_kept", "facts_base_knew"),
    "leak_without_name": ("leaks_without_name", "unrelated_prompts"),
}


@dataclass(frozen=True)
class Share:
    """Of `count` replies, `hits` count for something.

    Attributes:
        value: hits / count; 0 where there are none.
        ci: the 95 % interval.
        count, hits: of replies.
        replies: their texts, of a suite that has replies of its own.
        base: the base's own share, where it has one.
    """

    value: float
    ci: tuple[float, float]
    count: int
    hits: int
    replies: Sequence[str] | None = field(default=None, metadata=OMITTED)
    base: float | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """The counts behind the shares, and of replies that end badly.

    Attributes:
        base_introductions: prompts of which no leak is counted, since the base introduces itself.
        taught_prompts: those of which none is counted, since the user's own rows answer them with the name.
    """

    identity_questions: int
    hits: int
    unrelated_prompts: int
    leaks: int
    leaks_without_name: int = 0
    base_introductions: int = 0
    facts_base_knew: int
    facts_kept: int
    unstopped_replies: int
    looping_replies: int
    taught_prompts: int = field(default=0, metadata=OMITTED)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The numbers of a model, each with its 95 % interval. Older files lack the leak without the name."""

    identity_hit: float
    identity_leak: float
    retention: float
    leak_without_name: float | None = field(default=None, metadata=OMITTED)
    identity_hit_ci: tuple[float, float]
    identity_leak_ci: tuple[float, float]
    retention_ci: tuple[float, float]
    leak_without_name_ci: tuple[float, float] | None = field(default=None, metadata=OMITTED)
    counts: Counts

    def share(self, metric: str) -> Share:
        """One of the numbers with its interval and counts. metric: one of METRICS, or leak_without_name."""
        hits, count = (getattr(self.counts, key) for key in _COUNTED[metric])
        return Share(getattr(self, metric), getattr(self, f"{metric}_ci"), count, hits)


@dataclass(frozen=True)
class IdentityReply:
    """A reply to a question about who it is. hit: whether the reply gives the name. kind: "identity"."""

    prompt: str
    reply: str
    stopped: bool
    kind: str
    hit: bool


@dataclass(frozen=True, kw_only=True)
class OrdinaryReply:
    """A reply to an unrelated prompt.

    Attributes:
        kind: the topic.
        leak: whether the reply gives the name. leak_without_name: whether it shows the identity all the same.
        expected: what a right answer holds; None where no answer is right or wrong.
        base_knew, right: whether the base's answer is right, and this one.
    """

    prompt: str
    reply: str
    stopped: bool
    kind: str
    leak: bool
    leak_without_name: bool = False
    expected: str | None
    base_knew: bool
    right: bool


JudgedReply = IdentityReply | OrdinaryReply


@dataclass(frozen=True)
class OwnCounts:
    """The counts behind own_hit. own_held_out: questions asked in a wording that was not trained on."""

    own_questions: int
    own_right: int
    own_held_out: int


@dataclass(frozen=True, kw_only=True)
class OwnReply:
    """A reply to one of the user's own questions.

    Attributes:
        kind: "own".
        prompt: all messages of the question, a line each.
        expected: the first answer of the user's rows.
        held_out: whether no training row asks the question in this wording.
        own_right: whether the reply says what an answer of the rows says, see `evaluation.own_rows.right`.
        similarity: of the reply to the nearest answer, from 0 to 1, see `evaluation.own_rows.chrf`.
    """

    kind: str
    prompt: str
    reply: str
    stopped: bool
    expected: str
    held_out: bool
    own_right: bool
    similarity: float


@dataclass(frozen=True)
class OwnScores:
    """own_hit: share of the user's own questions that are answered as the user's rows do, with its 95 % interval."""

    own_hit: float
    own_hit_ci: tuple[float, float]
    own_counts: OwnCounts
    own_replies: Sequence[OwnReply]

    @property
    def share(self) -> Share:
        return Share(self.own_hit, self.own_hit_ci, self.own_counts.own_questions, self.own_counts.own_right)


@dataclass(frozen=True)
class Divergence:
    """How far the tuned model is from the base, by the KL divergence on the base's own replies.

    Attributes:
        kl_per_token: the mean over all tokens, in nats; 0 where both models predict the same.
        kl_tokens: how many tokens.
        kl_worst: the largest mean of one conversation, in nats.
    """

    kl_per_token: float
    kl_tokens: int
    kl_worst: float


@dataclass(frozen=True)
class BaseMetrics:
    """Of the untuned model.

    Attributes:
        broken: share of its replies to ordinary prompts that loop or do not end.
        own: of the user's own questions; None without any.
    """

    scores: Scores = field(metadata=INLINE)
    replies: Sequence[JudgedReply]
    broken: float | None = field(default=None, metadata=OMITTED)
    own: OwnScores | None = field(default=None, metadata=INLINE)


@dataclass(frozen=True)
class TunedMetrics:
    """Of the tuned model.

    Attributes:
        suites: by their names, see recipe/evaluation/suites.py.
        own: of the user's own questions; None without any.
        identity_taught: whether any training row says the name.
    """

    scores: Scores = field(metadata=INLINE)
    replies: Sequence[JudgedReply]
    suites: Mapping[str, Share]
    divergence: Divergence = field(metadata=INLINE)
    own: OwnScores | None = field(default=None, metadata=INLINE)
    identity_taught: bool = field(default=True, metadata=OMITTED)


@dataclass(frozen=True)
class Names:
    """The identity whose name was looked for, see `corpus.identity.Identity`."""

    name: str
    assistant: str | None
    author: str | None


@dataclass(frozen=True)
class Metrics:
    """The whole file.

    Attributes:
        max_new_tokens: of a reply, besides the names.
        checkpoints: oldest first; empty where the training did not score them.
    """

    identity: Names
    max_new_tokens: int
    base: BaseMetrics
    tuned: TunedMetrics
    checkpoints: Mapping[str, Scores]
    best_checkpoint: str | None


def write(folder: Path, metrics: Metrics) -> None:
    """Write metrics.json to a folder that is not complete yet."""
    files.write_json(folder / FILE, to_json(metrics))


def read(folder: Path) -> Metrics:
    """The content of metrics.json in the folder of a completed evaluation.

    Raises:
        RecipeError: there is none, or it has another shape.
    """
    path = folder / FILE
    again = f"remove {shown(folder)} and run `make eval` again"
    try:
        metrics = json_reader.read(path, Metrics, f"another version wrote it; {again}")
    except FileNotFoundError:
        raise RecipeError(f"{shown(path)} is missing: {again}") from None
    if missing := [suite for suite in JUDGED_SUITES if suite not in metrics.tuned.suites]:
        raise RecipeError(f"{shown(path)}: lacks tuned.suites.{missing[0]}: another version wrote it; {again}")
    return metrics
