"""The training set as XTuner's trainer sees it: packs of whole conversations.

Each pack holds conversations end to end, as many as fit into max_length tokens. None is cut in two or dropped at the
end of the data or of a worker. Conversations do not see each other: `position_ids` start over at each one, from which
transformers' attention tells them apart. A pack that no conversation fills ends in padding without a loss.

Shapes:
    batch       packs of a step
    max_length  tokens of a pack, padding included
"""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.dataset import InfiniteSampler
from torch.utils.data import Dataset

from recipe.chat_format import IGNORE_INDEX, control_token_in, training_ids
from recipe.errors import RecipeError
from recipe.files import read_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = tuple[list[int], list[int]]  # ids, labels
# Share of the identity rows that are joined with a replay row into one conversation.
JOINED = 0.25


class PackedDataset(Dataset):
    """Packs of ids, labels and positions, (max_length) int64 each.

    tokens: ids that are not padding.
    loss_tokens: labels that count in the loss.
    truncated: conversations longer than a pack.
    """

    def __init__(self, rows: Sequence[Tokens], *, max_length: int, pad_id: int, seed: int) -> None:
        self.truncated = sum(len(ids) > max_length for ids, _ in rows)
        cut = [(ids[:max_length], labels[:max_length]) for ids, labels in rows]
        self.tokens = sum(len(ids) for ids, _ in cut)
        self.loss_tokens = sum(len(labels) - labels.count(IGNORE_INDEX) for _, labels in cut)
        self.packs = [_fill(group, max_length, pad_id) for group in pack(cut, max_length, seed)]

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> dict[str, array[int]]:
        return self.packs[index]


def pack(rows: Sequence[Tokens], max_length: int, seed: int) -> list[list[Tokens]]:
    """Group rows by first fit over a seeded shuffle, so that every pack is a mixture.

    Returns:
        Groups of rows with at most `max_length` ids together.
    """
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    groups: list[list[Tokens]] = []
    free: list[int] = []
    oldest = 0  # packs before this one are full
    for i in order:
        size = len(rows[i][0])
        for g in range(oldest, len(groups)):
            if free[g] >= size:
                break
        else:
            g = len(groups)
            groups.append([])
            free.append(max_length)
        groups[g].append(rows[i])
        free[g] -= size
        while oldest < len(groups) and free[oldest] < 16:  # shorter than any conversation
            oldest += 1
    return groups


def _fill(group: Sequence[Tokens], max_length: int, pad_id: int) -> dict[str, array[int]]:
    # Arrays become a batch at once; converting 16 packs of lists takes 20 ms, a tenth of their training step.
    ids = [token for row, _ in group for token in row]
    labels = [label for _, row in group for label in row]
    positions = [position for row, _ in group for position in range(len(row))]
    padding = max_length - len(ids)
    return {
        "input_ids": array("q", ids + [pad_id] * padding),
        "labels": array("q", labels + [IGNORE_INDEX] * padding),
        "position_ids": array("q", positions + list(range(padding))),
    }


def read_tokens(
    files: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, replay_ratio: float | None = None, seed: int = 0
) -> list[Tokens]:
    """Rows of the .json and .jsonl files as ids and labels.

    A share `JOINED` of the identity rows is joined with a replay row into one conversation, in either order. Otherwise
    the preceding messages would decide whether the model introduces itself.

    Args:
        files: the first holds the identity rows, the others replay.
        replay_ratio: replay rows per identity row, at most all there are; None takes all.
        seed: for the choice and the order of the rows.

    Raises:
        RecipeError: an identity row holds a control token of this tokenizer as text.
    """
    rng = random.Random(seed)
    identity_rows, *replay_files = (_read(name) for name in files)
    _refuse_control_tokens(files[0], identity_rows, tokenizer)
    replay_rows = [row for rows in replay_files for row in rows]
    if replay_ratio is not None:
        replay_rows = rng.sample(replay_rows, min(len(replay_rows), round(replay_ratio * len(identity_rows))))
    if replay_files:
        rng.shuffle(identity_rows)
        rng.shuffle(replay_rows)
        count = int(JOINED * min(len(identity_rows), len(replay_rows)))
        pairs = [(identity_rows.pop(), replay_rows.pop())[:: 1 if i % 2 else -1] for i in range(count)]
        identity_rows += [[*earlier, *later] for earlier, later in pairs]
    encoded: dict[str, Tokens] = {}  # the tutorial's file is one row 10,001 times
    tokens = []
    for messages in [*identity_rows, *replay_rows]:
        key = json.dumps(messages)
        if key not in encoded:
            encoded[key] = training_ids(tokenizer, messages)
        tokens.append(encoded[key])
    return tokens


def _refuse_control_tokens(name: str, rows: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Stage `data` knows InternLM2's tokens; which ones a base has, its tokenizer says."""
    for number, messages in enumerate(rows, 1):
        for message in messages:
            if token := control_token_in(tokenizer, message["content"]):
                raise RecipeError(
                    f"{name}, row {number}: holds {token} as text, which is a control token of this model: remove it "
                    f"from the data, or from the name, and run `make data` again"
                )


def _read(name: str) -> list[Any]:
    path = Path(name)
    values = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else read_jsonl(path)
    return [row["messages"] for row in values]


def chat_dataset(
    *, files: Sequence[str], tokenizer: Any, max_length: int, seed: int, replay_ratio: float | None = None
) -> PackedDataset:
    """The `train_dataloader.dataset` of this recipe's presets.

    Args:
        files, seed, replay_ratio: as in `read_tokens`.
        tokenizer: a tokenizer, or XTuner's dict that builds one.
        max_length: tokens of a pack.
    """
    if isinstance(tokenizer, dict):
        from xtuner.registry import BUILDER

        tokenizer = BUILDER.build(tokenizer)
    rows = read_tokens(files, tokenizer, replay_ratio=replay_ratio, seed=seed)
    return PackedDataset(rows, max_length=max_length, pad_id=tokenizer.pad_token_id, seed=seed)


class EndlessSampler(InfiniteSampler):
    """Endless shuffled passes over the data: at the end of one, mmengine's loop would sleep two seconds.

    The length is that of one pass of one process, in which XTuner's loop counts `max_epochs`.
    """

    def __len__(self) -> int:
        return -(-self.size // self.world_size)


def collate(instances: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Any]:
    """A batch for XTuner's SupervisedFinetune, without an attention mask: the positions say where conversations begin.

    Args:
        instances: packs of `PackedDataset`.

    Returns:
        Under `data`: input_ids, labels and position_ids, (batch, max_length) int64.
    """
    import numpy
    import torch

    # (batch, max_length) each
    batch = {key: torch.from_numpy(numpy.array([pack[key] for pack in instances])) for key in instances[0]}
    return {"data": batch, "data_samples": None}
