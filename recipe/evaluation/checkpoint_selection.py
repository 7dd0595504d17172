"""Which checkpoint to keep, and when to stop: the prompts of `hooks.ScoreCheckpoints`, and what its scores mean.

Evaluation uses none of these prompts, so that the selection does not flatter its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recipe import files, json_reader
from recipe.corpus.identity import questions_of
from recipe.corpus.knowledge import selection_facts
from recipe.evaluation.metrics import Scores
from recipe.evaluation.scoring import Prompts, selection_score
from recipe.languages import LANGUAGES
from recipe.pipeline.stage import shown
from recipe.records import INLINE, to_json

FILE = "scores.jsonl"


@dataclass(frozen=True)
class _Row:
    checkpoint: str
    scores: Scores = field(metadata=INLINE)


def prompts(*, extended: bool = False, languages: Sequence[str] = LANGUAGES) -> Prompts:
    """The questions of data/identity and the facts that are kept for selection.

    Args:
        extended: add the questions and requests for bases that other people trained.
        languages: whose prompts.
    """
    identity = questions_of("choice", extended=extended, languages=languages)
    return Prompts(identity, selection_facts(extended=extended, languages=languages))


def write(folder: Path, scores: Mapping[str, Scores]) -> None:
    """Write the scores of a training's checkpoints, of which the last may be seen at any moment.

    Args:
        folder: of stage `train`.
        scores: checkpoint -> its scores, oldest first.
    """
    rows = [{"checkpoint": name} | to_json(each) for name, each in scores.items()]
    files.write_atomically(folder / FILE, files.jsonl_text(rows))


def read(folder: Path) -> dict[str, Scores]:
    """The scores of the checkpoints of a training.

    Args:
        folder: of stage `train`.

    Returns:
        checkpoint -> its scores, oldest first; empty where the config had no `ScoreCheckpoints`.

    Raises:
        RecipeError: the file has another shape.
    """
    again = f"another version wrote it; remove {shown(folder)} and run `make train` again"
    try:
        rows = json_reader.read_lines(folder / FILE, _Row, again)
    except FileNotFoundError:
        return {}
    return {row.checkpoint: row.scores for row in rows}


def stale(scores: Sequence[Scores], patience: int) -> bool:
    """Whether to stop early.

    Args:
        scores: of each checkpoint, oldest first.
        patience: checkpoints after the highest selection score that may be no better.
    """
    values = [selection_score(each) for each in scores]
    return len(values) - 1 - values.index(max(values)) >= patience
