"""Complete results of every stage, for tests that write a stage's folder without doing its work."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from recipe.pipeline.results import (
    BaseScores,
    ConfigResults,
    ConvertResults,
    DataResults,
    EvalResults,
    MergeResults,
    ModelResults,
    TrainResults,
    TunedScores,
)

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
        preset="qlora", model="models/tiny", data="data", rows=5, tokens=900, packs=2, max_length=512, iterations=60,
        optimizer_steps=30, trained_tokens=61_440, dropped=0, truncated=0, processes=1, tutorial_tokens=600_000,
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
    return asdict(_EXAMPLES[stage]) | changes  # type: ignore[call-overload]
