"""index.html: the whole report in one file, in two languages, without any request to a network.

A reader's choices (language, which replies) are radio buttons that page.css acts on, so that all works without a script.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from recipe.evaluation import thresholds
from recipe.evaluation.scoring import TOLERANCE
from recipe.report import charts
from recipe.report.facts import COUNTS, FAULTS, METRICS, Exchange, Facts
from recipe.report.markup import Html, join, tag
from recipe.report.words import LANG, LANGUAGES, both, has, pair, say

CSS, JS = ((Path(__file__).parent / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
# With more that is wrong only the first group of replies starts open: of the others, the line that counts them is enough.
OPEN_UP_TO = 12
FILTERS = ("all", "wrong", "missed", "leaked", "forgotten")


def render(facts: Facts) -> str:
    sections = [
        _numbers(facts), _training(facts), _checkpoints(facts), _replies(facts), _data(facts), _settings(facts),
        _cost(facts), _merge(facts), _ablation(facts), _origin(facts),
    ]  # fmt: skip
    body = tag(
        "body",
        *(_radio("language", language, checked=language == "en", label=LANG[language]) for language in LANGUAGES),
        _header(facts),
        tag("main", *sections),
        tag("script", Html(JS)),
    )
    return f"<!doctype html>\n{tag('html', _head(facts), body, lang='en')}\n"


def _head(facts: Facts) -> Html:
    digest = base64.b64encode(sha256(JS.encode()).digest()).decode()
    # The browser itself refuses any request, and any script but ours.
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{facts.name} · {pair('report')}"),
        tag("style", Html(CSS + _generated())),
    )


def _generated() -> str:
    """Of the styles, those that hold words or the filters' names.

    On a phone a row of replies is a card, and each part of it says what it is.
    """
    rules = ""
    for name in FILTERS[1:]:
        shown = f"#show-{name}:checked ~ .group"
        rules += f"{shown}:not(.{name}), {shown} tbody tr:not(.{name}) {{ display: none; }}\n"
    for name in FILTERS:
        rules += (
            f"#show-{name}:checked ~ .filter [for=show-{name}] {{ background: var(--ink); color: var(--paper); }}\n"
        )
        rules += f"#show-{name}:checked ~ .filter [for=show-{name}] small {{ color: inherit; }}\n"
        rules += f"#show-{name}:disabled ~ .filter [for=show-{name}] {{ opacity: .5; cursor: default; }}\n"
        rules += f"#show-{name}:focus-visible ~ .filter [for=show-{name}] {{ outline: 2px solid var(--hit); outline-offset: 2px; }}\n"
    for column, key in enumerate(("prompt", "before", "after"), 1):
        for language in LANGUAGES:
            text = json.dumps(say(key, language), ensure_ascii=False)
            rules += f"#{language}:checked ~ main .exchanges td:nth-child({column}) {{ --is: {text}; }}\n"
    return rules


def _radio(name: str, value: str, *, checked: bool, label: str, disabled: bool = False, prefix: str = "") -> Html:
    return tag("input", type="radio", name=name, value=value, id=prefix + value, checked=checked, disabled=disabled,
               aria_label=label)  # fmt: skip


def _section(key: str, *content: str | None) -> Html:
    return tag("section", tag("h2", both(key)), *content, id=f"s-{key}")


def _note(word: str, **values: object) -> Html:
    return tag("p", both(word, **values), class_="note")


def _share(value: float) -> Html:
    """To three decimals for people, in full for programs."""
    return tag("data", f"{value:.3f}", value=repr(value))


def _label(key: str, prefix: str = "") -> Html:
    """The word for a key of metrics.json; one that came later than this page stands for itself."""
    return both(prefix + key) if has(prefix + key) else join(key.replace("_", " "))


def _wanted(check: thresholds.Check) -> tuple[bool, float]:
    """(at least or at most, how much) of a check."""
    sign, number = check.wanted.split()
    return sign == ">=", float(number)


def _readable(wanted: str) -> str:
    return wanted.replace(">=", "≥").replace("<=", "≤")


def _interval(scored: Mapping[str, Any], metric: str) -> tuple[float, float] | None:
    low_high = scored.get(f"{metric}_ci")
    return (low_high[0], low_high[1]) if low_high else None


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, class_: str = "") -> Html:
    """A table that scrolls in a box of its own where it is wider than the page."""
    header = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head)))
    body = tag("tbody", *(tag("tr", *(tag("td", cell) for cell in row)) for row in rows))
    return tag("div", tag("table", header, body, class_=class_ or None), class_="scroll")


def _pairs(entries: Iterable[tuple[Html, str | None]]) -> Html:
    """Names and values, those without a value left out."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in entries if value is not None))


# --- From top to bottom -------------------------------------------------------------------------------------------


def _header(facts: Facts) -> Html:
    config = facts.stages.get("config", {}).get("key", {}).get("settings", {})
    base = facts.result("model", "model") or Path(facts.stages["eval"]["inputs"]["model"]).name
    about = [("run", facts.run), ("base_model", base), ("preset", config.get("preset")), ("seed", config.get("seed"))]
    failed = [check for check in facts.checks if not check.passed]
    if failed:
        reasons = [tag("li", tag("b", _label(check.metric)), " ", _why(check)) for check in failed]
        why = join(tag("p", both("failed_why", count=len(failed), all=len(facts.checks))), tag("ul", *reasons))
    else:
        why = tag("p", both("passed_why"))
    identity = facts.metrics["identity"]
    return tag(
        "header",
        tag("nav", *(tag("label", text, for_=language, lang=LANG[language])
                     for language, text in zip(LANGUAGES, ("EN", "中文"), strict=True)), aria_hidden="true"),
        tag("p", both("report"), class_="kicker"),
        tag("h1", both("assistant_of", name=facts.name), f" · {identity['assistant']}" if identity.get("assistant") else None),
        tag("p", *(tag("span", both(key), " ", tag("b", str(value))) for key, value in about if value is not None), class_="about"),
        tag("div",
            tag("p", tag("span", "✗" if failed else "✓", class_="sign", aria_hidden="true"),
                both("failed" if failed else "passed"), class_="word"),
            why, class_="verdict failed" if failed else "verdict passed", id="verdict"),
    )  # fmt: skip


def _why(check: thresholds.Check) -> Html:
    return both(f"why_{check.metric}") if has(f"why_{check.metric}") else join(check.why)


def _numbers(facts: Facts) -> Html:
    base, tuned = facts.metrics["base"], facts.metrics["tuned"]
    cards = []
    for check in facts.checks:
        if (metric := check.metric) not in METRICS:
            continue
        at_least, wanted = _wanted(check)
        before, interval = float(base.get(metric, 0.0)), _interval(tuned, metric)
        part, all_ = (tuned["counts"].get(key) for key in COUNTS.get(metric, ("", "")))
        desc = f"{pair('base')} {before:.3f}, {pair('tuned')} {check.value:.3f}, {pair('wanted')} {_readable(check.wanted)}"
        cards.append(tag(
            "article",
            tag("h3", _label(metric)),
            tag("p", tag("span", _share(check.value), class_="big"),
                tag("span", both("of", part=part, all=all_), class_="count") if all_ is not None else None),
            tag("p", both("interval", low=f"{interval[0]:.3f}", high=f"{interval[1]:.3f}"), class_="note") if interval else None,
            charts.gauge(f"gauge-{metric}", before, check.value, wanted=wanted, at_least=at_least, good=check.passed,
                         interval=interval, title=pair(metric) if has(metric) else metric, desc=desc),
            tag("p",
                tag("span", both("base"), " ", _share(before)),
                tag("span", both("wanted"), " ", _readable(check.wanted)), class_="ends"),
            tag("p", both(f"{metric}_is"), class_="note") if has(f"{metric}_is") else None,
            class_=f"number {metric}{'' if check.passed else ' failed'}",
        ))  # fmt: skip
    return _section("numbers", tag("div", *cards, class_="three"), _others(facts))


def _others(facts: Facts) -> Html:
    """What is measured besides: each with its interval, how many replies it is of, and what is wanted where that is judged."""
    base, tuned = facts.metrics["base"], facts.metrics["tuned"]
    judged = {check.metric: check for check in facts.checks}
    rows: list[tuple[str, ...]] = []
    for name, suite in tuned["suites"].items():
        low, high = suite["ci"]
        value = join(_share(suite["value"]), tag("small", f" {low:.3f}–{high:.3f}"))
        check = judged.get(name)
        wanted = join(_readable(check.wanted), " ", "✓" if check.passed else "✗") if check else ""
        what = join(tag("b", _label(name)), tag("small", " ", both(f"{name}_is")) if has(f"{name}_is") else None)
        rows.append((what, value, f"{suite['hits']} / {suite['count']}", wanted))
    rows.append((join(tag("b", both("kl_per_token")), tag("small", " ", both("kl_per_token_is", worst=f"{tuned['kl_worst']:.3f}"))),
                 f"{tuned['kl_per_token']:.4f}", f"{tuned['kl_tokens']:,}", ""))  # fmt: skip
    for key in ("unstopped_replies", "looping_replies"):
        before, after = base["counts"][key], tuned["counts"][key]
        rows.append((join(tag("b", both(key)), tag("small", " ", both("before_that", count=before))), str(after),
                     f"{after} / {len(tuned['replies'])}", ""))  # fmt: skip
    return _table((both("suite"), both("tuned"), both("count"), both("wanted")), rows, class_="suites")


def _training(facts: Facts) -> Html | None:
    loss = [(record["step"], record["loss"]) for record in facts.losses]
    rate = [(record["step"], record["lr"]) for record in facts.losses if "lr" in record]
    figures = []
    if loss:
        said = {"first": f"{loss[0][0]:g}", "last": f"{loss[-1][0]:g}", "start": f"{loss[0][1]:.3g}",
                "end": f"{loss[-1][1]:.3g}", "points": len(loss)}  # fmt: skip
        legend = [tag("span", both("each"), class_="key raw"),
                  tag("span", both("smooth", window=charts.window(len(loss))), class_="key smooth"),
                  tag("span", both("log_axis")) if charts.is_log([y for _, y in loss]) else None]  # fmt: skip
        drawn = charts.curve("loss", loss, title=pair("loss"), desc=pair("loss_desc", **said),
                             unit=both("step", "text"), smoothed=True)  # fmt: skip
        figures.append(_figure("loss", drawn, *legend))
    if rate:
        said = {"first": f"{rate[0][0]:g}", "last": f"{rate[-1][0]:g}", "peak": charts.number(max(y for _, y in rate)),
                "points": len(rate)}  # fmt: skip
        drawn = charts.curve("lr", rate, title=pair("lr"), desc=pair("lr_desc", **said), unit=both("step", "text"),
                             smoothed=False)  # fmt: skip
        figures.append(_figure("lr", drawn))
    return _section("training", tag("div", *figures, class_="two")) if figures else None


def _figure(key: str, drawn: Html, *legend: Html | None) -> Html:
    return tag("figure", tag("figcaption", tag("b", both(key)), *legend), drawn, class_=key)


def _checkpoints(facts: Facts) -> Html:
    scored: Mapping[str, Mapping[str, Any]] = facts.metrics["checkpoints"]
    if not scored:
        return _section("checkpoints", _note("no_scores"))
    best, figures = facts.metrics["best_checkpoint"], []
    for check in facts.checks:
        if check.metric not in METRICS:
            continue
        at_least, wanted = _wanted(check)
        columns = [charts.Scored(both("base", "text"), facts.metrics["base"][check.metric], None)]
        for name, scores in scored.items():
            good = {c.metric: c.passed for c in thresholds.verdict(scores)}[check.metric]
            columns.append(charts.Scored(tag("text", name.removeprefix("iter_")), scores[check.metric], good,
                                         name == facts.converted, _interval(scores, check.metric)))  # fmt: skip
        values = ", ".join(f"{name} {scores[check.metric]:.3f}" for name, scores in scored.items())
        desc = " · ".join(say("over_desc", language, metric=say(check.metric, language), values=values,
                              wanted=_readable(check.wanted)) for language in LANGUAGES)  # fmt: skip
        drawn = charts.scores(f"over-{check.metric}", columns, wanted=wanted, at_least=at_least,
                              title=pair(check.metric), desc=desc)  # fmt: skip
        legend = tag("span", both("wanted"), " ", _readable(check.wanted), class_="key threshold")
        figures.append(_figure(check.metric, drawn, legend))
    rows = []
    for name, scores in (("base", facts.metrics["base"]), *scored.items()):
        marks = [tag("span", both(key), class_=f"mark-{key}")
                 for key, is_it in (("best", name == best), ("converted", name == facts.converted)) if is_it]  # fmt: skip
        rows.append((join(both("base") if name == "base" else name, *marks), *(_share(scores[m]) for m in METRICS)))
    table = _table((both("checkpoint"), *(both(metric) for metric in METRICS)), rows, class_="numeric")
    other = scored.get(facts.converted or "")
    not_best = _note("not_best", best=best) if other and any(other[m] != scored[best][m] for m in METRICS) else None
    return _section(
        "checkpoints",
        tag("div", *figures, class_="three"),
        _note("marks"),
        table,
        _note("best_rule", tolerance=TOLERANCE),
        not_best,
    )


def _replies(facts: Facts) -> Html:
    groups: dict[str, list[Exchange]] = {}
    for exchange in facts.exchanges:
        groups.setdefault(exchange.kind, []).append(exchange)
    counts = Counter(name for exchange in facts.exchanges for name in _classes(exchange))
    counts["all"] = len(facts.exchanges)
    radios = [
        _radio("show", name, checked=name == "all", label=pair(name), disabled=not counts[name], prefix="show-")
        for name in FILTERS
    ]
    labels = [tag("label", both(name), " ", tag("small", str(counts[name])), for_=f"show-{name}") for name in FILTERS]
    return _section(
        "replies",
        _note("replies_note", count=len(facts.exchanges)),
        *radios,
        tag("p", *labels, class_="filter", aria_hidden="true"),
        *(
            _group(kind, exchanges, opened=i == 0 or counts["wrong"] <= OPEN_UP_TO)
            for i, (kind, exchanges) in enumerate(groups.items())
        ),
    )


def _classes(exchange: Exchange) -> list[str]:
    return ["wrong", *exchange.faults] if exchange.faults else []


def _group(kind: str, exchanges: Sequence[Exchange], *, opened: bool) -> Html:
    found = Counter(name for exchange in exchanges for name in _classes(exchange))
    chips = [
        tag("span", both(fault), " ", str(found[fault]), class_=f"chip {fault}") for fault in FAULTS if found[fault]
    ]
    rows = [
        tag("tr",
            tag("td", exchange.prompt,
                tag("small", both("expected", answer=exchange.expected)) if "forgotten" in exchange.faults else None),
            tag("td", exchange.before),
            tag("td", exchange.after,
                tag("p", *(tag("span", both(f), class_=f"chip {f}") for f in exchange.faults)) if exchange.faults else None),
            class_=" ".join(_classes(exchange)) or None)
        for exchange in sorted(exchanges, key=lambda exchange: not exchange.faults)
    ]  # fmt: skip
    head = tag("thead", tag("tr", *(tag("th", both(key), scope="col") for key in ("prompt", "before", "after"))))
    return tag(
        "details",
        tag("summary", tag("b", _label(kind, "kind_")), tag("small", str(len(exchanges))), *(chips or [tag("span", both("nothing_wrong"), class_="quiet")])),
        tag("div", tag("table", head, tag("tbody", *rows), class_="exchanges"), class_="box", tabindex=0, role="region",
            aria_label=pair(f"kind_{kind}") if has(f"kind_{kind}") else kind),
        class_=" ".join(["group", *sorted(found)]), open=opened and found["wrong"] > 0,
    )  # fmt: skip


def _data(facts: Facts) -> Html:
    numbers = facts.forecast
    entries: list[tuple[Html, str | None]] = []
    own = facts.result("data", "mode") == "own"
    entries.append((both("mode"), facts.result("data", "mode")))
    if rows := facts.rows.get("data"):
        entries.append((both("rows_own" if own else "rows_data"), _rows(rows)))
    replayed = facts.rows.get("replay")
    entries.append((both("rows_replay"), _rows(replayed) if replayed else both("no_replay")))
    if numbers:
        padding = f"{facts.padding:.1%}"
        entries += [
            (both("tokens"), f"{numbers['tokens']:,}"),
            (both("packs"), both("packs_of", count=f"{numbers['packs']:,}", length=f"{numbers['max_length']:,}")),
            (both("padding"), both("at_least", share=padding) if numbers["truncated"] else padding),
            (both("dropped"), f"{numbers['dropped']:,}"),
            (both("truncated"), f"{numbers['truncated']:,}"),
            (both("epochs"), f"{facts.epochs:.1f}"),
            (both("iterations"), f"{numbers['iterations']:,}"),
            (both("optimizer_steps"), f"{numbers['optimizer_steps']:,}"),
            (both("trained_tokens"), f"{numbers['trained_tokens']:,}"),
        ]
    return _section("data", _pairs(entries))


def _rows(rows: Any) -> Html:
    parts = [tag("span", f"{rows.count:,}", class_="lead")]
    if rows.distinct != rows.count:
        parts.append(tag("span", both("distinct", count=f"{rows.distinct:,}")))
    parts += [
        tag("span", both(f"language_{language}", count=f"{count:,}")) for language, count in rows.languages.items()
    ]
    return tag("span", *parts, class_="list")


def _settings(facts: Facts) -> Html:
    trained = facts.stages.get("train", {})
    made = facts.stages.get("config")
    deepspeed = trained.get("key", {}).get("settings", {}).get("deepspeed")
    if made is None:
        file = facts.shown(trained["inputs"]["config"]) if trained else "?"
        return _section("settings", _note("own_config", file=file),
                        _pairs([(both("deepspeed"), deepspeed)]) if deepspeed else None)  # fmt: skip
    chosen = made["key"]["settings"]
    changed = [setting.partition("=")[::2] for setting in chosen["set"]]
    entries = _pairs([
        (both("preset"), chosen["preset"]),
        (both("seed"), str(chosen["seed"])),
        (both("device"), both("gpu" if chosen.get("gpu") else "cpu")),
        (both("deepspeed"), deepspeed),
        (both("processes"), str(processes) if (processes := chosen.get("processes", 1)) > 1 else None),
        (both("resolved"), tag("code", "config/config.py")),
    ])  # fmt: skip
    rows = [(tag("code", key), tag("code", value)) for key, value in changed]
    table = _table((both("setting"), both("value")), rows) if rows else tag("p", both("unchanged"))
    return _section("settings", entries, tag("h3", both("changed")), table)


def _cost(facts: Facts) -> Html:
    longest = max(made["seconds"] for made in facts.stages.values())
    with_gpu = any("gpu_peak_mib" in made for made in facts.stages.values())
    rows = []
    for made in facts.stages.values():
        share = made["seconds"] / longest if longest else 0.0
        bar = tag("span", tag("span", f"{made['seconds']:,.1f}"), class_="bar", style=f"--share:{share:.3f}")
        peaks = [made.get(key) for key in ("process_peak_mib", *(("gpu_peak_mib",) if with_gpu else ()))]
        rows.append((made["stage"], bar, *(f"{peak:,}" if peak is not None else "" for peak in peaks)))
    total = sum(made["seconds"] for made in facts.stages.values())
    rows.append((tag("b", both("together")), tag("b", f"{total:,.1f}"), *[""] * (len(rows[0]) - 2)))
    head = [both(key) for key in ("stage", "seconds", "process_peak_mib", *(("gpu_peak_mib",) if with_gpu else ()))]
    speed = facts.tokens_per_second
    return _section(
        "cost",
        tag("p", tag("span", tag("data", f"{speed:,.0f}", value=repr(speed)), class_="big"), " ",
            tag("span", both("tokens_per_second"), class_="count"), class_="speed") if speed else None,
        _note("speed_note") if speed else _note("resumed_note") if facts.resumed else None,
        _table(head, rows, class_="stages"),
        _note("memory_note"),
    )  # fmt: skip


def _merge(facts: Facts) -> Html:
    parameters = facts.result("adapter", "parameters")
    adapter: tuple[Html, str | None] = (both("parameters"), f"{parameters:,}" if parameters is not None else None)
    if "merged" not in facts.stages:
        return _section("merge", _note("not_merged"), _pairs([adapter]))
    proof = facts.stages["merged"]["results"]
    return _section("merge", _note("merge_note"), _pairs([
        adapter,
        (both("largest_logit_difference"), f"{proof['largest_logit_difference']:.2g}"),
        (both("mean_kl"), join(f"{proof['mean_kl']:.2g}", tag("span", f" ≤ {thresholds.MAX_MERGE_KL}", class_="quiet"))),
        (both("same_top_token"), f"{proof['same_top_token']:.1%}"),
    ]))  # fmt: skip


def _ablation(facts: Facts) -> Html | None:
    if not facts.ablation:
        return None
    keys = (*METRICS, "multi_turn_hit", "injection_hit", "broken")
    rows = [
        (
            both(f"ablation_{variant}"),
            *(_share(found[key]) for key in keys),
            f"{found['kl_per_token']:.4f}",
            f"{found['trained_tokens']:,}",
        )
        for variant, found in facts.ablation.items()
    ]
    head = (both("trained_on"), *(both(key) for key in keys), both("kl_per_token"), both("trained_tokens"))
    return _section("ablation", _note("ablation_note"), _table(head, rows, class_="numeric"))


def _origin(facts: Facts) -> Html:
    made = facts.stages["eval"]
    versions = [
        (join(package), tag("code", version)) for package, version in made["versions"].items()
    ] + [
        (both("git_commit"), tag("code", made["git_commit"]) if made["git_commit"] else both("unknown")),
        (both("image"), tag("code", made["image"]) if made["image"] else both("no_image")),
    ]  # fmt: skip
    return _section(
        "origin",
        _pairs(versions),
        _note("differs", stages=", ".join(facts.differing)) if facts.differing else None,
        _note("left_out", stages=", ".join(facts.left_out)) if facts.left_out else None,
        _note("origin_note"),
        *(_stage(facts, name, manifest) for name, manifest in facts.stages.items()),
    )


def _stage(facts: Facts, name: str, made: Mapping[str, Any]) -> Html:
    digests = made["key"]["inputs"]
    inputs = [(f"{role}: {facts.shown(path)}", digests[role], None) for role, path in made["inputs"].items()]
    outputs = [(file, entry["sha256"], entry["bytes"]) for file, entry in made["outputs"].items()]
    lists = [
        join(tag("h4", both(key)), tag("ul", *(
            tag("li", tag("span", file), tag("small", f"{size:,}") if size is not None else None, tag("code", digest))
            for file, digest, size in files), class_="hashes"))
        for key, files in (("inputs", inputs), ("outputs", outputs)) if files
    ]  # fmt: skip
    folder = None if name == made["stage"] else tag("span", f"{name}/", class_="quiet")
    summary = tag("summary", tag("b", made["stage"]), tag("small", str(len(inputs) + len(outputs))), folder)
    return tag("details", summary, tag("div", *lists, class_="files"), class_="stage")
