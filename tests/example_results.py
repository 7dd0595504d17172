"""Complete results of every stage, for tests that write a stage's folder without doing its work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recipe.evaluation.metrics import (
    BaseMetrics,
    Counts,
    Divergence,
    Metrics,
    Names,
    OwnCounts,
    OwnScores,
    Scores,
    Share,
    TunedMetrics,
)
from recipe.evaluation.thresholds import MIN_FACTS_KNOWN
from recipe.pipeline.results import (
    BaseScores,
    ConfigResults,
    ConvertResults,
    DataResults,
    EvalResults,
    Forecast,
    MergeResults,
    ModelResults,
    TrainResults,
    TunedScores,
)
from recipe.records import to_json

_NUMBERS = {"identity_hit": 1.0, "identity_leak": 0.0, "retention": 1.0}
_SUITES = {
    "multi_turn_hit": 1.0,
    "multi_turn_leak": 0.0,
    "injection_hit": 1.0,
    "sampled_hit": 1.0,
    "sampled_leak": 0.0,
    "broken": 0.0,
}
_EXAMPLES = {
    "data": DataResults(rows=2, file="train.jsonl", mode="balanced"),
    "model": ModelResults(model="tiny", parameters=9, format="llama"),
    "config": ConfigResults(
        preset="qlora", model="models/tiny", data="data", tutorial_tokens=600_000,
        forecast=Forecast(
            rows=5, tokens=900, packs=2, max_length=512, iterations=60, optimizer_steps=30, trained_tokens=61_440,
            dropped=0, truncated=0, processes=1,
        ),
    ),
    "train": TrainResults(checkpoints=["iter_60.pth"], best=None, last_loss=0.1, iterations=60),
    "convert": ConvertResults(
        checkpoint="iter_60.pth", checkpoint_sha256="0" * 64, tensors=28, parameters=1234, model="models/tiny",
        base_sha256="0" * 64,
    ),
    "merge": MergeResults(
        checkpoint="iter_60.pth", checkpoint_sha256="0" * 64, largest_logit_difference=0.0, mean_kl=0.0,
        same_top_token=1.0,
    ),
    "eval": EvalResults(
        base=BaseScores(**_NUMBERS, counts={}, broken=0.0),
        tuned=TunedScores(**_NUMBERS, leak_without_name=0.0, counts={}, **_SUITES, kl_per_token=0.0),
        best_checkpoint=None,
    ),
}  # fmt: skip


def example_results(stage: str, **changes: Any) -> dict[str, Any]:
    """The results in a manifest of `stage`, with `changes` by field."""
    return {**to_json(_EXAMPLES[stage]), **changes}


def example_scores(**changes: Any) -> Scores:
    """The scores of a good model, with `changes` by field."""
    counts = Counts(
        identity_questions=50, hits=50, unrelated_prompts=60, leaks=0, leaks_without_name=0, base_introductions=0,
        facts_base_knew=MIN_FACTS_KNOWN, facts_kept=MIN_FACTS_KNOWN, unstopped_replies=0, looping_replies=0,
    )  # fmt: skip
    numbers: dict[str, Any] = _NUMBERS | {"leak_without_name": 0.0, "counts": counts}
    return Scores(**{f"{metric}_ci": (0.0, 1.0) for metric in (*_NUMBERS, "leak_without_name")} | numbers | changes)


def example_tuned(
    scores: Scores | None = None,
    *,
    suites: Mapping[str, float] | None = None,
    kl_per_token: float = 0.0,
    own_hit: float | None = None,
) -> TunedMetrics:
    """The metrics of a good tuned model, with other scores, suites and divergence where they are given, and own_hit."""
    values = {**_SUITES, **(suites or {})}
    return TunedMetrics(
        scores or example_scores(),
        replies=[],
        suites={name: Share(value, (0.0, 1.0), count=20, hits=10) for name, value in values.items()},
        divergence=Divergence(kl_per_token, kl_tokens=480, kl_worst=kl_per_token),
        own=None if own_hit is None else OwnScores(own_hit, (0.0, 1.0), OwnCounts(20, 10, 5), own_replies=[]),
    )


def example_metrics(tuned: TunedMetrics) -> Metrics:
    """The content of metrics.json around the metrics of a tuned model."""
    base = BaseMetrics(example_scores(identity_hit=0.0), replies=[], broken=0.0)
    return Metrics(Names("小明", None, None), 80, base, tuned, checkpoints={}, best_checkpoint=None)
