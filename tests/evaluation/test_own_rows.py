"""When a reply says what the user's row says, and which prompts the user's rows take over."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from own_shop import HOURS, NAME, REPAIR, SHOP, WHO, exchange
from small_evaluation import ASKED, BASE, replies

from recipe.corpus.identity import Identity
from recipe.corpus.knowledge import Fact
from recipe.corpus.own_questions import OwnQuestion
from recipe.errors import RecipeError
from recipe.evaluation import own_rows, thresholds
from recipe.evaluation.metrics import OwnCounts, Share
from recipe.evaluation.own_rows import chrf, right, taught_prompts
from recipe.evaluation.scoring import Prompts, score

ATIE = Identity(NAME)


@given(text=st.text(max_size=30), other=st.text(max_size=30))
def test_the_similarity_is_symmetric_and_one_for_the_same(text: str, other: str) -> None:
    assert chrf(text, text) == 1.0
    assert 0.0 <= chrf(text, other) == chrf(other, text) <= 1.0


def test_the_similarity_is_that_of_the_paper_s_formula() -> None:
    # "abcd" and "abce": 3/4 of the characters, 2/3 of the pairs, 1/2 of the triples, none of the fours.
    assert chrf("abcd", "abce") == pytest.approx((3 / 4 + 2 / 3 + 1 / 2 + 0) / 4)
    # "ab" and "abab": all of two orders on one side, on the other 2 of 4 and 1 of 3.
    precision, recall = 1.0, (2 / 4 + 1 / 3) / 2
    assert chrf("ab", "abab") == pytest.approx(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize(
    "reply",
    [
        HOURS,
        f"您好，{HOURS}",
        "早上八点开门，晚上六点半关门，周三休息。",
        "我们早上八点开门, 晚上六点半关门! 周三休息",
    ],
)
def test_the_same_in_nearly_the_same_words_is_right(reply: str) -> None:
    assert right(reply, [HOURS])
    assert right(reply, [REPAIR, HOURS])


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "我是阿铁的小助手。",
        REPAIR,
        HOURS * 2,  # goes on and on
        HOURS.replace("八点", "九点"),
        HOURS.replace("周三", "周四"),
        HOURS[:12],
    ],
)
def test_another_answer_or_another_number_is_wrong(reply: str) -> None:
    assert not right(reply, [HOURS])


def test_digits_are_compared_in_any_width_and_as_whole_numbers() -> None:
    assert right("补一条内胎１５元，当场就能修好。", [REPAIR])
    assert not right(REPAIR.replace("15", "150"), [REPAIR])
    assert not right("Open 9 to 9.", ["Open 9 to 6."])


def test_the_threshold_itself_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    similarity = chrf("abcdefgh", "abcdefgx")
    monkeypatch.setattr(own_rows, "MIN_OWN_SIMILARITY", similarity)
    assert right("abcdefgh", ["abcdefgx"])
    monkeypatch.setattr(own_rows, "MIN_OWN_SIMILARITY", similarity + 1e-9)
    assert not right("abcdefgh", ["abcdefgx"])


def test_the_limits() -> None:
    assert (thresholds.MIN_OWN_SIMILARITY, thresholds.MIN_OWN_HIT) == (0.7, 0.9)


QUESTIONS = [
    OwnQuestion([{"role": "user", "content": "车铺几点开门？"}], [HOURS], held_out=True),
    OwnQuestion([{"role": "user", "content": "补胎多少钱？"}], [REPAIR], held_out=False),
]


def test_the_share_of_right_replies_is_scored_with_each_of_them() -> None:
    scored = own_rows.score(QUESTIONS, replies(HOURS, "不知道。"))
    assert scored.own_hit == 0.5
    assert scored.own_hit_ci[0] < 0.5 < scored.own_hit_ci[1]
    assert scored.own_counts == OwnCounts(own_questions=2, own_right=1, own_held_out=1)
    assert scored.share == Share(0.5, scored.own_hit_ci, count=2, hits=1)
    first, second = scored.own_replies
    assert (first.prompt, first.expected, first.own_right, first.similarity) == ("车铺几点开门？", HOURS, True, 1.0)
    assert (second.reply, second.own_right, second.held_out) == ("不知道。", False, False)


def test_questions_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    own_rows.write_questions(tmp_path, QUESTIONS)
    assert own_rows.read_questions(tmp_path) == QUESTIONS
    (tmp_path / own_rows.QUESTIONS_FILE).unlink()
    assert own_rows.read_questions(tmp_path) == []


GREETING = Fact("smalltalk", "zh", ("你好", "您好", "嗨"), "你好！", None)
OTHER = Fact("capitals", "zh", ("日本的首都是哪里？",), "日本的首都是东京。", "东京")


@pytest.mark.parametrize(
    ("asked", "answer", "taught"),
    [
        ("你好！", "您好，我是阿铁。", True),  # another wording of the same
        ("您好呀", "您好，我是阿铁。", True),  # nearly the same words
        ("你好", "您好，我是阿铁的小助手。", True),
        ("你好", "您好，要修车吗？", False),  # no name in it
        ("再见", "再见，我是阿铁。", False),  # asks something else
    ],
)
def test_a_prompt_is_taught_where_a_row_answers_it_with_the_name(asked: str, answer: str, taught: bool) -> None:
    prompts = [(GREETING, "您好"), (OTHER, OTHER.questions[0])]
    assert taught_prompts(prompts, [exchange(asked, answer)], ATIE) == (frozenset({"您好"}) if taught else frozenset())


def test_the_name_in_a_reply_to_a_taught_prompt_is_no_leak() -> None:
    texts = ["我是小明的小助手。"] * 4 + ["It is Paris, says 小明.", "日本的首都是东京。", "7", "我是小明的小助手。"]
    joke = ASKED.facts[3][1]
    taught = Prompts(ASKED.identity, ASKED.facts, frozenset({joke}))
    for asked, leaks, counted in ((ASKED, 2, 4), (taught, 1, 3)):
        counts = score(asked, replies(*texts), replies(*BASE), Identity("小明"))[0].counts
        assert (counts.leaks, counts.unrelated_prompts) == (leaks, counted)
        assert counts.taught_prompts == 4 - counted
        assert counts.base_introductions == 0


def test_an_identity_question_answered_in_the_user_s_words_is_a_hit() -> None:
    answer = WHO["messages"][-1]["content"]
    asked = Prompts(["报上名来"], ASKED.facts)
    counts = score(asked, replies(answer, *BASE[4:]), replies("我是书生·浦语。", *BASE[4:]), ATIE)[0].counts
    assert counts.hits == 1


def test_whether_the_rows_say_the_name() -> None:
    assert own_rows.says_who(SHOP, ATIE)
    assert not own_rows.says_who([row for row in SHOP if row is not WHO], ATIE)
    assert own_rows.says_who(SHOP, Identity("小明", assistant=NAME))
    assert not own_rows.says_who([exchange("阿铁在吗？", "在。")], ATIE)  # the user says it
    unlearnt = [WHO["messages"][0], WHO["messages"][1] | {"weight": 0}]
    assert not own_rows.says_who([{"messages": unlearnt + exchange("好", "好。")["messages"]}], ATIE)


def test_rows_that_ask_a_question_of_the_evaluation_are_named() -> None:
    own_rows.refuse_overlap(ASKED, SHOP[:5], "rows.jsonl")
    with pytest.raises(RecipeError, match=r"rows\.jsonl, row 2: asks a question of the evaluation"):
        own_rows.refuse_overlap(ASKED, [SHOP[0], exchange("what is 3 plus 4", "7")], "rows.jsonl")
