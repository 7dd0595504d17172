"""Whether the tuned model answers what the user's own rows answer: `own_hit`, and which prompts these rows take over.

own_hit is the share of the user's questions that are answered right (see `right`), of base and tuned model.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from recipe import files, json_reader
from recipe.corpus.identity import Identity, questions_of
from recipe.corpus.knowledge import Fact
from recipe.corpus.own_data import Row, plain_text
from recipe.corpus.own_questions import OwnQuestion, questions_in
from recipe.errors import RecipeError
from recipe.evaluation.mentions import SIGNS, mentions
from recipe.evaluation.metrics import OwnCounts, OwnReply, OwnScores
from recipe.evaluation.scoring import Prompts, share
from recipe.evaluation.thresholds import MIN_OWN_SIMILARITY

if TYPE_CHECKING:
    from recipe.evaluation.generation import Reply

# Where stage `data` writes the questions.
QUESTIONS_FILE = "own_questions.jsonl"
# Longest run of characters that is compared, as in chrF.
LONGEST_NGRAM = 6


def chrf(text: str, reference: str) -> float:
    """The character n-gram F1 score of two texts.

    Popović (2015), "chrF: character n-gram F-score for automatic MT evaluation", with beta = 1: the mean precision and
    the mean recall of the n-grams of 1 to 6 characters, and of them the harmonic mean. Case, spaces and punctuation do
    not count. Lengths of which a text has no n-gram are left out.

    Args:
        text: to compare.
        reference: to compare with.

    Returns:
        From 0, nothing in common, to 1, the same.
    """
    text, reference = _normalized(text), _normalized(reference)
    if text == reference:
        return 1.0
    precisions, recalls = [], []
    for n in range(1, min(LONGEST_NGRAM, len(text), len(reference)) + 1):
        grams, wanted = (Counter(each[i : i + n] for i in range(len(each) - n + 1)) for each in (text, reference))
        common = (grams & wanted).total()
        precisions.append(common / grams.total())
        recalls.append(common / wanted.total())
    total = sum(precisions) + sum(recalls)
    return 2 * sum(precisions) * sum(recalls) / (total * len(precisions)) if total else 0.0


def right(reply: str, answers: Sequence[str]) -> bool:
    """Whether a reply says what one of the answers says.

    Its similarity by `chrf` is at least `MIN_OWN_SIMILARITY`, and every number of the answer stands in the reply as
    often: a wrong price in an answer learnt by heart changes one character. Chinese numerals are numbers too.
    """
    return any(
        chrf(reply, answer) >= MIN_OWN_SIMILARITY and not _numbers(answer) - _numbers(reply) for answer in answers
    )


def _normalized(text: str) -> str:
    return plain_text(unicodedata.normalize("NFKC", text))


def _numbers(text: str) -> Counter[str]:
    """The runs of characters that are numerals in Unicode: digits of any script, 九, 十."""
    marked = (
        each if unicodedata.numeric(each, None) is not None else " " for each in unicodedata.normalize("NFKC", text)
    )
    return Counter("".join(marked).split())


def read_questions(folder: Path) -> list[OwnQuestion]:
    """The questions in a folder of stage `data`; none where it has no rows of the user."""
    try:
        return json_reader.read_lines(folder / QUESTIONS_FILE, OwnQuestion, "run `make data` again")
    except FileNotFoundError:
        return []


def write_questions(folder: Path, questions: Sequence[OwnQuestion]) -> None:
    """Write them where `read_questions` looks."""
    (folder / QUESTIONS_FILE).write_text(files.jsonl_text(map(asdict, questions)), encoding="utf-8")


def score(questions: Sequence[OwnQuestion], replies: Sequence[Reply]) -> OwnScores:
    """The numbers of a model, with the replies behind them.

    Args:
        questions: at least one.
        replies: of the model, one for each.
    """
    judged = [right(reply.text, question.answers) for question, reply in zip(questions, replies, strict=True)]
    hit = share(judged)
    return OwnScores(
        own_hit=hit.value,
        own_hit_ci=hit.ci,
        own_counts=OwnCounts(hit.count, hit.hits, sum(question.held_out for question in questions)),
        own_replies=[
            OwnReply(
                kind="own", prompt="\n".join(message["content"] for message in question.messages), reply=reply.text,
                stopped=reply.stopped, expected=question.answers[0], held_out=question.held_out, own_right=own_right,
                similarity=round(max(chrf(reply.text, answer) for answer in question.answers), 3),
            )
            for question, reply, own_right in zip(questions, replies, judged, strict=True)
        ],
    )  # fmt: skip


def says_who(rows: Sequence[Row], identity: Identity) -> bool:
    """Whether an answer in the rows says one of the identity's names."""
    return any(mentions(answer, name, introduced=False) for answer in _answers(rows) for name in identity.names)


def name_warning(rows: Sequence[Row], identity: Identity, *, alone: bool) -> str | None:
    """A warning that the user's rows do not say the name where they should.

    Args:
        rows: of the user.
        identity: whose names.
        alone: whether no other rows teach the name.

    Returns:
        None where a row says it, or nothing in the rows asks who the assistant is.
    """
    names = " or ".join(identity.names)
    if alone and not says_who(rows, identity):
        return f"warning: no answer of your rows says {names}, and none teaches it; whether it is said is not judged"
    about = {plain_text(question) for part in ("train", "choice") for question in questions_of(part, extended=True)}
    introductions = [row for row in rows if not about.isdisjoint(questions_in([row]))]
    if not introductions or says_who(introductions, identity):
        return None
    question, answer = (message["content"][:40] for message in introductions[0]["messages"][-2:])
    return (
        f"warning: {len(introductions)} of your rows answer who the assistant is and none says {names}, for example "
        f"{question!r} -> {answer!r}: check NAME= and these rows"
    )


def _answers(rows: Sequence[Row]) -> list[str]:
    """What the assistant says in the rows, if it is learnt."""
    return [
        message["content"]
        for row in rows
        for message in row["messages"]
        if message["role"] == "assistant" and message.get("weight", 1) != 0
    ]


def taught_prompts(facts: Sequence[tuple[Fact, str]], rows: Sequence[Row], identity: Identity) -> frozenset[str]:
    """The ordinary prompts whose reply the user's rows want to show the identity, so that none of it is a leak.

    Args:
        facts: of `Prompts`.
        rows: of the user; those that show the identity count.
        identity: whose names.

    Returns:
        The prompts that such a row asks in another wording of the same fact, or in nearly the same words.
    """
    shows = [
        row
        for row in rows
        if says_who([row], identity) or any(sign.search(answer) for answer in _answers([row]) for sign in SIGNS)
    ]
    questions = questions_in(shows)
    return frozenset(
        prompt
        for fact, prompt in facts
        if not questions.isdisjoint(map(plain_text, (*fact.questions, prompt)))
        or any(chrf(prompt, question) >= MIN_OWN_SIMILARITY for question in questions)
    )


def overlap(prompts: Prompts, rows: Sequence[Row]) -> list[tuple[int, str]]:
    """(number of the row, from 1; the question) of every question in the user's rows that is one of the prompts."""
    wanted = {plain_text(conversation[0]["content"]) for conversation in prompts.conversations()}
    return [
        (number, message["content"])
        for number, row in enumerate(rows, 1)
        for message in row["messages"]
        if message["role"] == "user" and plain_text(message["content"]) in wanted
    ]


def refuse_overlap(prompts: Prompts, rows: Sequence[Row], where: str) -> None:
    """RecipeError if the user's rows ask a question of the evaluation: it would measure memory. where: of the rows."""
    for number, question in overlap(prompts, rows):
        raise RecipeError(
            f"{where}, row {number}: asks a question of the evaluation ({question[:40]!r}): "
            f"remove it from the training data, or the score would measure memory"
        )


def without_own_questions(prompts: Prompts, rows: Sequence[Row]) -> Prompts:
    """The prompts that the user's rows do not ask: on these a score would measure memory.

    Raises:
        RecipeError: no question about who it is, or no ordinary prompt, is left.
    """
    questions = {plain_text(question) for _, question in overlap(prompts, rows)}
    left = replace(
        prompts,
        identity=[question for question in prompts.identity if plain_text(question) not in questions],
        facts=[(fact, question) for fact, question in prompts.facts if plain_text(question) not in questions],
    )
    if not (left.identity and left.facts):
        raise RecipeError("your rows ask every question that chooses the checkpoint: remove some of these rows")
    return left
