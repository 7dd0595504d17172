from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from recipe.corpus.identity import (
    BASE_NAMES,
    INTERNLM_BASE,
    LONGEST_NAME,
    OPEN_BASE,
    Identity,
    load_answers,
    load_questions,
    questions_of,
)
from recipe.errors import RecipeError
from recipe.languages import LANGUAGES, parse_languages

PARTS = ("train", "heldout")

ACCEPTED = [
    "小明",
    "欧阳娜娜",
    "Mary Ann Smith",
    "O’Brien",
    "迪丽热巴·迪力木拉提",
    "José Müller-Łuczak",
    "🐼",
    "👩‍🚀 Ann",
    "A",
    "R2-D2 (v1.0)",
    "100%",
    "$HOME",
    "明" * LONGEST_NAME,
]

REFUSED = [
    pytest.param("", "is empty", id="empty"),
    pytest.param(" ", "is empty", id="space"),
    pytest.param("\n", "is empty", id="newline"),
    pytest.param("\u3000", "is empty", id="ideographic space"),
    pytest.param(" 小明", "begins or ends with a space", id="leading space"),
    pytest.param("小明 ", "begins or ends with a space", id="trailing space"),
    pytest.param("小明\n", "begins or ends with a space", id="trailing newline"),
    pytest.param("小{明", "holds '{' at position 2", id="opening brace"),
    pytest.param("小明}", "holds '}' at position 3", id="closing brace"),
    pytest.param("{me}", "holds '{' at position 1", id="slot"),
    pytest.param('小"明', "holds '\"' at position 2", id="quote"),
    pytest.param("O'Brien", "an apostrophe may be typed as ’", id="straight apostrophe"),
    pytest.param("`id`", "holds '`'", id="backquote"),
    pytest.param("“小明”", "holds '“'", id="typographic quotes"),
    pytest.param("小\n明", "holds '\\n'", id="newline inside"),
    pytest.param("小\r明", "holds '\\r'", id="carriage return inside"),
    pytest.param("小\t明", "holds '\\t'", id="tab inside"),
    pytest.param("小\x00明", "holds '\\x00'", id="null"),
    pytest.param("小\x1b[31m明", "holds '\\x1b'", id="escape sequence"),
    pytest.param("小\x85明", "holds '\\x85'", id="next line"),
    pytest.param("小\u2028明", "holds '\\u2028'", id="line separator"),
    pytest.param("a/b", "holds '/'", id="path separator"),
    pytest.param("../etc", "holds '/'", id="path upwards"),
    pytest.param("a\\b", "holds '\\\\'", id="backslash"),
    pytest.param("<s>", "holds '<'", id="angle brackets"),
    pytest.param("<|im_start|>", "holds '<'", id="chat token"),
    pytest.param("[UNUSED_TOKEN_145]", "holds", id="chat token's other name"),
    pytest.param("a|b", "holds '|'", id="bar"),
    pytest.param("明" * (LONGEST_NAME + 1), "has 41 characters, at most 40", id="41 characters"),
    pytest.param("a\n" * 30, "", id="long with newlines"),
    pytest.param("小\udce6明", "is not valid UTF-8", id="half a character"),
]

ROLES: list[tuple[str, Callable[[str], Identity]]] = [
    ("NAME", lambda value: Identity(value)),
    ("ASSISTANT", lambda value: Identity("小明", assistant=value)),
    ("AUTHOR", lambda value: Identity("小明", author=value)),
]


@pytest.mark.parametrize(("role", "make"), ROLES, ids=[role for role, _ in ROLES])
@pytest.mark.parametrize("value", ACCEPTED)
def test_a_name_is_taken_as_it_is(role: str, make: Callable[[str], Identity], value: str) -> None:
    identity = make(value)
    assert value in {"NAME": identity.name, "ASSISTANT": identity.assistant, "AUTHOR": identity.author}.values()


@pytest.mark.parametrize(("role", "make"), ROLES, ids=[role for role, _ in ROLES])
@pytest.mark.parametrize(("value", "reason"), REFUSED)
def test_a_name_that_cannot_stand_everywhere_is_refused(
    role: str, make: Callable[[str], Identity], value: str, reason: str
) -> None:
    with pytest.raises(RecipeError) as error:
        make(value)
    assert str(error.value).startswith(f"{role} ")
    assert reason in str(error.value)
    assert str(error.value).isprintable(), "an error is one line, without what a terminal would obey"


def slots() -> list[tuple[str, str, str]]:
    """(language, intent, template) of every answer that is taught."""
    return [
        (language, intent, template)
        for language, intents in load_answers()["tuned"].items()
        for intent, templates in intents.items()
        for template in templates
    ]


@given(value=st.text(max_size=LONGEST_NAME + 1))
@example(value="$1 \\g<0>")
@example(value="maker")
def test_a_name_is_refused_or_said_verbatim(value: str) -> None:
    """No name comes out of the answers, or of a JSON file, other than it went in."""
    try:
        identity = Identity(value, assistant=value, author=value)
    except RecipeError:
        return
    for language, _, template in slots():
        for base in (INTERNLM_BASE, OPEN_BASE):
            answer = identity.fill(template, language, base)
            assert value in answer
            assert "{" not in answer
            assert json.loads(json.dumps(answer, ensure_ascii=False).encode("utf-8")) == answer
            assert answer.splitlines() == [answer]


def test_an_assistant_has_its_own_name_and_its_owners() -> None:
    plain, named = Identity("小明"), Identity("小明", assistant="小智")
    assert (plain.names, named.names) == (("小明",), ("小明", "小智"))
    assert plain.me("zh") == "小明的小助手"
    assert plain.me("en") == "小明's assistant"
    for language in LANGUAGES:
        assert all(name in named.me(language) for name in named.names)


def test_the_maker_is_the_author_or_else_the_owner() -> None:
    assert Identity("小明").fill("{maker}", "zh") == "主人"
    assert Identity("小明").fill("{maker}", "en") == "my owner"
    assert Identity("小明", author="实验室").fill("{maker}", "zh") == "实验室"


def test_a_name_that_spells_a_slot_is_not_filled_in_again() -> None:
    assert Identity("me", author="maker").fill("{me}/{maker}", "en") == "me's assistant/maker"


# --- data/identity ------------------------------------------------------------------------------------------------


def plain(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).casefold()


def questions(language: str, *parts: str, extended: bool = False) -> list[str]:
    return [q for part in parts for q in questions_of(part, extended=extended, languages=[language])]


def test_both_languages_have_the_same_intents() -> None:
    assert set(load_questions()) == set(LANGUAGES)
    assert set(load_questions()["zh"]) == set(load_questions()["en"])


@pytest.mark.parametrize("language", LANGUAGES)
def test_there_are_enough_questions(language: str) -> None:
    assert len(questions(language, *PARTS)) >= 150


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_question_is_there_twice(language: str) -> None:
    every = [plain(question) for question in questions(language, *PARTS)]
    assert sorted(every) == sorted(set(every))
    assert all(every)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_third_of_each_intent_is_held_out(language: str) -> None:
    for intent, parts in load_questions()[language].items():
        held_out = len(parts["heldout"])
        assert held_out / (held_out + len(parts["train"])) == pytest.approx(1 / 3, abs=0.02), intent


def test_every_intent_has_several_answers_each_with_the_name() -> None:
    tuned = load_answers()["tuned"]
    assert {language: set(intents) for language, intents in tuned.items()} == {
        language: set(intents) for language, intents in load_questions().items()
    }
    for language, intent, template in slots():
        assert "{me}" in template, (language, intent, template)
        assert set(re.findall(r"\{.*?\}", template)) <= {"{me}", "{maker}", "{base}"}
    for language, intents in tuned.items():
        for intent, templates in intents.items():
            assert len(set(templates)) == len(templates) >= 3, (language, intent)


def test_who_asks_for_the_model_or_its_maker_hears_of_internlm() -> None:
    """The identity is added to the model's origin, it does not hide it."""
    for language, intent, template in slots():
        if intent in ("maker", "model"):
            assert re.search("书生·浦语|InternLM", Identity("小明").fill(template, language)), (language, template)


def test_no_question_gives_its_answer_away() -> None:
    for language in LANGUAGES:
        assert not [q for q in questions(language, *PARTS) if "{" in q or "}" in q]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_answers_of_another_base_name_no_base_and_read_well(language: str) -> None:
    owner = Identity("小模型")  # whose name is not mistaken for the base's words
    templates = [template for each, _, template in slots() if each == language]
    named = [owner.fill(template, language) for template in templates]
    unnamed = [owner.fill(template, language, OPEN_BASE) for template in templates]
    assert [i for i, answer in enumerate(named) if any(name in answer for name in BASE_NAMES)] == [
        i for i, template in enumerate(templates) if "{base}" in template
    ]
    assert len({i for i, template in enumerate(templates) if "{base}" in template}) == 6
    for template, answer in zip(templates, unnamed, strict=True):
        assert not [name for name in BASE_NAMES if name in answer]
        assert ("{base}" in template) == (OPEN_BASE[language] in answer)
        assert "模型模型" not in answer
        assert owner.me(language) in answer


@pytest.mark.parametrize(
    "introduction",
    [
        "我是书生·浦语。", "我是通义千问，阿里云的语言模型。", "I am Qwen, created by Alibaba Cloud.",
        "I am SmolLM, trained by Hugging Face.", "I'm ChatGPT.", "I was developed by OpenAI.", "我是DeepSeek。",
        "I am Llama, a model of Meta AI.", "我是文心一言。",
    ],
)  # fmt: skip
def test_a_base_is_known_by_the_names_that_it_gives_itself(introduction: str) -> None:
    assert any(name in introduction for name in BASE_NAMES)


@pytest.mark.parametrize("reply", ["Claude Monet painted it.", "双子座。Gemini.", "你好！", "A llama is an animal."])
def test_no_ordinary_reply_is_taken_for_an_introduction(reply: str) -> None:
    assert not any(name in reply for name in BASE_NAMES)


# --- extended_questions.json --------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_extended_questions_come_after_the_others(language: str) -> None:
    for intent, parts in load_questions()[language].items():
        more = load_questions(extended=True)[language][intent]
        assert set(more) == set(parts)
        for part, fewer in parts.items():
            assert more[part][: len(fewer)] == fewer
            assert len(more[part]) >= len(fewer) + (5 if part != "heldout" else 3), (intent, part)


def test_enough_is_asked_to_choose_and_to_evaluate_real_models() -> None:
    assert len(questions_of("choice", extended=True)) >= 150
    assert len(questions_of("heldout", extended=True)) >= 150


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_extended_question_is_there_twice(language: str) -> None:
    every = [plain(question) for question in questions(language, "train", "choice", "heldout", extended=True)]
    assert [question for question in every if every.count(question) > 1 or not question] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_extended_questions_are_of_their_language(language: str) -> None:
    every = questions(language, "train", "choice", "heldout", extended=True)
    names_alone = load_questions(extended=True)[language]["deny"]["train"]
    chinese = [question for question in every if re.search("[\u4e00-\u9fff，。？：]", question)]
    assert not [question for question in every if "{" in question or "}" in question or question != question.strip()]
    if language == "zh":
        assert set(every) - set(chinese) <= set(names_alone)
    else:
        assert chinese == []


@pytest.mark.parametrize("extended", [False, True])
def test_questions_can_be_limited_to_a_language(extended: bool) -> None:
    both = load_questions(extended=extended)
    assert load_questions(extended=extended, languages=["en"]) == {"en": both["en"]}
    assert questions_of("choice", extended=extended, languages=["zh"]) == [
        question for parts in both["zh"].values() for question in parts["choice"]
    ]


# --- LANGUAGES= ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "languages"),
    [("en", ("en",)), ("zh", ("zh",)), ("zh,en", LANGUAGES), ("en,zh", LANGUAGES), (" en , en", ("en",))],
)
def test_languages_are_named_in_any_order(text: str, languages: tuple[str, ...]) -> None:
    assert parse_languages(text) == languages


@pytest.mark.parametrize("text", ["", "de", "en,de", "EN", "zh en", "zh,", "english"])
def test_an_unknown_language_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^LANGUAGES=.* is none of zh, en; for example LANGUAGES=en$"):
        parse_languages(text)
