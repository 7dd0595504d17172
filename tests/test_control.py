"""The tutorial's own data, trained as long as the tutorial does: the collapse that this recipe exists to avoid."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipe import cli


@pytest.mark.slow
def test_one_sample_ten_thousand_times_collapses_and_eval_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--name", "小明", "--mode", "tutorial", "--set", "max_epochs=2"]
    assert cli.main(["quickstart", "--work", str(tmp_path), "--run", "control", *arguments]) == 1
    tuned = json.loads((tmp_path / "control/eval/metrics.json").read_text(encoding="utf-8"))["tuned"]
    assert tuned["identity_leak"] >= 0.5 or tuned["retention"] <= 0.5
    shown = capsys.readouterr()
    assert "error: the result is not good enough" in shown.err
    assert "it forgot what the base knew" in shown.out
