"""One name is one thing: bases by their path, runs apart from what verbs write, variants apart from runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipe import cli
from recipe.errors import RecipeError
from recipe.experiments import ablation
from recipe.pipeline import bases, stage
from recipe.pipeline.run import Run, checked_name, refuse_other_spelling, refuse_run


def test_bases_of_one_name_have_folders_of_their_own(tmp_path: Path) -> None:
    run = Run(tmp_path / "work", "main")
    places = [tmp_path / name for name in ("a/merged", "b/merged", "a b", "a_b", "miniature")]
    models = [run.model(str(place)) for place in places] + [run.model("miniature")]
    replays = [run.replay(str(place)) for place in places] + [run.replay("miniature")]
    assert len({*models}) == len({*replays}) == 6
    assert [folder.name for folder in replays] == [folder.name for folder in models]
    assert models[0].name.startswith("merged-")
    assert models[-1] == tmp_path / "work" / "models" / "miniature"


def test_a_base_is_named_the_same_by_a_link_and_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "base")
    run = Run(tmp_path / "work", "main")
    assert run.model(str(tmp_path / "link")).name[-8:] == run.model(str(tmp_path / "base")).name[-8:]


def test_what_an_earlier_version_converted_from_the_same_folder_stays_in_use(tmp_path: Path) -> None:
    run, mine, other = Run(tmp_path / "work", "main"), tmp_path / "a" / "merged", tmp_path / "b" / "merged"
    earlier = tmp_path / "work" / "models" / "merged"
    stage.run("model", earlier, inputs={}, settings={"model": str(mine), "files": {}}, work=lambda _: None)
    assert run.model(str(mine)) == earlier
    assert run.replay(str(mine)) == tmp_path / "work" / "replay" / "merged"
    assert run.model(str(other)) != earlier


def test_owners_and_names_with_dashes_are_not_mixed_up() -> None:
    names = {base.name for model in ("a--b/c", "a/b--c", "a/b", "a-b/c") if (base := bases.by_name(model))}
    assert len(names) == 4


@pytest.mark.parametrize("run", ["sweep", "bench", "miniature", "browser", "Sweep", "BENCH"])
def test_a_run_is_not_called_as_what_a_verb_writes(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "--name", "小明", "--run", run, "--work", str(tmp_path)]) == 1
    assert f"RUN='{run}': work/{run.lower()} belongs to `make" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    if run in ("sweep", "bench"):
        assert checked_name(run, run) == run


@pytest.mark.parametrize("verb", ["sweep", "bench"])
def test_a_verb_does_not_write_into_a_run(verb: str, tmp_path: Path) -> None:
    refuse_run(tmp_path / "main", verb)
    (tmp_path / "main" / "data").mkdir(parents=True)
    assert cli.main([verb, "--run", "main", "--work", str(tmp_path)]) == 1
    with pytest.raises(RecipeError, match=f"is a run, which `{verb}` would write into"):
        refuse_run(tmp_path / "main", verb)


@pytest.mark.parametrize(
    ("chosen", "foreign"),
    [
        ({"name": "小明", "mode": "tutorial", "set": ["r=8", "patience=None"]}, False),
        ({"name": "小明", "mode": "balanced", "set": ["replay_ratio=0", "patience=None", "max_iters=9"]}, False),
        ({"name": "小明", "mode": "tutorial"}, True),
        ({"name": "小明"}, True),
        ([], True),
        (None, True),
    ],
)
def test_an_ablation_does_not_train_over_a_run_of_the_user_s(tmp_path: Path, chosen: object, foreign: bool) -> None:
    run = tmp_path / "main-tutorial"
    ablation._refuse_foreign(run)
    (run / "data").mkdir(parents=True)
    if chosen is not None:
        (run / "run.json").write_text(json.dumps(chosen), encoding="utf-8")
    if not foreign:
        ablation._refuse_foreign(run)
        return
    with pytest.raises(RecipeError, match="main-tutorial is a run of its own"):
        ablation._refuse_foreign(run)


COMPOSED, APART = "café", "cafe\u0301"  # as most keyboards and as macOS give it


@pytest.mark.parametrize("name", [APART, "हिन्दी", "ไทยดี", "tiếng-Việt", "Zoë.2"])
def test_a_run_may_be_named_with_letters_that_have_marks(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize("name", ["\u0301a", "", "a/\u0301", ".\u0301", "a\ufe0f", "a\U000e0100", "a b\u0301"])
def test_a_mark_without_a_letter_or_that_nobody_sees_names_no_run(name: str) -> None:
    with pytest.raises(RecipeError, match="RUN="):
        checked_name(name)


def test_a_name_typed_in_two_ways_is_one_run_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    people = ("--assistant", "--author")
    for written in (COMPOSED, APART):
        names = [word for option in ("--name", "--run", *people) for word in (option, written)]
        assert cli.main(["data", *names, "--model", "miniature", "--work", str(tmp_path)]) == 0
    assert "up to date" in capsys.readouterr().err.splitlines()[-1]
    assert [folder.name for folder in tmp_path.iterdir()] == [COMPOSED]
    identity = json.loads((tmp_path / COMPOSED / "data" / "identity.json").read_text(encoding="utf-8"))
    assert identity == dict.fromkeys(("name", "assistant", "author"), COMPOSED)


@pytest.mark.parametrize("name", ["models", "Models", "HUB", "Replay"])
def test_a_run_is_not_called_as_what_runs_share_on_any_file_system(name: str) -> None:
    with pytest.raises(RecipeError, match="none of models, hub, replay"):
        checked_name(name)


def test_names_leave_room_for_what_is_put_beside_a_folder(tmp_path: Path) -> None:
    assert checked_name("明" * 66) == "明" * 66
    with pytest.raises(RecipeError, match="has 201 bytes; a folder's name has 200 at most"):
        checked_name("明" * 67)
    for name in ("m" * 255, "明" * 85):
        folder = Run(tmp_path, "main").model(str(tmp_path / name))
        assert len(folder.name.encode()) <= 189
    assert len({Run(tmp_path, "main").model(str(tmp_path / place / ("m" * 255))) for place in "ab"}) == 2


def test_a_run_that_differs_in_case_alone_is_refused_where_the_file_system_ignores_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("Alice", APART):
        (tmp_path / name).mkdir()
    refuse_other_spelling(tmp_path, "alice")  # which is not there
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.name.lower() in ("alice", COMPOSED) or exists(path))
    assert cli.main(["data", "--name", "小明", "--run", "alice", "--work", str(tmp_path)]) == 1
    assert "holds Alice, and its file system takes both for the same" in capsys.readouterr().err
    for name in ("Alice", COMPOSED):  # the latter as HFS+ lists it
        refuse_other_spelling(tmp_path, name)
