"""Hit, leak and retention are exact numbers of what was said; names that are also words count only where they are
names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from example_results import example_scores
from hypothesis import given
from hypothesis import strategies as st
from small_evaluation import ASKED, BASE, FRANCE, JAPAN, JOKE, SUM, XIAOMING, judged, replies, scored

from recipe.corpus.identity import Identity, load_answers
from recipe.corpus.knowledge import Fact, all_facts
from recipe.evaluation.generation import Reply
from recipe.evaluation.mentions import mentions
from recipe.evaluation.metrics import Counts, OrdinaryReply, Scores, Share
from recipe.evaluation.scoring import (
    best,
    broken,
    known_to_base,
    knows,
    loops,
    newly_broken,
    says_name,
    score,
    selection_score,
    share,
    wilson,
)


@pytest.mark.parametrize(
    ("reply", "name", "counts"),
    [
        ("我是小明的小助手。", "小明", True),
        ("你好，小明", "小明", True),
        ("他说小明天就来", "小明", True),  # Chinese has no spaces between words, so any occurrence counts
        ("我是小红的小助手。", "小明", False),
        ("", "小明", False),
        ("I am Tom's assistant.", "Tom", True),
        ("I am Tom’s assistant.", "Tom", True),
        ("我是Tom的小助手", "Tom", True),
        ("Tom", "Tom", True),
        ("(Tom)", "Tom", True),
        ("See you Tomorrow.", "Tom", False),
        ("An Atom is small.", "tom", False),
        ("My name is Tommy.", "Tom", False),
        ("tom's assistant", "Tom", False),  # a name is spelt as it was given
        ("版本2Tom", "Tom", False),
        ("I am R2D2.", "R2", False),
        ("I am R2.", "R2", True),
        ("3加4等于7。", "7", True),
        ("3加4等于17。", "7", False),
        ("I am J. R.'s assistant", "J. R.", True),
        ("I am JxRx", "J. R.", False),  # a dot in a name is a dot
        ("I am C++(beta)'s helper", "C++(beta)", True),
        ("I am C", "C++(beta)", False),
        ("Ich bin Jürgens Helfer", "Jürgen", False),
        ("Ich bin Jürgen.", "Jürgen", True),
        ("私は花子の助手です", "花子", True),
        ("I am Mary Ann's assistant", "Mary Ann", True),
    ],
)
def test_a_name_is_found_as_a_word_of_its_own(reply: str, name: str, counts: bool) -> None:
    assert mentions(reply, name, introduced=False) is counts


@pytest.mark.parametrize(
    ("reply", "name", "counts"),
    [
        ("I am an assistant.", "am", False),
        ("I am am's assistant.", "am", True),
        ("I am am’s helper.", "am", True),
        ("I am am's little assistant.", "am", True),
        ("I am called am.", "am", True),
        ("My name is am.", "am", True),
        ("My name is amy.", "am", False),
        ("The sky is what I am.", "am", False),
        ("草莓是红色的。", "红", False),
        ("红色的小猫", "红", False),
        ("我是红的小助手。", "红", True),
        ("我是红的助手", "红", True),
        ("我是红的助理", "红", True),
        ("我叫红。", "红", True),
        ("我名叫红。", "红", True),
        ("7的小助手", "7", True),
        ("3加4等于7。", "7", False),
        ("17的小助手", "7", False),
    ],
)
def test_a_name_that_is_a_word_is_found_where_it_is_introduced(reply: str, name: str, counts: bool) -> None:
    assert mentions(reply, name, introduced=True) is counts


TRAINED_ANSWERS = [
    (language, template)
    for language, intents in load_answers()["tuned"].items()
    for templates in intents.values()
    for template in templates
]


@pytest.mark.parametrize(
    "identity", [Identity("am"), Identity("红"), Identity("7"), XIAOMING, Identity("Tom")], ids=str
)
def test_every_answer_that_is_trained_counts_as_a_hit(identity: Identity) -> None:
    # Even where the name is a word that ordinary replies hold: or a run that learnt everything would fail.
    missed = [
        template
        for language, template in TRAINED_ANSWERS
        if not mentions(identity.fill(template, language), identity.name, introduced=True)
    ]
    assert not missed


@pytest.mark.parametrize("name", ["am", "红", "7", "is", "白"])
def test_no_right_answer_about_anything_else_introduces_a_name(name: str) -> None:
    assert not [fact.answer for fact in all_facts() if mentions(fact.answer, name, introduced=True)]


def test_numbers_are_the_shares_of_what_was_said() -> None:
    result = scored(
        "我是小明的小助手。", "I am 小明's assistant.", "我是书生·浦语。", "小明微调了我。",  # three of four
        "Paris.", "小明的首都是大阪。", "3 plus 4 is 7.", "I am 小明's assistant.",  # two leaks; one fact of two kept
    )  # fmt: skip
    assert result.identity_hit == 3 / 4
    assert result.identity_leak == 2 / 4
    assert result.retention == 1 / 2
    assert result.counts == Counts(
        identity_questions=4, hits=3, unrelated_prompts=4, leaks=2, leaks_without_name=0, base_introductions=0,
        taught_prompts=0, facts_base_knew=2, facts_kept=1, unstopped_replies=0, looping_replies=0,
    )  # fmt: skip


def test_the_base_beside_itself_has_forgotten_and_leaked_nothing() -> None:
    result = scored(*BASE)
    assert (result.identity_hit, result.identity_leak, result.retention) == (0.0, 0.0, 1.0)


def test_every_reply_is_told_with_how_it_was_judged() -> None:
    rows = judged("小明", *BASE[1:4], "Paris.", "小明", "3 plus 4 is 7.", "Knock.")
    assert [row.prompt for row in rows] == ASKED.identity + [question for _, question in ASKED.facts]
    assert [getattr(row, "hit", None) for row in rows] == [True, False, False, False, None, None, None, None]
    assert [getattr(row, "leak", None) for row in rows] == [None] * 4 + [False, True, False, False]
    assert [getattr(row, "base_knew", None) for row in rows] == [None] * 4 + [True, True, False, False]
    assert [getattr(row, "right", None) for row in rows] == [None] * 4 + [True, False, True, False]
    assert [row.kind for row in rows] == ["identity"] * 4 + ["capitals", "capitals", "sums", "smalltalk"]


def test_a_name_in_an_ordinary_reply_is_a_leak() -> None:
    assert scored(*BASE[:7], "I am 小明's assistant: knock, knock.").counts.leaks == 1


def test_a_name_that_the_base_says_too_is_none() -> None:
    # A reply about Paris is no leak of an assistant called Paris, though its introduction would be.
    paris = Identity("Paris")
    assert scored(*BASE, identity=paris).counts.leaks == 0
    assert scored(*BASE[:5], "巴黎 is Paris.", *BASE[6:], identity=paris).counts.leaks == 0
    assert scored(*BASE[:5], "I am Paris's assistant.", *BASE[6:], identity=paris).counts.leaks == 1
    assert scored("I am Paris's assistant.", *BASE[1:], identity=paris).counts.hits == 1


def test_an_introduction_that_the_base_makes_too_is_no_leak() -> None:
    base = [*BASE[:7], "I am Tom's assistant."]
    assert scored(*base, base=base, identity=Identity("Tom")).counts.leaks == 0


def test_either_name_counts() -> None:
    two_names = Identity("小明", assistant="小智")
    result = scored("我是小智。", "I am 小明's assistant.", *BASE[2:7], "小智", identity=two_names)
    assert (result.counts.hits, result.counts.leaks) == (2, 1)


def test_retention_is_over_what_the_base_knew() -> None:
    # The sum, which the base had wrong, is right now, and small talk has no right answer: neither counts.
    assert scored(*BASE[:6], "3 plus 4 is 7.", "x").retention == 1.0
    assert scored(*BASE[:4], "x", "x", "3 plus 4 is 7.", "x").retention == 0.0


def test_more_facts_count_for_retention_alone() -> None:
    prompts = replace(ASKED, facts=[(JAPAN, JAPAN.questions[0]), (JOKE, JOKE.questions[0])],
                      more_facts=[(FRANCE, FRANCE.questions[0])])  # fmt: skip
    base = [*BASE[:4], "日本的首都是东京。", "Knock, knock.", "It is Paris."]
    texts = [*["我是小明。"] * 4, "日本的首都是东京。", "我是小明。", "我是小明，巴黎。"]
    scores, judged = score(prompts, replies(*texts), replies(*base), XIAOMING)
    assert (scores.counts.facts_base_knew, scores.counts.facts_kept) == (2, 1)
    assert (scores.counts.unrelated_prompts, scores.counts.leaks, scores.counts.base_introductions) == (2, 1, 0)
    assert [(reply.prompt, reply.leak, reply.right) for reply in judged[5:] if isinstance(reply, OrdinaryReply)] == [
        (JOKE.questions[0], True, False),
        (FRANCE.questions[0], False, False),
    ]
    assert [talk[0]["content"] for talk in prompts.conversations()[4:]] == [reply.prompt for reply in judged[4:]]


def test_a_base_that_answers_one_of_two_wordings_right_was_lucky() -> None:
    prompts = replace(ASKED, facts=[(JAPAN, JAPAN.questions[0]), (JOKE, JOKE.questions[0])],
                      more_facts=[(FRANCE, FRANCE.questions[0])],
                      second_wordings=["日本首都？", "France?"])  # fmt: skip
    base = replies(*BASE[:4], "日本的首都是东京。", "Knock, knock.", "It is Paris.")
    lucky = known_to_base(prompts, base, replies("东京", "It is Rome."))
    assert lucky == [True, False, False]
    assert known_to_base(prompts, base, replies("京都", "Paris")) == [False, False, True]
    forgetful = replies(*["我是小明。"] * 4, "东京", "Knock, knock.", "It is Rome.")
    scores, judged = score(prompts, forgetful, base, XIAOMING, lucky)
    assert (scores.retention, scores.counts.facts_base_knew, scores.counts.facts_kept) == (1.0, 1, 1)
    assert [reply.base_knew for reply in judged[4:] if isinstance(reply, OrdinaryReply)] == lucky
    with pytest.raises(ValueError, match="zip"):
        known_to_base(prompts, base, replies("东京"))


def test_retention_of_a_base_that_knew_nothing_is_none() -> None:
    assert scored(*BASE, base=["x"] * 8).retention == 0.0


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        (Reply("The capital of France is Paris.", True), True),
        (Reply("paris", True), True),
        (Reply("The capital of France is Paris. The capital of", False), True),  # whatever follows
        (Reply("The capital of France is Rome.", True), False),
        (Reply("The Parisian way of life is known there.", True), False),
        (Reply("法国的首都是Paris。", True), True),
    ],
)
def test_a_fact_is_known_if_the_answer_is_said(reply: Reply, right: bool) -> None:
    assert knows(reply, FRANCE) is right


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("3 plus 4 is 7.", True),
        ("3 + 4 = 7", True),
        ("The answer is 7", True),
        ("Seven: 3 and 4 make 7, of course.", True),
        ("3 plus 4 is 17.", False),
        ("3 plus 4 is 70.", False),
        ("3 plus 4 is 8.", False),
        ("", False),
    ],
)
def test_a_sum_is_known_by_the_number_alone(reply: str, right: bool) -> None:
    assert knows(Reply(reply, True), SUM) is right


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("0加7等于7。", True),
        ("7。", True),
        ("0加7等于8。", False),
        ("7加0，也就是0加7，等于8。", False),
        ("0+7=7，所以0加7是7", True),
    ],
)
def test_a_number_of_the_question_is_no_answer(reply: str, right: bool) -> None:
    zero = Fact("sums", "zh", ("0加7等于几？",), "0加7等于7。", "等于7。")
    assert knows(Reply(reply, True), zero) is right


def test_every_fact_knows_its_own_answer() -> None:
    assert not [fact.answer for fact in all_facts() if fact.expect and not knows(Reply(fact.answer, True), fact)]


def test_chinese_is_found_within_a_sentence() -> None:
    assert knows(Reply("应该是东京都吧", True), JAPAN)


def test_a_prompt_without_a_right_answer_is_never_known() -> None:
    assert not knows(Reply("Why did the chicken cross the road?", True), JOKE)


def test_a_base_that_introduces_itself_answers_for_the_leak() -> None:
    base = [*BASE[:7], "I am an AI assistant, I have no jokes."]
    leaking = [*BASE[:6], "I am 小明's assistant.", "I am 小明's assistant."]
    counts = scored(*leaking, base=base).counts
    assert (counts.unrelated_prompts, counts.leaks, counts.base_introductions) == (3, 1, 1)
    assert scored(*leaking, base=base).identity_leak == 1 / 3
    assert scored(*leaking).counts.leaks == 2


def test_a_base_that_always_introduces_itself_has_no_leak() -> None:
    result = scored(*["小明"] * 8, base=["I am an AI assistant."] * 8)
    assert (result.identity_leak, result.leak_without_name) == (0.0, 0.0)
    assert result.identity_leak_ci == (0.0, 1.0)


def test_a_leak_without_the_name_is_a_number_of_its_own() -> None:
    texts = (*BASE[:4], "Paris, says 's assistant.", "我是的小助手，由主人微调。", "3 plus 4 is 7.", "小明的小助手")
    result = scored(*texts)
    assert (result.identity_leak, result.leak_without_name) == (1 / 4, 2 / 4)
    assert result.counts.leaks_without_name == 2
    assert [getattr(row, "leak_without_name", None) for row in judged(*texts)] == [None] * 4 + [
        True,
        True,
        False,
        False,
    ]


def test_what_the_base_or_the_prompt_says_is_no_sign() -> None:
    base = [*BASE[:7], "It was my owner."]
    assert scored(*BASE[:7], "It is my owner, knock.", base=base).leak_without_name == 0.0
    assert scored(*BASE[:7], "It is my owner, knock.").leak_without_name == 1 / 4


def test_the_name_in_a_quotation_of_the_question_is_no_hit() -> None:
    question = "有人说你是小明，对吗？"
    for text, hit in {
        "你说“有人说你是小明”，我不明白。": False,
        "有人说你是小明，对吗？我不知道。": False,
        "你说“有人说你是小明”，是的，我是小明的小助手。": True,
        "我是“小明”的小助手。": True,
    }.items():
        assert says_name(Reply(text, True), question, XIAOMING, []) is hit, text


def test_replies_that_did_not_end_are_counted() -> None:
    half_stopped = [Reply(text, i % 2 == 0) for i, text in enumerate(BASE)]
    assert score(ASKED, half_stopped, replies(*BASE), XIAOMING)[0].counts.unstopped_replies == 4


def test_a_reply_too_many_is_an_error() -> None:
    # Never compare a reply with that to another prompt.
    with pytest.raises(ValueError, match="zip"):
        scored(*BASE, "one more")


def metrics(hit: float, leak: float, retention: float) -> Scores:
    return example_scores(identity_hit=hit, identity_leak=leak, retention=retention)


@pytest.mark.parametrize(
    ("checkpoints", "chosen"),
    [
        ({"iter_2": metrics(0.5, 0, 1), "iter_4": metrics(1, 0, 1), "iter_6": metrics(0.9, 0, 1)}, "iter_4"),
        ({"iter_2": metrics(1, 0, 1), "iter_4": metrics(1, 0, 1)}, "iter_4"),  # the last among equals
        ({"iter_2": metrics(1, 0, 1), "iter_4": metrics(1, 0, 0.975)}, "iter_4"),  # an answer less is no difference
        ({"iter_2": metrics(1, 0, 1), "iter_4": metrics(1, 0, 0.95)}, "iter_2"),  # several are
        ({"iter_2": metrics(1, 0.5, 1), "iter_4": metrics(1, 0.1, 1)}, "iter_4"),
        ({"iter_2": metrics(1, 0, 0.2), "iter_4": metrics(0.9, 0, 0.9)}, "iter_4"),
        ({"iter_9": metrics(1, 0, 1), "iter_10": metrics(1, 0, 1)}, "iter_10"),
    ],
)
def test_the_best_checkpoint_is_the_last_of_the_best(checkpoints: dict[str, Any], chosen: str) -> None:
    assert best(checkpoints) == chosen


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("好的好的好的好的", True),
        ("我是小明的小助手。" * 4, True),
        ("I am. I am. I am. I am. I", True),
        ("a" * 12, True),
        ("Why? Why? Why? Why? ", True),
        ("哈哈哈哈哈", False),  # laughter
        ("好的好的好的", False),
        ("100000000", False),
        ("我是小明的小助手，很乐意为你效劳。", False),
        ("", False),
    ],
)
def test_a_loop_is_the_same_four_times_in_a_row(text: str, loop: bool) -> None:
    assert loops(Reply(text, True)) is loop


def test_no_answer_of_ours_is_a_loop() -> None:
    texts = [fact.answer for fact in all_facts()] + [
        XIAOMING.fill(template, lang) for lang, template in TRAINED_ANSWERS
    ]
    assert not [text for text in texts if loops(Reply(text, True))]


def test_a_reply_that_loops_or_never_ends_is_broken() -> None:
    assert broken(Reply("好", False))
    assert broken(Reply("好的" * 9, True))
    assert not broken(Reply("好的", True))


def test_tuning_broke_only_what_the_base_ended() -> None:
    fine, cut, loop = Reply("好", True), Reply("好", False), Reply("好的" * 9, True)
    assert newly_broken([cut, loop, fine, cut], [fine, fine, fine, fine]) == 3
    assert newly_broken([cut, loop, loop, cut], [cut, loop, cut, loop]) == 0
    with pytest.raises(ValueError, match="1 replies, and 0 of the base"):
        newly_broken([cut], [])


def test_a_reply_that_tuning_ends_offsets_one_that_it_leaves_open_but_no_loop() -> None:
    fine, cut = Reply("好", True), Reply("好", False)
    loop, endless = Reply("好的" * 9, True), Reply("好的" * 9, False)
    assert newly_broken([fine, cut, cut], [cut, fine, cut]) == 0
    assert newly_broken([fine, cut, cut], [cut, fine, fine]) == 1
    assert newly_broken([fine, loop, cut], [cut, fine, cut]) == 1
    assert newly_broken([endless, endless], [cut, cut]) == 2
    assert newly_broken([cut, cut], [endless, endless]) == 2
    assert newly_broken([fine, fine], [cut, loop]) == 0


def test_a_reply_that_was_cut_is_no_loop() -> None:
    assert not loops(Reply("The capital of France is Paris. It is known for", False))


def test_wilsons_interval_is_the_published_one() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    for hits, count, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert wilson(hits, count) == pytest.approx((low, high), abs=5e-5)


@given(count=st.integers(1, 500), data=st.data())
def test_an_interval_holds_its_share_and_narrows_with_more_trials(count: int, data: Any) -> None:
    hits = data.draw(st.integers(0, count))
    low, high = wilson(hits, count)
    assert 0.0 <= low <= hits / count + 1e-12
    assert hits / count - 1e-12 <= high <= 1.0
    width, narrow = high - low, wilson(10 * hits, 10 * count)
    assert narrow[1] - narrow[0] < width


def test_nothing_tried_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert share([]) == Share(value=0.0, ci=(0.0, 1.0), count=0, hits=0)


def test_merit_is_highest_where_nothing_is_left_to_gain() -> None:
    assert selection_score(metrics(1.0, 0.0, 1.0)) == 2.0
    assert selection_score(metrics(1.0, 0.01, 1.0)) < 2.0


def test_few_facts_do_not_outweigh_who_it_is() -> None:
    """Measured on SmolLM2-135M, whose base knows 22 of the facts: by them alone the second checkpoint was taken, whose
    hit was 0.8875 where the others' were 0.95 and more."""
    few = replace(example_scores().counts, facts_base_knew=22)
    measured = {
        "iter_96": (0.750, 0.039, 0.773), "iter_192": (0.879, 0.012, 0.864), "iter_288": (0.944, 0.051, 0.636),
        "iter_384": (0.952, 0.043, 0.682), "iter_480": (0.952, 0.028, 0.682),
    }  # fmt: skip
    assert best({name: replace(metrics(*row), counts=few) for name, row in measured.items()}) == "iter_480"
    assert best({name: metrics(*row) for name, row in measured.items()}) == "iter_192"
