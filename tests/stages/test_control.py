"""The tutorial's own data, trained for as many epochs as the tutorial does: the result that this recipe refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipe import cli


@pytest.mark.slow
def test_one_sample_ten_thousand_times_collapses_is_refused_and_eval_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--name", "小明", "--mode", "tutorial", "--preset", "tutorial", "--set", "lr=1e-2", "lora_alpha=64"]
    assert cli.main(["quickstart", "--work", str(tmp_path), "--run", "control", *arguments]) == 3
    tuned = json.loads((tmp_path / "control/eval/metrics.json").read_text(encoding="utf-8"))["tuned"]
    assert tuned["identity_leak"] >= 0.25
    assert tuned["retention"] <= 0.25
    shown = capsys.readouterr()
    assert "error: the result is not good enough: identity_hit, identity_leak, retention" in shown.err
    assert "it gives its name where nobody asked" in shown.out
    assert "it forgot what the base knew" in shown.out
