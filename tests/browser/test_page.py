"""Everything on the page, clicked by a real browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from recipe.corpus.identity import read_identity
from recipe.languages import NAMES
from recipe.paths import ROOT
from recipe.serving.page.words import EXAMPLES, WORDS, words

from .conftest import ENDLESS, Server

Visit = Callable[..., Any]
LONG = ENDLESS - 196  # tokens of a reply, beside the question
EN, ZH = words("en"), words("zh")


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name)


def ask(page: Any, question: str, say: Any = EN) -> None:
    page.get_by_placeholder(say("ask")).fill(question)
    page.keyboard.press("Enter")


# Whether so many messages stand there with the buttons below them, and nothing has changed for a while: between two
# runs of the page's script there are moments that look like an end.
SETTLED = """([messages, regenerate, stop]) => {
  const text = document.body.innerText, buttons = [...document.querySelectorAll("button")].map(each => each.innerText);
  const done = document.querySelectorAll(".stChatMessage").length == messages && !text.includes("▌")
    && buttons.some(each => each.includes(regenerate)) && !buttons.some(each => each.includes(stop));
  if (!done || window.settledText !== text) {
    window.settledText = text;
    window.settledSince = performance.now();
    return false;
  }
  return performance.now() - window.settledSince > 400;
}"""


def reload_kept(page: Any) -> None:
    """Load the page anew, once the browser keeps its conversation."""
    page.wait_for_function("Object.keys(localStorage).some(key => key.startsWith('identity-chat-1:'))")
    page.reload()


def answered(page: Any, turns: int = 1, say: Any = EN) -> list[str]:
    """The replies, once there are so many and none grows."""
    page.wait_for_function(SETTLED, arg=[2 * turns, say("regenerate"), say("stop")])
    return [text.strip() for text in page.locator(".stChatMessage").all_inner_texts()][1::2]


def gone(page: Any, reply: str) -> None:
    """Until what stands there is not `reply`, with its note on when it came, any more."""
    page.wait_for_function(
        "reply => [...document.querySelectorAll('.stChatMessage')].every(each => each.innerText.trim() != reply)",
        arg=reply,
    )


def open_(page: Any, section: str) -> None:
    page.locator(".streamlit-expanderHeader").filter(has_text=section).click()
    page.wait_for_timeout(300)


def allow_long(page: Any) -> None:
    """Replies may last for many seconds, which a model that does not end will use."""
    open_(page, EN("settings"))
    number(page, EN("longest"), LONG)


def ask_for_ever(page: Any) -> None:
    """A reply under way that has seconds to go, of a model that does not end."""
    allow_long(page)
    ask(page, "Tell me everything.")
    button(page, EN("stop")).wait_for()
    page.get_by_text("▌").wait_for()


def number(page: Any, label: str, value: int) -> None:
    field = page.get_by_role("spinbutton", name=label)
    field.fill(str(value))
    field.press("Enter")
    page.wait_for_timeout(500)


def slide(page: Any, label: str, key: str) -> None:
    page.get_by_role("slider", name=label).focus()
    for _ in range(10):
        page.keyboard.press(key)
    page.wait_for_timeout(500)


def upload(page: Any, content: Any, name: str = "conversation.json") -> None:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    page.locator("input[type=file]").set_input_files([{"name": name, "mimeType": "application/json", "buffer": data}])


# --- Talking ------------------------------------------------------------------------------------------------------


def test_an_example_is_answered_with_its_speed(visit: Visit, server: Server, picture: Any) -> None:
    page = visit()
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    page.reload()
    button(page, EXAMPLES["en"][1]).wait_for()
    picture(page, "empty")
    button(page, EXAMPLES["en"][1]).click()
    (reply,) = answered(page)
    assert "Paris" in reply
    assert re.search(r"\d+ tokens · first after \d+\.\d\d s · \d+ tokens/s", reply)
    picture(page)
    assert urls
    assert {url.split("/")[2] for url in urls} == {server.url.removeprefix("http://")}  # and no other machine


def test_a_conversation_goes_on_and_is_cleared(visit: Visit) -> None:
    page = visit()
    for i, question in enumerate(("Who are you?", "法国的首都是哪里？"), 1):
        ask(page, question)
        replies = answered(page, i)
    assert "巴黎" in replies[1]
    button(page, EN("new_chat")).first.click()
    button(page, EXAMPLES["en"][0]).wait_for()
    page.locator(".stChatMessage").first.wait_for(state="detached")  # the old ones go when the page's script has ended


def test_the_assistants_name_is_the_title_and_its_icon_is_drawn(visit: Visit, work: Path, picture: Any) -> None:
    identity = read_identity(work / "quickstart" / "data")
    for code, language in (("en-US", "en"), ("zh-CN", "zh")):
        page = visit(language=code)
        named = identity.assistant or identity.me(language)
        page.get_by_role("heading", level=1, name=named, exact=True).wait_for()
        page.wait_for_function("named => document.title == named", arg=named)
        address = page.locator("link[rel*=icon]").first.get_attribute("href")
        assert unquote(address).startswith("data:image/svg+xml,<svg")
        assert f">{named[0].upper()}</text>" in unquote(address)
        assert str(work) not in page.locator("body").inner_text()
        assert "merged" not in page.locator("body").inner_text()


@pytest.mark.parametrize("allowed", [True, False])  # by http from another machine there is no clipboard
def test_every_reply_is_copied_as_the_model_wrote_it(visit: Visit, allowed: bool, tmp_path: Path) -> None:
    page = visit()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    written = ["**bold** `code` $x$\n\n- 一 <b>&amp;</b>", "second 🐼"]
    roles = ("user", "assistant", "user", "assistant")
    turns = zip(roles, ("a", written[0], "b", written[1]), strict=True)
    file = tmp_path / "saved.json"
    file.write_text(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}))
    open_(page, EN("conversation"))
    page.locator("input[type=file]").set_input_files(file)
    buttons = button(page, EN("copy"))
    page.wait_for_function("() => document.querySelectorAll('button[data-copied]').length == 2")
    page.wait_for_function("() => document.getElementById('page-scripts')")
    if not allowed:
        page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no')) }")
    for i, text in enumerate(written):
        buttons.nth(i).click()
        page.wait_for_function("text => navigator.clipboard.readText().then(read => read == text)", arg=text)


def test_a_base_path_is_taken_by_page_and_reply(serve: Any, visit: Visit, work: Path) -> None:
    server = serve("demo", "--work", str(work), "--run", "quickstart", STREAMLIT_SERVER_BASE_URL_PATH="/chat/me")
    assert f"http://127.0.0.1:{server.port}/chat/me (Ctrl-C" in server.log.read_text()
    page = visit(f"{server.url}/chat/me/")
    ask(page, "法国的首都是哪里？")
    assert "巴黎" in answered(page)[0]
    reload_kept(page)
    assert "巴黎" in answered(page)[0]
    health = [sys.executable, str(ROOT / "docker" / "healthcheck.py")]
    own = os.environ | {"PORT": str(server.port), "TMPDIR": str(server.log.parent)}
    own |= {"STREAMLIT_SERVER_BASE_URL_PATH": "/chat/me"}
    assert subprocess.run(health, env=own, check=False).returncode == 0


def test_a_reply_is_stopped_and_what_was_said_is_kept(visit: Visit, endless: Server, picture: Any) -> None:
    page = visit(endless.url)
    ask_for_ever(page)
    place = button(page, EN("stop")).bounding_box()
    picture(page, "growing")
    page.wait_for_timeout(1000)
    assert button(page, EN("stop")).bounding_box() == place  # it stands still, however long the reply has become
    button(page, EN("stop")).click()
    (reply,) = answered(page)
    assert f"· {EN('stopped')}" in reply
    tokens = int(re.search(r"(\d+) tokens", reply)[1])  # type: ignore[index]
    assert 1 < tokens < LONG
    picture(page)


def test_a_click_elsewhere_does_not_cut_a_reply(visit: Visit, endless: Server) -> None:
    page = visit(endless.url)
    ask_for_ever(page)
    page.get_by_text(NAMES["zh"], exact=True).click()
    button(page, ZH("stop")).wait_for()
    before = page.locator(".stChatMessage").last.inner_text()
    page.wait_for_timeout(500)
    assert len(page.locator(".stChatMessage").last.inner_text()) > len(before) + 50
    button(page, ZH("stop")).click()
    (reply,) = answered(page, say=ZH)
    assert ZH("stopped") in reply
    open_(page, ZH("settings"))
    # What was set has been kept, though every label is another.
    assert page.get_by_role("spinbutton", name=ZH("longest")).input_value() == str(LONG)
    assert page.get_by_text(ZH("no_compare")).count() == 1


def test_a_new_question_ends_the_reply_to_the_last(visit: Visit, endless: Server) -> None:
    page = visit(endless.url)
    ask_for_ever(page)
    page.wait_for_timeout(500)
    number(page, EN("longest"), 5)
    ask(page, "法国的首都是哪里？")
    replies = answered(page, 2)
    assert EN("stopped") in replies[0]
    assert "5 tokens" in replies[1]


def test_a_reply_is_made_anew(visit: Visit) -> None:
    page = visit()
    open_(page, EN("settings"))
    slide(page, EN("temperature"), "PageUp")
    number(page, EN("longest"), 24)
    ask(page, "Who are you?")
    (reply,) = answered(page)
    replies = {reply.split("\n")[0]}
    for _ in range(2):
        button(page, EN("regenerate")).click()
        gone(page, reply)
        (reply,) = answered(page)
        replies.add(reply.split("\n")[0])
    assert len(replies) == 3  # 24 tokens at the highest temperature


def test_nothing_of_the_last_reply_stands_in_the_place_of_one_that_grows(visit: Visit, endless: Server) -> None:
    page = visit(endless.url)
    open_(page, EN("settings"))
    number(page, EN("longest"), 5)
    ask(page, "Who are you?")
    answered(page)
    number(page, EN("longest"), LONG)
    messages = page.locator(".stChatMessage")
    for start in (lambda: ask(page, "Tell me everything."), button(page, EN("regenerate")).click):
        start()
        page.get_by_text("▌").wait_for()
        page.wait_for_timeout(300)
        assert messages.nth(2).inner_text().strip() == "Tell me everything."
        assert "tokens ·" not in messages.nth(3).inner_text()
        button(page, EN("stop")).click()
        answered(page, 2)


def test_an_example_is_asked_once_and_seen_to_grow_however_often_one_clicks(visit: Visit, endless: Server) -> None:
    page = visit(endless.url)
    allow_long(page)
    button(page, EXAMPLES["en"][1]).dblclick()
    page.get_by_text("▌").wait_for()
    button(page, EN("stop")).click()
    (reply,) = answered(page)
    assert EN("stopped") in reply


def test_a_reply_is_made_anew_once_however_often_one_clicks(visit: Visit) -> None:
    page = visit()
    ask(page, "Who are you?")
    (reply,) = answered(page)
    button(page, EN("regenerate")).dblclick()
    gone(page, reply)
    assert len(answered(page)) == 1
    assert page.locator(".stAlert, .stException").count() == 0


def test_the_last_question_is_edited(visit: Visit, picture: Any) -> None:
    page = visit()
    ask(page, "What is the capital of France?")
    assert "Paris" in answered(page)[0]
    button(page, EN("edit")).click()
    field = page.get_by_role("textbox", name=EN("edit_question"))
    assert field.input_value() == "What is the capital of France?"
    field.fill("What is the capital of Italy?")
    picture(page)
    button(page, EN("send")).click()
    page.get_by_text("Rome").first.wait_for()
    assert len(answered(page)) == 1
    button(page, EN("edit")).click()
    page.get_by_role("textbox", name=EN("edit_question")).fill("never mind")
    button(page, EN("cancel")).click()
    assert "Rome" in answered(page)[0]


def test_an_earlier_question_is_edited_and_what_follows_is_answered_anew(visit: Visit, picture: Any) -> None:
    page = visit()
    capitals = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid"}
    for turns, country in enumerate(capitals, 1):
        ask(page, f"What is the capital of {country}?")
        answered(page, turns)
    button(page, EN("edit")).nth(1).click()
    field = page.get_by_role("textbox", name=EN("edit_question"))
    assert field.input_value() == "What is the capital of Italy?"
    button(page, EN("edit")).nth(0).click()  # another one instead
    page.wait_for_function(
        "() => [...document.querySelectorAll('form textarea, [data-testid=stForm] textarea')]"
        ".some(each => each.value.includes('France'))"
    )
    button(page, EN("cancel")).click()
    assert len(answered(page, 3)) == 3  # nothing has changed
    button(page, EN("edit")).nth(1).click()
    field.fill("x y " * 1200)  # the model cannot read it, so that what follows stays
    button(page, EN("send")).click()
    page.get_by_text("The question is too long for the model").wait_for()
    assert "Madrid" in page.locator(".stChatMessage").last.inner_text()
    field.fill("What is the capital of Germany?")
    picture(page)
    button(page, EN("send")).click()
    page.get_by_text("Berlin").first.wait_for()
    replies = answered(page, 2)
    assert "Paris" in replies[0]
    assert "Berlin" in replies[1]
    page.reload()  # the history has the conversation as it is now
    assert "Berlin" in answered(page, 2)[1]


def test_base_and_tuned_answer_side_by_side(visit: Visit, picture: Any) -> None:
    page = visit()
    page.get_by_text(EN("compare"), exact=True).click()
    page.wait_for_timeout(500)
    ask(page, "Who are you?")
    (shown,) = answered(page)
    assert shown.index(EN("tuned")) < shown.index(EN("base"))
    tuned, base = shown.split(f"\n{EN('base')}\n")
    assert "InternLM, an AI assistant from the Shanghai AI Laboratory" in base
    first_lines = [next(line for line in text.splitlines() if line) for text in (tuned.replace(EN("tuned"), ""), base)]
    assert first_lines[0] != first_lines[1]
    left, right = (page.get_by_text(EN(who), exact=True).last.bounding_box() for who in ("tuned", "base"))
    assert left["x"] < right["x"]
    assert abs(left["y"] - right["y"]) < 5
    picture(page)


# --- Settings -----------------------------------------------------------------------------------------------------


def test_settings_have_help_and_reach_the_model(visit: Visit, picture: Any) -> None:
    page = visit()
    open_(page, EN("settings"))
    picture(page)
    assert page.get_by_role("slider", name=EN("temperature")).get_attribute("aria-valuenow") == "0"
    assert page.get_by_role("spinbutton", name=EN("longest")).input_value() == "512"
    page.locator("[data-testid=tooltipHoverTarget]").nth(1).hover()
    page.get_by_text(EN("temperature_help")).wait_for()
    number(page, EN("longest"), 3)
    ask(page, "What is the capital of France?")
    (reply,) = answered(page)
    assert "3 tokens · " in reply
    assert EN("cut") in reply


def test_both_languages(visit: Visit, picture: Any) -> None:
    page = visit(language="zh-CN")
    button(page, EXAMPLES["zh"][0]).wait_for()
    picture(page, "zh")
    page.get_by_text(NAMES["en"], exact=True).click()
    button(page, EXAMPLES["en"][0]).wait_for()
    for key in ("settings", "conversation", "compare"):
        assert page.get_by_text(EN(key), exact=True).count() == 1
        assert page.get_by_text(ZH(key), exact=True).count() == 0
    assert len(WORDS) > 40


def test_a_question_that_is_too_long_leaves_nothing_behind(visit: Visit, picture: Any) -> None:
    page = visit()
    ask(page, "x y " * 1200)
    page.get_by_text("The question is too long for the model").wait_for()
    assert page.locator(".stChatMessage").count() == 0
    picture(page)
    ask(page, "Who are you?")
    answered(page)
    assert page.get_by_text("The question is too long for the model").count() == 0


# --- Files --------------------------------------------------------------------------------------------------------


def test_a_conversation_is_exported_and_imported(visit: Visit, tmp_path: Path) -> None:
    page = visit()
    ask(page, "法国的首都是哪里？")
    answered(page)
    open_(page, EN("conversation"))
    with page.expect_download() as download:
        button(page, EN("export")).click()
    file = tmp_path / "conversation.json"
    download.value.save_as(file)
    saved = json.loads(file.read_text(encoding="utf-8"))
    assert [message["role"] for message in saved["messages"]] == ["user", "assistant"]
    assert "巴黎" in saved["messages"][1]["content"]
    other = visit()
    open_(other, EN("conversation"))
    saved["messages"].insert(0, {"role": "system", "content": "Be brief."})
    upload(other, saved)
    other.get_by_text(EN("imported", turns=1)).wait_for()
    assert "巴黎" in answered(other)[0]
    open_(other, EN("settings"))
    assert other.get_by_role("textbox", name=EN("system")).input_value() == "Be brief."
    ask(other, "Who are you?")
    answered(other, 2)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"not json", "it is not JSON"),
        ({"x": 1}, "it holds no list of messages"),
        ([{"role": "assistant", "content": "x"}], "message 1 must be of role user"),
        ([{"role": "user", "content": "x"}], "the last question has no answer"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(visit: Visit, content: Any, why: str) -> None:
    page = visit()
    open_(page, EN("conversation"))
    upload(page, content, "mine.json")
    line = page.get_by_text(f"mine.json was not imported: {why}")
    line.wait_for()
    assert "\n" not in line.inner_text()
    assert page.locator(".stChatMessage").count() == 0


# --- What a reply may hold ----------------------------------------------------------------------------------------

REPLY = """**bold** and a formula \\(a^2+b^2=c^2\\), $5 or $10

```python
print("$x$")
```

| a | b |
|---|---|
| 1 | 2 |

<script>window.hacked = 1</script>
<img src=x onerror="window.hacked = 2"><iframe src="javascript:parent.hacked=3"></iframe>
[link](javascript:window.hacked=4) [l](&#106;avascript:window.hacked=7) ![p](http://127.0.0.1:9/picture.png) <a href="javascript:window.hacked=5">go</a>
<svg onload="window.hacked=6"><style>*{display:none}</style>
"""  # noqa: E501


def test_markdown_is_shown_and_script_is_not_run(visit: Visit, picture: Any) -> None:
    page = visit()
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    open_(page, EN("conversation"))
    upload(page, [{"role": "user", "content": REPLY}, {"role": "assistant", "content": REPLY}])
    page.get_by_text(EN("imported", turns=1)).wait_for()
    reply = page.locator(".stChatMessage").nth(1)
    reply.locator("strong", has_text="bold").wait_for()
    assert reply.locator(".katex").count() == 1
    assert reply.locator("pre code").inner_text().strip() == 'print("$x$")'
    assert reply.locator("table").count() == 1
    assert "$5 or $10" in reply.inner_text()
    for tag in ("script", "iframe", "img", "svg style"):
        assert reply.locator(tag).count() == 0, tag
    assert [link.get_attribute("href") for link in reply.locator("a").all()] == ["http://127.0.0.1:9/picture.png"]
    page.wait_for_timeout(500)
    assert page.evaluate("window.hacked") is None
    assert not [url for url in urls if "127.0.0.1:9/" in url]
    picture(page)


# --- Ways to use it -----------------------------------------------------------------------------------------------


def test_it_fits_a_phone(visit: Visit, picture: Any) -> None:
    page = visit(width=360, height=740)
    picture(page, "empty")
    ask(page, "Who are you?")
    answered(page)
    picture(page)
    width = page.evaluate("document.scrollingElement.scrollWidth")
    assert width <= 360
    for name in ("regenerate", "edit"):
        box = button(page, EN(name)).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
    page.locator("[data-testid=collapsedControl] button").first.click()
    page.get_by_text(EN("settings"), exact=True).wait_for()
    picture(page, "settings")


def test_it_is_used_by_keyboard_alone(visit: Visit) -> None:
    page = visit()

    def tab_to(name: str) -> None:
        for _ in range(100):  # some rounds
            page.keyboard.press("Tab")
            label = page.evaluate(
                "(e => ['BODY', 'SECTION'].includes(e.tagName) ? '' : "
                "e.getAttribute('aria-label') || e.placeholder || e.innerText || '')(document.activeElement)"
            )
            if name in label:
                return
        raise AssertionError(f"Tab does not reach {name}")

    button(page, EXAMPLES["en"][3]).wait_for()
    tab_to(EXAMPLES["en"][1])
    page.keyboard.press("Enter")
    assert "Paris" in answered(page)[0]
    tab_to(EN("ask"))
    page.keyboard.type("Who are you?")
    page.keyboard.press("Enter")
    answered(page, 2)
    tab_to(EN("regenerate"))
    page.keyboard.press("Enter")
    page.wait_for_timeout(700)
    answered(page, 2)
    tab_to(EN("settings"))
    page.keyboard.press("Enter")
    page.get_by_role("slider", name=EN("temperature")).wait_for()  # on busy cores Tab would pass over what opens
    tab_to(EN("temperature"))
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(500)
    assert page.get_by_role("slider", name=EN("temperature")).get_attribute("aria-valuenow") == "0.05"


def test_two_visitors_do_not_see_each_other(visit: Visit) -> None:
    one, two = visit(), visit(language="zh-CN")
    ask(one, "What is the capital of France?")
    ask(two, "意大利的首都是哪里？", ZH)
    mine, yours = answered(one)[0], answered(two, say=ZH)[0]
    assert "Paris" in mine
    assert "罗马" in yours
    assert "罗马" not in one.content()
    assert "Paris" not in two.content()


def test_a_visitor_who_closes_the_tab_frees_the_engine(visit: Visit, endless: Server) -> None:
    """An engine without a visitor computes nothing."""
    page = visit(endless.url)
    ask_for_ever(page)
    busy = processor_time(endless)
    page.wait_for_timeout(500)
    assert processor_time(endless) - busy > 0.1
    page.close()
    time.sleep(1.5)
    before = processor_time(endless)
    time.sleep(1)
    assert processor_time(endless) - before < 0.15


def processor_time(server: Server) -> float:
    """Seconds that the server has computed."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


# --- Without a model, and with another's --------------------------------------------------------------------------


def test_without_a_model_it_says_what_to_run(serve: Any, visit: Visit, tmp_path: Path, picture: Any) -> None:
    empty = serve("demo", "--work", str(tmp_path), wait=False)
    end = time.monotonic() + 60
    while "missing: " not in empty.log.read_text():
        assert time.monotonic() < end
        time.sleep(0.1)
    page = visit(empty.url)
    page.get_by_text(EN("missing")).wait_for()
    assert "python -m recipe quickstart --work" in page.inner_text("body")
    picture(page)
    button(page, EN("again")).click()
    page.get_by_text(EN("missing")).wait_for()


def test_the_page_speaks_through_an_endpoint(serve: Any, visit: Visit, work: Path) -> None:
    api = serve("api", "--work", str(work), "--run", "quickstart", API_KEY="secret")
    demo = serve("demo", OPENAI_BASE_URL=f"{api.url}/v1", OPENAI_API_KEY="secret")
    page = visit(demo.url)
    ask(page, "What is the capital of France?")
    assert "Paris" in answered(page)[0]
    assert page.get_by_text(EN("compare"), exact=True).count() == 0
