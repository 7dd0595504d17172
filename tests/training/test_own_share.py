"""The user's rows among the others: as they are, often enough, and no question answered in two ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from own_shop import SHOP, exchange, write

from recipe.chat_format import training_ids
from recipe.corpus.own_questions import OwnQuestion
from recipe.evaluation.own_rows import write_questions
from recipe.stages import config
from recipe.training import own_share
from recipe.training.dataset import chat_dataset, read_tokens


@pytest.fixture
def mix(tmp_path: Path) -> list[str]:
    """Files of 40 rows about who it is and 60 of replay, two of which ask what the shop's rows answer."""
    who = [exchange(f"谁是{i}？", "是我。") for i in range(40)]
    replay = [exchange(f"{i}加{i}等于几？", f"等于{2 * i}。") for i in range(58)]
    same = [exchange("补胎多少钱", "我不知道。"), {"messages": [*replay[0]["messages"], *SHOP[0]["messages"]]}]
    return [str(write(tmp_path / f"{name}.jsonl", rows)) for name, rows in (("who", who), ("what", [*replay, *same]))]


def counted(tokenizer: Any, rows: Sequence[tuple[list[int], ...]]) -> Counter[str]:
    return Counter(tokenizer.decode(ids) for ids, *_ in rows)


@pytest.mark.parametrize("repeats", [1, 3])
def test_every_row_of_the_user_s_stands_in_the_mix_as_it_is(
    tokenizer: Any, mix: list[str], tmp_path: Path, repeats: int
) -> None:
    own = str(write(tmp_path / "own.jsonl"))
    rows = read_tokens(mix, tokenizer, own=own, own_repeats=repeats, seed=1)
    expected = [training_ids(tokenizer, row["messages"]) for row in SHOP] * repeats
    assert rows[-len(expected) :] == expected
    without = read_tokens(mix, tokenizer, own=own, own_repeats=0, seed=1)
    assert rows[: -len(expected)] == without
    assert not counted(tokenizer, without) & counted(tokenizer, expected)


def test_replay_does_not_answer_the_user_s_questions_in_another_way(
    tokenizer: Any, mix: list[str], tmp_path: Path
) -> None:
    own = str(write(tmp_path / "own.jsonl", SHOP[:1]))
    asks_hours, asks_repair = SHOP[0]["messages"][0]["content"], "补胎多少钱"

    def asked() -> list[bool]:
        text = "".join(counted(tokenizer, read_tokens(mix, tokenizer, own=own, own_repeats=0)))
        return [question in text for question in (asks_hours, asks_repair)]

    assert asked() == [False, True]
    # A wording that is held out, too: else the base's answer to it would be taught.
    write_questions(tmp_path, [OwnQuestion([{"role": "user", "content": "补胎多少钱？"}], ["15元。"], held_out=True)])
    assert asked() == [False, False]


def test_alone_the_user_s_rows_are_joined_with_nothing(tokenizer: Any, mix: list[str], tmp_path: Path) -> None:
    own = str(write(tmp_path / "train.jsonl"))
    rows = read_tokens([own, mix[1]], tokenizer, own=own)
    assert len(rows) == len(SHOP) + 58
    assert rows[-len(SHOP) :] == [training_ids(tokenizer, row["messages"]) for row in SHOP]


def test_the_dataset_packs_all_of_them(tokenizer: Any, mix: list[str], tmp_path: Path) -> None:
    own = str(write(tmp_path / "own.jsonl"))
    once, twice = (
        chat_dataset(files=mix, tokenizer=tokenizer, max_length=256, seed=0, own=own, own_repeats=n) for n in (1, 2)
    )
    assert twice.tokens - once.tokens == sum(len(training_ids(tokenizer, row["messages"])[0]) for row in SHOP)


# --- How often, and how much longer -------------------------------------------------------------------------------


def resolved(preset: str, model: Path, names: Sequence[str], own: Path, *settings: str) -> Any:
    chosen = config.load_preset(preset)
    config.fill(chosen, model=model, files=[Path(name) for name in names], seed=0, own=own)
    config.override(chosen, settings)
    return chosen


@pytest.mark.parametrize(("preset", "settings"), [("lora", ["max_iters=60"]), ("lora", []), ("miniature", [])])
def test_few_rows_are_repeated_until_each_is_seen_often_enough(
    tiny_model: Path, mix: list[str], tmp_path: Path, preset: str, settings: list[str]
) -> None:
    chosen = resolved(preset, tiny_model, mix, write(tmp_path / "own.jsonl", SHOP[:2]), *settings)
    share = own_share.plan(chosen, settings)
    assert share is not None
    assert share.rows == 2
    assert share.passes >= own_share.PASSES * 0.9  # repeats are whole, packs too
    assert chosen.train_dataloader.dataset.own_repeats == share.repeats
    assert 0 < share.share < 0.5


def test_of_many_rows_each_is_seen_as_often_as_all_others_and_the_training_is_longer(
    tiny_model: Path, mix: list[str], tmp_path: Path
) -> None:
    many = [exchange(f"第{i}种零件多少钱？", f"第{i}种零件{i}元一个。") for i in range(400)]
    plain = config.load_preset("lora")
    chosen = resolved("lora", tiny_model, mix, write(tmp_path / "own.jsonl", many))
    chosen.train_dataloader.dataset.max_length = 256
    share = own_share.plan(chosen, [])
    assert share is not None
    assert share.repeats == 1
    assert share.factor > 4
    for length in (chosen.train_cfg.max_iters, chosen.param_scheduler[1].end):
        assert length == round(480 * share.factor)
    assert chosen.default_hooks.checkpoint.interval == round(plain.default_hooks.checkpoint.interval * share.factor)
    rows = read_tokens(mix, own_share._tokenizer(chosen.train_dataloader.dataset), own=str(tmp_path / "own.jsonl"))
    batch = chosen.train_dataloader.batch_size * chosen.train_cfg.max_iters
    packs = own_share._packs(chosen.train_dataloader.dataset, rows)
    assert share.passes == pytest.approx(batch / packs, rel=0.01)
    assert f"{share.passes:.0f} times" in share.line()


def test_rows_of_middle_number_are_at_most_half_of_a_pass(tiny_model: Path, mix: list[str], tmp_path: Path) -> None:
    middle = [exchange(f"{i}号车在哪？", "在院子里。") for i in range(30)]
    chosen = resolved("miniature", tiny_model, mix, write(tmp_path / "own.jsonl", middle))
    share = own_share.plan(chosen, [])
    assert share is not None
    assert 1 < share.repeats < own_share.PASSES / 2
    assert 0.3 < share.share <= 0.5


def test_without_anything_else_nothing_is_repeated_and_the_length_stays(tiny_model: Path, tmp_path: Path) -> None:
    own = write(tmp_path / "train.jsonl")
    chosen = resolved("lora", tiny_model, [str(own)], own)
    share = own_share.plan(chosen, [])
    assert share is not None
    assert (share.repeats, share.factor, chosen.train_cfg.max_iters) == (1, 1.0, 480)
    assert share.share == 1.0


def test_without_rows_of_the_user_s_there_is_nothing_to_plan(tiny_model: Path, mix: list[str]) -> None:
    chosen = config.load_preset("lora")
    config.fill(chosen, model=tiny_model, files=[Path(name) for name in mix], seed=0)
    before = chosen.pretty_text
    assert own_share.plan(chosen, []) is None
    assert chosen.pretty_text == before
