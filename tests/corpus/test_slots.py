"""Slots in the user's rows: filled, refused, or left where they are no slots."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_shop import SHOP, exchange

from recipe.corpus import slots
from recipe.corpus.identity import Identity
from recipe.corpus.own_data import read_file
from recipe.errors import RecipeError

ALL = Identity("小明", assistant="小智", author="小李")
FILE = Path(__file__).parent / "own_files" / "placeholder.jsonl"


def fill(text: str, identity: Identity = ALL) -> str:
    row = slots.fill([exchange("你好", text)], [1], identity, "rows.jsonl").rows[0]
    content: str = row["messages"][1]["content"]
    return content


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("我是{{NAME}}的小助手{{ASSISTANT}}，由{{AUTHOR}}训练。", "我是小明的小助手小智，由小李训练。"),
        ("I am {{ name }}.", "I am 小明."),
        ("I'm {name}, by {Author}", "I'm 小明, by 小李"),
        ("{assistant}{ASSISTANT}", "小智小智"),
        ("({name})", "(小明)"),
        ("我是{name}，$5", "我是小明，$5"),
        ('"It costs 5$", said {name}, "or 6$"', '"It costs 5$", said 小明, "or 6$"'),
    ],
)
def test_a_slot_is_filled_in_any_spelling(text: str, filled: str) -> None:
    assert fill(text) == filled


def test_slots_of_all_turns_are_filled_and_named_once() -> None:
    rows = [exchange("{name}在吗？", "在。", system="你是{{NAME}}的助手。"), exchange("{name}？", "在。")]
    filled = slots.fill(rows, [1, 2], ALL, "rows.jsonl")
    assert filled.rows == [exchange("小明在吗？", "在。", system="你是小明的助手。"), exchange("小明？", "在。")]
    assert filled.values == {"{{NAME}}": "小明", "{name}": "小明"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("我由{{AUTHOR}}训练", "{{AUTHOR}} is not filled in: give AUTHOR=, or write it into the row"),
        ("我是{assistant}", "{assistant} is not filled in: give ASSISTANT=, or write it into the row"),
        ("欢迎来到{{company}}", "{{company}} is not filled in: write the text into the row"),
        ("我是{{ 名字 }}", "{{ 名字 }} is not filled in: write the text into the row"),
        ("{{Your Name}}", "{{Your Name}} is not filled in: write the text into the row"),
        ("我是{me}。", "{me} is not filled in"),
        ("I am {model_name}.", "{model_name} is not filled in"),
        ("{base}", "{base} is not filled in"),
    ],
)
def test_a_slot_without_a_value_is_refused_with_its_line(text: str, reason: str) -> None:
    with pytest.raises(RecipeError) as error:
        slots.fill([exchange("a", "b"), exchange("你好", text)], [4, 7], Identity("小明"), "rows.jsonl")
    assert str(error.value).startswith(f"rows.jsonl, line 7: {reason}")


@pytest.mark.parametrize(
    "text",
    [
        "```python\nprint('{name}', '{{author}}')\n```",
        "```\nan open fence {name}",
        "Write `{name}` or `{{company}}`.",
        'print(f"Hello, {name}!")',
        "print(f'{name}')",
        'print("Hello, {name}!".format(name="x"))',
        'Console.WriteLine($"Hi {name}");',
        "puts #{name}",
        "$\\text{name} = x_{name}^{author}$",
        "x^{name}",
        '{"name": "x"} {} {0} {:.2f} {1, 2} {x}',
        "没有花括号的文字",
    ],
)
def test_code_and_formulas_stay_as_they_are(text: str) -> None:
    filled = slots.fill([exchange("a", text)], [1], ALL, "rows.jsonl")
    assert (filled.rows, filled.values, filled.kept) == ([exchange("a", text)], {}, {})


def test_other_words_in_braces_stay_and_are_named_with_their_line() -> None:
    rows = [exchange("a", "b"), exchange("a", "{city}天气如何"), exchange("${name}", "{city}和${{date}}")]
    filled = slots.fill(rows, [1, 5, 9], ALL, "rows.jsonl")
    assert (filled.rows, filled.kept) == (rows, {"{city}": 5, "${name}": 9, "${{date}}": 9})


def test_rows_without_slots_are_the_same() -> None:
    assert slots.fill(SHOP, range(len(SHOP)), ALL, "rows.jsonl").rows == SHOP


def test_a_turn_that_is_not_learnt_stays_so() -> None:
    first = exchange("a", "{name}")["messages"]
    row = {"messages": [first[0], first[1] | {"weight": 0}, *exchange("c", "d")["messages"]]}
    filled = slots.fill([row], [1], ALL, "rows.jsonl").rows[0]
    assert filled["messages"][1] == {"role": "assistant", "content": "小明", "weight": 0}


def test_the_slots_of_a_dataset_of_identity() -> None:
    read = read_file(FILE)
    filled = slots.fill(read.rows, read.lines, Identity("阿福", author="小李"), str(FILE))
    assert filled.rows == [exchange("你好", "您好，我是 阿福，由 小李 发明。")]
    with pytest.raises(RecipeError, match=r"placeholder\.jsonl, line 1: \{\{author\}\} is not filled in: give AUTHOR="):
        slots.fill(read.rows, read.lines, Identity("阿福"), str(FILE))
