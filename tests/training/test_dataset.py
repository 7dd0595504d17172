"""Packs hold every conversation whole, and conversations in a pack do not see each other."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recipe.chat_format import IGNORE_INDEX, assistant, training_ids, user
from recipe.errors import RecipeError
from recipe.files import jsonl_text
from recipe.training.dataset import EndlessSampler, PackedDataset, Tokens, chat_dataset, collate, pack, read_tokens

PAD = 0
# Lengths of conversations; 16 and less is where packs are taken for full.
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=60)


def rows_of(lengths: list[int]) -> list[Tokens]:
    """Distinct rows: each id holds the numbers of row and position; the first half does not count in the loss."""
    rows: list[Tokens] = []
    for number, length in enumerate(lengths, 1):
        ids = [1000 * number + position for position in range(length)]
        rows.append((ids, [IGNORE_INDEX if i < length // 2 else token for i, token in enumerate(ids)]))
    return rows


def conversations(pack: Mapping[str, Sequence[int]]) -> Iterator[Tokens]:
    """The rows of a pack, cut where positions start over, without the padding."""
    starts = [i for i, position in enumerate(pack["position_ids"]) if position == 0]
    for start, end in zip(starts, [*starts[1:], len(pack["position_ids"])], strict=True):
        ids = pack["input_ids"][start:end]
        if ids[0] != PAD:
            yield list(ids), list(pack["labels"][start:end])


def counted(rows: Iterable[Tokens]) -> Counter[tuple[tuple[int, ...], tuple[int, ...]]]:
    return Counter((tuple(ids), tuple(labels)) for ids, labels in rows)


@given(lengths=LENGTHS, max_length=st.integers(60, 200), seed=st.integers(0, 5))
def test_every_row_is_in_exactly_one_pack_whole(lengths: list[int], max_length: int, seed: int) -> None:
    rows = rows_of(lengths)
    dataset = PackedDataset(rows, max_length=max_length, pad_id=PAD, seed=seed)
    assert dataset.truncated == 0
    assert dataset.tokens == sum(lengths)
    packed = [row for i in range(len(dataset)) for row in conversations(dataset[i])]
    assert counted(packed) == counted(rows)


@given(lengths=LENGTHS, max_length=st.integers(60, 200), seed=st.integers(0, 5))
def test_packs_are_of_equal_length_and_none_is_empty(lengths: list[int], max_length: int, seed: int) -> None:
    dataset = PackedDataset(rows_of(lengths), max_length=max_length, pad_id=PAD, seed=seed)
    for i in range(len(dataset)):
        assert {key: len(values) for key, values in dataset[i].items()} == dict.fromkeys(
            ("input_ids", "labels", "position_ids"), max_length
        )
        assert list(conversations(dataset[i]))


@given(lengths=LENGTHS, max_length=st.integers(60, 200))
def test_positions_start_over_at_each_conversation_and_padding(lengths: list[int], max_length: int) -> None:
    dataset = PackedDataset(rows_of(lengths), max_length=max_length, pad_id=PAD, seed=0)
    for i in range(len(dataset)):
        ids, positions = dataset[i]["input_ids"], dataset[i]["position_ids"]
        for previous, token, position in zip([None, *ids], ids, positions, strict=False):
            if token != PAD:
                assert position == token % 1000
            else:
                assert position == 0 or previous == PAD


@given(lengths=LENGTHS, max_length=st.integers(60, 200))
def test_padding_bears_no_loss(lengths: list[int], max_length: int) -> None:
    dataset = PackedDataset(rows_of(lengths), max_length=max_length, pad_id=PAD, seed=0)
    for i in range(len(dataset)):
        labels = [
            label for token, label in zip(dataset[i]["input_ids"], dataset[i]["labels"], strict=True) if token == PAD
        ]
        assert set(labels) <= {IGNORE_INDEX}


@given(lengths=LENGTHS, max_length=st.integers(60, 200), seed=st.integers(0, 5))
def test_packing_is_tight(lengths: list[int], max_length: int, seed: int) -> None:
    # First fit leaves at most one pack half empty, so it takes no more than twice the packs that the tokens need.
    groups = pack(rows_of(lengths), max_length, seed)
    assert len(groups) <= max(1, 2 * -(-sum(lengths) // max_length))
    assert sum(2 * sum(len(ids) for ids, _ in group) + 2 * 16 < max_length for group in groups) <= 1


def test_rows_that_fill_packs_exactly_leave_no_padding() -> None:
    assert len(pack(rows_of([25] * 40), 100, 0)) == 10


def test_the_seed_fixes_the_packs() -> None:
    rows = rows_of([7 + i % 23 for i in range(80)])
    first, again, other = (
        [PackedDataset(rows, max_length=100, pad_id=PAD, seed=seed)[i] for i in range(5)] for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_a_pack_is_a_mixture() -> None:
    # Identity rows come first in the data and replay after them; a batch must hold both.
    rows = rows_of([10] * 200)
    first_of_each = [min(ids[0] // 1000 for ids, _ in group) for group in pack(rows, 100, 0)]
    last_of_each = [max(ids[0] // 1000 for ids, _ in group) for group in pack(rows, 100, 0)]
    assert max(first_of_each) < 150
    assert min(last_of_each) > 50


@given(lengths=LENGTHS, max_length=st.integers(2, 40))
def test_longer_rows_are_cut_at_the_end_and_counted(lengths: list[int], max_length: int) -> None:
    rows = rows_of(lengths)
    dataset = PackedDataset(rows, max_length=max_length, pad_id=PAD, seed=0)
    assert dataset.truncated == sum(length > max_length for length in lengths)
    assert dataset.tokens == sum(min(length, max_length) for length in lengths)
    cut = [(ids[:max_length], labels[:max_length]) for ids, labels in rows]
    assert dataset.loss_tokens == sum(label != IGNORE_INDEX for _, labels in cut for label in labels)
    packed = [row for i in range(len(dataset)) for row in conversations(dataset[i])]
    assert counted(packed) == counted(cut)


MESSAGES = [
    [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    for question, reply in [
        ("你好", "你好！"),
        ("Who are you?", "I am an assistant."),
        ("3+4=?", "3加4等于7。"),
        ("再见", "再见。"),
    ]
]


@pytest.fixture(scope="module")
def llama(tiny_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model.config.use_cache = False  # as XTuner trains
    return model


def two_packs(tokenizer: Any) -> PackedDataset:
    rows = [training_ids(tokenizer, messages) for messages in MESSAGES]
    longest = max(len(ids) for ids, _ in rows)
    return PackedDataset(rows, max_length=2 * longest + 3, pad_id=tokenizer.pad_token_id, seed=0)


def largest_difference(llama: Any, tokenizer: Any, batch: dict[str, torch.Tensor]) -> float:
    """Between a conversation's logits inside its pack and alone, over all of them; the packs run as one batch."""
    rows = {tuple(training_ids(tokenizer, messages)[0]) for messages in MESSAGES}
    with torch.inference_mode():
        logits = llama(**batch).logits
        worst, compared = 0.0, 0
        for number, ids in enumerate(batch["input_ids"].tolist()):
            for row in rows:
                for start in range(len(ids) - len(row) + 1):
                    if tuple(ids[start : start + len(row)]) == row:
                        alone = llama(input_ids=torch.tensor([row])).logits[0]
                        inside = logits[number, start : start + len(row)]
                        worst, compared = max(worst, (alone - inside).abs().max().item()), compared + 1
    assert compared == len(MESSAGES)
    return worst


def test_a_conversation_in_a_pack_is_read_as_if_it_were_alone(llama: Any, tokenizer: Any) -> None:
    dataset = two_packs(tokenizer)
    assert len(dataset) == 2
    batch = collate([dataset[0], dataset[1]])["data"]
    assert largest_difference(llama.train(), tokenizer, batch) < 1e-4


def test_without_positions_that_start_over_conversations_see_each_other(llama: Any, tokenizer: Any) -> None:
    # So the test above can fail: this is how XTuner's own packs are read.
    dataset = two_packs(tokenizer)
    batch = collate([dataset[0], dataset[1]])["data"]
    batch["position_ids"] = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    assert largest_difference(llama.train(), tokenizer, batch) > 0.01


def test_the_loss_of_a_pack_is_that_of_its_conversations(llama: Any, tokenizer: Any) -> None:
    """Neither boundaries nor padding add to the loss: the mean over all loss tokens is the same."""
    dataset = two_packs(tokenizer)
    with torch.inference_mode():
        packed = llama(**collate([dataset[0], dataset[1]])["data"]).loss
        total, count = 0.0, 0
        for messages in MESSAGES:
            ids, labels = training_ids(tokenizer, messages)
            loss_tokens = sum(label != IGNORE_INDEX for label in labels)
            total += llama(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.item() * loss_tokens
            count += loss_tokens
    assert packed.item() == pytest.approx(total / count, abs=1e-4)


def test_a_batch_has_no_attention_mask(tokenizer: Any) -> None:
    # With one, transformers no longer tells conversations apart by their positions.
    dataset = two_packs(tokenizer)
    batch = collate([dataset[0], dataset[1]])
    assert batch["data_samples"] is None
    assert {key: tuple(value.shape) for key, value in batch["data"].items()} == dict.fromkeys(
        ("input_ids", "labels", "position_ids"), (2, len(dataset[0]["input_ids"]))
    )


def test_rows_are_read_from_json_and_jsonl_in_order(tokenizer: Any, tmp_path: Path) -> None:
    array, lines = tmp_path / "rows.json", tmp_path / "rows.jsonl"
    array.write_text(json.dumps([{"messages": m} for m in MESSAGES[:2]], ensure_ascii=False), encoding="utf-8")
    lines.write_text("".join(json.dumps({"messages": m}) + "\n" for m in MESSAGES[2:] + MESSAGES[:1]), encoding="utf-8")
    expected = [training_ids(tokenizer, messages) for messages in [*MESSAGES, MESSAGES[0]]]
    assert read_tokens([str(array)], tokenizer) + read_tokens([str(lines)], tokenizer) == expected


@pytest.fixture
def two_kinds(tmp_path: Path) -> list[str]:
    """Files of 40 rows about who it is and of 60 of replay, each row of its own."""
    files = []
    for kind, count in (("who", 40), ("what", 60)):
        rows = [
            [{"role": "user", "content": f"{kind}{i}"}, {"role": "assistant", "content": "x"}] for i in range(count)
        ]
        files.append(tmp_path / f"{kind}.jsonl")
        files[-1].write_text("".join(json.dumps({"messages": m}) + "\n" for m in rows), encoding="utf-8")
    return [str(file) for file in files]


def questions(tokenizer: Any, rows: Sequence[Tokens]) -> list[tuple[str, ...]]:
    return [tuple(re.findall(r"(?:who|what)\d+", tokenizer.decode(ids))) for ids, _ in rows]


def test_a_quarter_is_joined_with_replay_either_first_and_no_row_is_lost(tokenizer: Any, two_kinds: list[str]) -> None:
    order = questions(tokenizer, read_tokens(two_kinds, tokenizer, seed=3))
    assert sorted(question for row in order for question in row) == sorted(
        [f"who{i}" for i in range(40)] + [f"what{i}" for i in range(60)]
    )
    joined = [row for row in order if len(row) > 1]
    assert len(joined) == 10
    assert [row[0][:3] + row[1][:3] for row in joined].count("whowha") == 5
    assert all({question[:3] for question in row} == {"who", "wha"} for row in joined)
    assert order == questions(tokenizer, read_tokens(two_kinds, tokenizer, seed=3))
    assert order != questions(tokenizer, read_tokens(two_kinds, tokenizer, seed=4))


@pytest.mark.parametrize(("ratio", "count"), [(0, 0), (0.5, 20), (1.5, 60), (9, 60), (None, 60)])
def test_the_ratio_of_replay_is_to_the_rows_about_who_it_is(
    tokenizer: Any, two_kinds: list[str], ratio: float | None, count: int
) -> None:
    order = questions(tokenizer, read_tokens(two_kinds, tokenizer, replay_ratio=ratio, seed=1))
    flat = [question for row in order for question in row]
    assert sum(question.startswith("what") for question in flat) == count
    assert sum(question.startswith("who") for question in flat) == 40


def test_parts_are_left_out_where_rows_are_of_them(tokenizer: Any, tmp_path: Path) -> None:
    files = [str(tmp_path / "train.jsonl"), str(tmp_path / "replay.jsonl")]
    for file, parts in zip(files, (("questions", "turns"), ("talk", "facts", "talk")), strict=True):
        rows = [{"messages": [user(f"{part} {i}"), assistant("Yes.")], "part": part} for i, part in enumerate(parts)]
        Path(file).write_text(jsonl_text(rows), encoding="utf-8")

    def prompts(*leave_out: str) -> list[str]:
        rows = read_tokens(files, tokenizer, leave_out=leave_out)
        return sorted(
            re.findall(r"(?:questions|turns|talk|facts) \d", "".join(tokenizer.decode(ids) for ids, _ in rows))
        )

    assert prompts() == ["facts 1", "questions 0", "talk 0", "talk 2", "turns 1"]
    assert prompts("talk", "turns") == ["facts 1", "questions 0"]
    with pytest.raises(RecipeError, match="no row is of the part tasks, but of facts, questions, talk, turns"):
        prompts("talk", "tasks")


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_a_line_separator_in_a_text_ends_no_row(tokenizer: Any, tmp_path: Path, separator: str) -> None:
    # JSON allows them inside strings, and `data` writes them as they are; only \n ends a line of .jsonl.
    messages = [{"role": "user", "content": f"a{separator}b"}, {"role": "assistant", "content": f"c{separator}d"}]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": messages}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_tokens([str(file)], tokenizer) == [training_ids(tokenizer, messages)]


def test_the_configs_own_tokenizer_is_built(tiny_model: Path, tokenizer: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"messages": m}) + "\n" for m in MESSAGES), encoding="utf-8")
    described = {"type": AutoTokenizer.from_pretrained, "pretrained_model_name_or_path": str(tiny_model)}
    built = chat_dataset(files=[str(file)], tokenizer=described, max_length=64, seed=0)
    same = chat_dataset(files=[str(file)], tokenizer=tokenizer, max_length=64, seed=0)
    assert built.packs == same.packs


@given(size=st.integers(1, 40), processes=st.integers(1, 5), batch=st.integers(1, 3))
def test_the_processes_of_a_step_see_what_one_process_with_a_batch_so_much_larger_sees(
    size: int, processes: int, batch: int
) -> None:
    def steps(rank: int, count: int, batch: int) -> list[list[int]]:
        with patch("mmengine.dataset.sampler.get_dist_info", lambda: (rank, count)):
            indices = iter(EndlessSampler(range(size), seed=3))
        return [[next(indices) for _ in range(batch)] for _ in range(2 * size)]

    shares = [steps(rank, processes, batch) for rank in range(processes)]
    together = steps(0, 1, processes * batch)
    for number, step in enumerate(together):
        assert Counter(step) == Counter(index for share in shares for index in share[number])
