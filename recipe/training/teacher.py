"""What the base itself would say next at every token of its replies: the likeliest tokens and how likely they are.

On replay rows a model learns this distribution instead of the words (Hinton et al. 2015, "Distilling the Knowledge in
a Neural Network"; here the teacher is the student before its tuning). Stage `replay` stores it once for all runs.

Shapes:
    tokens  loss tokens of all rows, end to end, in the order of replay.jsonl
    vocab   words of the model
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from recipe.chat_format import IGNORE_INDEX, Message, ids_of_texts, training_ids
from recipe.errors import RecipeError
from recipe.evaluation.batches import by_length, predictions, rows_per_pass
from recipe.pipeline.phases import phase
from recipe.pipeline.stage import shown
from recipe.training.sizes import LIKELIEST, TEACHER_FILE

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from recipe.engine.batch import Likeliest

# Where a reply begins it is decided whether the model introduces itself, so its first tokens count more.
FIRST_TOKENS, FIRST_WEIGHT = 4, 4.0
# Smallest probability of all other tokens together: its logarithm and quotient stay finite.
MIN_REST = 1e-6


@dataclass(frozen=True)
class Teacher:
    """The base's distributions.

    Attributes:
        ids: (tokens, LIKELIEST) int32, the likeliest next tokens.
        log_probs: (tokens, LIKELIEST) float16, their log-probabilities.
        weights: (tokens) float32, how much each token's divergence counts.
        counts: loss tokens of each row; 0 where a row is learnt by its words.
    """

    ids: Tensor
    log_probs: Tensor
    weights: Tensor
    counts: list[int]

    def rows(self, index: Tensor) -> Teacher:
        """Some tokens' distributions. index: (rows) int64."""
        return Teacher(self.ids[index], self.log_probs[index], self.weights[index], [])

    def to(self, device: torch.device) -> Teacher:
        """The same on a device."""
        return Teacher(self.ids.to(device), self.log_probs.to(device), self.weights.to(device), self.counts)


@phase("score")
def distributions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message] | None],
    ended: Sequence[bool],
    recorded: Sequence[Likeliest | None] = (),
) -> Teacher:
    """A model's distributions at the loss tokens of conversations.

    Args:
        model: the base, which is asked where its distributions are not known.
        conversations: as they will be trained on; None where a row is learnt by its words.
        ended: whether each conversation's last reply came to its end.
        recorded: for each of the first conversations, what it held likeliest when it gave the reply; None where that
            was not kept. It holds where the reply's words become the same tokens again.
    """
    from tqdm import tqdm

    ids_of = ids_of_texts(tokenizer, filter(None, conversations))
    rows: list[tuple[list[int], list[int]]] = [
        ([], []) if conversation is None else training_ids(tokenizer, conversation, ended=end, ids_of=ids_of)
        for conversation, end in zip(conversations, ended, strict=True)
    ]
    counts = [len(labels) - labels.count(IGNORE_INDEX) for _, labels in rows]
    parts: list[tuple[Tensor, Tensor]] = [(torch.zeros(0, LIKELIEST), torch.zeros(0, LIKELIEST))] * len(rows)
    for i, of_reply in enumerate(recorded):
        if of_reply and of_reply.chosen == [label for label in rows[i][1] if label != IGNORE_INDEX]:
            parts[i], rows[i] = (of_reply.ids, of_reply.log_probs), ([], [])
    batches = by_length([len(ids) for ids, _ in rows], rows_per_pass(model.device))
    with (
        torch.inference_mode(),
        tqdm(total=sum(map(len, batches)), desc="the base's distributions", unit="row", leave=False) as bar,
    ):
        for batch in batches:
            likeliest = [
                logits.float().log_softmax(-1).topk(LIKELIEST, -1)
                for logits in predictions(model, [rows[i] for i in batch], tokenizer.pad_token_id)
            ]
            of_batch = [counts[i] for i in batch]
            values, ids = (
                torch.cat(part) for part in zip(*likeliest, strict=True)
            )  # (loss tokens of the batch, LIKELIEST)
            for i, *row in zip(
                batch, ids.int().cpu().split(of_batch), values.half().cpu().split(of_batch), strict=True
            ):
                parts[i] = row[0], row[1]
            bar.update(len(batch))
    return Teacher(
        torch.cat([ids for ids, _ in parts]).int(), torch.cat([values for _, values in parts]).half(),
        _weights(counts), counts,
    )  # fmt: skip


def _weights(counts: Sequence[int]) -> Tensor:
    """(tokens) float32: FIRST_WEIGHT for the first FIRST_TOKENS of every row, 1 for the others."""
    return torch.tensor([FIRST_WEIGHT if i < FIRST_TOKENS else 1.0 for count in counts for i in range(count)])


def save(teacher: Teacher, folder: Path) -> None:
    """Write the distributions beside replay.jsonl."""
    from safetensors.torch import save_file

    tensors = {"ids": teacher.ids, "log_probs": teacher.log_probs, "counts": torch.tensor(teacher.counts)}
    save_file(tensors, folder / TEACHER_FILE)
    (folder / TEACHER_FILE).chmod(0o644)


def load(file: Path) -> Teacher:
    """Read the distributions.

    Raises:
        RecipeError: there are none.
    """
    from safetensors.torch import load_file

    _refuse_missing(file)
    tensors = load_file(file)
    counts = tensors["counts"].tolist()
    return Teacher(tensors["ids"], tensors["log_probs"], _weights(counts), counts)


def load_counts(file: Path) -> list[int]:
    """`counts` of the distributions alone, which take a thousandth of the file.

    Raises:
        RecipeError: there are none.
    """
    from safetensors import safe_open

    _refuse_missing(file)
    with safe_open(file, framework="pt") as tensors:
        counts: list[int] = tensors.get_tensor("counts").tolist()
    return counts


def _refuse_missing(file: Path) -> None:
    if not file.is_file():
        raise RecipeError(f"{shown(file)}: missing; run `make replay` again, which writes it, then `make config`")


def divergence(likely: Tensor, log_sum: Tensor, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """KL(teacher ‖ student) over the teacher's likeliest tokens and all others together, which are one class.

    With p, q the probabilities of teacher and student, K the likeliest tokens, r = 1 - sum_K p and s = 1 - sum_K q:

        KL = sum_K p (log p - log q) + r (log r - log s)
        dKL/dlogit_j = q_j - p_j for j in K, and q_j (1 - r / s) for all others

    Args:
        likely: (rows, K), the student's logits of the teacher's likeliest tokens.
        log_sum: (rows) float32, logarithm of the sum of the exponentials of all of a row's logits.
        log_probs: (rows, K) float32, the teacher's.

    Returns:
        The divergences in nats, (rows); the gradient at the likeliest tokens, (rows, K); and the factor by which the
        others' probabilities are multiplied to be their gradient, (rows). All float32.
    """
    log_q = likely.float() - log_sum[:, None]
    p, q = log_probs.exp(), log_q.exp()
    p_rest = (1 - p.sum(-1)).clamp(min=MIN_REST)
    q_rest = (1 - q.sum(-1)).clamp(min=MIN_REST)
    divergences = (p * (log_probs - log_q)).sum(-1) + p_rest * (p_rest.log() - q_rest.log())
    return divergences, q - p, 1 - p_rest / q_rest


def plain_loss(logits: Tensor, labels: Tensor, index: Tensor, teacher: Teacher) -> Tensor:
    """The loss of `fast.loss.HeadLoss` by autograd: for models whose own forward pass must run, as ZeRO-3's.

    Args:
        logits: (batch, length, vocab).
        labels: (batch, length) int64.
        index: (batch, length) int64, the row of `teacher` for each label, -1 where it is learnt by its words.
        teacher: on the logits' device.

    Returns:
        A float32 scalar, the mean over the loss tokens.
    """
    flat, target, at = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), index[:, 1:].flatten()
    count = target.ne(IGNORE_INDEX).sum().clamp(min=1)
    by_words = target.where(at < 0, IGNORE_INDEX)
    loss = functional.cross_entropy(flat.float(), by_words, ignore_index=IGNORE_INDEX, reduction="sum")
    rows = at.ge(0).nonzero().flatten()
    chosen, picked = flat[rows].float(), at[rows]
    likely = chosen.gather(1, teacher.ids[picked].long())
    divergences, _, _ = divergence(likely, chosen.logsumexp(-1), teacher.log_probs[picked].float())
    return (loss + (divergences * teacher.weights[picked]).sum()) / count


def indices(labels: Sequence[int], start: int, skip: int, count: int) -> list[int]:
    """The teacher's row for each label of one conversation.

    Args:
        labels: the labels.
        start: the teacher's row of the first of `count` loss tokens.
        skip: loss tokens before them, which are learnt by their words.
        count: loss tokens that the teacher knows.

    Returns:
        As many as labels; -1 where there is no teacher.
    """
    result, seen = [], 0
    for label in labels:
        in_teacher = label != IGNORE_INDEX and skip <= seen < skip + count
        result.append(start + seen - skip if in_teacher else -1)
        seen += label != IGNORE_INDEX
    return result
