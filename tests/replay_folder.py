"""What stage `replay` leaves, of answers that a test gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipe import files
from recipe.evaluation import generation
from recipe.pipeline import stage
from recipe.stages import replay
from recipe.training import teacher


def write_replay(folder: Path, model: Path, conversations: Sequence[Sequence[dict[str, str]]]) -> Path:
    """Write the folder: the conversations, and the distributions of the model in `model` over their replies."""

    def work(out: Path) -> dict[str, Any]:
        rows = [{"messages": list(conversation)} for conversation in conversations]
        (out / replay.FILE).write_text(files.jsonl_text(rows), encoding="utf-8")
        taught = teacher.distributions(*generation.load(model), conversations, [True] * len(conversations))
        teacher.save(taught, out)
        return {"prompts": len(rows), "rows": len(rows)}

    stage.run("replay", folder, inputs={"model": model}, settings={}, work=work)
    return folder
