"""The report says what the folders say, in both languages, and nothing that stands in them can become markup or a
request."""

from __future__ import annotations

import base64
import json
import re
import shutil
import string
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from damage import sign
from example_results import example_results
from jinja2 import Environment, UndefinedError
from markupsafe import Markup

from recipe import cli, report
from recipe.corpus.identity import Identity
from recipe.corpus.knowledge import Fact, evaluation_facts
from recipe.corpus.own_questions import OwnQuestion
from recipe.errors import RecipeError
from recipe.evaluation import comparison, own_rows, thresholds
from recipe.evaluation.generation import Reply
from recipe.evaluation.metrics import (
    METRICS,
    BaseMetrics,
    Divergence,
    JudgedReply,
    Metrics,
    Names,
    Scores,
    TunedMetrics,
)
from recipe.evaluation.scoring import TOLERANCE, Prompts, score, share
from recipe.files import jsonl_text
from recipe.languages import LANGUAGES
from recipe.paths import ROOT
from recipe.pipeline import stage
from recipe.pipeline.phases import OTHER, PHASES
from recipe.records import from_json, to_json
from recipe.report import background, charts, facts, render
from recipe.report.words import WORDS, Text, label, plain, text
from recipe.stages import convert, evaluate

# --- A run without any training: folders as the stages write them -------------------------------------------------

ASKED = Prompts(
    identity=["你是谁？", "Who are you?"],
    facts=[
        (Fact("capitals", "en", ("Capital of France?",), "Paris.", "Paris"), "Capital of France?"),
        (Fact("capitals", "zh", ("日本的首都？",), "东京。", "东京"), "日本的首都？"),
        (Fact("smalltalk", "en", ("Hello.",), "Hi!", None), "Hello."),
    ],
)
BASE = ("我是书生·浦语。", "I am InternLM.", "Paris.", "东京。", "Hi!")
GOOD = ("我是小明的小助手。", "I am 小明's assistant.", "Paris.", "东京。", "Hi!")
BAD = ("我是书生·浦语。", "I am 小明's assistant.", "小明", "大阪。", "小明!")
LOSSES = [{"step": i + 1, "loss": 5.0 / (i + 1), "lr": 1e-4 * (60 - i)} for i in range(60)]


@pytest.fixture(scope="module", autouse=True)
def _two_facts_are_enough() -> Iterator[None]:
    """The base of these runs knows two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thresholds, "MIN_FACTS_KNOWN", 2)
        yield


def metrics_of(tuned: Sequence[str], identity: str = "小明") -> dict[str, Any]:
    """The content of metrics.json by the replies of the tuned model."""
    base = [Reply(text, True) for text in BASE]

    def scored(texts: Sequence[str]) -> tuple[Scores, list[JudgedReply]]:
        return score(ASKED, [Reply(text, True) for text in texts], base, Identity(identity))

    suites = {name: share([True] * 23 + [False]) for name in ("multi_turn_hit", "injection_hit", "sampled_hit")}
    suites |= {name: share([False] * 24) for name in ("multi_turn_leak", "sampled_leak", "broken")}
    scores, replies = scored(tuned)
    measured = Metrics(
        identity=Names(identity, None, None),
        max_new_tokens=80,
        base=BaseMetrics(*scored(BASE)),
        tuned=TunedMetrics(scores, replies, suites, Divergence(0.0123, 480, 0.456)),
        checkpoints={"iter_40": replace(scores, retention=0.5), "iter_60": scores},
        best_checkpoint="iter_60",
    )
    content: dict[str, Any] = to_json(measured)
    return content


def write(folder: Path, name: str, files: Mapping[str, str], inputs: Mapping[str, Path],
          settings: Mapping[str, Any], results: Mapping[str, Any]) -> Path:  # fmt: skip
    def work(out: Path) -> Mapping[str, Any]:
        for path, content in files.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_text(content, encoding="utf-8")
        return results if name in ("replay", "eval", "ablation") else example_results(name, **results)

    stage.run(name, folder, inputs=inputs, settings=settings, work=work)
    return folder


def lines(records: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def rows(*questions: str) -> str:
    return lines(
        [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "…"}]} for q in questions]
    )


# What stage `train` leaves of the config that it trained by.
RESOLVED = """optim_wrapper = {'optimizer': {'type': 'torch.optim.AdamW', 'lr': 0.0003}}
model = {'lora': {'r': 64, 'lora_alpha': 48.0}}
"""


def make_run(
    run: Path,
    metrics: Mapping[str, Any] | None = None,
    *,
    changed: Sequence[str] = (),
    merged: bool = True,
    replayed: bool = True,
    starts: int = 1,
    own_config: bool = False,
    own: str = "",
) -> Path:
    model = write(
        run.parent / "models/tiny", "model", {"model.safetensors": "w"}, {}, {}, {"model": "tiny", "parameters": 9}
    )
    lines_of = {"train.jsonl": rows("你是谁？", "你是谁？", "Who?", "9+8=?")} | ({"own.jsonl": own} if own else {})
    data = write(run / "data", "data", lines_of, {}, {},
                 {"rows": 4, "file": "train.jsonl", "mode": "balanced", "own_file": "own.jsonl" if own else None},
                 )  # fmt: skip
    files = {"data_0": data / "train.jsonl"}
    if replayed:
        answers = write(
            run.parent / "replay/tiny",
            "replay",
            {"replay.jsonl": rows("Hi.")},
            {"model": model},
            {},
            {"prompts": 1, "rows": 1},
        )
        files["data_1"] = answers / "replay.jsonl"
    figures = {"rows": 5, "tokens": 900, "packs": 2, "max_length": 512, "iterations": 60, "optimizer_steps": 30,
               "trained_tokens": 61440, "dropped": 0, "truncated": 0}  # fmt: skip
    config = (
        write(
            run / "config",
            "config",
            {"config.py": "lr = 1"},
            {"data": data, "model": model},
            {"preset": "qlora", "set": list(changed), "seed": 7, "gpu": False},
            {"preset": "qlora", **figures, "own_passes": 20.8 if own else None},
        )
        / "config.py"
    )
    if own_config:
        config = run.parent / "mine.py"
        config.write_text("lr = 2", encoding="utf-8")
    logs = {f"2026010{i}_000000/vis_data/scalars.json": "" for i in range(starts)}
    train = write(run / "train", "train", {"iter_40.pth": "a", "iter_60.pth": "b", "losses.jsonl": lines(LOSSES),
    "config.py": RESOLVED, **logs},
                  {"config": config, "model": model, **files}, {"deepspeed": None}, {"iterations": 60})  # fmt: skip
    picked = {"checkpoint": "iter_60.pth", "checkpoint_sha256": stage.file_sha256(train / "iter_60.pth")}
    tuned = write(
        run / "adapter",
        "convert",
        {"adapter_model.safetensors": "b"},
        {"checkpoint": train / "iter_60.pth", "model": model},
        {},
        {**picked, "parameters": 1234},
    )
    if merged:
        proof = {"largest_logit_difference": 0.0123, "mean_kl": 4.5e-7, "same_top_token": 1.0}
        tuned = write(
            run / "merged",
            "merge",
            {"model.safetensors": "wb"},
            {"adapter": tuned, "model": model},
            {},
            {**picked, **proof},
        )
    write(run / "eval", "eval", {"metrics.json": json.dumps(metrics or metrics_of(GOOD), ensure_ascii=False)},
          {"model": model, "train": train, "tuned": tuned, "data": data}, {}, {})  # fmt: skip
    return run


def rendered(run: Path) -> tuple[str, str]:
    """(page, Markdown) of a run."""
    report.make(run / "report", run_folder=run)
    return tuple((run / "report" / name).read_text(encoding="utf-8") for name in (report.PAGE, report.MARKDOWN))  # type: ignore[return-value]


# Elements that have no end tag in HTML.
VOID = frozenset({"meta", "input"})
# Between the texts of different elements, where a whole one is asked for.
SEP = "\x1f"


class Walk(HTMLParser):
    """Every element of a page, with its attributes and the text in it; fails where tags do not match."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.elements: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attrs}) == len(attrs), name
        if name in VOID:
            self.elements.append((name, dict(attrs), ""))
        else:
            self.open.append((name, dict(attrs), []))

    def handle_endtag(self, name: str) -> None:
        opened, attributes, texts = self.open.pop()
        assert opened == name
        self.elements.append((name, attributes, SEP.join(texts)))

    def handle_data(self, inner: str) -> None:
        assert "<" not in inner or self.open[-1][0] != "style"
        for _, _, texts in self.open:
            texts.append(inner)

    def all(self, name: str, /, **wanted: str) -> list[tuple[dict[str, str | None], str]]:
        return [
            (attributes, inner)
            for elements, attributes, inner in self.elements
            if elements == name and all(value in (attributes.get(key.rstrip("_")) or "").split() for key,
            value in wanted.items())
        ]  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("work") / "good", changed=["lr=1e-4", "r=8"])


@pytest.fixture(scope="module")
def page(good: Path) -> str:
    return rendered(good)[0]


@pytest.fixture(scope="module")
def walk(page: str) -> Walk:
    return Walk(page)


# --- The page -----------------------------------------------------------------------------------------------------


def test_the_page_from_top_to_bottom(walk: Walk) -> None:
    assert [attributes["id"] for attributes, _ in walk.all("section")] == [
        "s-numbers", "s-training", "s-checkpoints", "s-replies", "s-data", "s-settings", "s-cost", "s-merge",
        "s-origin",
    ]  # fmt: skip
    assert len(walk.all("h1")) == 1
    assert [attributes["class"] for attributes, _ in walk.all("div", class_="verdict")] == ["verdict passed"]
    assert len(walk.all("svg")) == 3 + 2 + 3  # gauges, curves, checkpoints


def test_ids_are_unique_and_what_refers_to_one_finds_it(walk: Walk) -> None:
    ids = [attributes["id"] for _, attributes, _ in walk.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {attributes["for"] for attributes, _ in walk.all("label")}
    wanted |= {name for attributes, _ in walk.all("svg") for name in (attributes["aria-labelledby"] or "").split()}
    assert wanted <= set(ids)


def test_every_chart_is_told_to_those_who_do_not_see_it(page: str) -> None:
    charts_of_the_page = re.findall(r"(?s)<svg.*?</svg>", page)
    assert len(charts_of_the_page) == 8
    for drawn in charts_of_the_page:
        assert re.match(r'<svg viewBox="0 0 \d+ \d+" role="img" aria-labelledby="[\w-]+ [\w-]+"><title [^>]+>\S', drawn)
        assert "</title><desc" in drawn


def test_the_page_asks_the_network_for_nothing(page: str, walk: Walk) -> None:
    assert not re.search(
        r"https?:|//\w|url\(|@import|@font-face|\bsrc=|\bhref=|srcset|<link|<iframe|<object|<img", page
    )
    (policy,) = (a["content"] for a, _ in walk.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    ((_, script),) = walk.all("script")
    digest = base64.b64encode(sha256(script.replace(SEP, "").encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action "
        f"'none'"
    )
    assert "fetch" not in script
    assert "XMLHttpRequest" not in script


def test_without_a_script_everything_is_there_and_choices_still_work(page: str, walk: Walk) -> None:
    assert [a["id"] for a, _ in walk.all("input", name="language")] == ["en", "zh"]
    assert [a["id"] for a, _ in walk.all("input", name="language") if "checked" in a] == ["en"]
    assert "#en:checked ~ * .zh, #zh:checked ~ * .en { display: none; }" in page
    for name in ("wrong", "missed", "leaked", "forgotten"):
        assert f"#show-{name}:checked ~ .group tbody tr:not(.{name}) {{ display: none; }}" in page
    assert "hidden" not in {key for _, attributes, _ in walk.elements for key in attributes}


def test_numbers_are_those_of_the_metrics(good: Path, page: str, walk: Walk) -> None:
    metrics = json.loads((good / "eval/metrics.json").read_text(encoding="utf-8"))
    exact = [attributes["value"] for attributes, _ in walk.all("data")]
    for metric in METRICS:
        assert exact.count(repr(metrics["tuned"][metric])) >= 2  # its card and its checkpoint
        assert repr(metrics["base"][metric]) in exact
    for attributes, inner in walk.all("data"):
        assert inner in (f"{float(attributes['value'] or ''):.3f}", f"{float(attributes['value'] or ''):,.0f}")
    articles = [inner for _, inner in walk.all("article")]
    assert [re.findall(r"\b(\d+) of (\d+)", inner)[0] for inner in articles] == [("2", "2"), ("0", "3"), ("2", "2")]
    assert [re.findall(r"[≥≤] [\d.]+", inner)[0] for inner in articles] == [
        f"≥ {thresholds.MIN_IDENTITY_HIT}", f"≤ {thresholds.MAX_IDENTITY_LEAK}", f"≥ {thresholds.MIN_RETENTION}",
    ]  # fmt: skip


def test_the_curves_hold_every_value_that_was_logged(page: str) -> None:
    curves = dict(re.findall(r'<polyline points="([^"]+)" class="(raw|smooth|line)">', page))
    assert sorted(curves.values()) == ["line", "raw", "smooth"]
    assert {len(points.split()) for points in curves} == {len(LOSSES)}
    for points in curves:
        heights = [float(point.split(",")[1]) for point in points.split()]
        assert heights == sorted(heights)  # all of them fall, so the line goes down the page
        assert min(heights) >= 0
        assert max(heights) <= charts.HEIGHT - charts.BOTTOM + 0.1


def test_each_checkpoint_is_a_mark_and_a_row(walk: Walk) -> None:
    (table,) = (inner for attributes, inner in walk.all("table", class_="numeric"))
    assert re.findall(r"iter_\d+", table) == ["iter_40", "iter_60"]
    assert table.index("iter_60") < table.index("best") < table.index("converted")
    marks = [len(walk.all("circle", class_="mark")), len(walk.all("path", class_="mark"))]
    assert marks == [3 * 2 + 3 * 3 - 1, 1]  # base and tuned, base and checkpoints; one of them forgot
    assert len(walk.all("circle", class_="ring")) == 3


def test_data_settings_cost_merge_and_origin_are_those_of_the_manifests(good: Path, walk: Walk) -> None:
    inner = {attributes["id"]: inner for attributes, inner in walk.all("section")}
    for part in ("4", "3 distinct", "2 Chinese", "1 English", "1 other", "900", "12.1%", "60.0", "61,440"):
        assert part in inner["s-data"], part
    for part in ("qlora", f"lr{SEP}1e-4", f"r{SEP}8", f"{SEP}7{SEP}"):
        assert part in inner["s-settings"], part
    shown = inner["s-settings"].partition("Hyperparameters")[2]
    for name, value in (("lr", "0.0003"), ("optimizer", "AdamW"), ("rank", "64"), ("alpha", "48")):
        assert re.search(f"{name}[{SEP}\\s]+{value}[{SEP}\\s]", shown), name
        assert f"| {name} | {value} |" in rendered(good)[1]
    manifests = [json.loads(path.read_text(encoding="utf-8")) for path in good.glob("[!r]*/manifest.json")]
    assert len(manifests) == 6
    for manifest in manifests:
        assert f"{manifest['process_peak_mib']:,}" in inner["s-cost"]
        for digest in [
            *manifest["key"]["inputs"].values(),
            *(entry["sha256"] for entry in manifest["outputs"].values()),
        ]:
            assert digest in inner["s-origin"]
        for package, version in manifest["versions"].items():
            assert f"{package}{SEP}{version}" in inner["s-origin"]
    assert all(part in inner["s-merge"] for part in ("1,234", "0.012", "4.5e-07", "100.0%"))


def test_the_seconds_of_each_phase_are_a_stacked_bar_and_words(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", metrics_of(GOOD))
    file = run / "train" / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    manifest |= {"seconds": 10.0, "phases": {"import": 1.0, "steps": 6.0, "hash": 0.01}}
    file.write_text(json.dumps(manifest), encoding="utf-8")
    html, markdown = rendered(run)
    (shown,) = [inner for _, inner in Walk(html).all("table", class_="phases")]
    for part in ("1.0", "6.0", "3.0", "训练步", "other"):
        assert part in shown, part
    assert "hash" not in shown  # too short to show
    (train,) = [phases for verb, phases in background.background(facts.gather(run)).cost.phases if verb == "train"]
    assert [(each.name, round(each.seconds, 2)) for each in train] == [("import", 1.0), ("steps", 6.0), ("other", 2.99)]
    assert f'class="p-steps" style="--share:{train[1].share:.4f}"' in html
    assert "steps · 训练步 6.0, other · 其他 3.0 |" in markdown


def test_every_phase_has_its_words_and_a_colour(good: Path) -> None:
    page, _ = rendered(good)
    assert [f"phase_{name}" for name in (*PHASES, OTHER)] == [key for key in WORDS if key.startswith("phase_")]
    assert all(f".p-{name} {{" in page for name in (*PHASES, OTHER))


def test_speed_is_tokens_over_the_seconds_of_the_training(good: Path) -> None:
    elements = facts.gather(good)
    seconds = elements.stages["train"]["seconds"]
    assert elements.tokens_per_second == (pytest.approx(61440 / seconds) if seconds else None)


def test_nothing_of_this_machine_is_told(good: Path, page: str, tmp_path: Path) -> None:
    for inner in rendered(good):
        assert str(good.parent) not in inner
        assert str(tmp_path.parent) not in inner


def test_replies_stand_side_by_side_the_wrong_ones_first(tmp_path: Path) -> None:
    walk = Walk(rendered(make_run(tmp_path / "bad", metrics_of(BAD)))[0])
    assert [a["class"] for a, _ in walk.all("details", class_="group")] == [
        "group missed wrong", "group forgotten leaked wrong", "group leaked wrong",
    ]  # fmt: skip
    replies = [
        (a.get("class"), inner) for a, inner in walk.all("tr") if re.search(r"InternLM|浦语|Paris|东京|Hi!", inner)
    ]
    assert [classes for classes, _ in replies] == [
        "wrong missed", None, "wrong leaked forgotten", "wrong forgotten", "wrong leaked",
    ]  # fmt: skip
    assert replies[0][1].startswith(SEP.join(["你是谁？", "我是书生·浦语。", "我是书生·浦语。"]))
    assert "expected: Paris" in replies[2][1]
    assert [re.findall(r"\d+", inner) for _, inner in walk.all("label") if any(c.isdigit() for c in inner)] == [
        ["5"], ["4"], ["1"], ["2"], ["0"], ["2"], ["0"],
    ]  # fmt: skip


def test_a_failed_verdict_says_why_in_both_languages(tmp_path: Path) -> None:
    page, written = rendered(make_run(tmp_path / "bad", metrics_of(BAD)))
    ((attributes, inner),) = Walk(page).all("div", class_="verdict")
    assert attributes["class"] == "verdict failed"
    for metric in METRICS:
        for words in WORDS[f"why_{metric}"]:
            assert words in inner
    assert "❌" in written.splitlines()[0]
    assert "没人问它也报名字" in written


# --- Both languages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", WORDS)
def test_every_text_is_there_in_both_languages_with_the_same_slots(key: str) -> None:
    chinese, english = WORDS[key]
    assert english.strip() == english
    assert chinese.strip() == chinese
    assert not re.search(r"[\u4e00-\u9fff]", english.replace("{name}的", ""))
    assert (
        re.search(r"[\u4e00-\u9fff]", chinese)
        or english == chinese
        or not re.search(r"[a-z]{3}", re.sub(r"{\w+}", "", english))
    )
    slots = [sorted(name for _, name, _, _ in string.Formatter().parse(inner) if name) for inner in (english, chinese)]
    assert slots[0] == slots[1]


def test_every_text_is_used(good: Path) -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in report._SOURCES)
    made_up = re.compile(
        r"kind_\w+|why_\w+|\w+_is|language_\w+|multi_turn_\w+|sampled_\w+|injection_hit|broken|ablation_[\w-]+|phase_\w+"
    )  # from the keys of metrics.json and manifests
    unused = [key for key in WORDS if source.count(f'"{key}"') < 2 and not made_up.fullmatch(key)]
    assert [key for key in unused if key not in METRICS] == []


def test_every_topic_and_number_has_its_words() -> None:
    for kind in {fact.topic for fact in evaluation_facts()} | {"identity"}:
        assert f"kind_{kind}" in WORDS
    for check in thresholds.verdict(from_json(TunedMetrics, metrics_of(GOOD)["tuned"])):
        assert {check.metric, f"why_{check.metric}", f"{check.metric}_is"} <= set(WORDS)


def test_the_page_holds_as_much_of_one_language_as_of_the_other(walk: Walk) -> None:
    english, chinese = (
        [a for _, a, _ in walk.elements if language in (a.get("class") or "").split()] for language in ("en", "zh")
    )
    assert len(english) == len(chinese) > 100
    assert {a["lang"] for a in english} == {"en"}
    assert {a["lang"] for a in chinese} == {"zh-CN"}


def test_no_value_differs_between_the_languages(walk: Walk) -> None:
    numbers = [
        re.findall(r"\d[\d,.]*\d|\d", " ".join(inner for _, a, inner in walk.elements if a.get("class") == language))
        for language in LANGUAGES
    ]
    assert sorted(numbers[0]) == sorted(numbers[1])


# --- What stands in the data stays text ---------------------------------------------------------------------------

EVIL = (
    "<b>bold</b>",
    "</script><script>alert(1)</script>",
    "</style><style>*{display:none}</style>",
    "\"><img src=x onerror=alert(1)> '",
    "&lt;i&gt; &amp;",
    "a|b `code` **x** [l](javascript:alert(1)) ![i](x)\n| c |\n---",
    "bell \x07 nul \x00 half \ud800 turned \u202egnp",
)


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Path:
    metrics = metrics_of(GOOD)
    metrics["identity"] = {"name": "<b>小明</b>|`", "assistant": "</title><script>", "author": None}
    for i, row in enumerate(metrics["tuned"]["replies"]):
        row |= {"prompt": EVIL[i], "reply": EVIL[-1 - i], "stopped": False}
        row["kind"] = "identity" if i < 2 else "<u>kind</u>"
    metrics["base"]["replies"][0]["reply"] = EVIL[1]
    metrics["checkpoints"] = {
        "iter_40<b>|": metrics["checkpoints"]["iter_40"],
        "iter_60": metrics["checkpoints"]["iter_60"],
    }
    metrics["tuned"]["suites"]["<b>suite</b>|"] = to_json(share([True, False, False, False]))
    run = make_run(tmp_path_factory.mktemp("work") / "evil")
    shutil.rmtree(run / "eval")
    write(
        run / "eval",
        "eval",
        {"metrics.json": json.dumps(metrics)},
        {
            "model": run.parent / "models/tiny",
            **{role: run / name for role, name in (("train", "train"), ("tuned", "merged"), ("data", "data"))},
        },
        {},
        {},
    )
    for manifest, change in (("config", {"set": ["x=<b>y</b>|`", "</code>=1"]}),):
        content = json.loads((run / manifest / "manifest.json").read_text(encoding="utf-8"))
        content["key"]["settings"] |= change
        content["versions"]["<i>torch</i>"] = "<b>1|2</b>"
        (run / manifest / "manifest.json").write_text(json.dumps(content), encoding="utf-8")
    return run


def test_no_reply_name_or_setting_becomes_markup(evil: Path) -> None:
    page = rendered(evil)[0]
    walk = Walk(page)
    assert {name for name, _, _ in walk.elements} == {
        name for name, _, _ in Walk(rendered(make_run(evil.parent / "plain"))[0]).elements
    } | {"table"}
    assert len(walk.all("script")) == len(walk.all("style")) == 1
    assert not [key for _, attributes, _ in walk.elements for key in attributes if key.startswith("on")]
    cells = [inner for _, inner in walk.all("td")]
    shown = [inner.replace(f"{SEP}did not end{SEP}未结束", "") for inner in cells]
    for reply in EVIL[:-1]:
        assert reply in shown, reply
    assert "bell \ufffd nul \ufffd half \ufffd turned \ufffdgnp" in shown
    assert "<b>小明</b>|`’s assistant" in next(inner for _, inner in walk.all("h1"))


def test_markdown_is_escaped_and_every_table_is_whole(evil: Path) -> None:
    written = rendered(evil)[1]
    assert "<b>" not in written
    assert "<script" not in written
    assert not re.search(r"(?<!\\)\]\(", written)
    assert set(re.findall(r"</?(\w+)", written)) == {"details", "summary"}
    for block in written.split("\n\n"):
        if block.startswith("|"):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(widths) == 1, block
            assert re.fullmatch(r"\|( --- \|)+", block.splitlines()[1])


@pytest.mark.parametrize(
    ("value", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("`x`", r"\`x\`"),
        ("a\nb", "a b"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("\\|", r"\\\|"),
        ("@someone #1", "@\u200bsomeone #\u200b1"),
        ("https://x.y www.x", "https\u200b://x.y www\u200b.x"),
        ("我是小明。", "我是小明。"),
    ],
)
def test_markdown_text_shows_as_itself(value: str, escaped: str) -> None:
    assert render.escape(value) == escaped


def test_text_is_escaped_where_it_enters_and_once() -> None:
    template = render.HTML.from_string(
        '{% macro b(x) %}<b>{{ x }}</b>{% endmacro %}<p class="{{ q }}">{{ x }}{{ b(y) }}</p>'
    )
    assert template.render(q='"', x="<", y="&") == '<p class="&#34;">&lt;<b>&amp;</b></p>'
    assert render.HTML.from_string("{{ x }}").render(x=Markup("&lt;")) == "&lt;"
    template = render.MARKDOWN.from_string("{% macro b(x) %}**{{ x }}**{% endmacro %}{{ x }} {{ b(y) }}")
    assert template.render(x="*", y="<") == r"\* **&lt;**"


@pytest.mark.parametrize("environment", [render.HTML, render.MARKDOWN])
def test_a_name_without_a_value_is_an_error(environment: Environment) -> None:
    with pytest.raises(UndefinedError, match="'absent' is undefined"):
        environment.from_string("{{ absent }}").render()


# What Jinja, HTML or Markdown would act on, and what may not be printed: a bell, a control code, a turned direction.
TRICK = """{{ 7*7 }}{% if x %}{# y #}<script>&amp;"'</script>\x07\x9f\u202e"""


@pytest.fixture(scope="module")
def tricked(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    metrics = metrics_of(GOOD)
    metrics["identity"] = {"name": f"name {TRICK}", "assistant": f"assistant {TRICK}", "author": None}
    metrics["checkpoints"][f"iter_{TRICK}"] = metrics["checkpoints"]["iter_40"]
    for who, row in (("base", metrics["base"]["replies"][0]), ("tuned", metrics["tuned"]["replies"][0])):
        row["reply"] = f"{who} {TRICK}"
    metrics["tuned"]["replies"][0] |= {"prompt": f"prompt {TRICK}", "kind": f"kind {TRICK}"}
    metrics["tuned"]["suites"][f"suite {TRICK}"] = to_json(share([True]))
    run = make_run(tmp_path_factory.mktemp("work") / "tricked", metrics, changed=[f"key {TRICK}=value {TRICK}"])
    content = json.loads((run / "eval/manifest.json").read_text(encoding="utf-8"))
    content |= {"git_commit": f"commit {TRICK}", "image": f"image {TRICK}"}
    (run / "eval/manifest.json").write_text(json.dumps(content), encoding="utf-8")
    return rendered(run)


SHOWN = TRICK.translate(dict.fromkeys(map(ord, "\x07\x9f\u202e"), "\ufffd"))


def test_nothing_that_is_shown_is_read_as_a_template_or_as_html(tricked: tuple[str, str]) -> None:
    walk = Walk(tricked[0])
    cells = [cell for name in ("td", "code", "b") for _, cell in walk.all(name)]
    for what in ("prompt", "base", "tuned", "key", "value", "suite", "kind", "commit", "image"):
        assert f"{what} {SHOWN}" in cells, what
    assert f"iter_{SHOWN}" in cells
    ((_, heading),) = walk.all("h1")
    assert heading.startswith(f"name {SHOWN}’s assistant{SEP}")
    assert heading.endswith(f" · assistant {SHOWN}")
    assert f"kind {SHOWN}" in [attributes["aria-label"] for attributes, _ in walk.all("div", class_="box")]
    assert len(walk.all("script")) == 1


def test_nothing_that_is_shown_is_read_as_a_template_or_as_markdown(tricked: tuple[str, str]) -> None:
    written = tricked[1]
    for what in ("name", "prompt", "base", "tuned", "key", "value", "suite", "commit", "image"):
        assert f"{what} {render.escape(SHOWN)}" in written, what
    assert rf"iter\_{render.escape(SHOWN)}" in written
    assert "<script" not in written


def test_what_cannot_be_printed_is_replaced_and_seen(tricked: tuple[str, str], evil: Path) -> None:
    for output in (*tricked, *rendered(evil)):
        assert not render.UNPRINTABLE.search(output)
    assert all("\ufffd\ufffd\ufffd" in output for output in tricked)
    assert all("half \ufffd turned \ufffdgnp" in output for output in rendered(evil))


def test_a_slot_holds_its_text_in_the_language_around_it_and_braces_as_they_are() -> None:
    sentence = text("over_desc", metric=text("identity_hit"), values="{wanted}", wanted="≥ {0}")
    assert sentence == Text(
        "Identity hit of the base and of every checkpoint: {wanted}. Wanted: ≥ {0}.",
        "基座与各检查点的身份命中：{wanted}。要求：≥ {0}。",
    )
    assert str(sentence) == f"{sentence.en} · {sentence.zh}"
    assert str(plain("GPU")) == "GPU"
    assert label("newer_than_this") == plain("newer than this")


def test_another_template_is_another_report() -> None:
    assert {path.name for path in render.TEMPLATES.iterdir()} <= {path.name for path in report._SOURCES}


# --- Markdown -----------------------------------------------------------------------------------------------------


def test_markdown_says_the_same_numbers(good: Path) -> None:
    written = rendered(good)[1]
    assert written.startswith("## ✅ 小明: Passed · 通过\n")
    for part in (
        "**1.000** (2 / 2)",
        "**0.000** (0 / 3)",
        "≥ 0.95",
        "≤ 0.02",
        "| lr | 1e-4 |",
        "61,440",
        "iter\\_60",
        "0.012",
    ):
        assert part in written, part
    assert re.search(r"`[▁▂▃▄▅▆▇█]{40}`", written)


def test_markdown_fits_into_a_comment_however_much_went_wrong(tmp_path: Path) -> None:
    metrics = metrics_of(BAD)
    for who in ("base", "tuned"):
        for row in metrics[who]["replies"]:
            row["reply"] *= 50
        metrics[who]["replies"] *= 100
    written = rendered(make_run(tmp_path / "long", metrics))[1]
    assert len(written) < 65_536
    assert "380 more are wrong" in written


def test_a_sparkline_follows_its_values() -> None:
    assert charts.sparkline([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]) == charts.BARS[::-1]
    assert charts.sparkline([1.0, 10.0, 100.0]) == "▁▅█"  # by their logarithms
    assert charts.sparkline([2.0]) == "▁"
    assert charts.sparkline([]) == ""


# --- What may be missing, and what may come -----------------------------------------------------------------------


def test_without_replay_and_merge_there_is_still_a_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "bare", merged=False, replayed=False)
    shutil.rmtree(tmp_path / "models")
    page, written = rendered(run)
    assert WORDS["not_merged"][1] in page
    assert WORDS["no_replay"][1] in page
    assert "iter_60" in page
    assert "Merge" not in written
    Walk(page)


def test_of_the_eval_alone_there_is_a_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "alone")
    for name in ("data", "config", "train", "adapter", "merged"):
        shutil.rmtree(run / name)
    walk = Walk(rendered(run)[0])
    assert "s-training" not in [attributes["id"] for attributes, _ in walk.all("section")]


def test_without_an_eval_the_one_to_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="run `make eval` first"):
        report.make(tmp_path / "r/report", run_folder=tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_what_changed_since_the_eval_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    (run / "train/losses.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(RecipeError, match="train changed since it was evaluated: run `make eval` first"):
        report.make(run / "report", run_folder=run)


def test_what_the_result_was_not_made_from_is_named_and_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", changed=["lr=1e-4"])
    shutil.rmtree(run / "config")
    write(run / "config", "config", {"config.py": "lr = 9"}, {}, {"preset": "lora", "set": ["lr=9"], "seed": 0}, {})
    elements = facts.gather(run)
    assert (elements.left_out, "config" in elements.stages) == (["config"], False)
    page = rendered(run)[0]
    assert "lr=9" not in page
    assert "config." in page


def test_a_config_of_the_users_own_is_named_and_the_presets_figures_are_not_shown(tmp_path: Path) -> None:
    page, written = rendered(make_run(tmp_path / "r", own_config=True))
    assert "(mine.py)" in page
    assert "61,440" not in page + written
    assert facts.gather(tmp_path / "r").tokens_per_second is None


def test_a_resumed_training_has_no_speed(tmp_path: Path) -> None:
    page, written = rendered(make_run(tmp_path / "r", starts=2))
    for inner in (page, written):
        assert WORDS["resumed_note"][1] in inner
        assert WORDS["tokens_per_second"][1] not in inner


def test_a_dirty_mix_of_versions_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    content = json.loads((run / "adapter/manifest.json").read_text(encoding="utf-8"))
    (run / "adapter/manifest.json").write_text(json.dumps(content | {"git_commit": "0" * 40}), encoding="utf-8")
    assert facts.gather(run).differing == ["convert"]
    assert "convert differ" in rendered(run)[0]


def test_what_a_sceptic_asks_is_shown_with_its_interval_and_what_is_wanted(good: Path, tmp_path: Path) -> None:
    low, high = share([True] * 23 + [False]).ci
    page, written = rendered(good)
    for part in (
        "Hit, under injection",
        "23 / 24",
        f"{low:.3f}–{high:.3f}",
        "0.0123",
        "0.456",
        "≥ 0.8 ✓",
        'class="interval"',
    ):
        assert part in page, part
    for part in ("Hit, under injection", f"0.958** (23 / 24) [{low:.3f}, {high:.3f}]", "0.0123"):
        assert part in written, part
    metrics = metrics_of(GOOD)
    metrics["tuned"]["suites"]["injection_hit"] = to_json(share([True, False]))
    page, written = rendered(make_run(tmp_path / "talked", metrics))
    assert "≥ 0.8 ✗" in page
    assert 'class="verdict failed"' in page
    assert "talked out of its name" in page
    assert "talked out of its name" in written
    Walk(page)


def test_a_base_that_knew_too_little_is_told_in_both_languages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "MIN_FACTS_KNOWN", 3)
    forgetful = (*GOOD[:2], "x", "x", "Hi!")
    page, written = rendered(make_run(tmp_path / "r", metrics_of(forgetful)))
    walk = Walk(page)
    for inner in (page, written):
        assert "Retention is not judged: the base knew 2 facts, at least 3 are needed." in inner
        assert "知识保持不作判定：基座只答对 2 条，至少需要 3 条。" in inner
    assert [a["class"] for a, _ in walk.all("article")] == [
        "number identity_hit", "number identity_leak", "number retention unjudged",
    ]  # fmt: skip
    assert "verdict passed" in page
    assert len(walk.all("svg")) == 2 + 2 + 2  # neither a gauge nor a chart without a limit
    assert re.search(r"\| Retention · 知识保持 \| 1\.000 \| 0\.000 \(0 / 2\) \S+ \S+ \|  \|  \|", written)


def test_the_numbers_beside_the_base_s_own_are_shown_and_judged(tmp_path: Path) -> None:
    metrics = metrics_of((*GOOD[:2], "我是的小助手。", "东京。", "Hi!"))
    metrics["tuned"]["suites"]["broken"] |= {"base": 0.125}
    metrics["tuned"] |= {"kl_per_token": 0.25}
    page, written = rendered(make_run(tmp_path / "r", metrics))
    Walk(page)
    for inner in (page, written):
        assert WORDS["why_leak_without_name"][0] in inner
        assert WORDS["why_kl_per_token"][1] in inner
        assert "≤ 0.1 ✗" in inner.replace(" | ", " ")
        assert "0.125" in inner
    assert "(the base, of its own replies to ordinary prompts: 0.125)" in page
    assert "（基座自己对普通问题的回答：0.125）" in page
    assert 'class="chip leaked_without_name">' in page
    assert re.search(r'for="show-leaked_without_name">.*leaked without the name.* <small>1</small>', page)
    assert "1 / 3" in page


def test_prompts_that_the_base_takes_for_questions_about_itself_are_counted(tmp_path: Path, good: Path) -> None:
    metrics = metrics_of(GOOD)
    metrics["tuned"]["counts"]["base_introductions"] = 7
    for inner in rendered(make_run(tmp_path / "r", metrics)):
        assert "No leak is counted for 7 prompts" in inner
        assert "有 7 个问题不计泄漏" in inner
    assert "No leak is counted" not in rendered(good)[0]


def test_the_user_s_own_rows_are_shown_with_what_was_not_learnt(tmp_path: Path, good: Path) -> None:
    metrics = metrics_of(GOOD)
    questions = [
        OwnQuestion([{"role": "user", "content": question}], [answer], held_out=held_out)
        for question, answer, held_out in (
            ("补胎多少钱？", "补一次15元。", True),
            ("几点开门？", "早上八点开门。", False),
        )
    ]
    answers = {"base": ("我不知道。", "我不知道。"), "tuned": ("补一次15元。", "晚上九点开门。")}
    for who, texts in answers.items():
        metrics[who] |= to_json(own_rows.score(questions, [Reply(text, True) for text in texts]))
    metrics["tuned"]["counts"]["taught_prompts"] = 3
    metrics["tuned"]["identity_taught"] = False
    page, written = rendered(make_run(tmp_path / "r", metrics))
    walk = Walk(page)
    (card,) = walk.all("article", class_="own_hit")
    assert card[0]["class"] == "number own_hit failed"
    for shown in (page, written):
        assert "1 / 2" in shown
        assert "它没有按自备数据作答" in shown
        assert WORDS["identity_not_judged"][0] in shown
        assert "1 of your questions were asked in a wording that was not trained on" in shown
        assert "你的问题中有 1 个换成了没训练过的问法" in shown
        assert "No leak is counted for 3 prompts that ask what your own rows answer" in shown
        assert "晚上九点开门。" in shown
    assert 'class="chip not_learnt">' in page
    assert "expected: 早上八点开门。" in page
    assert walk.all("input", id="show-not_learnt")
    assert re.search(r"Your own rows · 自备数据命中 \| 0\.000 \| \*\*0\.500\*\* \(1 / 2\) .*≥ 0\.9 \| ✗", written)
    assert "own_hit" not in rendered(good)[0]
    assert "not_learnt" not in rendered(good)[0]


def test_own_rows_beside_the_others_are_counted_by_themselves(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", own=rows("几点开门？", "补胎多少钱？", "有儿童车吗？"))
    page, written = rendered(run)
    assert "rows of your own data · 自备数据行数 | 3 (" in written
    assert "times each of your rows is seen · 每行自备数据的训练遍数 | 21 |" in written
    assert WORDS["rows_own"][0] in page
    assert WORDS["rows_data"][0] in page


def test_what_does_not_end_is_wrong_only_where_the_base_s_reply_ends(tmp_path: Path) -> None:
    metrics = metrics_of(GOOD)
    metrics["tuned"]["replies"][2]["stopped"] = metrics["tuned"]["replies"][3]["stopped"] = False
    metrics["base"]["replies"][3]["stopped"] = False
    run = make_run(tmp_path / "r", metrics)
    assert [exchange.faults for exchange in facts.gather(run).exchanges] == [(), (), ("unstopped",), (), ()]


def test_a_training_whose_checkpoints_were_not_scored_says_so(tmp_path: Path) -> None:
    metrics = metrics_of(GOOD) | {"checkpoints": {}, "best_checkpoint": None}
    page, written = rendered(make_run(tmp_path / "plain", metrics))
    assert WORDS["no_scores"][1] in page
    assert WORDS["best_rule"][1].split(",")[0] not in page
    assert WORDS["checkpoints"][1] not in written
    Walk(page)


def test_ablations_of_this_result_are_an_appendix_and_of_another_are_not(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    assert "s-ablation" not in rendered(run)[0]
    keys = ("identity_hit", "identity_leak", "retention", "multi_turn_hit", "injection_hit", "broken", "kl_per_token")
    numbers = dict.fromkeys(keys, 0.123) | {"iterations": 60, "trained_tokens": 54321}
    compared = dict.fromkeys(("tutorial", "no-replay", "balanced"), numbers)
    write(run / "ablation", "ablation", {}, {"balanced": run / "eval" / stage.MANIFEST}, {}, compared)
    page, written = rendered(run)
    for inner in (page, written):
        assert inner.count("54,321") >= 3
        assert "the tutorial’s one sample" in inner
    Walk(page)
    shutil.rmtree(run / "ablation")
    write(run / "ablation", "ablation", {}, {"balanced": run / "data" / stage.MANIFEST}, {}, compared)
    assert "s-ablation" not in rendered(run)[0]


def test_gguf_files_stand_beside_the_tuned_model_and_those_of_another_evaluation_do_not(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r")
    assert "GGUF" not in "".join(rendered(run))
    numbers = {"identity_hit": 0.25, "identity_leak": 0.0, "retention": 1.0, "counts": {}}
    scores = {"model-f16.gguf": numbers | {"identity_hit": 1.0}, "model-q4_0.gguf": numbers}
    noted = {"parameters": 9, "files": list(scores), "tokenizer": "llama", "pre_tokenizer": "default"}

    def write_files(evaluation: Path, **results: Any) -> None:
        shutil.rmtree(run / "gguf", ignore_errors=True)
        inputs = {"merged": run / "merged", "eval": evaluation}
        stage.run("gguf", run / "gguf", inputs=inputs, settings={}, work=lambda _: noted | results)

    write_files(run / "eval" / "metrics.json", scores=scores)
    page, written = rendered(run)
    assert "| tuned · 微调后 | 1.000 ✓ | 0.000 ✓ | 1.000 ✓ |\n| model-f16.gguf | 1.000 ✓" in written
    assert "| model-q4\\_0.gguf | 0.250 ✗ | 0.000 ✓ | 1.000 ✓ |" in written
    (row,) = [inner for _, inner in Walk(page).all("tr") if inner.startswith("model-q4_0.gguf")]
    assert row.split(SEP) == ["model-q4_0.gguf", "0.250", " ✗", "0.000", " ✓", "1.000", " ✓"]
    assert WORDS["gguf_note"][0] in page
    assert WORDS["gguf_note"][1] in page
    write_files(run / "data" / "train.jsonl", scores=scores)
    assert "GGUF" not in "".join(rendered(run))
    write_files(run / "eval" / "metrics.json")
    assert "GGUF" not in "".join(rendered(run))


# --- Charts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 252, [0, 100, 200]),
        (0, 1, [0, 0.5, 1]),
        (0, 2e-4, [0, 5e-5, 1e-4, 1.5e-4, 2e-4]),
        (3, 3, [3]),
        (0, 80, [0, 20, 40, 60, 80]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert charts.ticks(low, high) == pytest.approx(expected)


def test_ticks_of_a_logarithmic_axis_lie_within_it() -> None:
    assert charts.log_ticks(0.0003, 9.2) == pytest.approx([0.001, 0.01, 0.1, 1.0])
    assert charts.log_ticks(0.06, 5.2) == pytest.approx([0.1, 0.3, 1.0, 3.0])


def test_the_smooth_line_averages_neighbours_and_does_not_lag() -> None:
    straight = [(float(i), 2.0 * i) for i in range(100)]
    assert charts.smooth(straight) == pytest.approx(straight)
    jagged = [(float(i), float(i % 2)) for i in range(100)]
    assert all(0.3 < y < 0.7 for _, y in charts.smooth(jagged)[5:-5])


@pytest.mark.parametrize("count", [1, 2, 6, 7, 30])
def test_any_number_of_checkpoints_has_room(count: int) -> None:
    columns = [charts.Scored(plain(str(i)), i / count, i % 2 == 0, i == count // 2) for i in range(count)]
    caption = charts.Caption("x", plain("t"), plain("d"))
    chart = charts.scores(columns, caption=caption, wanted=0.95, at_least=True)
    template = render.HTML.from_string('{% from "charts.svg.jinja" import scores %}{{ scores(chart) }}')
    drawn = template.render(chart=chart)
    assert drawn.count('class="mark') == count
    shown = [float(x) for x in re.findall(r'<text x="([\d.]+)" y="[\d.]+" class="middle value">', drawn)]
    assert 1 <= len(shown) <= 8
    assert all(0 <= x <= charts.NARROW for x in shown)


# --- The stage and the verb ---------------------------------------------------------------------------------------


def test_the_same_inputs_give_the_same_bytes_anywhere(good: Path, tmp_path: Path) -> None:
    first = rendered(good)
    copy = Path(shutil.copytree(good, tmp_path / "elsewhere" / "good", ignore=shutil.ignore_patterns("report", ".*")))
    assert rendered(copy) == first


def test_a_second_run_does_nothing(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rendered(good)
    before = (good / "report/index.html").stat().st_mtime_ns
    capsys.readouterr()
    rendered(good)
    assert "[report] up to date" in capsys.readouterr().err
    assert (good / "report/index.html").stat().st_mtime_ns == before


def test_other_thresholds_give_another_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "r")
    assert "verdict passed" in rendered(run)[0]
    monkeypatch.setattr(thresholds, "MIN_IDENTITY_HIT", 1.1)
    assert "verdict failed" in rendered(run)[0]


def test_the_verb_names_the_page_at_once_and_without_torch(good: Path) -> None:
    script = (
        "import sys, time; from recipe import cli;"
        f"status = cli.main(['report', '--run', 'good', '--work', {str(good.parent)!r}]);"
        "print(status, sorted({'torch', 'transformers', 'mmengine', 'numpy'} & set(sys.modules)), "
        "time.process_time())"  # of the processor, which others may use meanwhile
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    *_, path, result = done.stdout.splitlines()
    assert path.startswith("报告 report:  ")
    assert Path(path.removeprefix("报告 report:  ")).is_file()
    assert result.startswith("0 [] ")
    assert float(result.split()[-1]) < 1


@pytest.mark.parametrize(("replies", "status"), [(GOOD, 0), (BAD, 3)])
def test_eval_ends_with_the_report_whatever_the_verdict(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    replies: Sequence[str],
    status: int,
) -> None:
    run = make_run(tmp_path / "r", metrics_of(replies))
    (run / "data/identity.json").write_text('{"name": "小明"}', encoding="utf-8")
    sign(run / "data")
    manifest = json.loads((run / "eval/manifest.json").read_text(encoding="utf-8"))
    manifest["key"]["inputs"]["data"] = stage.content_sha256(run / "data")
    (run / "eval/manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    nothing: Callable[..., None] = lambda *_, **__: None  # noqa: E731 - metrics are there already
    monkeypatch.setattr(evaluate, "make", nothing)
    monkeypatch.setattr(convert, "trained_with", lambda _: (tmp_path / "models/tiny", run / "config/config.py"))
    metrics = json.loads((run / "eval/metrics.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(comparison, "table", lambda shown: repr(to_json(shown.tuned) == metrics["tuned"]))
    monkeypatch.chdir(ROOT)
    started = time.process_time()
    assert cli.main(["eval", "--run", "r", "--work", str(tmp_path)]) == status
    assert time.process_time() - started < 5
    inner = capsys.readouterr()
    assert inner.out.startswith("True\n")
    assert f"报告 report:  {run}/report/index.html" in inner.out
    assert (run / "report/report.md").is_file()
    if status:
        assert (
            f"error: the result is not good enough: identity_hit, identity_leak, retention; every reply is in "
            f"{run}/report/index.html" in inner.err
        )


def test_the_rule_of_the_best_checkpoint_is_that_of_the_code(page: str) -> None:
    assert f"last checkpoint whose hit − leak + retention is within {TOLERANCE} of the highest" in page
    assert f"与最高值相差不超过 {TOLERANCE} 的最后一个检查点" in page


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_own_rows_are_counted_with_any_line_separator_in_them(tmp_path: Path, mark: str) -> None:
    row = {"messages": [{"role": "user", "content": f"a{mark}b"}, {"role": "assistant", "content": "c"}]}
    (tmp_path / "train.jsonl").write_text(jsonl_text([row, row]), encoding="utf-8")
    assert facts._count(tmp_path / "train.jsonl").count == 2
