"""Replay rows are learnt by the base's own distribution: stored, packed, and the same loss in both forward passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model
from small_training import adapted, batch, distance, gradients, llama
from torch import Tensor
from torch.nn import functional

from recipe import files
from recipe.chat_format import IGNORE_INDEX, assistant, training_ids, user
from recipe.checkpoint.linear_layers import LINEAR_LAYERS
from recipe.errors import RecipeError
from recipe.evaluation import generation
from recipe.evaluation.batches import predictions
from recipe.training import teacher
from recipe.training.dataset import PackedDataset, chat_dataset, collate, read_tokens
from recipe.training.fast.model import FusedLlama
from recipe.training.sizes import LIKELIEST, TEACHER_FILE
from recipe.training.teacher import Teacher, divergence, indices, plain_loss

REPLAY = [[user("你好"), assistant("你好！很高兴见到你。")], [user("3+4=?"), assistant("3+4=7")]]
IDENTITY = [[user(f"你是谁？{i}"), assistant("我是小明的小助手。")] for i in range(6)]


def random_teacher(rows: int, vocab: int, likeliest: int, seed: int = 0) -> Teacher:
    generator = torch.Generator().manual_seed(seed)
    log_probs, ids = (3 * torch.randn(rows, vocab, generator=generator)).log_softmax(-1).topk(likeliest, -1)
    return Teacher(ids.int(), log_probs.half(), torch.linspace(1, 4, rows), [rows])


def test_the_divergence_is_that_of_the_likeliest_and_all_others_together() -> None:
    taught = random_teacher(6, 20, 5)
    logits = torch.randn(6, 20, dtype=torch.float64, requires_grad=True)
    ids, log_p = taught.ids.long(), taught.log_probs.double()
    actual, at_likely, of_others = divergence(logits.gather(1, ids), logits.logsumexp(-1), log_p.float())
    q = logits.softmax(-1)
    q_likely = q.gather(1, ids)
    p = log_p.exp()
    expected = (p * (p / q_likely).log()).sum(-1) + (1 - p.sum(-1)) * ((1 - p.sum(-1)) / (1 - q_likely.sum(-1))).log()
    torch.testing.assert_close(actual, expected, check_dtype=False, atol=1e-5, rtol=1e-4)
    (by_autograd,) = torch.autograd.grad(expected.sum(), logits)
    by_formula = (q * of_others[:, None]).scatter(1, ids, at_likely.double())
    torch.testing.assert_close(by_formula, by_autograd, atol=1e-5, rtol=1e-4)


def test_with_all_words_it_is_kullback_and_leiblers() -> None:
    taught = random_teacher(4, 9, 9)
    logits = torch.randn(4, 9)
    actual, _, _ = divergence(logits.gather(1, taught.ids.long()), logits.logsumexp(-1), taught.log_probs.float())
    p = torch.zeros(4, 9).scatter(1, taught.ids.long(), taught.log_probs.float())
    expected = functional.kl_div(logits.log_softmax(-1), p, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(actual, expected, atol=2e-3, rtol=1e-3)


def taught_batch(likeliest: int = 5) -> tuple[dict[str, Tensor], Teacher]:
    """Half of the loss tokens have a teacher."""
    data = batch()
    labels = data["labels"]
    places = labels[:, 1:].ne(IGNORE_INDEX).nonzero()
    index = torch.full_like(labels, -1)
    for row, (i, t) in enumerate(places[::2].tolist()):
        index[i, t + 1] = row
    vocab = llama().config.vocab_size
    return data | {"teacher_rows": index}, random_teacher(len(places[::2]), vocab, likeliest)


@pytest.mark.parametrize("rows", [1024, 3])
def test_both_forward_passes_have_the_same_loss_and_gradients(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipe.training.fast import loss as module

    monkeypatch.setattr(module, "LOSS_ROWS", rows)
    model = adapted(llama())
    data, taught = taught_batch()
    fused = FusedLlama(model, fp8=False).loss(**data, teacher=taught, recompute=False)
    logits = model(input_ids=data["input_ids"], position_ids=data["position_ids"]).logits
    plain = plain_loss(logits, data["labels"], data["teacher_rows"], taught)
    torch.testing.assert_close(fused, plain)
    actual, expected = gradients(model, fused), gradients(model, plain)
    assert max(distance(actual[name], expected[name]) for name in expected) < 1e-4


def test_a_row_without_a_teacher_is_learnt_by_its_words() -> None:
    model = adapted(llama())
    data, taught = taught_batch()
    fast = FusedLlama(model, fp8=False)
    without = fast.loss(
        **(data | {"teacher_rows": torch.full_like(data["labels"], -1)}), teacher=taught, recompute=False
    )
    torch.testing.assert_close(without, fast.loss(**batch(), recompute=False))
    assert not torch.isclose(without, fast.loss(**data, teacher=taught, recompute=False))


def stored(folder: Path, tiny_model: Path, *, ended: bool = True) -> tuple[Any, Any, Teacher]:
    """Replay as stage `replay` writes it."""
    model, tokenizer = generation.load(tiny_model)
    rows = [{"messages": messages} | ({} if ended else {"ended": False}) for messages in REPLAY]
    (folder / "replay.jsonl").write_text(files.jsonl_text(rows), encoding="utf-8")
    taught = teacher.distributions(model, tokenizer, REPLAY, [ended] * len(REPLAY))
    teacher.save(taught, folder)
    return model, tokenizer, teacher.load(folder / TEACHER_FILE)


@pytest.mark.parametrize("ended", [True, False])
def test_what_is_stored_is_what_the_base_would_say(tiny_model: Path, tmp_path: Path, ended: bool) -> None:
    model, tokenizer, taught = stored(tmp_path, tiny_model, ended=ended)
    at = 0
    for messages, count in zip(REPLAY, taught.counts, strict=True):
        ids, labels = training_ids(tokenizer, messages, ended=ended)
        places = [t for t, label in enumerate(labels) if label != IGNORE_INDEX]
        assert len(places) == count
        with torch.inference_mode():
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)[[t - 1 for t in places]]
        values, likeliest = log_probs.topk(LIKELIEST, -1)
        assert taught.ids[at : at + count].tolist() == likeliest.tolist()
        torch.testing.assert_close(taught.log_probs[at : at + count].float(), values, atol=5e-3, rtol=1e-3)
        assert taught.weights[at : at + count].tolist() == [4.0] * min(4, count) + [1.0] * (count - 4)
        at += count
    assert at == len(taught.ids)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_a_reply_came_with_is_what_the_base_would_say_when_asked_again(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    model, tokenizer = generation.load(tiny_model)
    questions = [messages[:1] for messages in REPLAY]
    replies = generation.answer(
        model, tokenizer, questions, max_new_tokens=9, temperature=temperature, likeliest=LIKELIEST
    )
    generation.release()
    rows = [[*question, assistant(reply.text)] for question, reply in zip(questions, replies, strict=True)]
    ended = [reply.stopped for reply in replies]
    recorded = [reply.likeliest for reply in replies]
    assert all(each and len(each.chosen) == len(each.ids) == len(each.log_probs) for each in recorded)
    same = [
        each is not None
        and each.chosen == [label for label in training_ids(tokenizer, row, ended=end)[1] if label >= 0]
        for each, row, end in zip(recorded, rows, ended, strict=True)
    ]
    asked: list[int] = []

    def listen(model: Any, rows: Any, pad: Any) -> Any:
        asked.append(len(rows))
        return predictions(model, rows, pad)

    again = teacher.distributions(model, tokenizer, rows, ended)
    monkeypatch.setattr(teacher, "predictions", listen)
    taught = teacher.distributions(model, tokenizer, rows, ended, recorded=recorded)
    assert sum(asked) == len(rows) - sum(same)  # where the words become other tokens, it is asked
    assert (taught.counts, taught.weights.tolist()) == (again.counts, again.weights.tolist())
    torch.testing.assert_close(taught.log_probs.float(), again.log_probs.float(), atol=5e-3, rtol=1e-3)
    agree = taught.ids == again.ids
    assert agree.float().mean() > 0.99  # the order of equals is left to chance


def test_a_reply_that_became_other_tokens_is_asked_again(tiny_model: Path) -> None:
    model, tokenizer = generation.load(tiny_model)
    (reply,) = generation.answer(model, tokenizer, [REPLAY[0][:1]], max_new_tokens=4, likeliest=LIKELIEST)
    assert reply.likeliest
    row = [REPLAY[0][0], assistant("别的话")]
    alone = teacher.distributions(model, tokenizer, [row], [True])
    taught = teacher.distributions(model, tokenizer, [row], [True], recorded=[reply.likeliest])
    assert taught.ids.tolist() == alone.ids.tolist()


def test_an_adapter_that_changes_nothing_diverges_from_nothing(tiny_model: Path, tmp_path: Path) -> None:
    model, _, taught = stored(tmp_path, tiny_model)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    (tmp_path / "train.jsonl").write_text("", encoding="utf-8")
    names = [str(tmp_path / "train.jsonl"), str(tmp_path / "replay.jsonl")]
    packed = chat_dataset(files=names, tokenizer=tokenizer, max_length=128, seed=0, distill=True)
    data = collate([packed[i] for i in range(len(packed))])["data"]
    untrained = get_peft_model(model, LoraConfig(r=4, target_modules=list(LINEAR_LAYERS)))
    loss = FusedLlama(untrained, fp8=False).loss(**data, teacher=taught, recompute=False)
    assert abs(loss.item()) < 1e-3
    assert FusedLlama(untrained, fp8=False).loss(**data, recompute=False) > 1  # by words it would be taught much


@pytest.mark.parametrize("ended", [True, False])
def test_joined_or_not_every_reply_of_the_base_finds_its_distributions(
    tiny_model: Path, tmp_path: Path, ended: bool
) -> None:
    _, tokenizer, taught = stored(tmp_path, tiny_model, ended=ended)
    (tmp_path / "train.jsonl").write_text(files.jsonl_text({"messages": m} for m in IDENTITY * 2), encoding="utf-8")
    names = [str(tmp_path / "train.jsonl"), str(tmp_path / "replay.jsonl")]
    for seed in range(4):
        rows = read_tokens(names, tokenizer, seed=seed, distill=True)
        used = sorted(index for row in rows for index in row[2] if index >= 0)
        assert used == list(range(len(taught.ids)))
        expected = [
            label for m in REPLAY for label in training_ids(tokenizer, m, ended=ended)[1] if label != IGNORE_INDEX
        ]
        for _, labels, index in rows:
            assert all(labels[t] == expected[i] for t, i in enumerate(index) if i >= 0)
            assert all(i < 0 for t, i in enumerate(index) if labels[t] == IGNORE_INDEX)
        if not ended:  # what was cut can only be the end of a conversation
            assert all(not any(i >= 0 for i in index[:-1]) or index[-1] >= 0 for _, _, index in rows)


def test_rows_find_their_distributions_by_their_counts_alone(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`config` and `train` each read the rows, and the distributions of a real base are hundreds of megabytes."""
    _, tokenizer, taught = stored(tmp_path, tiny_model)
    assert teacher.load_counts(tmp_path / TEACHER_FILE) == taught.counts
    (tmp_path / "train.jsonl").write_text(files.jsonl_text({"messages": m} for m in IDENTITY), encoding="utf-8")
    monkeypatch.setattr(safetensors.torch, "load_file", lambda *_: pytest.fail("the whole file was read"))
    names = [str(tmp_path / "train.jsonl"), str(tmp_path / "replay.jsonl")]
    assert sum(index >= 0 for row in read_tokens(names, tokenizer, distill=True) for index in row[2]) == len(taught.ids)


def test_packs_carry_the_places_and_padding_has_none(tiny_model: Path, tmp_path: Path) -> None:
    _, tokenizer, taught = stored(tmp_path, tiny_model)
    (tmp_path / "train.jsonl").write_text(files.jsonl_text({"messages": m} for m in IDENTITY), encoding="utf-8")
    names = [str(tmp_path / "train.jsonl"), str(tmp_path / "replay.jsonl")]
    rows = read_tokens(names, tokenizer, distill=True)
    packed = PackedDataset(rows, max_length=100, pad_id=tokenizer.pad_token_id, seed=0)
    data = collate([packed[i] for i in range(len(packed))])["data"]
    assert data["teacher_rows"].shape == data["labels"].shape
    assert data["teacher_rows"][data["labels"].eq(IGNORE_INDEX)].eq(-1).all()
    assert sorted(data["teacher_rows"][data["teacher_rows"] >= 0].tolist()) == list(range(len(taught.ids)))


def test_indices_skip_what_the_teacher_does_not_know() -> None:
    labels = [IGNORE_INDEX, 5, 6, IGNORE_INDEX, 7, 8]
    assert indices(labels, 10, 0, 2) == [-1, 10, 11, -1, -1, -1]
    assert indices(labels, 10, 2, 2) == [-1, -1, -1, -1, 10, 11]
    assert indices(labels, 10, 0, 0) == [-1] * 6


def test_distributions_that_are_missing_or_of_other_rows_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    _, tokenizer, _ = stored(tmp_path, tiny_model)
    names = [str(tmp_path / "train.jsonl"), str(tmp_path / "replay.jsonl")]
    (tmp_path / "train.jsonl").write_text(json.dumps({"messages": IDENTITY[0]}) + "\n", encoding="utf-8")
    (tmp_path / "replay.jsonl").write_text(json.dumps({"messages": REPLAY[0]}) + "\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="are of different rows: run `make replay` again"):
        read_tokens(names, tokenizer, distill=True)
    (tmp_path / TEACHER_FILE).unlink()
    with pytest.raises(RecipeError, match=r"teacher.safetensors: missing; run `make replay` again"):
        read_tokens(names, tokenizer, distill=True)
