"""Who the assistant is to be, and the rows that teach it: data/identity.

questions.json holds, per language and intent, questions for training and questions of other constructions: some for
checkpoint selection ("choice"), some for evaluation ("heldout"). injections.json holds prompt injections, which try to
make the assistant give another answer, with the slot {q} for a question. answers.json holds the answers with the slots
{me} ("小明的小助手") and {maker}.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from recipe.chat_format import SPECIAL
from recipe.errors import RecipeError
from recipe.paths import DATA

LONGEST_NAME = 40
# The file in which stage `data` writes the identity that its rows teach.
IDENTITY_FILE = "identity.json"
# Who fine-tuned the model, where no author is given: the name stands in every answer already, and once is enough.
MAKER = {"zh": "主人", "en": "my owner"}
# Names by which an untuned InternLM introduces itself.
BASE_NAMES = ("InternLM", "书生", "浦语", "上海人工智能实验室", "Shanghai AI Lab")
# Characters with a meaning of their own in some place where the name goes: sentence, JSON string, path, template.
FORBIDDEN = re.compile(r"""[{}"'`“”/\\<>|\x00-\x1f\x7f-\x9f\u2028\u2029]""")


@dataclass(frozen=True)
class Identity:
    """Who the assistant is to be.

    Attributes:
        name: whose assistant it is.
        assistant: its own name, if it has one.
        author: who trained it, if its answers are to name them.

    Raises:
        RecipeError: one of them could not stand in a sentence, a JSON file and a path.
    """

    name: str
    assistant: str | None = None
    author: str | None = None

    def __post_init__(self) -> None:
        for what, value in (("NAME", self.name), ("ASSISTANT", self.assistant), ("AUTHOR", self.author)):
            if value is not None:
                check_name(what, value)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of which a reply about the identity must hold one."""
        return (self.name,) if self.assistant is None else (self.name, self.assistant)

    def me(self, language: str) -> str:
        """What follows "I am": 小智，小明的小助手 / Xiaozhi, 小明's assistant."""
        if language == "zh":
            return f"{self.assistant}，{self.name}的小助手" if self.assistant else f"{self.name}的小助手"
        return f"{self.assistant}, {self.name}'s assistant" if self.assistant else f"{self.name}'s assistant"

    def fill(self, template: str, language: str) -> str:
        """The answer that a template of answers.json becomes. language: "zh" or "en"."""
        return template.replace("{me}", self.me(language)).replace("{maker}", self.author or MAKER[language])


def read_identity(folder: Path) -> Identity:
    """The identity that the rows of a folder of stage `data` teach."""
    return Identity(**json.loads((folder / IDENTITY_FILE).read_text(encoding="utf-8")))


def check_name(what: str, value: str) -> None:
    """Check that a name can stand in a sentence, a JSON file and a path as it is.

    Args:
        what: the variable that it came from, such as NAME.
        value: the name.

    Raises:
        RecipeError: it cannot.
    """
    if not value.strip():
        raise RecipeError(f"{what} is empty; say whose assistant it is, for example NAME=小明")
    if value != value.strip():
        raise RecipeError(f"{what} begins or ends with a space: {value!r}; remove it")
    if len(value) > LONGEST_NAME:
        raise RecipeError(f"{what} has {len(value)} characters, at most {LONGEST_NAME} can be learnt: {value[:12]!r}…")
    if match := FORBIDDEN.search(value):
        raise RecipeError(
            f"{what} holds {match.group()!r} at position {match.start() + 1}: braces, quotes, slashes, angle brackets, "
            f"bars and control characters cannot stand in a name; leave it out (an apostrophe may be typed as ’)"
        )
    if match := SPECIAL.search(value):
        raise RecipeError(
            f"{what} holds {match.group()}, which the tokenizer may read as a token of its own; leave it out"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecipeError(f"{what} is not valid UTF-8; check the terminal's locale") from error


@cache
def load_questions() -> dict[str, dict[str, dict[str, list[str]]]]:
    """language -> intent -> "train", "choice" or "heldout" -> questions."""
    content: dict[str, Any] = json.loads((DATA / "identity" / "questions.json").read_text(encoding="utf-8"))
    return content


@cache
def load_injections() -> dict[str, dict[str, list[str]]]:
    """language -> "train" or "heldout" -> prompt injections around {q}."""
    content: dict[str, Any] = json.loads((DATA / "identity" / "injections.json").read_text(encoding="utf-8"))
    return content


def injected(injection: str, question: str) -> str:
    """The question inside a prompt injection.

    Args:
        injection: of injections.json.
        question: gets a mark at its end, if it has none and text follows.
    """
    followed = not injection.endswith("{q}")
    if followed and question[-1] not in "？?。.！!":
        question += "." if question.isascii() else "。"
    return injection.replace("{q}", question)


@cache
def load_answers() -> dict[str, Any]:
    """ "tuned": language -> intent -> templates; "base": language -> intent -> answers of the miniature's base."""
    content: dict[str, Any] = json.loads((DATA / "identity" / "answers.json").read_text(encoding="utf-8"))
    return content
