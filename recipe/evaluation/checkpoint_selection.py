"""Which checkpoint to keep, and when to stop: the prompts of `hooks.ScoreCheckpoints`, and what its scores mean.

Evaluation uses none of these prompts, so that the selection does not flatter its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recipe import files
from recipe.corpus.identity import questions_of
from recipe.corpus.knowledge import selection_facts
from recipe.evaluation.scoring import Prompts, selection_score
from recipe.languages import LANGUAGES

FILE = "scores.jsonl"


def prompts(*, extended: bool = False, languages: Sequence[str] = LANGUAGES) -> Prompts:
    """The questions of data/identity and the facts that are kept for selection.

    Args:
        extended: add the questions and requests for bases that other people trained.
        languages: whose prompts.
    """
    identity = questions_of("choice", extended=extended, languages=languages)
    return Prompts(identity, selection_facts(extended=extended, languages=languages))


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The scores of the checkpoints of a training.

    Args:
        folder: of stage `train`.

    Returns:
        checkpoint -> its scores, oldest first; empty where the config had no `ScoreCheckpoints`.
    """
    try:
        records = files.read_jsonl(folder / FILE)
    except FileNotFoundError:
        return {}
    return {record.pop("checkpoint"): record for record in records}


def stale(scores: Sequence[Mapping[str, float]], patience: int) -> bool:
    """Whether to stop early.

    Args:
        scores: of each checkpoint, oldest first.
        patience: checkpoints after the highest selection score that may be no better.
    """
    values = [selection_score(each) for each in scores]
    return len(values) - 1 - values.index(max(values)) >= patience
