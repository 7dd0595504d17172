from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from recipe.cli import commands
from recipe.cli.parser import build_parser
from recipe.errors import RecipeError
from recipe.pipeline import choices


def options(names: tuple[str, ...] = tuple(choices.DEFAULTS), **given: Any) -> argparse.Namespace:
    """What argparse makes of a verb that asks for `asked`, where the user gave `given`."""
    return argparse.Namespace(**(dict.fromkeys(names) | given))


def choose(folder: Path, **given: Any) -> argparse.Namespace:
    """A verb that works: its choices completed and written down."""
    chosen = options(**given)
    choices.complete(chosen, folder)
    choices.save(chosen, folder)
    return chosen


def saved(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / choices.FILE).read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "小明"),
        ("name", "O’Brien 🐼"),
        ("mode", "tutorial"),
        ("n", 500),
        ("max_shard_size", "2GB"),
        ("languages", "en"),
        ("model", "miniature"),
        ("set", ["lr=1e-4", "r=8"]),
        ("seed", 0),
        ("seed", 7),
        ("data", [Path("/rows/我的 rows.jsonl")]),
        ("data", [Path("/a.jsonl"), Path("/b.json")]),
        ("data_only", True),
        ("data_only", False),
        ("config", Path("/own.py")),
    ],
)
def test_a_choice_need_not_be_repeated(tmp_path: Path, key: str, value: Any) -> None:
    choose(tmp_path, **{key: value})
    assert getattr(choose(tmp_path), key) == value


def test_what_nobody_chose_is_the_default_and_is_not_written_down(tmp_path: Path) -> None:
    """Else a verb with another default (quickstart's model) would find the first verb's."""
    assert choose(tmp_path, name="小明").model == "internlm2-chat-1_8b"
    assert saved(tmp_path) == {"name": "小明"}
    quickstart = options()
    choices.complete(quickstart, tmp_path, model="miniature")
    assert (quickstart.name, quickstart.model) == ("小明", "miniature")


def test_what_follows_a_verb_with_another_default_is_about_the_same(tmp_path: Path) -> None:
    quickstart = options(name="小明")
    choices.complete(quickstart, tmp_path, model="miniature")
    choices.save(quickstart, tmp_path)
    assert choose(tmp_path).model == "miniature"
    assert choose(tmp_path, model="internlm2-chat-1_8b").model == "internlm2-chat-1_8b"


def test_a_choice_beats_a_verbs_own_default(tmp_path: Path) -> None:
    choose(tmp_path, model="/models/mine")
    quickstart = options()
    choices.complete(quickstart, tmp_path, model="miniature")
    assert quickstart.model == "/models/mine"


def test_the_latest_choice_counts(tmp_path: Path) -> None:
    for seed in (1, 2):
        choose(tmp_path, seed=seed)
    assert choose(tmp_path).seed == 2


def test_a_verb_keeps_the_choices_that_it_does_not_ask_for(tmp_path: Path) -> None:
    choose(tmp_path, name="小明", seed=3)
    model = options(("model",), model="miniature")
    choices.complete(model, tmp_path)
    choices.save(model, tmp_path)
    assert not hasattr(model, "name")
    assert saved(tmp_path) == {"name": "小明", "seed": 3, "model": "miniature"}


def test_runs_do_not_share_choices(tmp_path: Path) -> None:
    choose(tmp_path / "one", name="小明")
    assert choose(tmp_path / "two").name is None


FIRST = {
    "name": "小明", "assistant": "小智", "author": "实验室", "data": [Path("/rows.jsonl")], "mode": "balanced",
    "data_only": True,
    "languages": "en", "model": "miniature", "preset": "lora", "set": ["lr=1e-4"], "config": Path("/own.py"), "seed": 5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("key", "value", "forgotten"),
    [
        ("name", "小红", {"assistant", "author"}),
        ("mode", "tutorial", {"data", "data_only"}),
        ("data", [Path("/other.jsonl")], {"mode", "data_only"}),
        ("data", [Path("/rows.jsonl"), Path("/other.jsonl")], {"mode", "data_only"}),
        ("data_only", False, set()),
        ("model", "/models/mine", {"preset", "set", "config", "languages"}),
        ("languages", "zh", set()),
        ("preset", "qlora", {"set"}),
        ("seed", 6, set()),
        ("assistant", "小慧", set()),
    ],
)
def test_another_choice_forgets_what_belonged_to_the_old_one(
    tmp_path: Path, key: str, value: Any, forgotten: set[str]
) -> None:
    choose(tmp_path, **FIRST)
    after = choose(tmp_path, **{key: value})
    for other in FIRST.keys() - {key}:
        expected = choices.DEFAULTS[other] if other in forgotten else FIRST[other]
        assert getattr(after, other) == expected, other


@pytest.mark.parametrize("key", FIRST)
def test_the_same_choice_again_forgets_nothing(tmp_path: Path, key: str) -> None:
    choose(tmp_path, **FIRST)
    choose(tmp_path, **{key: FIRST[key]})
    assert {other: getattr(choose(tmp_path), other) for other in FIRST} == FIRST


def test_choices_made_together_are_all_kept(tmp_path: Path) -> None:
    choose(tmp_path, **FIRST)
    second = {"name": "小红", "assistant": "小慧", "model": "/models/mine", "preset": "qlora", "set": ["r=8"]}
    choose(tmp_path, **second)
    assert {key: getattr(choose(tmp_path), key) for key in second} == second


def test_a_mode_chosen_after_own_data_takes_their_place(tmp_path: Path) -> None:
    """Even the mode of before the data: who asks for MODE=tutorial is not to train on rows.jsonl."""
    choose(tmp_path, name="小明", mode="tutorial")
    choose(tmp_path, data=[Path("/rows.jsonl")], data_only=True)
    assert choose(tmp_path, mode="tutorial").data is None
    assert choose(tmp_path).data_only is False


def test_the_mode_that_holds_already_keeps_the_data_beside_it(tmp_path: Path) -> None:
    """Balanced is the default, which own rows are added to, so MODE=balanced chooses nothing else."""
    choose(tmp_path, name="小明", data=[Path("/rows.jsonl")])
    assert choose(tmp_path, mode="balanced").data == [Path("/rows.jsonl")]


def test_a_file_of_a_version_that_took_one_file_still_means_what_it_did(tmp_path: Path) -> None:
    (tmp_path / choices.FILE).write_text(json.dumps({"name": "小明", "data": "/rows.jsonl"}), encoding="utf-8")
    for chosen in (choose(tmp_path), choose(tmp_path, seed=3), choose(tmp_path, data=[Path("/rows.jsonl")])):
        assert (chosen.data, chosen.data_only) == ([Path("/rows.jsonl")], True)
    assert choose(tmp_path, data_only=False).data == [Path("/rows.jsonl")]
    assert choose(tmp_path).data_only is False


def test_what_was_recalled_is_said_as_it_is_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choose(tmp_path, data=[Path("/a.jsonl"), Path("/b.jsonl")], data_only=True, set=["r=8", "lr=1e-4"])
    choices.complete(options(("data", "data_only", "set")), tmp_path)
    assert "as before, DATA=/a.jsonl /b.jsonl DATA_ONLY=1 SET=r=8 lr=1e-4\n" in capsys.readouterr().err


def test_a_verb_that_failed_is_not_remembered(tmp_path: Path) -> None:
    choose(tmp_path, name="小明")
    choices.complete(options(name="小红"), tmp_path)  # and no save
    assert choose(tmp_path).name == "小明"


def test_a_verb_without_choices_writes_nothing(tmp_path: Path) -> None:
    choices.save(argparse.Namespace(verb="chat"), tmp_path / "run")
    choose(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_choices_are_readable_and_leave_no_other_file(tmp_path: Path) -> None:
    choose(tmp_path, name="小明")
    assert "小明" in (tmp_path / choices.FILE).read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == [choices.FILE]


def test_a_save_that_fails_keeps_the_last_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(tmp_path, name="小明")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        choose(tmp_path, name="小红")
    assert saved(tmp_path) == {"name": "小明"}


def test_only_what_was_recalled_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    choose(tmp_path, name="小明", model="miniature", seed=3)
    assert capsys.readouterr().err == ""
    choices.complete(options(("name", "seed", "mode"), seed=4), tmp_path)
    assert capsys.readouterr().err == f"[run] {tmp_path.name}: as before, NAME=小明\n"


def test_a_chain_of_verbs_says_once_what_it_recalls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "work"
    choose(work / "r", name="小明", model="miniature", preset="lora", checkpoint="iter_2", seed=3)
    chain = ["data", "model", "replay", "config", "train", "convert", "merge", "gguf"]
    for number, verb in enumerate(chain):
        after = [word for earlier in chain[:number] for word in ("--after", earlier)]
        commands._run(build_parser().parse_args([verb, "--run", "r", "--work", str(work), *after]))
    lines = [line for line in capsys.readouterr().err.splitlines() if "as before" in line]
    assert lines == [
        "[run] r: as before, NAME=小明 MODEL=miniature SEED=3",
        "[run] r: as before, PRESET=lora",
        "[run] r: as before, CHECKPOINT=iter_2",
    ]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b'{"name": "', id="truncated"),
        pytest.param('{"name": "小明"}'.encode("gbk"), id="not UTF-8"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b'["name"]', id="a list of text"),
        pytest.param(b"null", id="null"),
        pytest.param(b'"name"', id="text"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / choices.FILE).write_bytes(content)
    with pytest.raises(RecipeError, match=r"run\.json: .*remove it") as error:
        choose(tmp_path, name="小明")
    assert str(tmp_path) in str(error.value)
    assert (tmp_path / choices.FILE).read_bytes() == content


def test_a_model_by_name_brings_its_languages_and_source_and_a_run_s_own_choice_wins(tmp_path: Path) -> None:
    chosen = choose(tmp_path, model="smollm2-135m-instruct")
    assert (chosen.languages, chosen.source) == ("en", "pypi")
    assert saved(tmp_path) == {"model": "smollm2-135m-instruct"}
    assert choose(tmp_path, languages="zh,en", source="hf").languages == "zh,en"
    again = choose(tmp_path)
    assert (again.languages, again.source) == ("zh,en", "hf")
    other = choose(tmp_path, model="internlm2-chat-1_8b")
    assert (other.languages, other.source) == ("zh,en", "hf")


@pytest.mark.parametrize("place", ["work/run/own.py", "work/other/own.py", "work/run/../other/own.py"])
def test_a_program_that_may_have_come_with_a_copied_run_is_named_again(tmp_path: Path, place: str) -> None:
    config = tmp_path / place
    (tmp_path / "work" / "run").mkdir(parents=True)
    config.resolve().parent.mkdir(exist_ok=True)
    config.resolve().write_text("", encoding="utf-8")
    assert choose(tmp_path / "work" / "run", config=config).config == config
    with pytest.raises(RecipeError, match=r"run\.json: names the config .*name it again with CONFIG="):
        choices.complete(options(), tmp_path / "work" / "run")
    verb = options(names=("name",))  # which runs no config
    choices.complete(verb, tmp_path / "work" / "run")


@pytest.mark.parametrize("changed", [{"mode": "balanced"}, {"data": [Path("/rows.jsonl")]}])
def test_another_kind_of_data_forgets_the_number_of_the_tutorials_rows(tmp_path: Path, changed: dict[str, Any]) -> None:
    choose(tmp_path, mode="tutorial", n=500)
    assert choose(tmp_path).n == 500
    assert choose(tmp_path, **changed).n is None
