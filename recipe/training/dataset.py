"""The training set as XTuner's trainer sees it: packs of whole conversations.

Each pack holds conversations end to end, as many as fit into max_length tokens; none is cut in two, dropped at the end
of the data or of a worker, or able to see its neighbours: `position_ids` start over at each conversation, from which
transformers' attention tells them apart. A pack that no conversation fills ends in padding without a loss.
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

from recipe.chat_format import IGNORE_INDEX, training_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = tuple[list[int], list[int]]  # ids, labels
# Share of the rows about who it is, and of as many of replay, that become one conversation of both.
JOINED = 0.25


class PackedDataset(Dataset):
    """Packs of `max_length` ids, labels and positions, all of equal length.

    tokens: how many ids are conversation and not padding. truncated: how many conversations were longer than a pack.
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
    """Groups of rows of at most `max_length` ids each: first fit over a seeded shuffle, so that every pack is a mixture."""
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
    # Arrays, which a batch is made of in no time; reading 16 packs of lists takes 20 ms, a tenth of the step they are for.
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

    replay_ratio: rows of the later files, which hold replay, for each row of the first, at most all there are; None takes all.
    Of either kind `JOINED` are put together with one of the other into a conversation, so that what was said before does not decide
    whose turn it is to be introduced.
    """
    rng = random.Random(seed)
    identity_rows, *replay_files = (_read(name) for name in files)
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


def _read(name: str) -> list[Any]:
    text = Path(name).read_text(encoding="utf-8")
    values = json.loads(text) if name.endswith(".json") else map(json.loads, text.rstrip("\n").split("\n"))
    return [row["messages"] for row in values]


def chat_dataset(
    *, files: Sequence[str], tokenizer: Any, max_length: int, seed: int, replay_ratio: float | None = None
) -> PackedDataset:
    """The `train_dataloader.dataset` of this recipe's presets. tokenizer: one, or XTuner's dict that builds one."""
    if isinstance(tokenizer, dict):
        from xtuner.registry import BUILDER

        tokenizer = BUILDER.build(tokenizer)
    rows = read_tokens(files, tokenizer, replay_ratio=replay_ratio, seed=seed)
    return PackedDataset(rows, max_length=max_length, pad_id=tokenizer.pad_token_id, seed=seed)


class EndlessSampler(InfiniteSampler):
    """Shuffled passes over the data without an end between them, where mmengine's loop would sleep two seconds.

    Its length is one pass of one process, of which XTuner's loop counts `max_epochs`.
    """

    def __len__(self) -> int:
        return -(-self.size // self.world_size)


def collate(instances: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, Any]:
    """A batch for XTuner's SupervisedFinetune: no attention mask, the positions say where conversations begin."""
    import numpy
    import torch

    batch = {key: torch.from_numpy(numpy.array([pack[key] for pack in instances])) for key in instances[0]}
    return {"data": batch, "data_samples": None}
