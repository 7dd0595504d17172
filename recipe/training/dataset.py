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
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.dataset import InfiniteSampler
from torch.utils.data import Dataset

from recipe.chat_format import IGNORE_INDEX, control_token_in, ids_of_texts, training_ids
from recipe.checkpoint.loaded_tokenizer import build_tokenizer
from recipe.corpus.own_data import plain_text
from recipe.corpus.own_questions import questions_in
from recipe.corpus.rows import read_rows
from recipe.errors import RecipeError
from recipe.evaluation.own_rows import read_questions
from recipe.pipeline.phases import phase
from recipe.training.sizes import TEACHER_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Ids, labels and, where a teacher is, its row for each label (see teacher.indices).
Tokens = tuple[list[int], ...]
# Share of the identity rows that are joined with a replay row into one conversation.
JOINED = 0.25
# Rows whose texts are tokenised in one call; their ids are kept until it is done.
ROWS_AT_ONCE = 8192


class PackedDataset(Dataset):
    """Packs of ids, labels and positions, (max_length) int64 each.

    tokens: ids that are not padding.
    loss_tokens: labels that count in the loss.
    truncated: conversations longer than a pack.
    """

    def __init__(self, rows: Sequence[Tokens], *, max_length: int, pad_id: int, seed: int) -> None:
        self.truncated = sum(len(row[0]) > max_length for row in rows)
        cut = [tuple(part[:max_length] for part in row) for row in rows]
        self.tokens = sum(len(row[0]) for row in cut)
        self.loss_tokens = sum(len(row[1]) - row[1].count(IGNORE_INDEX) for row in cut)
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
    ids = [token for row in group for token in row[0]]
    labels = [label for row in group for label in row[1]]
    positions = [position for row in group for position in range(len(row[0]))]
    padding = max_length - len(ids)
    filled = {
        "input_ids": array("q", ids + [pad_id] * padding),
        "labels": array("q", labels + [IGNORE_INDEX] * padding),
        "position_ids": array("q", positions + list(range(padding))),
    }
    if len(group[0]) > 2:
        teacher_rows = [index for row in group for index in row[2]]
        filled["teacher_rows"] = array("q", teacher_rows + [-1] * padding)
    return filled


@phase("tokenise")
def read_tokens(
    files: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    replay_ratio: float | None = None,
    seed: int = 0,
    distill: bool = False,
    own: str = "",
    own_repeats: int = 1,
    leave_out: Sequence[str] = (),
) -> list[Tokens]:
    """Rows of the .json and .jsonl files as ids and labels.

    A share `JOINED` of the identity rows is joined with a replay row into one conversation, in either order. Otherwise
    the preceding messages would decide whether the model introduces itself. The user's own rows stay as they are, and
    replay rows that ask one of their questions are left out: nothing is to be answered in two ways.

    Args:
        files: the first holds the identity rows, or is `own`; the others hold replay.
        replay_ratio: replay rows per row of the first file and of `own`, at most all there are; None takes all.
        seed: for the choice and the order of the rows.
        distill: whether replay rows are learnt by the base's distribution, which lies beside their file.
        own: the file of the user's rows; "" without any.
        own_repeats: how often each of them stands among the rows.
        leave_out: parts of the data to train without, to see what each of them is for.

    Returns:
        Ids and labels of each row and, with `distill`, the teacher's row for each label.

    Raises:
        RecipeError: an identity row holds a control token of this tokenizer as text, or no row is of a part to leave
            out.
    """
    rng = random.Random(seed)
    identity_rows, *replay_files = ([] if name == own else _read(name) for name in files)
    own_rows = _read(own) if own else []
    for name, rows in ((files[0], identity_rows), (own, own_rows)):
        _refuse_control_tokens(name, [row.messages for row in rows], tokenizer)
    if distill:
        replay_files = [_with_teacher(name, rows) for name, rows in zip(files[1:], replay_files, strict=True)]
    if leave_out:
        identity_rows, *replay_files = _without(leave_out, [identity_rows, *replay_files])
    # By its words, a reply that was cut would teach to ramble.
    replay_rows = [row for rows in replay_files for row in rows if row.ended or distill]
    if own:
        replay_rows = _not_asked_in(replay_rows, own, own_rows)
    if replay_ratio is not None:
        count = round(replay_ratio * (len(identity_rows) + len(own_rows)))
        replay_rows = rng.sample(replay_rows, min(len(replay_rows), count))
    if replay_files:
        rng.shuffle(identity_rows)
        rng.shuffle(replay_rows)
        count = int(JOINED * min(len(identity_rows), len(replay_rows)))
        pairs = [(identity_rows.pop(), replay_rows.pop()) for _ in range(count)]
        identity_rows += [_joined(*pair, identity_first=i % 2 == 1) for i, pair in enumerate(pairs)]
    return _encode([*identity_rows, *replay_rows, *own_rows * own_repeats], tokenizer, distill=distill)


def _encode(rows: Sequence[_Row], tokenizer: PreTrainedTokenizerBase, *, distill: bool) -> list[Tokens]:
    """Ids and labels of each row and, with `distill`, the teacher's row for each label."""
    encoded: dict[str, Tokens] = {}  # the tutorial's file is one row 10,001 times
    tokens: list[Tokens] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        ids_of = ids_of_texts(tokenizer, [row.messages for row in some])
        for row in some:
            key = json.dumps((row.messages, row.ended))
            if key not in encoded:
                encoded[key] = training_ids(tokenizer, row.messages, ended=row.ended, ids_of=ids_of)
            ids, labels = encoded[key]
            tokens.append((ids, labels, row.teacher_rows(labels)) if distill else (ids, labels))
    return tokens


@dataclass(frozen=True)
class _Row:
    """One conversation.

    Attributes:
        ended: False where its last reply was cut at a limit.
        start, count: the teacher's row of its first loss token, and how many the teacher knows.
        last: whether these are the last loss tokens of the conversation, otherwise the first.
        part: of the data, as the stages `data` and `replay` name them.
    """

    messages: list[Any]
    ended: bool = True
    start: int = 0
    count: int = 0
    last: bool = False
    part: str = ""

    def teacher_rows(self, labels: Sequence[int]) -> list[int]:
        """The teacher's row for each label, -1 where there is none."""
        from recipe.training.teacher import indices

        total = len(labels) - list(labels).count(IGNORE_INDEX)
        return indices(labels, self.start, total - self.count if self.last else 0, self.count)


def _joined(identity_row: _Row, replay_row: _Row, *, identity_first: bool) -> _Row:
    """Two rows as one conversation. A reply that was cut can only be its last."""
    last = identity_first or not replay_row.ended
    earlier, later = (identity_row, replay_row) if last else (replay_row, identity_row)
    return replace(replay_row, messages=[*earlier.messages, *later.messages], ended=later.ended, last=last)


def _not_asked_in(replay_rows: Sequence[_Row], own: str, own_rows: Sequence[_Row]) -> list[_Row]:
    """The replay rows that ask no question of the user's: neither one trained on nor one that evaluation asks."""
    questions = questions_in([{"messages": row.messages} for row in own_rows])
    questions |= {plain_text(question.messages[-1]["content"]) for question in read_questions(Path(own).parent)}
    return [row for row in replay_rows if questions_in([{"messages": row.messages}]).isdisjoint(questions)]


def _without(parts: Sequence[str], files: Sequence[Sequence[_Row]]) -> list[list[_Row]]:
    """The rows of each file that are of none of the parts."""
    present = {row.part for rows in files for row in rows}
    if unknown := sorted(set(parts) - present):
        raise RecipeError(
            f"leave_out: no row is of the part {', '.join(unknown)}, but of {', '.join(sorted(present - {''}))}. "
            "Rows of an earlier version name none: remove the run's data/ and the base's folder under work/replay/"
        )
    return [[row for row in rows if row.part not in parts] for rows in files]


def _with_teacher(name: str, rows: Sequence[_Row]) -> list[_Row]:
    """Replay rows with their places in the teacher beside their file."""
    from recipe.training import teacher

    counts = teacher.load_counts(Path(name).with_name(TEACHER_FILE))
    if len(counts) != len(rows):
        raise RecipeError(f"{name} and {TEACHER_FILE} beside it are of different rows: run `make replay` again")
    starts = accumulate(counts, initial=0)
    return [replace(row, start=start, count=count) for row, start, count in zip(rows, starts, counts, strict=False)]


def _refuse_control_tokens(name: str, rows: Sequence[Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Stage `data` knows InternLM2's tokens; which ones a base has, its tokenizer says."""
    for number, messages in enumerate(rows, 1):
        for message in messages:
            if token := control_token_in(tokenizer, message["content"]):
                raise RecipeError(
                    f"{name}, row {number}: holds {token} as text, which is a control token of this model: remove it "
                    f"from the data, or from the name, and run `make data` again"
                )


def _read(name: str) -> list[_Row]:
    values = read_rows(Path(name))
    return [_Row(row["messages"], ended=row.get("ended", True), part=row.get("part", "")) for row in values]


def chat_dataset(
    *,
    files: Sequence[str],
    tokenizer: Any,
    max_length: int,
    seed: int,
    replay_ratio: float | None = None,
    distill: bool = False,
    own: str = "",
    own_repeats: int = 1,
    leave_out: Sequence[str] = (),
) -> PackedDataset:
    """The `train_dataloader.dataset` of this recipe's presets.

    Args:
        files, seed, replay_ratio, distill, own, own_repeats, leave_out: as in `read_tokens`.
        tokenizer: a tokenizer, or XTuner's dict that builds one.
        max_length: tokens of a pack.
    """
    if isinstance(tokenizer, dict):
        tokenizer = build_tokenizer(tokenizer)
    rows = read_tokens(
        files, tokenizer, replay_ratio=replay_ratio, seed=seed, distill=distill, own=own, own_repeats=own_repeats,
        leave_out=leave_out,
    )  # fmt: skip
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
        Under `data`: input_ids, labels, position_ids and, with a teacher, teacher_rows, (batch, max_length) int64.
    """
    import numpy
    import torch

    # (batch, max_length) each
    batch = {key: torch.from_numpy(numpy.array([pack[key] for pack in instances])) for key in instances[0]}
    return {"data": batch, "data_samples": None}
