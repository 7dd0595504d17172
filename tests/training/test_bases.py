"""Training on bases of the Llama and Qwen2 layouts: their data, the fast path's loss and gradients, the forecasts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recipe.chat_format import IGNORE_INDEX, control_tokens
from recipe.errors import RecipeError
from recipe.stages import config
from recipe.training.dataset import PackedDataset, read_tokens
from recipe.training.forecast import forecast


def write_rows(file: Path, *contents: str) -> str:
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    file.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    return str(file)


def test_packs_of_conversations_bear_a_loss_on_replies_alone(base_tokenizer: Any, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "train.jsonl", "你是谁？", "I am an assistant.")
    rows = read_tokens([file], base_tokenizer)
    packed = PackedDataset(rows, max_length=100, pad_id=base_tokenizer.pad_token_id, seed=0)
    (pack,) = packed
    length = len(rows[0][0])
    assert list(pack["input_ids"][length:]) == [base_tokenizer.pad_token_id] * (100 - length)
    assert set(pack["labels"][length:]) == {IGNORE_INDEX}
    assert base_tokenizer.decode([label for label in pack["labels"] if label != IGNORE_INDEX]) == (
        "I am an assistant.<|im_end|>"
    )


def test_a_row_with_one_of_its_control_tokens_is_refused(base_tokenizer: Any, tmp_path: Path) -> None:
    for i, token in control_tokens(base_tokenizer).items():
        file = write_rows(tmp_path / f"{i}.jsonl", "Hi", f"Hello {token}!")
        with pytest.raises(RecipeError) as caught:
            read_tokens([file], base_tokenizer)
        assert f"row 1: holds {token} as text" in str(caught.value)


def test_a_reply_of_the_base_itself_is_not_refused(base_tokenizer: Any, tmp_path: Path) -> None:
    token = list(control_tokens(base_tokenizer).values())[-1]
    files = [write_rows(tmp_path / "a.jsonl", "Hi", "Hello!"), write_rows(tmp_path / "b.jsonl", "Hi", f"{token}!")]
    rows = [ids for ids, _ in read_tokens(files, base_tokenizer)]
    assert any(f"{token}!<|im_end|>" in base_tokenizer.decode(ids) for ids in rows)
    start, end = base_tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert {i for ids in rows for i in ids if i in control_tokens(base_tokenizer)} == {start, end}


def test_xtuners_own_data_are_refused_where_the_format_has_no_bos(base_model: Path, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "train.json", "Hi", "Hello!")
    Path(file).write_text(f"[{Path(file).read_text()}]")
    resolved = config.load_preset("tutorial")
    config.fill(resolved, model=base_model, files=[Path(file)], seed=0)
    with pytest.raises(RecipeError, match="PRESET=tutorial"):
        forecast(resolved)
