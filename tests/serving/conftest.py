"""The miniature, as if it were the merged model of run `quickstart`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from small_endpoint import write_served

from recipe.serving.model_host import ModelHost


@pytest.fixture(scope="session")
def served_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work folder whose run `quickstart` is the miniature."""
    return write_served(tmp_path_factory.mktemp("work"))


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
