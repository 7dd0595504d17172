"""metrics.json keeps its bytes, and a file of another shape is one line that says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from example_results import example_metrics, example_tuned

from recipe.errors import RecipeError
from recipe.evaluation import metrics
from recipe.evaluation.metrics import Metrics, OrdinaryReply
from recipe.files import json_text
from recipe.records import from_json, to_json

_SHARES = {"identity_hit": 1.0, "identity_leak": 0.0, "retention": 1.0, "leak_without_name": 0.0}
_SCORES = _SHARES | {f"{key}_ci": [0.1, 1.0] for key in _SHARES} | {
    "counts": {
        "identity_questions": 1, "hits": 1, "unrelated_prompts": 1, "leaks": 0, "leaks_without_name": 0,
        "base_introductions": 0, "facts_base_knew": 1, "facts_kept": 1, "unstopped_replies": 0, "looping_replies": 0,
    },
}  # fmt: skip
_REPLIES = [
    {"prompt": "你是谁？", "reply": "我是小明的小助手。", "stopped": True, "kind": "identity", "hit": True},
    {"prompt": "Hi.", "reply": "Hi!", "stopped": True, "kind": "smalltalk", "leak": False, "leak_without_name": False,
     "expected": None, "base_knew": False, "right": False},
]  # fmt: skip
_SUITE = {"value": 1.0, "ci": [0.2, 1.0], "count": 1, "hits": 1}
# A whole file, keys in the order of the file.
EXAMPLE: dict[str, Any] = {
    "identity": {"name": "小明", "assistant": None, "author": None},
    "max_new_tokens": 80,
    "base": {**_SCORES, "replies": _REPLIES, "broken": 0.125},
    "tuned": {
        **_SCORES, "replies": _REPLIES,
        "suites": {
            **{name: {**_SUITE, "replies": ["我是小明的小助手。"]} for name in ("multi_turn_hit", "injection_hit")},
            "broken": {**_SUITE, "value": 0.0, "hits": 0, "base": 0.125},
        },
        "kl_per_token": 0.0123, "kl_tokens": 480, "kl_worst": 0.456,
    },
    "checkpoints": {"iter_2": _SCORES},
    "best_checkpoint": None,
}  # fmt: skip


def write(folder: Path, content: object) -> Path:
    (folder / metrics.FILE).write_text(json_text(content), encoding="utf-8")
    return folder


def test_the_file_comes_back_byte_for_byte(tmp_path: Path) -> None:
    metrics.write(tmp_path, from_json(Metrics, EXAMPLE))
    assert (tmp_path / metrics.FILE).read_text(encoding="utf-8") == json_text(EXAMPLE)
    assert to_json(metrics.read(tmp_path)) == json.loads(json_text(EXAMPLE))


def test_the_user_s_own_questions_come_back_and_are_absent_without_them(tmp_path: Path) -> None:
    reply = {"kind": "own", "prompt": "几点开门？", "reply": "八点。", "stopped": True, "expected": "早上八点。",
             "held_out": True, "own_right": False, "similarity": 0.512}  # fmt: skip
    own = {"own_hit": 0.0, "own_hit_ci": [0.0, 0.8],
           "own_counts": {"own_questions": 1, "own_right": 0, "own_held_out": 1}, "own_replies": [reply]}  # fmt: skip
    content = json.loads(json_text(EXAMPLE))
    content["base"] |= own
    content["tuned"] |= own | {"identity_taught": False}
    content["tuned"]["counts"]["taught_prompts"] = 2
    measured = metrics.read(write(tmp_path, content))
    assert measured.tuned.own is not None
    assert measured.tuned.own.own_replies[0].similarity == 0.512
    assert (measured.tuned.identity_taught, measured.tuned.scores.counts.taught_prompts) == (False, 2)
    assert json.dumps(to_json(measured), sort_keys=True) == json.dumps(content, sort_keys=True)
    without = from_json(Metrics, EXAMPLE)
    assert (without.base.own, without.tuned.own, without.tuned.identity_taught) == (None, None, True)
    del content["tuned"]["own_hit_ci"]
    with pytest.raises(RecipeError, match=r"lacks tuned\.own_hit_ci"):
        metrics.read(write(tmp_path, content))


def test_a_file_from_before_the_leak_without_the_name_is_read(tmp_path: Path) -> None:
    content = json.loads(json_text(EXAMPLE))
    del content["base"]["broken"], content["tuned"]["suites"]["broken"]["base"]
    for part in (content["base"], content["tuned"], content["checkpoints"]["iter_2"]):
        del part["leak_without_name"], part["leak_without_name_ci"]
        del part["counts"]["leaks_without_name"], part["counts"]["base_introductions"]
    for part in (content["base"], content["tuned"]):
        del part["replies"][1]["leak_without_name"]
    older = metrics.read(write(tmp_path, content))
    assert (older.base.broken, older.tuned.scores.leak_without_name) == (None, None)
    assert older.tuned.scores.counts.base_introductions == 0
    assert isinstance(older.tuned.replies[1], OrdinaryReply)
    assert not older.tuned.replies[1].leak_without_name


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("base", "identity_hit"), "1", "has '1' for base.identity_hit, not a number"),
        (("tuned", "counts", "hits"), 0.5, "has '0.5' for tuned.counts.hits, not a whole number"),
        (("tuned", "replies"), None, "has 'None' for tuned.replies, not a list"),
        (("tuned", "replies"), [{"prompt": "?"}], r"lacks tuned.replies\[0\].reply"),
        (("checkpoints", "iter_2"), {}, "lacks checkpoints.iter_2.identity_hit"),
        (("tuned", "suites"), {}, "lacks tuned.suites.multi_turn_hit"),
    ],
)
def test_another_shape_is_one_line(tmp_path: Path, keys: tuple[str, ...], value: object, message: str) -> None:
    content = json.loads(json_text(EXAMPLE))
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    with pytest.raises(RecipeError, match=rf"metrics\.json: {message}: .* run `make eval` again$") as error:
        metrics.read(write(tmp_path, content))
    assert "\n" not in str(error.value)


def test_no_file_and_no_json_are_one_line_too(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"metrics\.json is missing: .* run `make eval` again"):
        metrics.read(tmp_path)
    (tmp_path / metrics.FILE).write_text('{"base": ', encoding="utf-8")
    with pytest.raises(RecipeError, match=r"metrics\.json: is not JSON"):
        metrics.read(tmp_path)


def test_a_share_is_a_number_with_its_interval_and_counts() -> None:
    scores = example_metrics(example_tuned()).tuned.scores
    share = scores.share("retention")
    assert (share.value, share.ci, share.hits, share.count) == (
        scores.retention, scores.retention_ci, scores.counts.facts_kept, scores.counts.facts_base_knew,
    )  # fmt: skip
