"""How often the user's own rows are seen, and how much longer a training gets by them.

A preset's length is that of its own data: several passes over the identity rows and replay.
The user's rows get `PASSES` passes by standing in the data several times, so that a fact in one row of thousands is
learnt by heart. The other rows keep the passes that they have without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from recipe.chat_format import IGNORE_INDEX, training_ids
from recipe.checkpoint.loaded_tokenizer import load_tokenizer
from recipe.corpus.rows import read_rows
from recipe.errors import RecipeError
from recipe.pipeline.stage import shown
from recipe.training.dataset import Tokens, pack, read_tokens

# Times that each of the user's rows is seen, where they are few. docs/adr/0018 compares 30.
PASSES = 20
# What of a config sets the length, and the distance of checkpoints: by both of their names.
_LENGTH = ("max_iters", "max_epochs", "train_cfg.max_iters", "train_cfg.max_epochs")
_REPEATS = "train_dataloader.dataset.own_repeats"
_INTERVAL = ("save_steps", "default_hooks.checkpoint.interval")


@dataclass(frozen=True)
class OwnShare:
    """How the user's rows are trained on.

    Attributes:
        rows: of the user.
        repeats: of each in a pass over the data.
        passes: times that each is seen in the whole training.
        share: of the tokens, from 0 to 1.
        factor: by which a pass over the data is longer than without them.
    """

    rows: int
    repeats: int
    passes: float
    share: float
    factor: float

    def line(self) -> str:
        """The line for the user."""
        return (
            f"your {self.rows} rows: each is seen {self.passes:.0f} times, {self.share:.0%} of the tokens; "
            f"training is {self.factor:.2f} times as long as without them"
        )


def plan(config: Any, settings: Sequence[str], processes: int = 1) -> OwnShare | None:
    """Set how often the user's rows stand in the data, and make the training longer by them.

    They are repeated until each is seen `PASSES` times, but are no more than half of a pass: of a file of thousands
    each row is seen as often as all others. A length or distance of checkpoints that the user chose is kept.

    Args:
        config: resolved, with `own` in its dataset; `own_repeats`, `max_iters` and the schedule change in place.
        settings: the user's overrides.
        processes: of all machines.

    Returns:
        What came of it; None where the config has no such rows, or is XTuner's own pipeline, which repeats none.
    """
    dataset = config.train_dataloader.dataset
    if not dataset.get("own"):
        return None
    others, own_rows = _tokens(dataset)
    chosen = {setting.partition("=")[0] for setting in settings}
    packs = _packs(dataset, others)
    by_iterations, batch = "max_iters" in config.train_cfg, processes * config.train_dataloader.batch_size

    def epochs(packs: int) -> float:
        return float(config.train_cfg.max_iters * batch / packs if by_iterations else config.train_cfg.max_epochs)

    if _REPEATS not in chosen:
        dataset.own_repeats = _repeats(others, own_rows, epochs(packs or _packs(dataset, own_rows)))
    longer = _packs(dataset, others + own_rows * dataset.own_repeats)
    factor = longer / packs if packs else 1.0
    if by_iterations and not chosen.intersection(_LENGTH):
        config.train_cfg.max_iters = config.param_scheduler[1].end = round(config.train_cfg.max_iters * factor)
    if not chosen.intersection(_INTERVAL):
        config.default_hooks.checkpoint.interval = round(config.default_hooks.checkpoint.interval * factor)
    own_tokens = dataset.own_repeats * _sum(own_rows)
    return OwnShare(
        rows=len(own_rows), repeats=dataset.own_repeats, passes=dataset.own_repeats * epochs(longer),
        share=own_tokens / (own_tokens + _sum(others)), factor=factor,
    )  # fmt: skip


def cut_answers(config: Any, file: Path) -> str | None:
    """What the training will not learn of the user's rows, for their lengths.

    Args:
        config: resolved.
        file: of the rows.

    Returns:
        A warning about answers that lose their end; None without any.

    Raises:
        RecipeError: max_length cuts a row before its last answer, or XTuner's own pipeline would learn a turn of weight
            0.
    """
    dataset = config.train_dataloader.dataset
    rows, tokenizer = [row["messages"] for row in read_rows(file)], _tokenizer(dataset)
    if "files" not in dataset and any("weight" in message for messages in rows for message in messages):
        raise RecipeError(
            f'{shown(file)}: holds turns of "weight": 0, and XTuner\'s own pipeline learns every turn: choose another '
            f"preset than tutorial"
        )
    shortened = []
    for number, messages in enumerate(rows, 1):
        _, labels = training_ids(tokenizer, messages)
        end = max(i for i, label in enumerate(labels) if label != IGNORE_INDEX)
        start = max(i for i in range(end) if labels[i] == IGNORE_INDEX) + 1
        where = f"row {number} ({messages[-2]['content'][:40]!r})"
        if start >= dataset.max_length:
            raise RecipeError(
                f"{shown(file)}, {where}: max_length {dataset.max_length} cuts the answer away, which begins after "
                f"{start:,} tokens: shorten the row, or SET='max_length={2 ** (len(labels) - 1).bit_length()}'"
            )
        if end >= dataset.max_length:
            shortened.append(where)
    if not shortened:
        return None
    more = f" and {len(shortened) - 3} more" if len(shortened) > 3 else ""
    return (
        f"warning: {shown(file)}: max_length {dataset.max_length} cuts the end off the answer of "
        f"{', '.join(shortened[:3])}{more}"
    )


def _repeats(others: Sequence[Tokens], own_rows: Sequence[Tokens], epochs: float) -> int:
    """How often each of the user's rows stands among the others, which are seen in so many epochs."""
    enough = ceil(PASSES / epochs)
    if others:
        enough = min(enough, _sum(others) // _sum(own_rows))
    return max(1, enough)


def _tokens(dataset: Any) -> tuple[list[Tokens], list[Tokens]]:
    """(all other rows, the user's) as ids and labels, as the training reads them."""
    rows = read_tokens(
        dataset.files, _tokenizer(dataset), replay_ratio=dataset.replay_ratio, seed=dataset.seed,
        distill=dataset.distill, own=dataset.own, leave_out=dataset.get("leave_out", ()),
    )  # fmt: skip
    cut = [tuple(part[: dataset.max_length] for part in row) for row in rows]
    count = len(read_rows(Path(dataset.own)))  # they come last
    return cut[:-count], cut[-count:]


def _tokenizer(dataset: Any) -> Any:
    return load_tokenizer(Path(dataset.tokenizer.pretrained_model_name_or_path))


def _packs(dataset: Any, rows: Sequence[Tokens]) -> int:
    return len(pack(rows, dataset.max_length, dataset.seed))


def _sum(rows: Sequence[Tokens]) -> int:
    return sum(len(row[0]) for row in rows)
