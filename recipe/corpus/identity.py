"""Who the assistant is to be, and the rows that teach it: data/identity.

questions.json holds, per language and intent, questions for training and questions of other constructions: some for
checkpoint selection ("choice"), some for evaluation ("heldout"). extended_questions.json holds more of them, for bases
that other people trained; the miniature was pre-trained without these. injections.json holds prompt injections, which
try to make the assistant give another answer, with the slot {q} for a question. answers.json holds the answers with the
slots {me} ("小明的小助手"), {maker} and {base}.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from recipe import json_reader
from recipe.chat_format import SPECIAL
from recipe.errors import RecipeError
from recipe.languages import LANGUAGES
from recipe.paths import DATA, shown
from recipe.plain_text import hidden

LONGEST_NAME = 40
# The file in which stage `data` writes the identity that its rows teach.
IDENTITY_FILE = "identity.json"
# Who fine-tuned the model, where no author is given: the name stands in every answer already, and once is enough.
MAKER = {"zh": "主人", "en": "my owner"}
# The slot {base}: what the answers call the model that was fine-tuned.
INTERNLM_BASE = {"zh": "上海人工智能实验室的书生·浦语", "en": "InternLM of the Shanghai AI Laboratory"}
OPEN_BASE = {"zh": "开源的大语言模型", "en": "an open language model"}
# Names of models and of their makers, by which untuned bases introduce themselves. Small models often say that they are
# another one. Names that are also common words or people's names (Claude, Gemini, Phi) are left out.
BASE_NAMES = (
    *("InternLM", "书生", "浦语", "上海人工智能实验室", "Shanghai AI Lab"),
    *("Qwen", "通义千问", "千问", "阿里云", "Alibaba Cloud"),
    *("SmolLM", "Hugging Face", "HuggingFace"),
    *("OpenAI", "ChatGPT", "GPT-3", "GPT-4"),
    *("DeepSeek", "深度求索"),
    *("Llama", "LLaMA", "Meta AI"),
    *("Anthropic", "Mistral AI", "Google DeepMind", "Stability AI", "StableLM"),
    *("文心一言", "ERNIE Bot", "ChatGLM", "智谱", "Baichuan", "百川智能", "MiniCPM", "零一万物", "月之暗面"),
)
# An untuned base speaks of itself without a name: "I am an AI language model", "As an AI", 我是一个人工智能助手.
SPEAKS_OF_ITSELF = re.compile(
    r"\bI(?: am|['’]m)\b[^.!?\n]{0,40}?\b(?:AI|artificial intelligence|language model|assistant|chatbot)\b"
    r"|\bas an? (?:[\w-]+ ){0,3}?(?:AI|artificial intelligence|language model)\b"
    r"|我(?:只|就)?是[^，。！？；,.!?;\n]{0,20}?(?:AI|人工智能|助手|助理|模型|机器人)"
    r"|作为[^，。！？；,.!?;\n]{0,10}?(?:AI|人工智能|语言模型)",
    re.IGNORECASE,
)
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

    def fill(self, template: str, language: str, base: Mapping[str, str] = INTERNLM_BASE) -> str:
        """The answer that a template of answers.json becomes.

        Args:
            template: with any of the slots {me}, {maker} and {base}.
            language: "zh" or "en".
            base: language -> words for the slot {base}.

        Returns:
            The answer.
        """
        words = base[language]
        if words.endswith("模型"):  # else "大语言模型模型"
            template = template.replace("{base}模型", "{base}")
        answer = template.replace("{base}", words).replace("{me}", self.me(language))
        return answer.replace("{maker}", self.author or MAKER[language])


def read_identity(folder: Path) -> Identity:
    """The identity that the rows of a folder of stage `data` teach. RecipeError: its file has another shape."""
    file, again = folder / IDENTITY_FILE, "run `make data` again"
    try:
        return json_reader.read(file, Identity, again)
    except FileNotFoundError:
        raise RecipeError(f"{shown(file)}: missing: {again}") from None


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
    if character := hidden(value):
        raise RecipeError(
            f"{what} holds {character}, which nobody sees: the model would learn a name that nobody types; leave it out"
        )
    if match := SPECIAL.search(value):
        raise RecipeError(
            f"{what} holds {match.group()}, which the tokenizer may read as a token of its own; leave it out"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecipeError(f"{what} is not valid UTF-8; check the terminal's locale") from error


Questions = dict[str, dict[str, dict[str, list[str]]]]


@cache
def _read_questions(file: str) -> Questions:
    return json_reader.read(DATA / "identity" / file, Questions, json_reader.OF_CHECKOUT)


def load_questions(*, extended: bool = False, languages: Sequence[str] = LANGUAGES) -> Questions:
    """The questions about who the assistant is.

    Args:
        extended: add those of extended_questions.json after each part's own.
        languages: whose questions.

    Returns:
        language -> intent -> "train", "choice" or "heldout" -> questions.
    """
    sources = [_read_questions("questions.json"), *([_read_questions("extended_questions.json")] if extended else [])]
    return {
        language: {
            intent: {part: [q for source in sources for q in source[language][intent][part]] for part in parts}
            for intent, parts in intents.items()
        }
        for language, intents in sources[0].items()
        if language in languages
    }


def questions_of(part: str, *, extended: bool = False, languages: Sequence[str] = LANGUAGES) -> list[str]:
    """The questions of one part, of every intent.

    Args:
        part: "train", "choice" or "heldout".
        extended, languages: as in `load_questions`.
    """
    chosen = load_questions(extended=extended, languages=languages)
    return [question for intents in chosen.values() for parts in intents.values() for question in parts[part]]


@cache
def load_injections() -> dict[str, dict[str, list[str]]]:
    """language -> "train" or "heldout" -> prompt injections around {q}."""
    return json_reader.read(DATA / "identity" / "injections.json", dict[str, Any], json_reader.OF_CHECKOUT)


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
    return json_reader.read(DATA / "identity" / "answers.json", dict[str, Any], json_reader.OF_CHECKOUT)
