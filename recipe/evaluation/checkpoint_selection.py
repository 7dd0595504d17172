"""Which checkpoint to keep, and when to stop: what `hooks.ScoreCheckpoints` asks at every checkpoint and what follows
from it.

The questions are none that evaluation asks, so that choosing by them does not flatter its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe import files
from recipe.corpus.identity import load_questions
from recipe.corpus.knowledge import choice_facts
from recipe.evaluation.scoring import Prompts, selection_score

FILE = "scores.jsonl"


def prompts() -> Prompts:
    """The questions of data/identity that are kept for this, and facts that neither replay nor evaluation asks so."""
    identity = [q for intents in load_questions().values() for parts in intents.values() for q in parts["choice"]]
    return Prompts(identity, choice_facts())


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Checkpoint -> its scores, oldest first, of a train folder; empty where its config had no `ScoreCheckpoints`."""
    try:
        records = files.read_jsonl(folder / FILE)
    except FileNotFoundError:
        return {}
    return {record.pop("checkpoint"): record for record in records}


def stale(scores: Sequence[Mapping[str, float]], patience: int) -> bool:
    """Whether to stop: the highest selection_score was followed by `patience` checkpoints that were not better."""
    selection_scores = [selection_score(each) for each in scores]
    return len(selection_scores) - 1 - selection_scores.index(max(selection_scores)) >= patience
