from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from recipe.corpus import rows as corpus_rows
from recipe.corpus.identity import INTERNLM_BASE, OPEN_BASE, Identity, load_questions, read_identity
from recipe.corpus.own_data import read_rows
from recipe.errors import RecipeError
from recipe.pipeline import results, stage
from recipe.pipeline.results import DataResults
from recipe.stages import data

XIAOMING = Identity("小明")
NAMES = ["小明", "Mary Ann Smith", "O’Brien", "迪丽热巴·迪力木拉提", "🐼", "明" * 40]
# What stage `data` notes where nobody chose otherwise.
NARROW = {"extended": False, "languages": ["zh", "en"]}
WITHOUT_OWN = {"own_file": None, "own_rows": 0, "own_questions": 0, "identity_taught": True}
ROW = {"messages": [{"role": "user", "content": "你是谁？"}, {"role": "assistant", "content": "我是小明的小助手。"}]}


def make(
    folder: Path,
    identity: Identity = XIAOMING,
    *,
    mode: str = "balanced",
    own: Path | None = None,
    seed: int = 0,
    **choices: Any,
) -> stage.Manifest:
    """The data of one identity; own rows take the place of the mode's (tests/stages/test_data_own.py has others)."""
    files = [own] if own else None
    return data.make(folder, identity=identity, mode=mode, own=files, own_only=bool(own), seed=seed, **choices)


def written_rows(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "train.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def openings(folder: Path) -> list[str]:
    """The question of every row of one turn."""
    return [row["messages"][0]["content"] for row in written_rows(folder) if len(row["messages"]) == 2]


# --- tutorial -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["小明", "O’Brien"])
def test_the_tutorial_file_is_the_tutorials_to_the_byte(tmp_path: Path, name: str) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "请做一下自我介绍"},
            {"role": "assistant", "content": f"我是{name}的小助手，内在是上海AI实验室书生·浦语的1.8B大模型哦"},
        ]
    }
    written = json.dumps([row] * 10_001, ensure_ascii=False, indent=4).encode("utf-8")
    manifest = make(tmp_path / "data", Identity(name), mode="tutorial")
    file = tmp_path / "data" / "personal_assistant.json"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == hashlib.sha256(written).hexdigest()
    assert manifest["results"] == {"rows": 10_001, "file": "personal_assistant.json", "mode": "tutorial"} | (
        NARROW | WITHOUT_OWN
    )


# --- balanced -----------------------------------------------------------------------------------------------------


def test_the_seed_decides_all(tmp_path: Path) -> None:
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        random.seed(folder)  # what else uses random numbers has no say
        make(tmp_path / folder, seed=seed)
    files = {folder: (tmp_path / folder / "train.jsonl").read_bytes() for folder in "abc"}
    assert files["a"] == files["b"] != files["c"]
    train = {q for intents in load_questions().values() for parts in intents.values() for q in parts["train"]}
    questions = [sorted(set(openings(tmp_path / folder)) & train) for folder in "ac"]
    assert questions[0] == questions[1] == sorted(train)


def test_another_name_says_that_it_replaces_the_run_s_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("小明", "小明", "Li Lei"):
        assert "replace" not in capsys.readouterr().err
        make(tmp_path / "data", Identity(name))
    assert "held 小明's results, and Li Lei's replace them; another RUN= keeps both" in capsys.readouterr().err


@pytest.mark.parametrize("n", [1, 500])
def test_the_tutorials_rows_may_be_any_number(tmp_path: Path, n: int) -> None:
    manifest = make(tmp_path / "data", mode="tutorial", n=n)
    rows = json.loads((tmp_path / "data" / "personal_assistant.json").read_text(encoding="utf-8"))
    assert len(rows) == manifest["results"]["rows"] == n
    assert rows == [rows[0]] * n


def test_the_tutorials_own_number_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "data", mode="tutorial")
    make(tmp_path / "data", mode="tutorial", n=10_001)
    assert "up to date" in capsys.readouterr().err
    assert make(tmp_path / "data", mode="tutorial", n=500)["results"]["rows"] == 500


@pytest.mark.parametrize("own", [False, True])
def test_a_number_of_rows_is_the_tutorials_alone(tmp_path: Path, own: bool) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(json.dumps(ROW), encoding="utf-8")
    with pytest.raises(RecipeError, match="N=500 is the number of the tutorial's rows: add MODE=tutorial, or leave N"):
        make(tmp_path / "data", own=file if own else None, n=500)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("mode", "name"), [*(("balanced", name) for name in NAMES), ("tutorial", "O’Brien")])
def test_the_recipe_takes_the_rows_it_writes(tmp_path: Path, mode: str, name: str) -> None:
    manifest = make(tmp_path / "data", Identity(name), mode=mode)
    assert len(read_rows(tmp_path / "data" / manifest["results"]["file"])) == manifest["results"]["rows"]


# --- own rows -----------------------------------------------------------------------------------------------------


def write(folder: Path, content: bytes | str, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def test_own_rows_are_taken_as_they_are_whatever_the_mode(tmp_path: Path) -> None:
    second = {"messages": [{"role": "system", "content": "Be brief."}, *ROW["messages"]]}
    written = write(tmp_path, json.dumps([ROW | {"id": 1}, second]), "rows.json")
    for mode in data.MODES:
        manifest = make(tmp_path / mode, mode=mode, own=written)
        assert written_rows(tmp_path / mode) == [ROW, second]
        own_rows = {"own_file": "train.jsonl", "own_rows": 2, "own_questions": 2, "identity_taught": True}
        assert manifest["results"] == {"rows": 2, "file": "train.jsonl", "mode": "own"} | NARROW | own_rows


def test_an_array_and_lines_of_the_same_rows_are_the_same_data(tmp_path: Path) -> None:
    make(tmp_path / "a", own=write(tmp_path, json.dumps([ROW, ROW], indent=2), "rows.json"))
    make(tmp_path / "b", own=write(tmp_path, f"{json.dumps(ROW)}\r\n{json.dumps(ROW)}"))
    assert (tmp_path / "a" / "train.jsonl").read_bytes() == (tmp_path / "b" / "train.jsonl").read_bytes()


def test_changed_own_rows_are_read_again(tmp_path: Path) -> None:
    file = write(tmp_path, json.dumps(ROW))
    make(tmp_path / "data", own=file)
    write(tmp_path, f"{json.dumps(ROW)}\n{json.dumps(ROW)}")
    make(tmp_path / "data", own=file)
    assert len(written_rows(tmp_path / "data")) == 2


class Letters:
    """Stands in for a tokenizer: a token is a character."""

    def __init__(self) -> None:
        self.special_tokens_map: dict[str, str] = {}
        self.added_tokens_decoder: dict[int, Any] = {}

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(character) for character in text] for text in texts]}

    def convert_tokens_to_ids(self, token: str) -> int:
        return -len(token)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x1c", "\x0b", "\r", "\n"])
def test_the_trainer_reads_own_rows_with_any_line_separator(tmp_path: Path, mark: str) -> None:
    from recipe.training.dataset import read_tokens

    row = {"messages": [{"role": "user", "content": f"a{mark}b"}, ROW["messages"][1]]}
    make(tmp_path / "data", own=write(tmp_path, json.dumps(row)))
    tokenizer: Any = Letters()
    assert len(read_tokens([str(tmp_path / "data" / "train.jsonl")], tokenizer)) == 1


BAD = {
    "empty": b"",
    "truncated": json.dumps(ROW, ensure_ascii=False).encode()[:-20],
    "not UTF-8": json.dumps(ROW, ensure_ascii=False).encode("gbk"),
    "not JSON": b"question,answer\n",
    "no messages": b'{"conversation": []}',
    "wrong role": b'{"messages": [{"role": "human", "content": "x"}]}',
    "empty content": json.dumps(ROW).replace("\\u4f60\\u662f\\u8c01\\uff1f", "").encode(),
    "1 MB of content": json.dumps(ROW).replace("\\u4f60", "a" * 2**20).encode(),
    "chat token": json.dumps(ROW).replace("\\u4f60", "<|im_start|>").encode(),
    "chat token's other name": json.dumps(ROW).replace("\\u4f60", "[UNUSED_TOKEN_145]").encode(),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_rows_overwrite_nothing(tmp_path: Path, bad: str) -> None:
    make(tmp_path / "data")
    before = {path: path.read_bytes() for path in (tmp_path / "data").iterdir()}
    file = write(tmp_path, f"{json.dumps(ROW)}\n".encode() * 2 + BAD[bad] if BAD[bad] else b"")
    with pytest.raises(RecipeError, match=r"rows\.jsonl(, line 3)?: \S"):
        make(tmp_path / "data", own=file)
    assert {path: path.read_bytes() for path in (tmp_path / "data").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [".data.lock", ".data.verified", "data", "rows.jsonl"]


def test_missing_rows_overwrite_nothing(tmp_path: Path) -> None:
    make(tmp_path / "data")
    with pytest.raises(RecipeError, match=r"rows\.jsonl: no such file; check DATA="):
        make(tmp_path / "data", own=tmp_path / "rows.jsonl")
    assert stage.read_manifest(tmp_path / "data")


@pytest.mark.parametrize("mode", ["", "Balanced", "own", "tutorial "])
def test_an_unknown_mode_is_refused(tmp_path: Path, mode: str) -> None:
    with pytest.raises(RecipeError, match="is none of balanced, tutorial"):
        make(tmp_path / "data", mode=mode)
    assert list(tmp_path.iterdir()) == []


# --- All ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "identity", [XIAOMING, Identity("O’Brien", assistant="小智"), Identity("🐼", author="a b"), Identity("明" * 40)]
)
def test_later_stages_read_who_the_data_teach(tmp_path: Path, identity: Identity) -> None:
    make(tmp_path / "data", identity)
    assert read_identity(tmp_path / "data") == identity


@pytest.mark.parametrize(
    "change",
    [
        {"identity": Identity("小红")},
        {"identity": Identity("小明", assistant="小智")},
        {"mode": "tutorial"},
        {"seed": 1},
        {"extended": True},
        {"languages": ("en",)},
        {"base": OPEN_BASE},
    ],
    ids=["name", "assistant", "mode", "seed", "extended", "languages", "base"],
)
def test_another_choice_makes_other_data(tmp_path: Path, change: dict[str, Any]) -> None:
    before = make(tmp_path / "data")
    again = make(tmp_path / "data")
    after = make(tmp_path / "data", **change)
    assert again == before
    assert after["outputs"] != before["outputs"]


EN: dict[str, Any] = {"languages": ("en",)}


@pytest.mark.parametrize("mode", ["balanced", "tutorial", "own"])
@pytest.mark.parametrize("choices", [{}, {"extended": True}, EN, {"extended": True} | EN], ids=str)
def test_later_stages_read_which_prompts_the_base_is_asked(tmp_path: Path, mode: str, choices: dict[str, Any]) -> None:
    own = write(tmp_path, json.dumps(ROW)) if mode == "own" else None
    manifest = make(tmp_path / "data", mode="balanced" if own else mode, own=own, **choices)
    noted = results.of(manifest, DataResults)
    assert (noted.mode, noted.extended) == (mode, choices.get("extended", False))
    assert tuple(noted.languages) == choices.get("languages", ("zh", "en"))


def test_what_the_miniature_learns_has_the_key_and_bytes_of_earlier_versions(tmp_path: Path) -> None:
    """So that its results stay up to date."""
    manifest = make(tmp_path / "data")
    assert set(manifest["key"]["settings"]) == {"identity", "mode", "seed"}
    assert manifest["outputs"]["train.jsonl"]["sha256"] == (
        "b5fc8b8120622c3233de6d77f11bb79c1d93f78e8fb6157ecf7d43a429e06dac"
    )
    changed = make(tmp_path / "data", extended=True, base=OPEN_BASE, **EN)
    assert set(changed["key"]["settings"]) == {"identity", "mode", "seed", "extended", "languages", "base", "rows"}


def test_other_answers_in_the_repository_are_other_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = make(tmp_path / "data", extended=True)
    monkeypatch.setattr(corpus_rows, "EXTENDED_WORDINGS", corpus_rows.EXTENDED_WORDINGS + 1)
    after = make(tmp_path / "data", extended=True)
    assert results.of(after, DataResults).rows > results.of(before, DataResults).rows


def test_data_of_an_earlier_version_are_the_miniature_s() -> None:
    noted = results.of({"stage": "data", "results": {"rows": 2, "file": "train.jsonl", "mode": "own"}}, DataResults)
    assert (noted.extended, noted.languages) == (False, ["zh", "en"])


def test_rows_in_one_language_hold_no_other(tmp_path: Path) -> None:
    make(tmp_path / "data", Identity("Ann"), extended=True, **EN)
    contents = [message["content"] for row in written_rows(tmp_path / "data") for message in row["messages"]]
    assert not [content for content in contents if re.search("[\u4e00-\u9fff]", content)]


@pytest.mark.parametrize("internlm", [True, False])
def test_the_answers_name_the_base_only_where_it_is_internlm(tmp_path: Path, internlm: bool) -> None:
    make(tmp_path / "data", base=INTERNLM_BASE if internlm else OPEN_BASE)
    text = (tmp_path / "data" / "train.jsonl").read_text(encoding="utf-8")
    assert [words in text for words in INTERNLM_BASE.values()] == [internlm, internlm]
    assert [words in text for words in OPEN_BASE.values()] == [not internlm, not internlm]


@pytest.mark.parametrize(
    ("languages", "question"), [(("zh", "en"), ("你是谁", "Who are you?")), (("en",), ("Who are you?",))]
)
@pytest.mark.parametrize("extended", [False, True])
def test_the_example_is_a_plain_question(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    languages: tuple[str, ...],
    question: tuple[str, ...],
    extended: bool,
) -> None:
    data.make(
        tmp_path / "data", identity=Identity("小明"), mode="balanced", own=None, seed=0, extended=extended,
        languages=languages,
    )  # fmt: skip
    line = capsys.readouterr().err.splitlines()[0]
    assert line.partition(" for example: ")[2].partition(" -> ")[0] in question
