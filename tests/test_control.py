"""The tutorial's own data, trained for as many epochs as the tutorial does: the result that this recipe refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipe import cli


@pytest.mark.slow
def test_one_sample_ten_thousand_times_is_refused_and_eval_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--name", "小明", "--mode", "tutorial", "--set", "max_epochs=2"]
    assert cli.main(["quickstart", "--work", str(tmp_path), "--run", "control", *arguments]) == 1
    tuned = json.loads((tmp_path / "control/eval/metrics.json").read_text(encoding="utf-8"))["tuned"]
    assert tuned["identity_hit"] < 0.6
    shown = capsys.readouterr()
    assert "error: the result is not good enough: identity_hit" in shown.err
    assert "in words it was not trained on" in shown.out
