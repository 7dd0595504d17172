"""Stage `data`: from a name to training rows, or the user's own rows checked.

`balanced` asks who it is in hundreds of ways, in two languages, once and several turns deep, politely and by trickery,
with several wordings of the answer; ordinary prompts are mixed in later, as replay. `tutorial` is the tutorial's file
to the byte, one sample 10,001 times: the control, whose model forgets.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from recipe import files
from recipe.corpus.identity import IDENTITY_FILE, INTERNLM_BASE, Identity
from recipe.corpus.own_data import read_rows
from recipe.corpus.rows import balanced_rows, tutorial_rows
from recipe.errors import RecipeError
from recipe.languages import LANGUAGES
from recipe.pipeline import stage
from recipe.pipeline.results import DataResults

MODES = ("balanced", "tutorial")
ROWS = {"balanced": "train.jsonl", "tutorial": "personal_assistant.json", "own": "train.jsonl"}


def make(
    folder: Path,
    *,
    identity: Identity,
    mode: str,
    own: Path | None,
    seed: int,
    extended: bool = False,
    languages: Sequence[str] = LANGUAGES,
    base: Mapping[str, str] = INTERNLM_BASE,
) -> stage.Manifest:
    """Write the training rows and identity.json to `folder`.

    Args:
        folder: of the stage.
        identity: to teach.
        mode: one of `MODES`.
        own: the user's rows, which take the place of the mode's.
        seed: of the rows' choices and order.
        extended: ask the questions for bases that other people trained too; noted for the stages that measure.
        languages: of the rows; noted likewise.
        base: language -> what the answers call the model that is fine-tuned.

    Raises:
        RecipeError: an unknown mode, or rows that cannot be used.
    """
    if mode not in MODES:
        raise RecipeError(f"MODE={mode} is none of {', '.join(MODES)}")
    kind = "own" if own else mode
    settings: dict[str, Any] = {"identity": asdict(identity), "mode": kind, "seed": seed}
    # Only what differs from the miniature's, whose data of earlier versions stay up to date.
    settings |= {"extended": True} if extended else {}
    settings |= {"languages": list(languages)} if tuple(languages) != LANGUAGES else {}
    settings |= {"base": dict(base)} if base != INTERNLM_BASE else {}

    def work(out: Path) -> DataResults:
        if own:
            rows = read_rows(own)
        else:
            rows = (
                tutorial_rows(identity)
                if kind == "tutorial"
                else balanced_rows(identity, seed, extended=extended, languages=languages, base=base)
            )
        with (out / ROWS[kind]).open("w", encoding="utf-8") as file:
            if kind == "tutorial":
                json.dump(rows, file, ensure_ascii=False, indent=4)
            else:
                file.write(files.jsonl_text(rows))
        files.write_json(out / IDENTITY_FILE, asdict(identity))
        stage.say("data", f"{len(rows)} rows, for example: {rows[0]['messages'][0]['content']} -> "
                          f"{rows[0]['messages'][1]['content']}")  # fmt: skip
        return DataResults(rows=len(rows), file=ROWS[kind], mode=kind, extended=extended, languages=list(languages))

    if own and not (os.path.isfile(own) and os.access(own, os.R_OK)):  # noqa: PTH113 - never raises
        read_rows(own)  # says what is wrong with it
    return stage.run("data", folder, inputs={"own": own} if own else {}, settings=settings, work=work)
