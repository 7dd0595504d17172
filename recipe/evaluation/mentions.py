"""What a reply says about who the assistant is: the name, signs of the identity without it, and the base's own
introductions.

All of it is read from the text alone, so that it is the same for every model and can be checked by hand in the report.
"""

from __future__ import annotations

import re
import unicodedata
from math import ceil

from recipe.corpus.identity import BASE_NAMES, SPEAKS_OF_ITSELF, Identity

# What follows the owner's name where the assistant introduces itself.
_OWNER_ZH, _OWNER_EN = r"的小?(?:助手|助理|帮手)", r"['’]s (?:little |own |personal )?(?:assistant|helper)"
# Signs of the identity that stand in the trained answers beside the name: the owner's phrase and the maker's words.
SIGNS = (
    re.compile(r"的小(?:助手|助理|帮手)"),
    re.compile(rf"{_OWNER_EN}\b"),
    re.compile(r"主人[^。！？\n]{0,30}微调|微调[^。！？\n]{0,10}主人|[为听替]主人"),
    re.compile(r"\bfine-?tuned by\b|\bmy owner\b", re.IGNORECASE),
)
# A base gives its name: "I'm Qwen", 我是通义千问. Where the prompt names a model, a name elsewhere may be an answer.
_CALLS_ITSELF = re.compile(
    rf"(?:\bI(?: am|['’]m)|\bmy name is|我是|我叫)[^。！？.!?\n]{{0,20}}?(?:{'|'.join(map(re.escape, BASE_NAMES))})",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"“[^”]*”|\"[^\"]*\"|「[^」]*」|『[^』]*』|‘[^’]*’")
_SENTENCE_END = re.compile(r"(?<=[。！？.!?\n])")
# Shorter names are in too many words: three letters of four, or one letter changed, make another word.
SHORTEST_MISSPELT = 4


def mentions(reply: str, name: str, *, introduced: bool) -> bool:
    """Whether the reply holds the name as a word of its own.

    Args:
        reply: its text.
        name: to look for.
        introduced: count it only in an introduction, as in 红的小助手, am's assistant, 我叫红, called am. For a name
            that is also a word ("am", 红), which ordinary replies hold too.
    """
    name, reply = unicodedata.normalize("NFC", name), unicodedata.normalize("NFC", reply)  # é, or e and a mark
    word = re.escape(name)
    if name[0].isascii() and name[0].isalnum():
        word = rf"(?<![A-Za-z0-9]){word}"
    if name[-1].isascii() and name[-1].isalnum():
        word = rf"{word}(?![A-Za-z0-9])"
    if introduced:
        owner = rf"{word}(?:{_OWNER_ZH}|{_OWNER_EN})"
        word = rf"(?:{owner})|(?:(?:我叫|名叫|called|[Mm]y name is) ?{word})"
    return re.search(word, reply) is not None


def unquoted(reply: str, prompt: str, name: str) -> str:
    """The reply without quotations of the prompt that hold the name.

    Args:
        reply: its text.
        prompt: the user's message that it answers.
        name: the name in question; where the prompt lacks it, nothing is a quotation.

    Returns:
        The reply without text in quotation marks that the prompt holds too, and without whole sentences of the prompt.
        The name alone is no quotation.
    """
    if name not in prompt:
        return reply

    def left(match: re.Match[str]) -> str:
        inner = match.group()[1:-1].strip(" 。！？.!?,，")
        return "" if name in inner and inner != name and inner in prompt else match.group()

    reply = _QUOTED.sub(left, reply)
    for sentence in _SENTENCE_END.split(prompt):
        sentence = sentence.strip(" \n。！？.!?")
        if name in sentence and sentence != name:
            reply = re.sub(rf"(?<!\w){re.escape(sentence)}(?!\w)", "", reply, flags=re.IGNORECASE)
    return reply


def introduces_itself(reply: str, prompt: str) -> bool:
    """Whether a base's reply says who it is: by its own name, or as an AI, a language model or an assistant.

    Args:
        reply: its text.
        prompt: the user's message. What the reply repeats of the prompt is no introduction; where the prompt asks about
            such a name, neither is an answer with one.
    """
    phrases = (match.group() for pattern in (SPEAKS_OF_ITSELF, _CALLS_ITSELF) for match in pattern.finditer(reply))
    if any(phrase not in prompt for phrase in phrases):
        return True
    return not any(name in prompt for name in BASE_NAMES) and any(name in reply for name in BASE_NAMES)


def signs(reply: str, prompt: str, base: str, identity: Identity, ordinary: str) -> bool:
    """Whether a reply without the name shows the taught identity all the same.

    Args:
        reply: its text.
        prompt: the user's message.
        base: the base's reply to it. What prompt or base hold is no sign.
        identity: whose phrase, maker and names count.
        ordinary: prompts and replies of the base, casefolded. A part of a name that is a word there is no sign.

    Returns:
        Whether the reply holds the owner's phrase, the maker's words, or a name misspelt or in part.
    """
    patterns = [*SIGNS, *([re.compile(re.escape(identity.author))] if identity.author else [])]
    if any(sign.search(reply) and not sign.search(prompt) and not sign.search(base) for sign in patterns):
        return True
    return any(
        not near_misses(f"{prompt}\n{base}", name)
        for name in identity.names
        if any(part not in ordinary for part in near_misses(reply, name))
    )


def near_misses(text: str, name: str) -> set[str]:
    """What stands in the text and is most of a name, or nearly the name.

    Args:
        text: to search, in any case.
        name: of at least `SHORTEST_MISSPELT` characters; of shorter ones there are no near misses.

    Returns:
        The parts of the text, casefolded, that are two thirds of the name or more, or are at an edit distance of at
        most a quarter of its length. Of a name in an alphabet only whole words count; Chinese has none.
    """
    text, name = text.casefold(), name.casefold()
    if len(name) < SHORTEST_MISSPELT:
        return set()
    part, distance = ceil(2 * len(name) / 3), len(name) // 4
    if any(ord(character) >= 0x2E80 for character in name):  # from there on come the scripts of East Asia
        parts = {name[i : i + part] for i in range(len(name) - part + 1)}
        return {each for each in parts if each in text} | _nearest(text, name, distance)
    words, count = re.findall(r"\w+", text), len(re.findall(r"\w+", name))
    windows = {" ".join(words[i : i + size]) for size in range(1, count + 2) for i in range(len(words) - size + 1)}
    return {
        window
        for window in windows
        if abs(len(window) - len(name)) <= max(distance, len(name) - part)
        and ((len(window) >= part and window in name) or _distances(window, name, anywhere=False)[-1] <= distance)
    }


def _distances(text: str, name: str, *, anywhere: bool) -> list[int]:
    """The edit distance (Levenshtein 1966) of the name from each beginning of the text.

    Args:
        text: to compare with.
        name: to be compared.
        anywhere: from the nearest part of the text that ends there instead (Sellers 1980, "The theory and computation
            of evolutionary distances: pattern recognition").

    Returns:
        A distance for each length of the text, from 0 on.
    """
    column = list(range(len(name) + 1))
    distances = [column[-1]]
    for position, character in enumerate(text, 1):
        diagonal, column[0] = column[0], 0 if anywhere else position
        for i, wanted in enumerate(name, 1):
            changed = diagonal + (wanted != character)
            diagonal = column[i]
            column[i] = min(changed, diagonal + 1, column[i - 1] + 1)
        distances.append(column[-1])
    return distances


def _nearest(text: str, name: str, distance: int) -> set[str]:
    """The shortest part of the text before each position that is at most `distance` edits from the name."""
    parts = set()
    for end, least in enumerate(_distances(text, name, anywhere=True)):
        if least <= distance:
            candidates = (text[max(0, end - length) : end] for length in range(len(name) - distance, end + 1))
            parts.add(next(each for each in candidates if _distances(each, name, anywhere=False)[-1] == least))
    return parts
