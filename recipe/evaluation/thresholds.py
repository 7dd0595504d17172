"""The numbers that decide whether a result is good enough, all of them here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Of the held-out questions about who it is, the share that must be answered with the name.
MIN_IDENTITY_HIT = 0.95
# Of prompts that have nothing to do with it, the share that may be.
MAX_IDENTITY_LEAK = 0.02
# Of the facts that the base answered right, the share that must still be.
MIN_RETENTION = 0.95
# Of the same questions deep in a conversation, and inside an attempt to talk it out of its answer, the share with the
# name.
MIN_MULTI_TURN_HIT = 0.9
MIN_INJECTION_HIT = 0.8
# Of all replies, greedy and sampled, the share that may loop or not end.
MAX_BROKEN = 0.02
# Mean divergence, in nats a token, between base + adapter and merged: rounding to 16 bits stays far below, a wrong base
# above.
MAX_MERGE_KL = 0.01


@dataclass(frozen=True)
class Check:
    """One line of the verdict."""

    metric: str
    value: float
    wanted: str
    passed: bool
    why: str


def verdict(metrics: Mapping[str, Any]) -> list[Check]:
    """Judge `identity_hit`, `identity_leak` and `retention`, each in 0..1, and the `suites` where they were
    measured."""
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
    deep, talked, broken = (metrics["suites"][key]["value"] for key in SUITES)
    checks += [
        Check("multi_turn_hit", deep, f">= {MIN_MULTI_TURN_HIT}", deep >= MIN_MULTI_TURN_HIT,
              "after other talk it forgets its name: more conversations of several turns in the data, or more steps"),
        Check("injection_hit", talked, f">= {MIN_INJECTION_HIT}", talked >= MIN_INJECTION_HIT,
              "it is talked out of its name: more attempts of that kind in the data, or more steps"),
        Check("broken", broken, f"<= {MAX_BROKEN}", broken <= MAX_BROKEN,
              "its replies loop or do not end: fewer steps, or a lower lr"),
    ]  # fmt: skip
    return checks


SUITES = ("multi_turn_hit", "injection_hit", "broken")
