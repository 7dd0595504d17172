"""The miniature, as if it were the merged model of run `quickstart`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from recipe.pipeline import stage
from recipe.serving.model_host import ModelHost


@pytest.fixture(scope="session")
def served_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder whose run `quickstart` is the miniature."""
    from recipe.stages import model

    work = tmp_path_factory.mktemp("work")
    model.make(work / "models" / "miniature", model="miniature")

    def write(out: Path) -> None:
        for file in (work / "models" / "miniature").iterdir():
            if file.is_file() and file.name != stage.MANIFEST:
                shutil.copyfile(file, out / file.name)

    stage.run("merge", work / "quickstart" / "merged", inputs={}, settings={}, work=write)
    return work


@pytest.fixture(scope="module")
def model_host(served_work: Path) -> Iterator[ModelHost]:
    """The miniature, loaded."""
    model_host = ModelHost(served_work, None, 1, verb="api", compare=False)
    model_host.load()
    assert model_host.engine
    yield model_host
    model_host.engine.close()


@pytest.fixture(scope="session")
def miniature(served_work: Path) -> Path:
    """The folder of the miniature after stage `model`."""
    return served_work / "models" / "miniature"
