"""What `eval` prints: base and tuned side by side, the verdict, and some replies before and after."""

from __future__ import annotations

from collections.abc import Mapping

from recipe.evaluation import thresholds
from recipe.evaluation.metrics import BaseMetrics, Metrics, OwnScores, TunedMetrics
from recipe.plain_text import one_line

# Replies to the user's questions in the table.
SHOWN_OF_OWN = 3


def table(measured: Metrics) -> str:
    """Base and tuned side by side, the verdict, and some replies before and after."""
    base, tuned, checks = measured.base, measured.tuned, thresholds.verdict(measured.tuned)
    lines = [f"{'':18}{'base':>8}{'tuned':>8}   wanted"]
    for check in checks:
        untuned = _untuned(base, check.metric)
        before = "" if untuned is None else f"{untuned:.3f}"
        row = f"{check.metric:18}{before:>8}{check.value:8.3f}   {check.wanted:8}"
        lines.append(row + ("  ok" if check.passed else f"  FAILED: {check.why}"))
    if not tuned.identity_taught:
        lines += [
            f"{metric:18}{'':8}{_tuned(tuned, metric):8.3f}   not judged: "
            f"no row says the name / 不作判定：训练数据没有教名字"
            for metric in thresholds.OF_IDENTITY
        ]
    if not thresholds.judges_retention(tuned):
        count, least = tuned.scores.counts.facts_base_knew, thresholds.MIN_FACTS_KNOWN
        lines.append(
            f"{'retention':18}{base.scores.retention:8.3f}{tuned.scores.retention:8.3f}   "
            f"not judged: the base knew {count} facts, at least {least} are needed / "
            f"不作判定：基座只答对 {count} 条，至少需要 {least} 条"
        )
    judged = {check.metric for check in checks} | set(thresholds.OF_IDENTITY)
    besides = [f"{name} {suite.value:.3f}" for name, suite in tuned.suites.items() if name not in judged]
    lines += ["", "besides: " + ", ".join(besides)]
    if left_out := tuned.scores.counts.base_introductions:
        lines.append(f"no leak is counted for {left_out} prompts, to which the base introduces itself")
    if left_out := tuned.scores.counts.taught_prompts:
        lines.append(f"no leak is counted for {left_out} prompts, which ask what your own rows answer with the name")
    if measured.checkpoints:
        scores = ", ".join(
            f"{name} {each.identity_hit:.2f}/{each.identity_leak:.2f}/{each.retention:.2f}"
            for name, each in measured.checkpoints.items()
        )
        lines += ["", f"checkpoints (hit/leak/retention): {scores}; best: {measured.best_checkpoint}"]
    return "\n".join([*lines, "", *_examples(measured), *(_own_lines(tuned.own) if tuned.own else [])])


def _untuned(base: BaseMetrics, metric: str) -> float | None:
    """The base's own value of a number that is judged; None where the base was not asked."""
    if metric == "own_hit":
        return base.own.own_hit if base.own else None
    return base.broken if metric == "broken" else getattr(base.scores, metric, None)


def _tuned(tuned: TunedMetrics, metric: str) -> float:
    """The tuned model's value of a number of a suite or of the scores."""
    return tuned.suites[metric].value if metric in tuned.suites else tuned.scores.share(metric).value


def _examples(measured: Metrics) -> list[str]:
    """Lines of four prompts, two about who it is and two others, each with the replies before and after."""
    base, tuned = measured.base.replies, measured.tuned.replies
    split = measured.base.scores.counts.identity_questions
    lines = []
    for i in (0, split // 2, split, split + (len(base) - split) // 2):
        lines += _said({"Q": base[i].prompt, "base": base[i].reply, "tuned": tuned[i].reply})
    return lines


def _own_lines(own: OwnScores) -> list[str]:
    """How many of the user's questions are answered right, and the replies that are not, or one that is."""
    counts = own.own_counts
    held_out = f"{counts.own_held_out} of them asked in a wording that was not trained on"
    lines = [
        "",
        f"your own rows: {counts.own_right} of {counts.own_questions} questions answered right, "
        + (held_out if counts.own_held_out else "asked as they stand in the rows"),
    ]
    wrong = [reply for reply in own.own_replies if not reply.own_right]
    for reply in (wrong or own.own_replies)[:SHOWN_OF_OWN]:
        lines += _said({"Q": reply.prompt, "wanted": reply.expected, "tuned": reply.reply})
    return lines


def _said(texts: Mapping[str, str]) -> list[str]:
    """A line for each text. texts: who says it -> what."""
    return [f"{who:6} {one_line(text)}" for who, text in texts.items()]
