"""What the page is made of, without a browser: words, Markdown, and conversations as files. The page itself:
tests/browser."""

from __future__ import annotations

import json
import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from recipe.languages import LANGUAGES
from recipe.paths import ROOT
from recipe.serving.page import conversation, history
from recipe.serving.page.conversation import BASE, TUNED, BadFileError, Turn
from recipe.serving.page.markdown import streamlit_markdown
from recipe.serving.page.words import EXAMPLES, WORDS, words

# --- Words --------------------------------------------------------------------------------------------------------


def test_every_word_is_told_in_both_languages_about_the_same() -> None:
    fields = [
        [{name for _, name, _, _ in string.Formatter().parse(text) if name} for text in pair] for pair in WORDS.values()
    ]
    assert all(chinese == english for chinese, english in fields)
    for key, (chinese, english) in WORDS.items():
        if key not in ("language", "note_short"):
            assert re.search(r"[\u4e00-\u9fff]", chinese), key
            assert not re.search(r"[\u4e00-\u9fff]", english), key
    assert tuple(EXAMPLES) == LANGUAGES
    assert words("en")("imported", turns=3) == "3 turns imported."


def test_the_page_says_every_word_and_holds_no_other() -> None:
    page = ROOT / "recipe" / "serving" / "page"
    names = ("app", "turn_view", "notes", "conversation", "history")
    source = "".join((page / f"{name}.py").read_text(encoding="utf-8") for name in names)
    # No glyph that only an emoji font has.
    assert not re.search(r"[\u2190-\u2bff\U0001f000-\U0001ffff]", source.replace("▌", ""))
    for key in WORDS.keys() - {"missing", "failed"}:  # states of the model
        assert f'"{key.removesuffix("_help")}"' in source.replace("'", '"'), key
    assert not re.search(r"[\u4e00-\u9fff]", source)


# --- Markdown -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain 文字", "plain 文字"),
        (r"so \(a+b\) it is", "so $a+b$ it is"),
        ("\\[\nx^2\n\\]", "$$\nx^2\n$$"),
        ("$x$ and $$y$$", "$x$ and $$y$$"),
        ("between $5 and $10", r"between \$5 and \$10"),
        ("a $ sign", r"a \$ sign"),
        ("`$x` stays", "`$x` stays"),
        ("```sh\necho $HOME \\(x\\)\n```\n$5", "```sh\necho $HOME \\(x\\)\n```\n\\$5"),
        ("```\nnot closed $5", "```\nnot closed $5"),
        ("![cat](https://x/y.png)", "[cat](https://x/y.png)"),
        (":red[no]", r"\:red[no]"),
        ("at 10:30, https://a.b", "at 10:30, https://a.b"),
        ("std::vector", r"std:\:vector"),
        ("[ok](https://a/b) [no](javascript:x)", r"[ok](https://a/b) [no\](javascript\:x)"),
        ("`a[0](x)`", "`a[0](x)`"),
    ],
)  # fmt: skip
def test_markdown_is_what_streamlit_reads(text: str, expected: str) -> None:
    assert streamlit_markdown(text) == expected


@pytest.mark.parametrize("part", ["](x", "`](x", "]:x", r"\(", r"\[", "![", "$$x", "$x", "```\n", "`", "[", ":", "<"])
def test_no_text_holds_the_page_up(part: str) -> None:
    """All visitors share an interpreter. A pattern that scans the text for each of its beginnings takes hours here."""
    streamlit_markdown("`: " + part * (300_000 // len(part)))


ADDRESSES = [
    "javascript:x",
    "JaVaScRiPt:x",
    "&#106;avascript:x",
    "<javascript:x>",
    "data:text/html,x",
    "vbscript:x",
    "java\\script:x",
]


@given(
    parts=st.lists(
        st.sampled_from(
            ["`", "``", "```", "~~~", "\n", "x", " ", "[a](", "[a]: ", "<", ")", "](", "!", "\\", *ADDRESSES]
        )
    )
)
@example(["``", " ", "`", " ", "``", "[a](", "javascript:x", ")", "``", " ", "`", " ", "``"])
def test_no_text_makes_a_link_that_could_run_script(parts: list[str]) -> None:
    """By the Markdown reader that Streamlit's own kin use in Python: no link's address has another scheme than
    these."""
    from markdown_it import MarkdownIt

    reader = MarkdownIt("commonmark", {"html": False})
    reader.validateLink = lambda url: True  # type: ignore[method-assign]
    html = reader.render(streamlit_markdown("".join(parts)))
    for address in re.findall(r'(?:href|src)="([^"]*)"', html):
        assert not re.match(r"\s*(javascript|vbscript|data):", address, re.IGNORECASE), html


# --- Files --------------------------------------------------------------------------------------------------------

TURNS = st.lists(st.builds(Turn, st.text(), st.fixed_dictionaries({TUNED: st.text(min_size=1)})), max_size=4)


@given(system=st.text().filter(lambda text: bool(text.strip()) or not text), turns=TURNS)
def test_what_is_exported_is_imported(system: str, turns: list[Turn]) -> None:
    content = conversation.to_json(system, turns).encode()
    assert conversation.from_json(content) == (system, turns)
    assert conversation.from_json(json.dumps(json.loads(content)["messages"]).encode()) == (system, turns)


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (b"", "not_json"), (b"\xff", "not_json"), (b"[" * 9_000, "not_json"), (b"{}", "no_messages"),
        (b'{"messages": 3}', "no_messages"), (b"3", "no_messages"), (b"[3]", "bad_message"),
        (b'[{"role": "user", "content": 3}]', "bad_message"), (b'[{"role": "user", "content": "a"}]', "unfinished"),
        (b'[{"role": "tool", "content": "a"}]', "bad_message"), (b" " * 1_000_001, "too_big"),
        (b'[' + b'{"role": "user", "content": ""},' * 400 + b'{}]', "too_many"),
        (b'[{"role": "user", "content": "\\ud83d"}]', "bad_text"),
        (b'[{"role": "user", "content": "a"}, {"role": "user", "content": "a"}]', "bad_message"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_for_what_it_is(content: bytes, key: str) -> None:
    with pytest.raises(BadFileError) as caught:
        conversation.from_json(content)
    assert caught.value.key == key
    for language in LANGUAGES:
        assert "\n" not in words(language)(key, **caught.value.values)


def test_each_reads_its_own_replies() -> None:
    turns = [Turn("a", {TUNED: "1", BASE: "2"}), Turn("b", {TUNED: "3"})]
    read = conversation.messages("", turns, "c", who=BASE)
    assert [message["content"] for message in read] == ["a", "2", "b", "3", "c"]
    read = conversation.messages("be brief", turns)
    assert [message["content"] for message in read] == ["be brief", "a", "1", "b", "3"]


def test_what_is_typed_is_checked() -> None:
    assert conversation.fault("你好\n\t👩\u200d🚀", "") is None
    for typed, key in (
        (("hi\0", ""), "not_text"),
        (("hi", "\x1b[0m"), "not_text"),
        (("x" * (conversation.MAX_CHARACTERS + 1), ""), "too_many_characters"),
    ):
        fault = conversation.fault(*typed)
        assert fault
        assert fault.key == key
        for language in LANGUAGES:
            assert "\n" not in words(language)(key, **fault.values)


# --- Earlier conversations ----------------------------------------------------------------------------------------


def test_what_is_stored_is_opened() -> None:
    turns = [
        Turn("你好\n<b>", {TUNED: "1\0", BASE: "2"}, {TUNED: "3 tokens"}, "小明 · main"),
        Turn("b", {TUNED: ""}, {}, ""),
        Turn("c", {TUNED: "x", BASE: ""}, {}, "m"),
    ]
    record = history.to_record("be brief", turns)
    assert record is not None
    system, read = history.from_record(record)
    assert system == "be brief"
    assert [(t.question, t.replies, t.model) for t in read] == [(t.question, t.replies, t.model) for t in turns]
    assert not any(turn.notes for turn in read)
    assert history.to_record("", [Turn("x" * history.MAX_CHARACTERS, {TUNED: ""})]) is None


MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
RECORD = {"version": 1, "title": "a", "messages": MESSAGES, "base": [None], "models": ["m"]}


@pytest.mark.parametrize(
    "record",
    [
        "", "[]", "3", "null", "{}", "[" * 9_000, "\ud83d", "x" * (history.MAX_CHARACTERS + 1), MESSAGES,
        RECORD | {"version": 2}, RECORD | {"version": None}, RECORD | {"messages": []}, RECORD | {"messages": "a"},
        RECORD | {"base": []}, RECORD | {"base": [3]}, RECORD | {"base": None}, RECORD | {"base": ["\ud83d"]},
        RECORD | {"models": [None]}, RECORD | {"models": ["\x1b[0m"]}, RECORD | {"models": ["m" * 201]},
        RECORD | {"messages": [{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": ""}]},
        RECORD | {"messages": [{"role": "tool", "content": "a"}, {"role": "assistant", "content": ""}]},
    ],
)  # fmt: skip
def test_a_damaged_record_is_refused(record: object) -> None:
    history.from_record(json.dumps(RECORD))
    with pytest.raises(BadFileError) as caught:
        history.from_record(record if isinstance(record, str) else json.dumps(record))
    for language in LANGUAGES:
        assert "\n" not in words(language)(caught.value.key, **caught.value.values)


def test_only_an_event_of_this_session_is_taken() -> None:
    sent = {"session": "s", "number": 1, "id": "a", "record": None, "automatic": True}
    assert history.read_event(sent, "s") == history.Event(1, "a", None, automatic=True)
    wrong: list[object] = [None, 3, [], "x", {}, *(sent | {key: [3]} for key in ("session", "number", "id", "record"))]
    for value in (*wrong, sent | {"session": "t"}, sent | {"number": True}, sent | {"id": "a" * 201}):
        assert history.read_event(value, "s") is None


@pytest.mark.parametrize(
    ("sent", "taken"), [("How?", "How?"), ("a\nb", "a\nb"), (None, ""), (3, ""), ("\ud800", ""), ("x" * 100_001, "")]
)
def test_an_unanswered_question_comes_from_the_browser_if_it_is_one(sent: object, taken: str) -> None:
    value = {"session": "s", "number": 1, "id": "", "record": None, "automatic": True, "unanswered": sent}
    event = history.read_event(value, "s")
    assert event
    assert event.unanswered == taken
