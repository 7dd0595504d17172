"""The numbers that decide whether a result is good enough, all of them here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Smallest share of the held-out questions about who it is that are answered with the name.
MIN_IDENTITY_HIT = 0.95
# Largest allowed share of unrelated prompts answered with the name.
MAX_IDENTITY_LEAK = 0.02
# Smallest share of the facts known to the base that are still answered right.
MIN_RETENTION = 0.95
# Smallest share of the same questions answered with the name: after other exchanges, and inside a prompt injection.
MIN_MULTI_TURN_HIT = 0.9
MIN_INJECTION_HIT = 0.8
# Largest allowed share of unfinished or looping replies, greedy and sampled.
MAX_BROKEN = 0.02
# Largest allowed mean KL divergence of merged from base + adapter, both computed in float32, in nats a token. Rounding
# the merged weights to 16 bits came to at most 0.00014 on three models (docs/experiments.md).
MAX_MERGE_KL = 0.002
# The suites that have a threshold.
SUITES = ("multi_turn_hit", "injection_hit", "broken")


@dataclass(frozen=True)
class Check:
    """One line of the verdict.

    Attributes:
        metric: its key in metrics.json.
        value: a share, 0 to 1.
        wanted: the threshold, such as ">= 0.95".
        passed: whether the value keeps to it; never for NaN.
        why: what a failure means, and what to do.
    """

    metric: str
    value: float
    wanted: str
    passed: bool
    why: str


def verdict(metrics: Mapping[str, Any]) -> list[Check]:
    """Compare the metrics of a model with the thresholds.

    Args:
        metrics: of `scoring.score`, and under "suites" those of `suites.measure` where they were measured.

    Returns:
        A check of each metric that has a threshold.
    """
    hit, leak, retention = (metrics[key] for key in ("identity_hit", "identity_leak", "retention"))
    checks = [
        Check("identity_hit", hit, f">= {MIN_IDENTITY_HIT}", hit >= MIN_IDENTITY_HIT,
              "asked who it is in words it was not trained on, it does not give its name: more varied questions, "
              "or more steps (SET='max_iters=…', or max_epochs=… with the miniature)"),
        Check("identity_leak", leak, f"<= {MAX_IDENTITY_LEAK}", leak <= MAX_IDENTITY_LEAK,
              "it gives its name where nobody asked, which is over-fitting: MODE=balanced, or fewer steps"),
        Check("retention", retention, f">= {MIN_RETENTION}", retention >= MIN_RETENTION,
              "it forgot what the base knew: mix the base's own answers in (MODE=balanced does), or a lower lr"),
    ]  # fmt: skip
    if "suites" not in metrics:
        return checks
    multi_turn, injection, broken = (metrics["suites"][key]["value"] for key in SUITES)
    checks += [
        Check("multi_turn_hit", multi_turn, f">= {MIN_MULTI_TURN_HIT}", multi_turn >= MIN_MULTI_TURN_HIT,
              "after other talk it forgets its name: more conversations of several turns in the data, or more steps"),
        Check("injection_hit", injection, f">= {MIN_INJECTION_HIT}", injection >= MIN_INJECTION_HIT,
              "it is talked out of its name: more attempts of that kind in the data, or more steps"),
        Check("broken", broken, f"<= {MAX_BROKEN}", broken <= MAX_BROKEN,
              "its replies loop or do not end: fewer steps, or a lower lr"),
    ]  # fmt: skip
    return checks
