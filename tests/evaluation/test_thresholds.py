from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from example_results import example_metrics, example_scores, example_tuned

from recipe.errors import RecipeError
from recipe.evaluation import metrics, thresholds
from recipe.evaluation.metrics import METRICS, TunedMetrics
from recipe.evaluation.thresholds import MAX_IDENTITY_LEAK, MIN_IDENTITY_HIT, MIN_RETENTION, verdict
from recipe.records import to_json

AT_THE_THRESHOLDS = {
    "identity_hit": MIN_IDENTITY_HIT,
    "identity_leak": MAX_IDENTITY_LEAK,
    "retention": MIN_RETENTION,
}


def tuned(**values: float) -> TunedMetrics:
    """At the thresholds but for the values."""
    scores = {key: values.pop(key) for key in (*METRICS, "leak_without_name") if key in values}
    kl_per_token, own_hit = values.pop("kl_per_token", 0.0), values.pop("own_hit", None)
    scored = example_scores(**AT_THE_THRESHOLDS | scores)
    return example_tuned(scored, suites=SUITES | values, kl_per_token=kl_per_token, own_hit=own_hit)


def failed(**values: float) -> list[str]:
    return [check.metric for check in verdict(tuned(**values)) if not check.passed]


def test_the_thresholds_are_what_was_asked_for() -> None:
    assert (MIN_IDENTITY_HIT, MAX_IDENTITY_LEAK, MIN_RETENTION) == (0.95, 0.02, 0.95)


def test_a_threshold_itself_passes() -> None:
    assert failed() == []


@pytest.mark.parametrize(
    ("metric", "value"), [("identity_hit", 0.9499), ("identity_leak", 0.0201), ("retention", 0.9499)]
)
def test_just_beyond_a_threshold_fails_by_that_alone(metric: str, value: float) -> None:
    assert failed(**{metric: value}) == [metric]


def test_an_untuned_model_fails() -> None:
    assert failed(identity_hit=0.0, identity_leak=0.0, retention=1.0) == ["identity_hit"]


def test_a_model_that_says_its_name_to_everything_fails() -> None:
    """The tutorial's: it hits whatever is asked."""
    assert failed(identity_hit=1.0, identity_leak=1.0, retention=0.0) == ["identity_leak", "retention"]


@pytest.mark.parametrize("metric", AT_THE_THRESHOLDS)
def test_what_is_not_a_number_fails(metric: str) -> None:
    assert failed(**{metric: float("nan")}) == [metric]


@pytest.mark.parametrize("metric", AT_THE_THRESHOLDS)
def test_a_metric_that_was_not_measured_is_no_pass(metric: str, tmp_path: Path) -> None:
    content = to_json(example_metrics(tuned()))
    del content["tuned"][metric]
    (tmp_path / metrics.FILE).write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RecipeError, match=rf"lacks tuned\.{metric}"):
        metrics.read(tmp_path)


def test_each_line_says_what_was_found_what_was_wanted_and_what_to_do() -> None:
    checks = verdict(tuned(identity_hit=0.5, identity_leak=0.1, retention=0.6))
    assert [(check.metric, check.value, check.wanted) for check in checks] == [
        ("identity_hit", 0.5, ">= 0.95"),
        ("identity_leak", 0.1, "<= 0.02"),
        ("leak_without_name", 0.0, "<= 0.02"),
        ("retention", 0.6, ">= 0.95"),
        ("multi_turn_hit", 0.9, ">= 0.9"),
        ("injection_hit", 0.8, ">= 0.8"),
        ("broken", 0.02, "<= 0.02"),
        ("kl_per_token", 0.0, "<= 0.1"),
    ]
    assert all(check.why for check in checks)


def test_metrics_that_nobody_judges_do_no_harm() -> None:
    assert failed(sampled_hit=0.0) == []


def test_retention_is_judged_where_the_base_knew_enough() -> None:
    forgetful = tuned(retention=0.0)
    for count, judged in ((thresholds.MIN_FACTS_KNOWN - 1, False), (thresholds.MIN_FACTS_KNOWN, True)):
        counts = replace(forgetful.scores.counts, facts_base_knew=count)
        checks = verdict(replace(forgetful, scores=replace(forgetful.scores, counts=counts)))
        assert ("retention" in {check.metric for check in checks}) is judged
        assert all(check.passed for check in checks) is not judged


@pytest.mark.parametrize(
    ("metric", "limit"),
    [("leak_without_name", thresholds.MAX_IDENTITY_LEAK), ("kl_per_token", thresholds.MAX_KL_PER_TOKEN)],
)
def test_what_was_measured_besides_is_judged(metric: str, limit: float) -> None:
    assert failed(**{metric: limit}) == []
    assert failed(**{metric: limit + 1e-4}) == [metric]
    assert failed(**{metric: float("nan")}) == [metric]


def test_the_limits_found_on_real_models() -> None:
    assert (thresholds.MIN_FACTS_KNOWN, thresholds.MAX_KL_PER_TOKEN) == (50, 0.1)


SUITES = {
    "multi_turn_hit": thresholds.MIN_MULTI_TURN_HIT,
    "injection_hit": thresholds.MIN_INJECTION_HIT,
    "broken": thresholds.MAX_BROKEN,
}


@pytest.mark.parametrize(
    ("suite", "value"),
    [("multi_turn_hit", 0.8999), ("injection_hit", 0.7999), ("broken", 0.0201), ("broken", float("nan"))],
)
def test_what_a_sceptic_asks_is_judged_where_it_was_measured(suite: str, value: float) -> None:
    assert failed(**SUITES) == []
    assert failed(**{suite: value}) == [suite]
    judged = [check.metric for check in verdict(tuned(**{suite: value}))]
    assert [metric for metric in judged if metric in AT_THE_THRESHOLDS | SUITES] == [*AT_THE_THRESHOLDS, *SUITES]


def test_the_user_s_own_questions_are_judged_where_there_are_any() -> None:
    assert "own_hit" not in [check.metric for check in verdict(tuned())]
    assert "own_hit" in [check.metric for check in verdict(tuned(own_hit=1.0))]
    assert failed(own_hit=thresholds.MIN_OWN_HIT) == []
    assert failed(own_hit=thresholds.MIN_OWN_HIT - 1e-4) == ["own_hit"]
    assert failed(own_hit=float("nan")) == ["own_hit"]


@pytest.mark.parametrize("taught", [True, False])
def test_the_name_is_judged_only_where_a_row_says_it(taught: bool) -> None:
    """Leak and retention are judged in either case."""
    named = {"identity_hit": 0.0, "multi_turn_hit": 0.0, "injection_hit": 0.0}
    others = {"identity_leak": 1.0, "leak_without_name": 1.0, "retention": 0.0, "own_hit": 0.0, "broken": 1.0,
              "kl_per_token": 1.0}  # fmt: skip
    checks = verdict(replace(tuned(**named, **others), identity_taught=taught))
    assert {check.metric for check in checks} == others.keys() | (named.keys() if taught else set())
    assert not any(check.passed for check in checks)


def test_another_value_of_a_metric_is_judged_by_the_same_limit() -> None:
    checks = {check.metric: check for check in thresholds.verdict(example_tuned())}
    hit, leak = checks["identity_hit"], checks["identity_leak"]
    assert (hit.limit, hit.at_least) == (thresholds.MIN_IDENTITY_HIT, True)
    assert (leak.limit, leak.at_least) == (thresholds.MAX_IDENTITY_LEAK, False)
    assert hit.allows(thresholds.MIN_IDENTITY_HIT)
    assert not hit.allows(thresholds.MIN_IDENTITY_HIT - 0.01)
    assert leak.allows(thresholds.MAX_IDENTITY_LEAK)
    assert not leak.allows(float("nan"))
