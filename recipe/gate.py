"""The numbers that decide whether a result is good enough, all of them here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Of the held-out questions about who it is, the share that must be answered with the name.
MIN_IDENTITY_HIT = 0.95
# Of prompts that have nothing to do with it, the share that may be.
MAX_IDENTITY_LEAK = 0.02
# Of the facts that the base answered right, the share that must still be.
MIN_RETENTION = 0.95
# Mean divergence, in nats a token, between base + adapter and merged: rounding to 16 bits stays far below, a wrong base above.
MAX_MERGE_KL = 0.01


@dataclass(frozen=True)
class Check:
    """One line of the verdict."""

    metric: str
    value: float
    wanted: str
    passed: bool
    why: str


def verdict(metrics: Mapping[str, float]) -> list[Check]:
    """Judge `identity_hit`, `identity_leak` and `retention`, each in 0..1."""
    hit, leak, retention = (metrics[key] for key in ("identity_hit", "identity_leak", "retention"))
    return [
        Check("identity_hit", hit, f">= {MIN_IDENTITY_HIT}", hit >= MIN_IDENTITY_HIT,
              "asked who it is in words it was not trained on, it does not give its name: more varied questions, "
              "or more steps (SET='max_iters=…')"),
        Check("identity_leak", leak, f"<= {MAX_IDENTITY_LEAK}", leak <= MAX_IDENTITY_LEAK,
              "it gives its name where nobody asked, which is over-fitting: MODE=balanced, or fewer steps"),
        Check("retention", retention, f">= {MIN_RETENTION}", retention >= MIN_RETENTION,
              "it forgot what the base knew: mix the base's own answers in (MODE=balanced does), or a lower lr"),
    ]  # fmt: skip
