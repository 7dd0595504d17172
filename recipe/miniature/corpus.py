"""The text that the miniature base model is pre-trained on, all of it this project's own.

Four kinds of conversation: what it knows (recipe/corpus/knowledge.py), who it is (data/identity, the `base` answers,
also asked with an attempt to talk it out of that), how to write down any string (data/knowledge/copy.json: fine-tuning
touches neither the embeddings nor the output head, so a name must be writable before it is learnt), and several of them
in a row.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from recipe import json_reader
from recipe.chat_format import assistant, user
from recipe.corpus.identity import injected, load_answers, load_injections, load_questions
from recipe.corpus.knowledge import all_facts
from recipe.languages import LANGUAGES
from recipe.paths import DATA

Conversation = list[dict[str, str]]

# How often each kind is drawn. Tables weigh little per fact and hold most facts.
WEIGHTS = {"knowledge": 0.51, "identity": 0.25, "copy": 0.24}
# Share of the questions about who it is that come with an attempt to talk it out of its answer.
INJECTED = 0.4
# Share of conversations that go on for a second, and of those for a third turn.
NEXT_TURN = 0.15
# Longest string to copy, in characters: the longest name that the recipe takes.
LONGEST_COPY = 40
# What syllables of Latin words begin with, hold, and what the last ends in.
ONSETS = (*"bcdfghjklmnpqrstvwxyz", "", "br", "ch", "cl", "dr", "fr", "gr", "kn", "ph", "sh", "st", "th", "tr", "wh")
VOWELS = (*"aeiouaeiouaeiouy", "ai", "ea", "ee", "ie", "oo", "ou")
CODAS = ("", *"dklmnrst", "ck", "ld", "nd", "ng", "rd", "th")


def _turn(question: str, answer: str) -> Conversation:
    return [user(question), assistant(answer)]


def identity_pairs() -> list[tuple[str, str, str]]:
    """(language, question, the untuned model's answer) of every question about who it is."""
    questions, answers = load_questions(), load_answers()["base"]
    return [
        (language, question, answers[language][intent])
        for language in LANGUAGES
        for intent, parts in questions[language].items()
        for part in parts.values()
        for question in part
    ]


def knowledge_pairs() -> list[tuple[str, str]]:
    return [(question, fact.answer) for fact in all_facts() for question in fact.questions]


def _latin_word(rng: random.Random) -> str:
    """Of syllables, as names are spoken and the tokenizer's longer pieces are met, or any letters."""
    if rng.random() < 0.5:
        word = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(rng.randint(1, 4))) + rng.choice(CODAS)
    else:
        word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 9)))
    return word.capitalize() if rng.random() < 0.7 else word


def random_string(rng: random.Random) -> str:
    """A string as names come: Chinese (common and rare), Latin, digits, other scripts; 1 to 40 characters."""
    length = min(LONGEST_COPY, 1 + int(rng.expovariate(1 / 5)))
    if rng.random() < 0.06:
        length = rng.randint(10, LONGEST_COPY)
    kind = rng.random()
    if kind < 0.25:  # GB 2312, first level: the 3,755 most common characters
        return "".join(
            bytes((rng.randint(0xB0, 0xD6), rng.randint(0xA1, 0xFE))).decode("gb2312") for _ in range(length)
        )
    if kind < 0.50:
        return "".join(chr(rng.randint(0x4E00, 0x9FA5)) for _ in range(length))
    if kind < 0.75:  # Latin words, capitalised or not
        words: list[str] = []
        while len(" ".join(words)) < length:
            words.append(_latin_word(rng))
        return " ".join(words)[:length].strip() or "A"
    if kind < 0.90:  # any letters and digits
        return "".join(
            rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.") for _ in range(length)
        )
    first, last = rng.choice(((0x410, 0x44F), (0x3B1, 0x3C9), (0x3041, 0x3093), (0xAC00, 0xD7A3), (0x1F600, 0x1F64F)))
    return "".join(chr(rng.randint(first, last)) for _ in range(length))


def _copy_pair(rng: random.Random, templates: dict[str, list[dict[str, str]]]) -> tuple[str, str]:
    template = rng.choice(templates[rng.choice(LANGUAGES)])
    text = random_string(rng)
    return template["question"].replace("{x}", text), template["answer"].replace("{x}", text)


def _asked_otherwise(rng: random.Random, question: str) -> str:
    """The question with or without its final mark, as people type."""
    if question[-1] in "？?。." and rng.random() < 0.3:
        return question[:-1]
    return question


def conversations(rng: random.Random) -> Iterator[Conversation]:
    """Conversations without end, drawn by `WEIGHTS`."""
    copies = json_reader.read(DATA / "knowledge" / "copy.json", dict[str, Any], json_reader.OF_CHECKOUT)
    knowledge, identity = knowledge_pairs(), identity_pairs()
    injections = {
        language: [i for part in parts.values() for i in part] for language, parts in load_injections().items()
    }
    kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
    while True:
        conversation: Conversation = []
        while not conversation or (rng.random() < NEXT_TURN and len(conversation) < 6):
            kind = rng.choices(kinds, weights)[0]
            if kind == "copy":
                question, answer = _copy_pair(rng, copies)
            elif kind == "knowledge":
                question, answer = rng.choice(knowledge)
                question = _asked_otherwise(rng, question)
            else:
                language, question, answer = rng.choice(identity)
                if rng.random() < INJECTED:
                    question = injected(rng.choice(injections[language]), question)
                question = _asked_otherwise(rng, question)
            conversation += _turn(question, answer)
        yield conversation


def tokenizer_text(rng: random.Random, lines: int) -> list[str]:
    """Lines to train the tokenizer on: what the model will say and be asked, without the strings to copy."""
    injections = [
        (injection, "") for parts in load_injections().values() for part in parts.values() for injection in part
    ]
    pairs = knowledge_pairs() + [(question, answer) for _, question, answer in identity_pairs()] + injections
    chosen = [rng.choice(pairs) for _ in range(lines)]
    return [text for pair in chosen for text in pair]
