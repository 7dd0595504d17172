"""Which tool takes which artefact: docs/tools.md, written by the tests that try it.

A test that tries a tool on an artefact is marked `@pytest.mark.tool("its name", "artefact")`, and one that shows what
the tool does wrong `@pytest.mark.tool("its name", "artefact", "no")`. `make tools-table` runs those tests, in all their
tiers, and writes the table once all of them passed. Nothing else fills a cell.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Generator, Iterator, Mapping
from importlib import metadata
from pathlib import Path

import pytest

from recipe.paths import ROOT

PAGE = ROOT / "docs" / "tools.md"
ARTEFACTS = ("merged", "adapter", "export", "gguf")
# Tools that are no part of the locked environment, a folder each. The first is for a process of its own.
PACKAGES = (
    "transformers==5.20.2", "peft==0.21.2", "huggingface-hub==2.4.0", "tokenizers==0.23.3", "httpx2==2.14.0",
    "httpcore2==2.14.0", "truststore==0.10.5",
)  # fmt: skip
LLAMA_CPP_PACKAGE = "xllamacpp==2026.10.11549"
# Its source distribution holds llama.cpp's converter, which no index has by itself.
LLAMA_CPP_SOURCE = "llama-cpp-python==0.3.36"
TOOLS = ROOT / "work" / "tools"
TRANSFORMERS_5, LLAMA_CPP, CONVERTER = TOOLS / PACKAGES[0], TOOLS / LLAMA_CPP_PACKAGE, TOOLS / LLAMA_CPP_SOURCE


def _pinned(requirement: str) -> str:
    return requirement.partition("==")[2]


def versions() -> Mapping[str, str | None]:
    """Tool -> the version that is tried; None for tools that README, docs and cards name and no test tries."""
    transformers = metadata.version("transformers")
    return {
        "transformers": transformers,
        "AutoTokenizer of transformers": transformers,
        "PEFT": metadata.version("peft"),
        "transformers 5": _pinned(PACKAGES[0]),
        "AutoTokenizer of transformers 5": _pinned(PACKAGES[0]),
        "PEFT on transformers 5": _pinned(PACKAGES[1]),
        "llama.cpp (xllamacpp)": _pinned(LLAMA_CPP_PACKAGE),
        "llama.cpp's converter (llama-cpp-python)": _pinned(LLAMA_CPP_SOURCE),
        "Ollama": None,
        "vLLM": None,
    }


def marked() -> set[tuple[str, ...]]:
    """(tool, artefact), or (tool, artefact, "no"), of every mark in the tests' sources."""
    return {pair for file in sorted((ROOT / "tests").rglob("*.py")) for pair in _marks(file)}


def _marks(file: Path) -> Iterator[tuple[str, ...]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.tool":
            yield tuple(map(ast.literal_eval, node.args))


def rows(marks: set[tuple[str, ...]]) -> list[str]:
    """The lines of the table. marks: those whose tests passed."""
    cell_of = {(tool, artefact): "".join(no) or "works" for tool, artefact, *no in marks}
    lines = [f"| tool | version | {' | '.join(f'`{artefact}`' for artefact in ARTEFACTS)} |", "|---" * 6 + "|"]
    for tool, version in versions().items():
        cells = (cell_of.get((tool, artefact), "not tried") for artefact in ARTEFACTS)
        lines.append(f"| {tool} | {version or ''} | {' | '.join(cells)} |")
    return lines


def table() -> list[str]:
    """The lines of the table as the page has them."""
    return [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]


class Recorder:
    """Collects how the marked tests end, as a plugin of pytest."""

    def __init__(self) -> None:
        self.passed: set[tuple[str, ...]] = set()
        self.other: set[tuple[str, ...]] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        for mark in item.iter_markers("tool"):
            if report.when == "call" or report.outcome != "passed":
                (self.passed if report.outcome == "passed" else self.other).add(mark.args)
        return report


def install() -> None:
    """Bring the tools that are no part of the locked environment to where the tests look for them."""
    uv = [str(Path(sys.executable).with_name("uv"))]
    pip = [*uv, "pip", "install", "--quiet", "--python", sys.executable, "--no-deps"]
    subprocess.run([*pip, "--target", str(LLAMA_CPP), LLAMA_CPP_PACKAGE], check=True)
    subprocess.run([*pip, "--target", str(TRANSFORMERS_5), *PACKAGES], check=True)
    if CONVERTER.is_dir():
        return
    with tempfile.TemporaryDirectory() as folder:
        download = ["tool", "run", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "--dest", folder]
        subprocess.run([*uv, *download, LLAMA_CPP_SOURCE], check=True)
        with tarfile.open(next(Path(folder).glob("*.tar.gz"))) as archive:
            _extract_converter(archive, Path(folder) / "converter")
        shutil.move(Path(folder) / "converter", CONVERTER)


def _extract_converter(archive: tarfile.TarFile, folder: Path) -> None:
    """Write llama.cpp's converter, of all that a source distribution holds, to a folder."""
    for member in archive.getmembers():
        inside = member.name.partition("/vendor/llama.cpp/")[2]
        wanted = re.fullmatch(r"(convert_hf_to_gguf\.py|(conversion|gguf-py)/.*)", inside)
        if wanted and ".." not in Path(inside).parts and (content := archive.extractfile(member)):
            (folder / inside).parent.mkdir(parents=True, exist_ok=True)
            (folder / inside).write_bytes(content.read())


def main() -> int:
    """Install the tools, run the marked tests, and write the table."""
    install()
    recorder = Recorder()
    status = int(pytest.main(["-m", "tool", "-rs", str(ROOT / "tests")], plugins=[recorder]))
    works = recorder.passed - recorder.other
    if missing := sorted(marked() - works):
        shown = ", ".join(f"{tool} on {artefact}" for tool, artefact, *_ in missing)
        print(f"error: {PAGE.name} stays as it is: {shown} failed or was skipped (see above)", file=sys.stderr)
        return status or 1
    before = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(before.replace("\n".join(table()), "\n".join(rows(works))), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
