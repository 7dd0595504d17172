"""Token ids of InternLM2's and Qwen2.5's tokenizers; SmolLM2's are in tests/real, where its model is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from golden_ids import assert_golden

from recipe.stages import model

# A folder with config.json, tokenizer.json and weights of a Qwen2.5 model of 16 bits.
QWEN2_5 = os.environ.get("QWEN2_5_FOLDER")


def test_internlm2_s_ids_are_sentencepiece_s(real_tokenizer: Any) -> None:
    assert_golden("internlm2", real_tokenizer)


@pytest.mark.skipif(not QWEN2_5, reason="set QWEN2_5_FOLDER to the folder of a Qwen2.5-Instruct model")
def test_qwen2_5_s_ids_are_the_ones_written_down(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = Path(QWEN2_5 or "")
    model._write_tokenizer(folder, tmp_path, model._check_config(folder / "config.json"))
    assert_golden("qwen2.5", AutoTokenizer.from_pretrained(tmp_path))
