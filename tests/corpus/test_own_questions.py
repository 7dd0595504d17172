"""Which of the user's questions are asked, and which wordings are held out for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_shop import HOURS, REPAIR, SEVERAL_TURNS, SHOP, SINGLE, WHO, WITH_SYSTEM, exchange

from recipe.corpus.own_data import Row, plain_text
from recipe.corpus.own_questions import questions_in, split

LONG_ANSWERS = [f"这是第{number}个足够长的回答。" for number in range(4)]
ROWS = st.lists(
    st.builds(exchange, st.sampled_from([f"问题{i}？" for i in range(8)]), st.sampled_from([*LONG_ANSWERS, "好的。"])),
    min_size=1,
    max_size=30,
)


def answers(rows: list[Row]) -> set[str]:
    return {plain_text(row["messages"][-1]["content"]) for row in rows}


def test_one_wording_of_an_answer_is_held_out_and_the_others_are_trained_on() -> None:
    trained, asked = split(SHOP, seed=0)
    held_out = [question for question in asked if question.held_out]
    assert sorted(answer for question in held_out for answer in question.answers) == sorted([HOURS, REPAIR])
    assert [row for row in SHOP if row not in trained] == [
        exchange(question.messages[-1]["content"], question.answers[0]) for question in held_out
    ]
    assert answers(trained) == answers(SHOP)
    assert len(asked) == len(SHOP)  # fewer than ten questions: all of them
    for row in (WITH_SYSTEM, WHO, SEVERAL_TURNS):
        assert row in trained
        assert row["messages"][:-1] in [question.messages for question in asked]


@given(rows=ROWS, seed=st.integers(0, 20))
def test_what_is_held_out_is_in_no_training_row_and_its_answer_is(rows: list[Row], seed: int) -> None:
    trained, asked = split(rows, seed)
    assert answers(trained) == answers(rows)
    assert all(row in rows for row in trained)
    for question in asked:
        text = plain_text(question.messages[-1]["content"])
        assert (text in questions_in(trained)) is not question.held_out
    assert len(rows) - len(trained) == sum(
        plain_text(row["messages"][0]["content"])
        in {plain_text(question.messages[-1]["content"]) for question in asked if question.held_out}
        for row in rows
    )


def test_answers_that_questions_share_by_chance_hold_nothing_out() -> None:
    rows = [exchange("可以送货吗？", "可以的。"), exchange("能开发票吗？", "可以的。")]
    assert split(rows, 0)[0] == rows


def test_a_wording_that_another_row_asks_on_its_way_is_not_held_out() -> None:
    """Its answer there is trained on."""
    rows = [*SINGLE[:2], {"messages": [*SINGLE[0]["messages"], *SEVERAL_TURNS["messages"]]}]
    for seed in range(5):
        trained, asked = split(rows, seed)
        assert SINGLE[0] in trained
        assert sum(question.held_out for question in asked) == 1


def test_a_question_with_two_answers_is_asked_once_and_either_is_right() -> None:
    rows = [exchange("几点开门？", "八点。"), exchange("几点 开门", "早上八点。")]
    trained, (question,) = split(rows, 0)
    assert (question.answers, question.held_out) == (["八点。", "早上八点。"], False)
    assert trained == rows


@pytest.mark.parametrize(
    ("rows", "asked"), [(1, 1), (9, 9), (10, 10), (30, 10), (104, 10), (106, 11), (999, 100), (4000, 100)]
)
def test_a_tenth_is_asked_at_least_ten_and_at_most_a_hundred(rows: int, asked: int) -> None:
    many = [exchange(f"第{i}个问题？", f"第{i}个回答。") for i in range(rows)]
    assert len(split(many, 0)[1]) == asked


def test_the_seed_decides_the_choice() -> None:
    many = [exchange(f"第{i}个问题？", f"第{i}个回答。") for i in range(300)]
    assert split(many, 1) == split(many, 1)
    assert split(many, 1)[1] != split(many, 2)[1]


def test_a_question_whose_answer_is_not_learnt_is_no_question_of_the_rows() -> None:
    first, second = exchange("a", "b")["messages"], exchange("c", "d")["messages"]
    assert questions_in([{"messages": [*first, *second]}]) == {"a", "c"}
    assert questions_in([{"messages": [first[0], first[1] | {"weight": 0}, *second]}]) == {"c"}
