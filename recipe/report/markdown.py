"""report.md: the same for a pull request, both languages side by side; GitHub takes at most 65,536 characters of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recipe.evaluation import thresholds
from recipe.report import charts
from recipe.report.facts import COUNTS, METRICS, Exchange, Facts
from recipe.report.markup import printable
from recipe.report.words import has, pair

# Wrong replies shown; index.html holds all.
AT_MOST = 20
# Of a prompt or reply in a table.
LONGEST = 160
BARS = "▁▂▃▄▅▆▇█"


def render(facts: Facts) -> str:
    return "\n\n".join(part for part in _parts(facts) if part) + "\n"


def escape(value: str) -> str:
    """Text that shows as itself: no markup, no new cell or line, nobody mentioned and no issue linked."""
    value = re.sub(r"\s+", " ", printable(value)).strip()
    value = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    value = re.sub(r"([\\`*_{}\[\]()|~!$])", r"\\\1", value)
    value = re.sub(r"([@#])", "\\1\u200b", value)
    return re.sub(r"(?i)(https?|www)(?=:|\.)", "\\1\u200b", value)


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The values as a line of bars, each the mean of its share of them; by their logarithms where they span much."""
    if not values:
        return ""
    from math import log10

    width = min(width, len(values))
    means = []
    for i in range(width):
        share = values[i * len(values) // width : (i + 1) * len(values) // width]
        means.append(sum(share) / len(share))
    if charts.is_log(means):
        means = [log10(mean) for mean in means]
    low, high = min(means), max(means)
    return "".join(BARS[round((mean - low) / ((high - low) or 1) * (len(BARS) - 1))] for mean in means)


def _word(key: str, prefix: str = "") -> str:
    return pair(prefix + key) if has(prefix + key) else escape(key.replace("_", " "))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Cells must be escaped already."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"


def _parts(facts: Facts) -> Iterable[str]:
    yield f"## {'✅' if facts.passed else '❌'} {escape(facts.name)}: {pair('passed' if facts.passed else 'failed')}"
    for check in facts.checks:
        if not check.passed:
            key = f"why_{check.metric}"
            yield f"- **{_word(check.metric)}**: {escape(pair(key) if has(key) else check.why)}"
    yield _numbers(facts)
    yield from _training(facts)
    if facts.metrics["checkpoints"]:
        yield f"### {pair('checkpoints')}"
        yield _checkpoints(facts)
    yield f"### {pair('replies')}"
    yield _replies(facts)
    yield f"### {pair('data')}"
    yield _table((pair("setting"), pair("value")), _data(facts))
    yield f"### {pair('settings')}"
    yield _settings(facts)
    yield f"### {pair('cost')}"
    yield _cost(facts)
    if "merged" in facts.stages:
        proof = facts.stages["merged"]["results"]
        yield f"### {pair('merge')}"
        yield _table(
            (pair("largest_logit_difference"), pair("mean_kl"), pair("same_top_token")),
            [(f"{proof['largest_logit_difference']:.2g}", f"{proof['mean_kl']:.2g} (≤ {thresholds.MAX_MERGE_KL})",
              f"{proof['same_top_token']:.1%}")],
        )  # fmt: skip
    if facts.ablation:
        yield f"### {pair('ablation')}"
        yield _ablation(facts)
    yield f"### {pair('origin')}"
    yield from _origin(facts)


def _numbers(facts: Facts) -> str:
    base, tuned = facts.metrics["base"], facts.metrics["tuned"]
    rows = []
    judged = {check.metric: check for check in facts.checks}
    suites = {name: suite for name, suite in tuned["suites"].items() if name not in judged}
    for check in facts.checks:
        if check.metric in METRICS:
            part, all_ = (tuned["counts"].get(key) for key in COUNTS[check.metric])
            low, high = tuned[f"{check.metric}_ci"]
        else:
            suite = tuned["suites"][check.metric]
            (low, high), part, all_ = suite["ci"], suite["hits"], suite["count"]
        count = f" ({part} / {all_}) [{low:.3f}, {high:.3f}]"
        wanted = check.wanted.replace(">=", "≥").replace("<=", "≤")
        value = f"**{check.value:.3f}**{count}"
        rows.append(
            (
                _word(check.metric),
                f"{base[check.metric]:.3f}" if check.metric in METRICS else "",
                value,
                wanted,
                "✓" if check.passed else "✗",
            )
        )
    for name, suite in suites.items():
        low, high = suite["ci"]
        value = f"{suite['value']:.3f} ({suite['hits']} / {suite['count']}) [{low:.3f}, {high:.3f}]"
        rows.append((_word(name), "", value, "", ""))
    rows.append((pair("kl_per_token"), "", f"{tuned['kl_per_token']:.4f}", "", ""))
    return _table((pair("metric"), pair("base"), pair("tuned"), pair("wanted"), ""), rows)


def _training(facts: Facts) -> Iterable[str]:
    losses = [record["loss"] for record in facts.losses]
    if losses:
        yield (
            f"{pair('loss')}: {losses[0]:.3g} `{sparkline(losses)}` {losses[-1]:.3g}"
            + (f" ({pair('log_axis')})" if charts.is_log(losses) else "")
        )


def _checkpoints(facts: Facts) -> str:
    rows = []
    for name, scores in facts.metrics["checkpoints"].items():
        marks = [pair(key) for key, is_it in (("best", name == facts.metrics["best_checkpoint"]),
                                              ("converted", name == facts.converted)) if is_it]  # fmt: skip
        rows.append((escape(name), *(f"{scores[metric]:.3f}" for metric in METRICS), ", ".join(marks)))
    return _table((pair("checkpoint"), *(pair(metric) for metric in METRICS), ""), rows)


def _cell(value: str) -> str:
    return escape(value if len(value) <= LONGEST else value[: LONGEST - 1] + "…")


def _replies(facts: Facts) -> str:
    """A few that are wrong, of every kind some; or one of each kind where nothing is."""
    wrong = [exchange for exchange in facts.exchanges if exchange.faults]
    chosen = _spread(wrong or facts.exchanges, AT_MOST if wrong else 8)
    head = [pair(key) for key in ("prompt", "before", "after")] + ([pair("faults")] if wrong else [])
    rows = []
    for exchange in chosen:
        cells = [_cell(text) for text in (exchange.prompt, exchange.before, exchange.after)]
        rows.append(cells + ([", ".join(pair(fault) for fault in exchange.faults)] if wrong else []))
    table = _table(head, rows)
    if len(wrong) > len(chosen):
        table += "\n\n" + pair("more_wrong", count=len(wrong) - len(chosen))
    return table


def _spread(exchanges: Sequence[Exchange], count: int) -> list[Exchange]:
    """The first of every kind, then the second of every kind, and so on, in the order they were asked."""
    seen: dict[str, int] = {}
    ranked = []
    for i, exchange in enumerate(exchanges):
        seen[exchange.kind] = seen.get(exchange.kind, 0) + 1
        ranked.append((seen[exchange.kind], i))
    return [exchanges[i] for i in sorted(i for _, i in sorted(ranked)[:count])]


def _data(facts: Facts) -> Iterable[tuple[str, str]]:
    own = facts.result("data", "mode") == "own"
    if mode := facts.result("data", "mode"):
        yield pair("mode"), escape(mode)
    for role, key in (("data", "rows_own" if own else "rows_data"), ("replay", "rows_replay")):
        if rows := facts.rows.get(role):
            languages = [pair(f"language_{language}", count=count) for language, count in rows.languages.items()]
            distinct = [pair("distinct", count=f"{rows.distinct:,}")] if rows.distinct != rows.count else []
            yield pair(key), f"{rows.count:,} ({'; '.join(distinct + languages)})"
        elif role == "replay":
            yield pair(key), pair("no_replay")
    numbers = facts.forecast
    for key in ("tokens", "dropped", "truncated", "iterations", "optimizer_steps", "trained_tokens"):
        if numbers:
            yield pair(key), f"{numbers[key]:,}"
    if numbers:
        yield pair("packs"), pair("packs_of", count=numbers["packs"], length=numbers["max_length"])
        padding = f"{facts.padding:.1%}"
        yield pair("padding"), pair("at_least", share=padding) if numbers["truncated"] else padding
        yield pair("epochs"), f"{facts.epochs:.1f}"


def _settings(facts: Facts) -> str:
    manifest = facts.stages.get("config")
    if manifest is None:
        inputs = facts.stages.get("train", {}).get("inputs", {})
        return escape(pair("own_config", file=facts.shown(inputs.get("config", "?"))))
    chosen = manifest["key"]["settings"]
    rows = [(pair("preset"), escape(chosen["preset"])), (pair("seed"), str(chosen["seed"])),
            (pair("device"), pair("gpu" if chosen.get("gpu") else "cpu"))]  # fmt: skip
    rows += [(escape(key), escape(value)) for key, _, value in (setting.partition("=") for setting in chosen["set"])]
    return _table((pair("setting"), pair("value")), rows)


def _cost(facts: Facts) -> str:
    rows = []
    for manifest in facts.stages.values():
        peaks = [
            f"{manifest[key]:,}" if manifest.get(key) is not None else ""
            for key in ("process_peak_mib", "gpu_peak_mib")
        ]
        rows.append((manifest["stage"], f"{manifest['seconds']:,.1f}", *peaks))
    rows.append((pair("together"), f"{sum(manifest['seconds'] for manifest in facts.stages.values()):,.1f}", "", ""))
    table = _table((pair("stage"), pair("seconds"), pair("process_peak_mib"), pair("gpu_peak_mib")), rows)
    if facts.tokens_per_second:
        table = f"{pair('tokens_per_second')}: **{facts.tokens_per_second:,.0f}**. {pair('speed_note')}\n\n{table}"
    elif facts.resumed:
        table = f"{pair('resumed_note')}\n\n{table}"
    return table


def _ablation(facts: Facts) -> str:
    keys = (*METRICS, "multi_turn_hit", "injection_hit", "broken", "kl_per_token")
    rows = [
        (pair(f"ablation_{variant}"), *(f"{found[key]:.3f}" for key in keys), f"{found['trained_tokens']:,}")
        for variant, found in facts.ablation.items()
    ]
    return _table((pair("trained_on"), *(pair(key) for key in keys), pair("trained_tokens")), rows)


def _origin(facts: Facts) -> Iterable[str]:
    manifest = facts.stages["eval"]
    rows = [(escape(package), escape(version)) for package, version in manifest["versions"].items()]
    rows.append((pair("git_commit"), escape(manifest["git_commit"] or pair("unknown"))))
    rows.append((pair("image"), escape(manifest["image"] or pair("no_image"))))
    yield _details(pair("versions"), _table((pair("package"), pair("value")), rows))
    if facts.differing:
        yield pair("differs", stages=", ".join(facts.differing))
    if facts.left_out:
        yield pair("left_out", stages=", ".join(facts.left_out))
    for stage_made in facts.stages.values():
        yield _details(stage_made["stage"], _table((pair("file"), "sha256"), _files(facts, stage_made)))


def _files(facts: Facts, manifest: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    for role, path in manifest["inputs"].items():
        yield f"← {escape(f'{role}: {facts.shown(path)}')}", f"`{manifest['key']['inputs'][role]}`"
    for file, entry in manifest["outputs"].items():
        yield f"→ {escape(file)}", f"`{entry['sha256']}`"
