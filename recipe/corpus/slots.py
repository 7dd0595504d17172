"""Slots that stand in the user's rows, as in "I am {{NAME}}": filled from the identity, or named before the training.

Code keeps its braces: between backticks, in strings of Python and C# that are formatted, after $ and in LaTeX.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from recipe.corpus.identity import Identity
from recipe.corpus.own_data import Row
from recipe.errors import RecipeError

# Words in single braces that are slots of datasets about who a model is; in double braces every word is one.
UNFILLED = {
    *("me", "maker", "base", "owner", "developer", "company", "organization", "organisation", "model", "bot", "user"),
    *("model_name", "bot_name", "assistant_name", "author_name", "user_name", "your_name", "model_author"),
    *("名字", "姓名", "名称", "作者", "助手", "主人", "公司"),
}
_WORD = r"[^\W\d]\w*(?:[ -]\w+)*"
_SLOT = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`"  # Markdown
    r"|(?:\b[fF]|(?<!\w)\$)(?P<quote>[\"'])[^\n]*?(?P=quote)|(?P<string>[\"'])[^\"'\n]*(?P=string)\.format\("
    r"|\\[A-Za-z]+(?:\{[^{}]*\})+|[\^_#]\{+[^{}]*\}+|(?P<shell>\$\{+[^{}]*\}+)"  # \text{name}, x_{max}, ${name}
    rf"|\{{\{{ *(?P<double>{_WORD}) *\}}\}}|(?<!\{{)\{{(?P<single>{_WORD})\}}(?!\}})",
    re.DOTALL,
)


@dataclass(frozen=True)
class Filled:
    """Rows without slots.

    Attributes:
        rows: filled.
        values: slot, as it stands in the rows -> what stands there now.
        kept: text in braces that stays, since nobody knows whether it is a slot -> line of its first row.
    """

    rows: list[Row]
    values: dict[str, str]
    kept: dict[str, int]


def fill(rows: Sequence[Row], lines: Sequence[int], identity: Identity, where: str) -> Filled:
    """Fill the slots {{NAME}}, {{ASSISTANT}} and {{AUTHOR}}, in single braces too and in any case.

    Args:
        rows: of one file.
        lines: on which they begin, for errors.
        identity: who fills them.
        where: the file.

    Raises:
        RecipeError: a slot has no value.
    """
    values = {"name": identity.name, "assistant": identity.assistant, "author": identity.author}
    filled = Filled([], {}, {})
    for row, line in zip(rows, lines, strict=True):
        try:
            messages = [
                message | {"content": _filled(message["content"], values, filled, line)} for message in row["messages"]
            ]
        except ValueError as error:
            raise RecipeError(f"{where}, line {line}: {error}") from None
        filled.rows.append({"messages": messages})
    return filled


def _filled(text: str, values: Mapping[str, str | None], noted: Filled, line: int) -> str:
    """The text with its slots filled; `noted` gets what was done. ValueError: a slot has no value."""

    def replaced(match: re.Match[str]) -> str:
        slot, word = match.group(), (match["double"] or match["single"] or "").lower()
        if not word:  # code
            if match["shell"]:  # or a slot, in a program's own way
                noted.kept.setdefault(slot, line)
            return slot
        if value := values.get(word):
            noted.values[slot] = value
            return value
        if word in values:
            raise ValueError(f"{slot} is not filled in: give {word.upper()}=, or write it into the row")
        if match["double"] or word in UNFILLED:
            raise ValueError(f"{slot} is not filled in: write the text into the row, or put code between `backticks`")
        if len(word) > 1:
            noted.kept.setdefault(slot, line)
        return slot

    return _SLOT.sub(replaced, text) if "{" in text else text
