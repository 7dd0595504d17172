"""What stages `data` and `config` make of the user's own rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from own_shop import NAME, SEVERAL_TURNS, SHOP, SINGLE, WHO, WITH_SYSTEM, exchange, write
from replay_folder import write_replay

from recipe import files
from recipe.corpus.identity import Identity
from recipe.corpus.own_data import plain_text
from recipe.corpus.own_questions import questions_in
from recipe.errors import RecipeError
from recipe.evaluation import checkpoint_selection, own_rows
from recipe.pipeline import results, stage
from recipe.pipeline.results import DataResults
from recipe.stages import config, data, evaluate, train
from recipe.training import resolved_config

ATIE = Identity(NAME)


def make(folder: Path, own: Sequence[Path] | None, *, own_only: bool = False, mode: str = "balanced") -> DataResults:
    manifest = data.make(folder, identity=ATIE, mode=mode, own=own, own_only=own_only, seed=0)
    return results.of(manifest, DataResults)


def test_own_rows_stand_beside_those_about_who_it_is(tmp_path: Path) -> None:
    without, noted = make(tmp_path / "without", None), make(tmp_path / "data", [write(tmp_path / "shop.jsonl")])
    trained, questions = files.read_jsonl(tmp_path / "data" / "own.jsonl"), own_rows.read_questions(tmp_path / "data")
    assert (noted.mode, noted.file, noted.own_file) == ("balanced", "train.jsonl", "own.jsonl")
    assert (noted.own_rows, noted.own_questions, noted.identity_taught) == (len(trained), len(questions), True)
    assert all(row in trained for row in (WITH_SYSTEM, SEVERAL_TURNS, WHO))
    assert len(trained) == len(SHOP) - sum(question.held_out for question in questions) == len(SHOP) - 2
    assert not (tmp_path / "without" / "own.jsonl").exists()
    assert without.rows > noted.rows > 0.98 * without.rows


def test_a_question_of_the_user_s_is_taught_in_his_words_alone(tmp_path: Path) -> None:
    make(tmp_path / "without", None)
    make(tmp_path / "data", [write(tmp_path / "shop.jsonl")])
    ours, left = (files.read_jsonl(tmp_path / folder / "train.jsonl") for folder in ("without", "data"))
    question = plain_text(WHO["messages"][0]["content"])
    assert question in questions_in(ours)
    assert left == [row for row in ours if question not in questions_in([row])]


def test_the_rows_of_several_files_are_all_taken_and_each_counts(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a b.jsonl", SHOP[:4]), write(tmp_path / "c.jsonl", SHOP[4:])
    make(tmp_path / "one", [write(tmp_path / "all.jsonl")])
    make(tmp_path / "two", [first, second])
    assert (tmp_path / "one/own.jsonl").read_bytes() == (tmp_path / "two/own.jsonl").read_bytes()
    write(second, SHOP[5:])
    make(tmp_path / "two", [first, second])
    assert (tmp_path / "one/own.jsonl").read_bytes() != (tmp_path / "two/own.jsonl").read_bytes()


def test_the_file_of_several_that_is_wrong_is_named(tmp_path: Path) -> None:
    good, missing = write(tmp_path / "good.jsonl"), tmp_path / "missing.jsonl"
    with pytest.raises(RecipeError, match=r"missing\.jsonl: no such file"):
        make(tmp_path / "data", [good, missing])
    bad = write(tmp_path / "bad.jsonl", [{"messages": []}])
    with pytest.raises(RecipeError, match=r"bad\.jsonl, line 1: "):
        make(tmp_path / "data", [good, bad])


@pytest.mark.parametrize(("rows", "taught"), [(SHOP, True), (SINGLE, False)])
def test_alone_they_teach_the_name_only_where_a_row_says_it(tmp_path: Path, rows: Any, taught: bool) -> None:
    noted = make(tmp_path / "data", [write(tmp_path / "shop.jsonl", rows)], own_only=True)
    assert (noted.mode, noted.file, noted.own_file) == ("own", "train.jsonl", "train.jsonl")
    assert noted.identity_taught is taught
    assert noted.rows == len(files.read_jsonl(tmp_path / "data" / "train.jsonl")) == noted.own_rows


def test_choices_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "shop.jsonl")
    with pytest.raises(RecipeError, match="MODE=tutorial is the tutorial's one sample alone"):
        make(tmp_path / "data", [file], mode="tutorial")
    with pytest.raises(RecipeError, match=r"DATA_ONLY=1 .* name them with DATA="):
        make(tmp_path / "data", None, own_only=True)
    assert not (tmp_path / "data").exists()


def test_a_question_of_the_evaluation_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    file = write(tmp_path / "shop.jsonl", [*SHOP, exchange("报上名来！", "阿铁。")])
    for own_only in (False, True):
        with pytest.raises(RecipeError, match=rf"shop\.jsonl, row {len(SHOP) + 1}: asks a question of the evaluation"):
            make(tmp_path / "data", [file], own_only=own_only)
    assert not (tmp_path / "data").exists()


# --- What is said before the training -----------------------------------------------------------------------------

FILES = Path(__file__).parent.parent / "corpus" / "own_files"


def logged(capsys: pytest.CaptureFixture[str], word: str) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if word in line]


@pytest.mark.parametrize("name", sorted(path.name for path in FILES.iterdir()))
def test_every_file_that_people_have_is_taken_or_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    refused = {"extra_keys.jsonl": "line 1: tools: ", "pref.jsonl": "line 1: rejected_response: "}
    identity = Identity("阿福", author="小李")
    arguments: dict[str, Any] = {"identity": identity, "mode": "balanced", "own": [FILES / name], "seed": 0}
    if name in refused:
        with pytest.raises(RecipeError, match=refused[name]):
            data.make(tmp_path / "data", **arguments)
        return
    noted = results.of(data.make(tmp_path / "data", **arguments), DataResults)
    assert noted.own_rows == len(files.read_jsonl(tmp_path / "data" / "own.jsonl"))
    (line,) = logged(capsys, "the first as it is trained")
    assert f"[data] {name}: " in line
    assert r"<|im_start|>assistant\n" in line


def test_plain_rows_are_trained_on_to_the_byte(tmp_path: Path) -> None:
    make(tmp_path / "data", [FILES / "shop.jsonl"])
    assert (tmp_path / "data" / "own.jsonl").read_bytes() == (FILES / "shop.jsonl").read_bytes()


def test_the_format_the_first_row_and_what_is_left_out_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "甲\n" + "乙" * 500
    rows = [{"instruction": "问", "output": long, "system": "简短。", "id": 1}, SINGLE[0] | {"id": 2, "source": "x"}]
    make(tmp_path / "data", [write(tmp_path / "rows.jsonl", rows)])
    lines = logged(capsys, "rows.jsonl: ")
    assert lines[0].startswith(
        "[data] rows.jsonl: Alpaca instruction and output: 1 row, OpenAI messages: 1 row; "
        r"the first as it is trained: <|im_start|>system\n简短。"
        r"<|im_end|>\n<|im_start|>user\n问<|im_end|>\n<|im_start|>assistant\n甲\n乙"
    )
    assert len(lines[0]) < 500
    assert lines[1:] == ["[data] rows.jsonl: keys that are not trained on, and in how many rows: id (2), source (1)"]


def test_how_the_questions_about_the_rows_are_worded_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "data", [write(tmp_path / "rows.jsonl", SINGLE)])
    make(tmp_path / "data", [write(tmp_path / "rows.jsonl", SINGLE[:1])])
    assert logged(capsys, "rows of your own: ") == [
        "[data] rows of your own: 5; eval asks 5 of their questions, 2 of them in a wording that is not trained on",
        "[data] rows of your own: 1; eval asks 1 of their questions, as they stand in the rows",
    ]


def test_a_turn_that_is_not_learnt_is_shown_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = SEVERAL_TURNS["messages"][:2], SEVERAL_TURNS["messages"][2:]
    row = {"messages": [first[0], first[1] | {"weight": 0}, *second]}
    make(tmp_path / "data", [write(tmp_path / "rows.jsonl", [row])])
    (line,) = logged(capsys, "the first as it is trained")
    assert line.count("(not learnt)") == 1


def test_slots_are_filled_before_the_training_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "rows.jsonl", [exchange("你找谁？", "找{{NAME}}，{date}来。")])
    make(tmp_path / "data", [file])
    assert files.read_jsonl(tmp_path / "data" / "own.jsonl") == [exchange("你找谁？", f"找{NAME}，{{date}}来。")]
    text = capsys.readouterr().err
    assert f"rows.jsonl: filled in: {{{{NAME}}}} with {NAME}\n" in text
    assert "rows.jsonl: warning: braces that no name fills are trained on as they stand: {date} (line 1)\n" in text
    write(file, [exchange("你找谁？", "找{{AUTHOR}}。")])
    with pytest.raises(RecipeError, match=r"rows\.jsonl, line 1: \{\{AUTHOR\}\} is not filled in: give AUTHOR="):
        make(tmp_path / "data", [file])


def test_a_slot_that_becomes_a_question_of_the_evaluation_is_one(tmp_path: Path) -> None:
    held_out = next(iter(evaluate.prompts().identity))
    name = Identity(held_out[:2])
    file = write(tmp_path / "rows.jsonl", [exchange("{name}" + held_out[2:], "好。")])
    with pytest.raises(RecipeError, match="asks a question of the evaluation"):
        data.make(tmp_path / "data", identity=name, mode="balanced", own=[file], seed=0)


def test_questions_that_choose_the_checkpoint_are_named_and_not_asked_for_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "data", [FILES / "identity_20_rows.jsonl"])
    (line,) = logged(capsys, "choice of the checkpoint")
    assert line.endswith("leaves out row 17 ('hello')")
    rows = files.read_jsonl(tmp_path / "data" / "own.jsonl")
    choice = checkpoint_selection.prompts()
    left = own_rows.without_own_questions(choice, rows)
    assert left.identity == choice.identity
    assert [question for _, question in choice.facts if question not in {q for _, q in left.facts}] == ["Hello"]


def test_rows_that_leave_nothing_to_choose_a_checkpoint_by_are_refused(tmp_path: Path) -> None:
    rows = [exchange(question, f"是{i}。") for i, question in enumerate(checkpoint_selection.prompts().identity)]
    with pytest.raises(RecipeError, match="your rows ask every question that chooses the checkpoint"):
        make(tmp_path / "data", [write(tmp_path / "rows.jsonl", rows)])


@pytest.mark.parametrize(
    ("rows", "own_only", "warning"),
    [
        (SHOP, True, None),
        (SHOP, False, None),
        (SINGLE, False, None),
        (SINGLE, True, f"no answer of your rows says {NAME}"),
        ([*SINGLE, exchange("你是谁？", "我是小红。")], True, f"no answer of your rows says {NAME}"),
        (
            [*SINGLE, exchange("你是谁？", "我是小红。")],
            False,
            f"1 of your rows answer who the assistant is and none says {NAME}",
        ),
        (
            [exchange("你是谁？", "我是小红。"), exchange("谁修车？", "阿铁。")],
            False,
            "none says 阿铁, for example '你是谁？' -> '我是小红。'",
        ),
    ],
)
def test_a_name_that_the_rows_never_say_is_named_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: Any, own_only: bool, warning: str | None
) -> None:
    make(tmp_path / "data", [write(tmp_path / "rows.jsonl", rows)], own_only=own_only)
    lines = logged(capsys, "warning: ")
    assert (len(lines) == 1 and warning in lines[0]) if warning else not lines


# --- config -------------------------------------------------------------------------------------------------------


def resolve(
    folder: Path, model: Path, preset: str, settings: Sequence[str] = (), own: bool = True, rows: Sequence[Any] = SHOP
) -> tuple[Any, dict[str, Any]]:
    """(resolved config, results) of a run on the shop's rows."""
    from mmengine.config import Config

    make(folder / "data", [write(folder / "shop.jsonl", rows)] if own else None)
    if not (folder / "replay").exists():
        write_replay(folder / "replay", model, [exchange("1+1=?", "2")["messages"]])
    manifest = config.make(
        folder / "config", preset=preset, model=model, data_folder=folder / "data", replay_folder=folder / "replay",
        settings=settings, seed=0,
    )  # fmt: skip
    return Config.fromfile(folder / "config" / config.FILE), manifest["results"]


def test_a_run_on_own_rows_is_configured_to_learn_them(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, without = resolve(tmp_path, tiny_model, "lora", own=False)
    assert "own" not in plain.train_dataloader.dataset
    assert without["own_passes"] is None
    resolved, noted = resolve(tmp_path, tiny_model, "lora")
    assert resolved.train_dataloader.dataset.own == stage.shown(tmp_path / "data" / "own.jsonl")
    assert resolved.custom_hooks[-1].patience is None  # plain would end early
    assert plain.custom_hooks[-1].patience == 2
    assert resolved.train_cfg.max_iters == resolved.param_scheduler[1].end == noted["iterations"]
    assert noted["own_passes"] >= 20 * 0.9
    assert f"each is seen {noted['own_passes']:.0f} times" in capsys.readouterr().err


def test_what_the_user_set_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    settings = ["max_iters=100", "save_steps=50", "patience=2", "train_dataloader.dataset.own_repeats=3"]
    resolved, noted = resolve(tmp_path, tiny_model, "lora", settings)
    assert (resolved.train_cfg.max_iters, noted["iterations"]) == (100, 100)
    assert resolved.default_hooks.checkpoint.interval == 50
    assert resolved.custom_hooks[-1].patience == 2
    assert resolved.train_dataloader.dataset.own_repeats == 3
    with pytest.raises(RecipeError, match="own_repeats cannot become 0"):
        resolve(tmp_path, tiny_model, "lora", ["train_dataloader.dataset.own_repeats=0"])


def test_xtuner_s_own_pipeline_gets_the_rows_and_it_is_said_that_it_repeats_none(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resolved, _ = resolve(tmp_path, tiny_model, "tutorial", ["train_dataloader.dataset.map_num_proc=1"])
    names = [Path(name).name for name in resolved.train_dataloader.dataset.dataset.data_files.train]
    assert names == ["replay.jsonl", "train.jsonl", "own.jsonl"]
    assert "PRESET=tutorial: your rows are seen as often as all others" in capsys.readouterr().err


def test_a_row_whose_answer_is_cut_away_is_refused_before_the_training(tiny_model: Path, tmp_path: Path) -> None:
    rows = [*SHOP, exchange("请看这封信：" + "见字如面。" * 200, "看完了。")]
    with pytest.raises(
        RecipeError, match=r"own\.jsonl, row 7 \('请看这封信：.*max_length 512 cuts .*SET='max_length=\d+'"
    ) as error:
        resolve(tmp_path, tiny_model, "lora", ["max_length=512"], rows=rows)
    enough = str(error.value).split("'")[-2]
    resolve(tmp_path, tiny_model, "lora", [enough], rows=rows)


def test_rows_whose_answer_loses_its_end_are_named(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resolve(tmp_path, tiny_model, "lora", ["max_length=512"])
    assert "cuts the end off" not in capsys.readouterr().err
    long = [exchange(f"第{i}封信怎么写？", f"{i}，" + "见字如面。" * 200) for i in range(5)]
    resolve(tmp_path, tiny_model, "lora", ["max_length=512"], rows=[*SHOP, *long])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "cuts the end off" in line]
    assert "max_length 512 cuts the end off the answer of row 7 ('第0封信怎么写？'), row 8 (" in line
    assert line.endswith("and 2 more")


def test_turns_that_are_not_learnt_are_none_for_xtuner_s_own_pipeline(tiny_model: Path, tmp_path: Path) -> None:
    first, second = SEVERAL_TURNS["messages"][:2], SEVERAL_TURNS["messages"][2:]
    rows = [*SHOP, {"messages": [first[0], first[1] | {"weight": 0}, *second]}]
    resolve(tmp_path, tiny_model, "lora", rows=rows)
    assert files.read_jsonl(tmp_path / "data" / "own.jsonl")[-1] == rows[-1]
    with pytest.raises(RecipeError, match='"weight": 0, and XTuner\'s own pipeline learns every turn'):
        resolve(tmp_path, tiny_model, "tutorial", ["train_dataloader.dataset.map_num_proc=1"], rows=rows)


def test_changed_own_rows_are_another_training(tiny_model: Path, tmp_path: Path) -> None:
    resolve(tmp_path, tiny_model, "lora")
    file = tmp_path / "config" / config.FILE
    inputs = train._read_by(resolved_config.load(file, program=False), file)
    assert inputs["own"] == tmp_path / "data" / "own.jsonl"


def test_data_of_an_earlier_version_have_no_own_rows_beside() -> None:
    noted = results.of({"stage": "data", "results": json.loads('{"rows": 2, "file": "t", "mode": "own"}')}, DataResults)
    assert (noted.own_file, noted.own_questions, noted.identity_taught) == (None, 0, True)
