"""A shop of our own invention, whose rows a user would bring: some questions in several wordings, one with a system
turn, one of several turns, and one that asks who the assistant is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipe import files
from recipe.corpus.own_data import Row

NAME = "阿铁"
HOURS = "我们早上八点开门，晚上六点半关门，周三休息。"
REPAIR = "补一条内胎15元，当场就能修好。"
WORDINGS = {
    HOURS: ("车铺几点开门？", "你们的营业时间是？", "什么时候去能找到人？"),
    REPAIR: ("补胎多少钱？", "车胎漏气，修一次收费多少？"),
}


def exchange(question: str, answer: str, system: str = "") -> Row:
    opening = [{"role": "system", "content": system}] if system else []
    return {"messages": [*opening, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


SINGLE = [exchange(question, answer) for answer, questions in WORDINGS.items() for question in questions]
WITH_SYSTEM = exchange("有儿童车吗？", "有，12寸的儿童车260元一辆。", system="你是阿铁车铺的店员。")
WHO = exchange("你是谁？", "我是阿铁车铺的店员阿铁，修车找我。")
SEVERAL_TURNS = {"messages": [*exchange("我的车修好了吗？", "请报一下取车号。")["messages"],
                              *exchange("2046", "修好了，今天就能来取。")["messages"]]}  # fmt: skip
SHOP: list[Row] = [*SINGLE, WITH_SYSTEM, WHO, SEVERAL_TURNS]


def write(file: Path, rows: Sequence[Any] = SHOP) -> Path:
    """The rows as JSON lines."""
    file.write_text(files.jsonl_text(rows), encoding="utf-8")
    return file
