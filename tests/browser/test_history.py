"""Earlier conversations: kept in the visitor's browser, listed, opened, deleted, and never a reason to fail."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipe.languages import NAMES
from recipe.serving.page import history
from recipe.serving.page.words import EXAMPLES, words

from .conftest import Server
from .test_page import allow_long, answered, ask, ask_for_ever, button, open_, upload

pytestmark = pytest.mark.browser
Visit = Callable[..., Any]
EN = words("en")
FRANCE, ITALY = "What is the capital of France?", "What is the capital of Italy?"
KEY = f"identity-chat-{history.VERSION}:"


def frame(page: Any) -> Any:
    """The list, once it is there."""
    inside = page.frame_locator("iframe[title*=recipe_history]")
    inside.locator("h2").wait_for(state="attached")
    return inside


def titles(page: Any, count: int) -> list[str]:
    """The conversations in the list, the latest first, once there are so many."""
    inside = frame(page)
    if count:
        inside.locator(f"li:nth-child({count})").wait_for()
    inside.locator(f"li:nth-child({count + 1})").wait_for(state="detached")
    return list(inside.locator(".title").all_inner_texts())


def choose(page: Any, title: str) -> None:
    frame(page).get_by_role("button", name=title, exact=True).click()


def stored(page: Any) -> list[str]:
    """Every stored entry."""
    return page.evaluate(
        "key => Object.keys(localStorage).filter(each => each.startsWith(key)).map(each => localStorage[each])", KEY
    )


def entry(record: dict[str, Any] | str, saved: int = 1, title: str = "old") -> str:
    text = record if isinstance(record, str) else json.dumps(record)
    return json.dumps({"saved": saved, "title": title}) + "\n" + text


def record(question: str = "Hello", reply: str = "Good day.", model: str = "m") -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return {"version": history.VERSION, "title": "old", "messages": messages, "base": [None], "models": [model]}


def put(page: Any, **entries: str) -> None:
    page.evaluate(
        "([key, all]) => Object.entries(all).forEach(([id, text]) => { localStorage[key + id] = text })", [KEY, entries]
    )


def two_conversations(page: Any) -> None:
    ask(page, FRANCE)
    answered(page)
    titles(page, 1)
    button(page, EN("new_chat")).first.click()
    button(page, EXAMPLES["en"][0]).wait_for()
    ask(page, ITALY)
    assert "Rome" in answered(page)[0]
    assert titles(page, 2) == [ITALY, FRANCE]


def no_error(page: Any) -> None:
    assert page.locator(".stException").count() == 0


def test_conversations_survive_a_reload_and_are_opened_and_continued(visit: Visit, picture: Any) -> None:
    page = visit()
    two_conversations(page)
    picture(page)
    page.reload()
    assert "Rome" in answered(page)[0]  # the one that was on the screen
    assert titles(page, 2) == [ITALY, FRANCE]
    choose(page, FRANCE)
    page.get_by_text("Paris").first.wait_for()
    assert "Rome" not in answered(page)[0]
    ask(page, "Who are you?")
    answered(page, 2)
    page.wait_for_function("key => Object.keys(localStorage).filter(each => each.startsWith(key)).length == 2", arg=KEY)
    page.reload()
    assert "Paris" in answered(page, 2)[0]
    assert titles(page, 2) == [FRANCE, ITALY]
    other = visit()  # another visitor
    assert titles(other, 0) == []
    no_error(page)


@pytest.mark.parametrize("first", [True, False])
def test_a_question_whose_reply_a_reload_cut_off_is_offered_again(visit: Visit, endless: Server, first: bool) -> None:
    page = visit(endless.url)
    if not first:
        ask(page, FRANCE)
        button(page, EN("stop")).click()
        answered(page)
        titles(page, 1)
    ask_for_ever(page)
    page.reload()
    page.get_by_text(EN("unanswered")).wait_for()
    assert page.get_by_text(FRANCE, exact=True).count() == (not first)
    page.reload()  # not only once
    field = page.get_by_role("textbox", name=EN("unanswered"))
    assert field.input_value() == "Tell me everything."
    allow_long(page)
    button(page, EN("send")).click()
    page.get_by_text("▌").wait_for()
    page.wait_for_timeout(300)
    button(page, EN("stop")).click()
    answered(page, 1 if first else 2)
    page.wait_for_timeout(500)
    page.reload()
    answered(page, 1 if first else 2)
    assert page.get_by_text(EN("unanswered")).count() == 0
    no_error(page)


def test_a_server_that_is_started_again_has_the_conversation_and_the_question_typed_meanwhile(
    serve: Any, visit: Visit, work: Path, picture: Any
) -> None:
    options = ("demo", "--work", str(work), "--run", "quickstart")
    old = serve(*options)
    page = visit(old.url)
    ask(page, FRANCE)
    answered(page)
    titles(page, 1)
    old.process.kill()
    old.process.wait()
    page.locator("[data-testid=stConnectionStatus]").wait_for()
    ask(page, ITALY)
    assert page.get_by_placeholder(EN("ask")).input_value() == ITALY  # not sent to nobody
    picture(page)
    serve(*options, port=old.port)
    page.locator("[data-testid=stConnectionStatus]").wait_for(state="detached")
    page.wait_for_function(
        "([field, typed]) => document.querySelector(`textarea[placeholder='${field}']`)?.value == typed",
        arg=[EN("ask"), ITALY],
    )
    assert "Paris" in answered(page)[0]
    page.get_by_placeholder(EN("ask")).press("Enter")
    assert "Rome" in answered(page, 2)[1]
    assert page.get_by_placeholder(EN("ask")).input_value() == ""
    assert titles(page, 1) == [FRANCE]
    no_error(page)


def test_both_replies_of_a_comparison_are_kept(visit: Visit) -> None:
    page = visit()
    page.get_by_text(EN("compare"), exact=True).click()
    page.wait_for_timeout(500)
    ask(page, "Who are you?")
    answered(page)
    titles(page, 1)
    page.reload()
    assert "InternLM, an AI assistant from the Shanghai AI Laboratory" in answered(page)[0]


def test_one_conversation_and_all_are_deleted_at_the_second_click(visit: Visit, picture: Any) -> None:
    page = visit()
    two_conversations(page)
    frame(page).get_by_role("button", name=f"{EN('delete')}: {FRANCE}").click()
    picture(page)
    frame(page).get_by_role("button", name=EN("sure")).click()
    assert titles(page, 1) == [ITALY]
    assert "Rome" in answered(page)[0]
    frame(page).get_by_role("button", name=EN("delete_all")).click()
    frame(page).get_by_role("button", name=EN("sure")).click()
    button(page, EXAMPLES["en"][0]).wait_for()  # the one on the screen was deleted too
    assert stored(page) == []
    page.reload()
    assert titles(page, 0) == []


def test_nothing_is_kept_where_the_visitor_wants_so(visit: Visit) -> None:
    page = visit()
    frame(page).get_by_text(EN("history_where", most=history.MAX_RECORDS)).wait_for()
    frame(page).get_by_role("checkbox").uncheck()
    frame(page).get_by_text(EN("history_off")).wait_for()
    ask(page, FRANCE)
    answered(page)
    page.wait_for_timeout(500)
    assert stored(page) == []
    page.reload()
    assert titles(page, 0) == []
    ask(page, ITALY)
    answered(page)
    frame(page).get_by_role("checkbox").check()
    assert titles(page, 1) == [ITALY]  # the one on the screen


def test_two_tabs_lose_nothing(visit: Visit) -> None:
    page = visit()
    ask(page, FRANCE)
    answered(page)
    titles(page, 1)
    other = page.context.new_page()
    other.goto(page.url)
    assert titles(other, 1) == [FRANCE]
    ask(other, ITALY)
    answered(other)
    assert titles(page, 2) == titles(other, 2) == [ITALY, FRANCE]
    choose(other, FRANCE)
    other.get_by_text("Paris").first.wait_for()
    answered(other)
    for tab, question in ((page, "Who are you?"), (other, "What is 3 plus 4?")):  # both continue the same one
        ask(tab, question)
        answered(tab, 2)
    assert titles(page, 3) == titles(other, 3) == [FRANCE, FRANCE, ITALY]
    kept = "".join(stored(page))
    assert kept.count("Who are you?") == kept.count("What is 3 plus 4?") == 1
    ask(other, "Tell me a joke.")
    answered(other, 3)
    other.wait_for_timeout(500)
    assert len(stored(page)) == 3


def test_without_storage_it_works_as_before(visit: Visit, picture: Any) -> None:
    page = visit()
    page.context.add_init_script(
        "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError') }})"
    )
    page.reload()
    frame(page).get_by_text(EN("history_unavailable")).wait_for()
    ask(page, FRANCE)
    assert "Paris" in answered(page)[0]
    picture(page)
    no_error(page)


def test_a_full_store_is_said(visit: Visit) -> None:
    page = visit()
    page.evaluate(
        "() => { for (let n = 1 << 22; n; n >>= 1) try { localStorage['other' + n] = 'x'.repeat(n) } catch {} }"
    )
    ask(page, FRANCE)
    assert "Paris" in answered(page)[0]
    frame(page).get_by_text(EN("history_full")).wait_for()
    no_error(page)


def test_damaged_entries_are_dropped_with_a_sentence(visit: Visit) -> None:
    page = visit()
    long = "x" * (history.MAX_CHARACTERS + 2000)
    put(page, a="", b="{", c="[3]", d=entry(record(long)), e='{"saved": "x"}\n{}', f="null\n", good=entry(record(), 0))
    put(page, **{f"deep{i}": entry(text) for i, text in enumerate(("", "[" * 9000, '{"version": 9}'))})
    frame(page).get_by_text(EN("history_damaged")).wait_for()
    assert len(titles(page, 4)) == 4
    for left in (3, 2, 1):  # those whose inside is damaged
        frame(page).locator(".title").first.click()
        page.locator(".stAlert").wait_for()
        assert EN("not_opened", why="").split(":")[0] in page.locator(".stAlert").inner_text()
        titles(page, left)
    frame(page).locator(".title").first.click()
    page.get_by_text("Good day.").wait_for()
    no_error(page)


def test_what_is_stored_runs_no_script_and_names_another_model(visit: Visit, picture: Any) -> None:
    page = visit()
    evil = "<img src=x onerror='top.hacked=1'><script>top.hacked=2</script>"
    put(page, a=entry(record(evil, evil, f"Other {evil}"), title=evil))
    page.reload()
    titles(page, 1)
    frame(page).locator(".title").click()
    page.get_by_text("answered by another model: Other <img").wait_for()
    answered(page)
    page.wait_for_timeout(500)
    assert page.evaluate("window.hacked") is None
    picture(page)


def test_the_store_is_bounded(visit: Visit) -> None:
    page = visit()
    put(page, **{f"old{i}": entry(record(), i + 1, f"old {i}") for i in range(history.MAX_RECORDS)})
    page.reload()
    titles(page, history.MAX_RECORDS)
    ask(page, FRANCE)
    answered(page)
    frame(page).get_by_role("button", name=FRANCE, exact=True).wait_for()
    shown = titles(page, history.MAX_RECORDS)
    assert shown[0] == FRANCE
    assert shown[-1] == "old 1"
    button(page, EN("new_chat")).first.click()
    open_(page, EN("conversation"))
    upload(page, [{"role": "user", "content": "long"}, {"role": "assistant", "content": "x " * history.MAX_CHARACTERS}])
    frame(page).get_by_text(EN("history_long")).wait_for()
    assert titles(page, history.MAX_RECORDS)[0] == FRANCE


def test_megabytes_of_history_do_not_hold_the_page_up(visit: Visit) -> None:
    page = visit()
    long = entry(record("long", "x" * 90_000))
    put(page, **{f"old{i}": long for i in range(history.MAX_RECORDS)})
    page.reload()
    page.get_by_placeholder(EN("ask")).fill("What is the cap")
    titles(page, history.MAX_RECORDS)
    assert page.get_by_placeholder(EN("ask")).input_value() == "What is the cap"
    inside = next(each for each in page.frames if "recipe_history" in each.url)
    took = inside.evaluate("() => { const since = performance.now(); draw(); return performance.now() - since }")
    assert took < 100, took  # milliseconds; parsing them all would take several times as long


@pytest.mark.parametrize(("code", "question"), [("zh", "法国的首都是哪里？"), ("en", FRANCE)])
def test_it_fits_a_phone_in_the_dark_in_both_languages(code: str, question: str, visit: Visit, picture: Any) -> None:
    say = words(code)
    page = visit(dark=True)
    page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    page.locator("[data-testid=collapsedControl] button").first.click()
    page.get_by_text(NAMES[code], exact=True).click()
    page.get_by_placeholder(say("ask")).wait_for(state="attached")
    frame(page).get_by_text(say("history_where", most=history.MAX_RECORDS)).wait_for()
    picture(page, "none")
    page.locator("[data-testid=stSidebar] button").first.click()
    ask(page, question, say)
    answered(page, say=say)
    picture(page, "chat")
    page.locator("[data-testid=collapsedControl] button").first.click()
    assert titles(page, 1) == [question]
    picture(page, "list")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390
