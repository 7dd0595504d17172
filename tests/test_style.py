"""What CONTRIBUTING asks of every module and is quick to check: lengths, and names that say something."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from recipe.paths import ROOT

MODULE, FUNCTION = 350, 60  # lines
# Participles and adjectives that name no thing of the field.
EMPTY = frozenset({"made", "told", "found", "said", "asked", "known", "rest", "wide"})
MODULES = sorted((ROOT / "recipe").rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_short_and_its_names_say_something(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MODULE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < FUNCTION, node.name
            names = {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
            assert not EMPTY & {node.name, *names}, node.name
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            assert node.id not in EMPTY, f"line {node.lineno}"
