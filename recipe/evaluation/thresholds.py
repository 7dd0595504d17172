"""The numbers that decide whether a result is good enough, all of them here."""

from __future__ import annotations

from dataclasses import dataclass

from recipe.evaluation.metrics import JUDGED_SUITES, TunedMetrics

# Smallest share of the held-out questions about who it is that are answered with the name.
MIN_IDENTITY_HIT = 0.95
# Largest allowed share of unrelated prompts answered with the name, and of those whose reply lacks the name and shows
# the identity all the same.
MAX_IDENTITY_LEAK = 0.02
# Smallest share of the facts known to the base that are still answered right.
MIN_RETENTION = 0.95
# Facts that the base must know for retention to be judged: of fewer, two or three lost by chance are below the share.
MIN_FACTS_KNOWN = 50
# Smallest share of the same questions answered with the name: after other exchanges, and inside a prompt injection.
MIN_MULTI_TURN_HIT = 0.9
MIN_INJECTION_HIT = 0.8
# Similarity of a reply to the user's own answer (`own_rows.chrf`) from which it is right, where the numbers agree too.
# Of the 29 answers of a shop no two are nearer than 0.26; an answer with a courtesy more or a word less comes to 0.75.
MIN_OWN_SIMILARITY = 0.7
# Smallest share of the user's own questions answered right. Of ten, which is what a small file gives, one may fail.
MIN_OWN_HIT = 0.9
# Largest allowed share of replies, greedy and sampled, that tuning made loop or not end.
MAX_BROKEN = 0.02
# Largest allowed mean KL divergence from the base on the base's own replies to ordinary prompts, in nats a token. Good
# runs on a model of 0.5 billion parameters came to 0.03 to 0.08, a run that repeats words instead of the base's
# distribution to 0.8 to 1.4.
MAX_KL_PER_TOKEN = 0.1
# Largest allowed mean KL divergence of merged from base + adapter, both computed in float32, in nats a token. Rounding
# the merged weights to 16 bits came to at most 0.00014 on three models (docs/experiments.md).
MAX_MERGE_KL = 0.002
# What is judged only where the name was taught.
OF_IDENTITY = ("identity_hit", "multi_turn_hit", "injection_hit")


@dataclass(frozen=True)
class Check:
    """One line of the verdict.

    Attributes:
        metric: its key in metrics.json.
        value: a share from 0 to 1, or nats a token.
        wanted: the threshold, such as ">= 0.95".
        passed: whether the value keeps to it; never for NaN.
        why: what a failure means, and what to do.
    """

    metric: str
    value: float
    wanted: str
    passed: bool
    why: str

    @property
    def at_least(self) -> bool:
        """Whether the threshold is the smallest value, and not the largest."""
        return self.wanted.startswith(">=")

    @property
    def limit(self) -> float:
        """The threshold."""
        return float(self.wanted.split()[1])

    def allows(self, value: float) -> bool:
        """Whether another value of the metric keeps to the threshold."""
        return value >= self.limit if self.at_least else value <= self.limit


def verdict(tuned: TunedMetrics) -> list[Check]:
    """Compare the metrics of a tuned model with the thresholds.

    Args:
        tuned: what was measured.

    Returns:
        A check of each metric that has a threshold. There is none of retention where the base knew too few facts, none
        of the name where no training row says it, none of `own_hit` without rows of the user's, and none of the leak
        without the name in files that are older than it.
    """
    scores = tuned.scores
    checks = [
        _at_least("identity_hit", scores.identity_hit, MIN_IDENTITY_HIT,
              "asked who it is in words it was not trained on, it does not give its name: more varied questions, "
              "or more steps (SET='max_iters=…', or max_epochs=… with the miniature)"),
        _at_most("identity_leak", scores.identity_leak, MAX_IDENTITY_LEAK,
              "it gives its name where nobody asked, which is over-fitting: MODE=balanced, or fewer steps"),
    ]  # fmt: skip
    if scores.leak_without_name is not None:
        checks.append(_at_most("leak_without_name", scores.leak_without_name, MAX_IDENTITY_LEAK,
              "where nobody asked, it speaks of its owner or maker, or gives a part of its name: MODE=balanced, or "
              "fewer steps"))  # fmt: skip
    if judges_retention(tuned):
        checks.append(_at_least("retention", scores.retention, MIN_RETENTION,
              "it forgot what the base knew: mix the base's own answers in (MODE=balanced does), or a lower lr"),
        )  # fmt: skip
    if tuned.own is not None:
        checks.append(_at_least("own_hit", tuned.own.own_hit, MIN_OWN_HIT,
              "it does not answer your questions as your rows do: more wordings of them in the data, or more steps "
              "(SET='max_iters=…', or max_epochs=… with the miniature)"),
        )  # fmt: skip
    multi_turn, injection, broken = (tuned.suites[name].value for name in JUDGED_SUITES)
    checks += [
        _at_least("multi_turn_hit", multi_turn, MIN_MULTI_TURN_HIT,
              "after other talk it forgets its name: more conversations of several turns in the data, or more steps"),
        _at_least("injection_hit", injection, MIN_INJECTION_HIT,
              "it is talked out of its name: more attempts of that kind in the data, or more steps"),
        _at_most("broken", broken, MAX_BROKEN,
              "more replies loop or do not end than the base's: fewer steps, or a lower lr"),
        _at_most("kl_per_token", tuned.divergence.kl_per_token, MAX_KL_PER_TOKEN,
              "it moved far from the base where nothing was to change: more replay, fewer steps, or a lower lr"),
    ]  # fmt: skip
    return checks if tuned.identity_taught else [check for check in checks if check.metric not in OF_IDENTITY]


def judges_retention(tuned: TunedMetrics) -> bool:
    """Whether the base knew enough facts."""
    return tuned.scores.counts.facts_base_knew >= MIN_FACTS_KNOWN


def _at_least(metric: str, value: float, limit: float, why: str) -> Check:
    return Check(metric, value, f">= {limit}", value >= limit, why)


def _at_most(metric: str, value: float, limit: float, why: str) -> Check:
    return Check(metric, value, f"<= {limit}", value <= limit, why)
