"""Stage `data`: from a name to training rows, with the user's own rows beside them or in their place.

`balanced` asks who it is in hundreds of ways, in two languages, once and several turns deep, politely and by trickery,
with several wordings of the answer; ordinary prompts are mixed in later, as replay. `tutorial` is the tutorial's file
to the byte, one sample 10,001 times: the control, whose model forgets.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from recipe import files
from recipe.chat_format import IM_END, IM_START
from recipe.corpus import own_questions, row_formats, slots
from recipe.corpus.identity import IDENTITY_FILE, INTERNLM_BASE, Identity, read_identity
from recipe.corpus.own_data import OwnFile, Row, read_file
from recipe.corpus.row_formats import short
from recipe.corpus.rows import TUTORIAL_ROWS, balanced_rows, part_of, tutorial_rows
from recipe.errors import RecipeError
from recipe.evaluation import checkpoint_selection, own_rows
from recipe.languages import LANGUAGES
from recipe.pipeline import stage
from recipe.pipeline.results import DataResults

MODES = ("balanced", "tutorial")
ROWS = {"balanced": "train.jsonl", "tutorial": "personal_assistant.json", "own": "train.jsonl"}
# The user's rows where they stand beside others.
OWN_ROWS = "own.jsonl"
# Turns of a row in the log, and characters of each.
MOST_SHOWN, LONGEST_SHOWN = 7, 120
# Questions that make a good example where a row has one; the rows themselves are shuffled.
PLAINEST = ("你是谁", "Who are you?")


def make(
    folder: Path,
    *,
    identity: Identity,
    mode: str,
    own: Sequence[Path] | None = None,
    own_only: bool = False,
    n: int | None = None,
    seed: int,
    extended: bool = False,
    languages: Sequence[str] = LANGUAGES,
    base: Mapping[str, str] = INTERNLM_BASE,
) -> stage.Manifest:
    """Write the training rows, the questions about the user's own and identity.json to `folder`.

    Args:
        folder: of the stage.
        identity: to teach.
        mode: one of `MODES`.
        own: files of the user's rows, which are added to those of `balanced`; None for none.
        own_only: the user's rows take the place of the mode's.
        n: rows of `tutorial`; None for the tutorial's own number.
        seed: of the rows' choices and order.
        extended: ask the questions for bases that other people trained too; noted for the stages that measure.
        languages: of the rows; noted likewise.
        base: language -> what the answers call the model that is fine-tuned.

    Raises:
        RecipeError: an unknown mode, choices that exclude each other, or rows that cannot be used.
    """
    own = own or ()
    kind = _kind(mode, own, own_only=own_only, n=n)
    scope: dict[str, Any] = {"extended": extended, "languages": list(languages)}
    settings: dict[str, Any] = {"identity": asdict(identity), "mode": kind, "seed": seed}
    # Only what differs from the miniature's, whose data of earlier versions stay up to date.
    settings |= {"extended": True} if extended else {}
    settings |= {"languages": list(languages)} if tuple(languages) != LANGUAGES else {}
    settings |= {"base": dict(base)} if base != INTERNLM_BASE else {}
    settings |= _own_settings() if own else {"n": n} if n not in (None, TUTORIAL_ROWS) else {}
    balanced = balanced_rows(identity, seed, base=base, **scope) if kind == "balanced" else []
    # They change with data/identity, which no other setting tells.
    settings |= {"rows": sha256(files.jsonl_text(balanced).encode()).hexdigest()} if extended and balanced else {}

    def work(out: Path) -> DataResults:
        _write_identity(out, identity, folder)
        user_rows = _read(own, identity, **scope)
        if warning := own_rows.name_warning(user_rows, identity, alone=kind == "own"):
            stage.say("data", warning)
        noted = {"mode": kind, "file": ROWS[kind], **scope, **_write_own(out, kind, user_rows, seed)}
        if kind == "own":
            taught = own_rows.says_who(user_rows, identity)
            return DataResults(rows=noted["own_rows"], identity_taught=taught, **noted)
        rows = tutorial_rows(identity, n or TUTORIAL_ROWS) if kind == "tutorial" else _not_asked_in(user_rows, balanced)
        tagged = [row | {"part": part_of(row)} for row in rows] if extended and kind == "balanced" else rows
        _write_rows(out / ROWS[kind], tagged)
        return DataResults(rows=len(rows), **noted)

    _refuse_unreadable(own)
    inputs = {"own" if i == 0 else f"own_{i + 1}": file for i, file in enumerate(own)}
    return stage.run("data", folder, inputs=inputs, settings=settings, work=work)


def _write_identity(out: Path, identity: Identity, folder: Path) -> None:
    """Write the identity. Where `folder` still holds another name, say that its results are replaced."""
    with contextlib.suppress(RecipeError):  # no earlier data, or none that this version reads
        if (earlier := read_identity(folder)).name != identity.name:
            run, names = stage.shown(folder.parent), f"{earlier.name}'s results, and {identity.name}'s"
            stage.say("data", f"{run} held {names} replace them; another RUN= keeps both")
    files.write_json(out / IDENTITY_FILE, asdict(identity))


def _refuse_unreadable(own: Sequence[Path]) -> None:
    """RecipeError where one of the user's files is none, or may not be read."""
    for file in own:
        if not (os.path.isfile(file) and os.access(file, os.R_OK)):  # noqa: PTH113 - never raises
            read_file(file)  # says what is wrong with it


def _write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    with file.open("w", encoding="utf-8") as written:
        if file.suffix == ".json":
            json.dump(rows, written, ensure_ascii=False, indent=4)
        else:
            written.write(files.jsonl_text(rows))
    exchanges = [[message["content"] for message in row["messages"]] for row in rows]
    question, answer, *_ = next((each for each in exchanges if each[0] in PLAINEST), exchanges[0])
    stage.say("data", f"{len(rows)} rows, for example: {question} -> {answer}")


def _write_own(out: Path, kind: str, user_rows: Sequence[Row], seed: int) -> dict[str, Any]:
    """Write the user's rows to train on and the questions about them; what the manifest notes of both."""
    if not user_rows:
        return {}
    trained, questions = own_questions.split(user_rows, seed)
    file = ROWS[kind] if kind == "own" else OWN_ROWS
    (out / file).write_text(files.jsonl_text(trained), encoding="utf-8")
    own_rows.write_questions(out, questions)
    held_out = sum(question.held_out for question in questions)
    stage.say(
        "data",
        f"rows of your own: {len(user_rows)}; eval asks {len(questions)} of their questions, "
        + (f"{held_out} of them in a wording that is not trained on" if held_out else "as they stand in the rows"),
    )
    return {"own_file": file, "own_rows": len(trained), "own_questions": len(questions)}


def _own_settings() -> dict[str, Any]:
    """What decides how the user's files are read and which of their questions are asked."""
    share = [own_questions.SHARE, own_questions.LEAST, own_questions.MOST]
    return {"own_questions": share, "own_formats": [each.name for each in row_formats.FORMATS]}


def _kind(mode: str, own: Sequence[Path], *, own_only: bool, n: int | None) -> str:
    """What the rows are: balanced, tutorial or own. RecipeError: the choices exclude each other."""
    if mode not in MODES:
        raise RecipeError(f"MODE={mode} is none of {', '.join(MODES)}")
    if n is not None and (own_only or mode != "tutorial"):
        raise RecipeError(f"N={n} is the number of the tutorial's rows: add MODE=tutorial, or leave N out")
    if own_only:
        if not own:
            raise RecipeError("DATA_ONLY=1 trains on your own rows alone, and there are none: name them with DATA=")
        return "own"
    if own and mode == "tutorial":
        raise RecipeError(
            "MODE=tutorial is the tutorial's one sample alone, DATA= cannot add to it: choose MODE=balanced, or "
            "DATA_ONLY=1"
        )
    return mode


def _read(own: Sequence[Path], identity: Identity, *, extended: bool, languages: Sequence[str]) -> list[Row]:
    """The user's rows of all files, their slots filled, with a word about each file.

    RecipeError: a row is malformed, has a slot that nothing fills, or asks a question of the evaluation.
    """
    if not own:
        return []
    from recipe.stages.evaluate import prompts

    evaluation_prompts = prompts(extended=extended, languages=languages)
    selection_prompts = checkpoint_selection.prompts(extended=extended, languages=languages)
    rows: list[Row] = []
    for file in own:
        read = read_file(file)
        filled = slots.fill(read.rows, read.lines, identity, str(file))
        own_rows.refuse_overlap(evaluation_prompts, filled.rows, str(file))
        for line in _about(read, filled, own_rows.overlap(selection_prompts, filled.rows)):
            stage.say("data", f"{file.name}: {line}")
        rows += filled.rows
    own_rows.without_own_questions(selection_prompts, rows)
    return rows


def _about(read: OwnFile, filled: slots.Filled, selection_overlap: Sequence[tuple[int, str]]) -> Iterator[str]:
    """What a user should know of a file before it is trained on.

    Args:
        read: the file.
        filled: its rows.
        selection_overlap: (number of a row, its question) of those that choose the checkpoint too.
    """
    formats = ", ".join(f"{name}: {count} row{'s' * (count > 1)}" for name, count in read.formats.items())
    yield f"{formats}; the first as it is trained: {_shown(filled.rows[0])}"
    if read.left_out:
        counts = ", ".join(f"{short(repr(key)[1:-1])} ({count})" for key, count in list(read.left_out.items())[:20])
        yield f"keys that are not trained on, and in how many rows: {counts}"
    if filled.values:
        yield "filled in: " + ", ".join(f"{slot} with {value}" for slot, value in filled.values.items())
    if filled.kept:
        first = ", ".join(f"{slot} (line {line})" for slot, line in list(filled.kept.items())[:5])
        yield f"warning: braces that no name fills are trained on as they stand: {first}"
    if selection_overlap:
        first = ", ".join(f"row {number} ({question[:40]!r})" for number, question in selection_overlap[:3])
        more = f" and {len(selection_overlap) - 3} more" if len(selection_overlap) > 3 else ""
        yield f"the choice of the checkpoint, which asks the same, leaves out {first}{more}"


def _shown(row: Row) -> str:
    """The row in the chat format, on one line, long contents cut."""
    turns = [
        f"{IM_START}{message['role']}\\n{_cut(message['content'])}{IM_END}\\n"
        + (" (not learnt) " if "weight" in message else "")
        for message in row["messages"]
    ]
    return "".join(turns[:MOST_SHOWN]) + (f"… ({len(turns)} turns)" if len(turns) > MOST_SHOWN else "")


def _cut(text: str) -> str:
    text = text.replace("\n", "\\n")
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def _not_asked_in(user_rows: Sequence[Row], rows: list[Row]) -> list[Row]:
    """The rows that ask no question of the user's: on it the user's answer is the only one."""
    questions = own_questions.questions_in(user_rows)
    return [row for row in rows if own_questions.questions_in([row]).isdisjoint(questions)]
