"""Stage `eval`: did it learn its name, and what did that cost?

The three numbers of recipe/evaluation/scoring.py over greedy replies to prompts that the tuning data hold no wording
of, the base model beside the tuned one; what a sceptic asks besides (recipe/evaluation/suites.py); how far the tuned
model moved from the base where it should not have (recipe/evaluation/divergence.py); and whether it answers what the
user's own rows answer (recipe/evaluation/own_rows.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from recipe.chat_format import Message, assistant, text_ids, user
from recipe.corpus.identity import Identity, questions_of
from recipe.corpus.knowledge import evaluation_facts, more_evaluation_facts
from recipe.corpus.own_questions import OwnQuestion
from recipe.corpus.rows import read_rows
from recipe.errors import BelowThresholdsError, RecipeError
from recipe.evaluation import checkpoint_selection, divergence, generation, metrics, own_rows, suites, thresholds
from recipe.evaluation.generation import Reply
from recipe.evaluation.metrics import (
    METRICS,
    BaseMetrics,
    Metrics,
    Names,
    OrdinaryReply,
    OwnScores,
    Scores,
    TunedMetrics,
)
from recipe.evaluation.scoring import Prompts, known_to_base, score
from recipe.languages import LANGUAGES
from recipe.paths import ROOT
from recipe.pipeline import results, stage
from recipe.pipeline.results import (
    BaseScores,
    ConvertResults,
    DataResults,
    EvalResults,
    MergeResults,
    ModelResults,
    TunedScores,
)
from recipe.records import to_json
from recipe.stages import train
from recipe.stages.model import asks_extended_prompts

# Room for a reply besides the name, and for bases that talk longer.
MAX_NEW_TOKENS, MORE_NEW_TOKENS = 80, 160
# Share of the base's replies to ordinary prompts that must end in the larger room, and do not in the smaller, to take
# the larger.
WORTH_MORE_ROOM = 0.05
# Tokens of a reply to one of the user's questions: as many as the longest answer and some more, at most these.
MORE_THAN_OWN_ANSWER, MAX_OWN_TOKENS = 16, 1024


def prompts(*, extended: bool = False, languages: Sequence[str] = LANGUAGES) -> Prompts:
    """The held-out questions of data/identity and a wording of each held-out fact of data/knowledge, two for the base.

    A base that other people trained knows part of the facts: it is asked all that are held out, so that chance counts
    for less in its retention.

    Args:
        extended: add the questions and requests for bases that other people trained.
        languages: whose prompts.
    """
    identity = questions_of("heldout", extended=extended, languages=languages)
    facts = [(fact, fact.wording) for fact in evaluation_facts(extended=extended, languages=languages)]
    more = more_evaluation_facts(languages=languages) if extended else []
    second = [fact.second_wording for fact in (*(fact for fact, _ in facts), *more) if fact.expect is not None]
    return Prompts(identity, facts, more_facts=[(fact, fact.wording) for fact in more], second_wordings=second)


def make(
    folder: Path, *, model: Path, train_folder: Path, tuned_folder: Path, data_folder: Path, identity: Identity
) -> stage.Manifest:
    """Measure base and tuned model (in `tuned_folder`: merged, or an adapter) into metrics.json."""
    stage.require(model, "model")
    data = results.of(stage.require(data_folder, "data"), DataResults)
    _refuse_another_training(tuned_folder, train_folder)
    _refuse_another_base(tuned_folder, train_folder, model)

    def work(out: Path) -> EvalResults:
        held_out = _held_out(model, data_folder, identity)
        questions = own_rows.read_questions(data_folder)
        room, base, tuned = _measure(held_out, questions, model, tuned_folder, identity)
        measured = Metrics(
            identity=Names(**asdict(identity)),
            max_new_tokens=room,
            base=base,
            tuned=replace(tuned, identity_taught=data.identity_taught),
            checkpoints=checkpoint_selection.read(train_folder),
            best_checkpoint=train.best_checkpoint(train_folder),
        )
        metrics.write(out, measured)
        return _summary(measured)

    inputs = {"model": model, "train": train_folder, "tuned": tuned_folder, "data": data_folder}
    return stage.run("eval", folder, inputs=inputs, settings=_settings(model, data_folder), work=work)


def _prompts_and_own_file(model: Path, data_folder: Path) -> tuple[Prompts, str | None]:
    """The prompts for a base and its data, and the name of the file with the user's own rows."""
    base_name = results.of(stage.complete(model, "model"), ModelResults).model
    data = results.of(stage.complete(data_folder, "data"), DataResults)
    user_file = data.own_file or (data.file if data.mode == "own" else None)
    return prompts(extended=asks_extended_prompts(base_name), languages=data.languages), user_file


def _settings(model: Path, data_folder: Path) -> dict[str, Any]:
    """What an evaluation depends on besides its inputs."""
    held_out, user_file = _prompts_and_own_file(model, data_folder)
    return {
        "prompts": held_out.conversations(),
        "second_wordings": held_out.second_wordings,
        "max_new_tokens": [MAX_NEW_TOKENS, MORE_NEW_TOKENS],
        "suites": suites.SAMPLING,
    } | ({"own": thresholds.MIN_OWN_SIMILARITY} if user_file else {})


def _held_out(model: Path, data_folder: Path, identity: Identity) -> Prompts:
    """The prompts, with those that the user's own rows answer with the name. RecipeError: a row asks one of them."""
    held_out, user_file = _prompts_and_own_file(model, data_folder)
    rows = read_rows(data_folder / user_file) if user_file else []
    own_rows.refuse_overlap(held_out, rows, f"{stage.shown(data_folder)}/{user_file}")
    return replace(held_out, taught=own_rows.taught_prompts(held_out.facts, rows, identity))


def is_of(folder: Path, tuned_folder: Path) -> bool:
    """Whether the evaluation in `folder` is of a tuned model as it is now, and asked what this version asks."""
    if (evaluated := stage.read_manifest(folder)) is None:
        return False
    inputs = {role: ROOT / stage.input_of(evaluated, role)[0] for role in ("model", "train", "tuned", "data")}
    inputs["tuned"] = tuned_folder
    if not all(stage.read_manifest(path) for path in inputs.values()):
        return False
    return evaluated["key"] == stage.key_of(inputs, _settings(inputs["model"], inputs["data"]))


def ask_again(folder: Path, loaded: Any, tokenizer: Any, who: str) -> Scores:
    """Ask the tuned model with other weights the greedy prompts of an evaluation, with the same room for replies.

    Args:
        folder: of an evaluation which `is_of` the tuned model.
        loaded, tokenizer: of `generation.load`.
        who: for the progress bar.

    Returns:
        The numbers, by the base's replies in metrics.json and the facts that the base knew.
    """
    evaluated, measured = stage.require(folder, "eval"), metrics.read(folder)
    identity, base = Identity(**asdict(measured.identity)), measured.base.replies
    model, data_folder = (ROOT / stage.input_of(evaluated, role)[0] for role in ("model", "data"))
    held_out = _held_out(model, data_folder, identity)
    ask = _asker(loaded, tokenizer, who, identity, measured.max_new_tokens)
    replies = ask(held_out.conversations(), "questions and facts")
    base_knows = [reply.base_knew for reply in base if isinstance(reply, OrdinaryReply)]
    return score(held_out, replies, [Reply(each.reply, each.stopped) for each in base], identity, base_knows)[0]


def seconds_of_replies(folder: Path) -> float:
    """About how many seconds the replies to the prompts of `ask_again` took, of all that an evaluation asked."""
    evaluated, measured = stage.complete(folder, "eval"), metrics.read(folder)
    prompts_asked, tuned = len(measured.base.replies), measured.tuned
    conversations = 2 * prompts_asked + len(evaluated["key"]["settings"]["second_wordings"])
    conversations += sum(len(suite.replies or ()) for suite in tuned.suites.values())
    conversations += 2 * len(tuned.own.own_replies) if tuned.own else 0
    return float(evaluated.get("phases", {}).get("generate", 0.0)) * prompts_asked / conversations


@generation.gpu_failures("the models cannot answer on the GPU", generation.FREE_THE_GPU)
def _measure(
    held_out: Prompts, own: Sequence[OwnQuestion], model: Path, tuned_folder: Path, identity: Identity
) -> tuple[int, BaseMetrics, TunedMetrics]:
    """Ask base and tuned model everything.

    Args:
        held_out: the prompts.
        own: the user's questions.
        model: folder of the base.
        tuned_folder: of the tuned model: merged, or an adapter.
        identity: whose name counts.

    Returns:
        (room of a reply besides the names in tokens, what was measured of the base, of the tuned model).

    Raises:
        RecipeError: the base ends no reply, or knows no fact.
    """
    loaded, tokenizer = generation.load(model)
    base, room = _base_replies(held_out, loaded, tokenizer, identity)
    second = [[user(question)] for question in held_out.second_wordings]
    base_knows = known_to_base(
        held_out, base, _asker(loaded, tokenizer, "eval base", identity, room)(second, "facts in other words")
    )
    base_scores, base_judged = score(held_out, base, base, identity, base_knows)
    ended = [
        [user(question), assistant(reply.text)]
        for (_, question), reply in zip(held_out.facts, held_out.ordinary(base), strict=True)
        if reply.stopped
    ]
    if not ended:
        raise RecipeError(
            f"{stage.shown(model)} ends none of its replies within {room} tokens: take a chat model that speaks ChatML"
        )
    if not base_scores.counts.facts_base_knew:
        raise RecipeError(f"{stage.shown(model)} answers no fact of data/knowledge: there is nothing to retain")
    own_scores = _own_scores(own, loaded, tokenizer, "eval base")
    is_adapter = (tuned_folder / "adapter_config.json").is_file()
    tuned, tokenizer = generation.load(*((model, tuned_folder) if is_adapter else (tuned_folder,)))
    ask = _asker(tuned, tokenizer, "eval tuned", identity, room)
    replies = ask(held_out.conversations(), "questions and facts")
    tuned_metrics = TunedMetrics(
        *score(held_out, replies, base, identity, base_knows),
        suites=suites.measure(held_out, replies, base, identity, ask),
        divergence=divergence.kl_per_token(loaded, tuned, tokenizer, ended),
        own=_own_scores(own, tuned, tokenizer, "eval tuned"),
    )
    base_metrics = BaseMetrics(base_scores, base_judged, tuned_metrics.suites["broken"].base, own_scores)
    return room, base_metrics, tuned_metrics


def _own_scores(own: Sequence[OwnQuestion], loaded: Any, tokenizer: Any, who: str) -> OwnScores | None:
    """The numbers of `own_rows.score` of a model; None without questions. who: for the progress bar."""
    if not own:
        return None
    longest = max(len(text_ids(tokenizer, answer)) for question in own for answer in question.answers)
    replies = generation.answer(
        loaded, tokenizer, [question.messages for question in own],
        max_new_tokens=min(longest + MORE_THAN_OWN_ANSWER, MAX_OWN_TOKENS), progress=f"{who}: your own questions",
    )  # fmt: skip
    return own_rows.score(own, replies)


def _asker(loaded: Any, tokenizer: Any, who: str, identity: Identity, room: int) -> suites.Ask:
    """What gets a model's replies of at most `room` tokens and the identity's names. who: for the progress bar."""
    names = (*identity.names, identity.author or "")
    longest = room + sum(len(text_ids(tokenizer, name)) for name in names)

    def ask(conversations: Sequence[Sequence[Message]], what: str, **sampling: Any) -> list[Reply]:
        label = f"{who}: {what}"
        return generation.answer(loaded, tokenizer, conversations, max_new_tokens=longest, progress=label, **sampling)

    return ask


def _base_replies(held_out: Prompts, loaded: Any, tokenizer: Any, identity: Identity) -> tuple[list[Reply], int]:
    """The base's replies to all prompts, and the room of every reply, in tokens: as long as the base talks.

    Replies that were cut are asked again with more room. It is kept if enough of them end there.
    """
    conversations = held_out.conversations()
    replies = _asker(loaded, tokenizer, "eval base", identity, MAX_NEW_TOKENS)(conversations, "questions and facts")
    cut = [i for i, reply in enumerate(replies) if not reply.stopped]
    ordinary = held_out.ordinary(range(len(conversations)))
    enough = WORTH_MORE_ROOM * len(ordinary)
    if sum(i in ordinary for i in cut) < enough:
        return replies, MAX_NEW_TOKENS
    ask = _asker(loaded, tokenizer, "eval base", identity, MORE_NEW_TOKENS)
    longer = dict(zip(cut, ask([conversations[i] for i in cut], "with more room"), strict=True))
    if sum(reply.stopped for i, reply in longer.items() if i in ordinary) < enough:
        return replies, MAX_NEW_TOKENS
    return [longer.get(i, reply) for i, reply in enumerate(replies)], MORE_NEW_TOKENS


def _summary(measured: Metrics) -> EvalResults:
    """The numbers of metrics.json, for the manifest."""
    base, tuned = measured.base, measured.tuned
    return EvalResults(
        base=BaseScores(
            **{key: getattr(base.scores, key) for key in METRICS},
            counts=to_json(base.scores.counts),
            broken=base.broken,
            own_hit=base.own.own_hit if base.own else None,
        ),
        tuned=TunedScores(
            **{key: getattr(tuned.scores, key) for key in (*METRICS, "leak_without_name")},
            counts=to_json(tuned.scores.counts),
            **{name: suite.value for name, suite in tuned.suites.items()},
            kl_per_token=tuned.divergence.kl_per_token,
            own_hit=tuned.own.own_hit if tuned.own else None,
        ),
        best_checkpoint=measured.best_checkpoint,
    )


def failed_checks(folder: Path) -> list[str]:
    """The metrics of a completed evaluation that are below their thresholds, those of the suites included."""
    return [check.metric for check in thresholds.verdict(metrics.read(folder).tuned) if not check.passed]


def refuse_below_thresholds(folder: Path, *, page: Path) -> None:
    """The verdict on a completed evaluation.

    Args:
        folder: of the evaluation.
        page: the report that shows every reply.

    Raises:
        BelowThresholdsError: a number is below its threshold.
    """
    if failed := failed_checks(folder):
        raise BelowThresholdsError(
            f"the result is not good enough: {', '.join(failed)}; every reply is in {stage.shown(page)}"
        )


def _refuse_another_training(tuned_folder: Path, train_folder: Path) -> None:
    """RecipeError if the tuned model was made from no checkpoint of this training."""
    manifest = stage.require(tuned_folder, "merge")
    source: ConvertResults | MergeResults
    source = (
        results.of(manifest, ConvertResults) if manifest["stage"] == "convert" else results.of(manifest, MergeResults)
    )
    path = train_folder / source.checkpoint
    if not path.exists() or stage.content_sha256(path) != source.checkpoint_sha256:
        raise RecipeError(
            f"{stage.shown(tuned_folder)} was made from another training than {stage.shown(train_folder)} holds: "
            f"run `make merge` first"
        )


def _refuse_another_base(tuned_folder: Path, train_folder: Path, model: Path) -> None:
    """RecipeError if the tuned model or its training is of another base, or files of the training changed."""
    training, tuned = stage.complete(train_folder, "train"), stage.complete(tuned_folder, "merge")
    stage.refuse_changed(train_folder, training, [name for name in training["outputs"] if "/" not in name])
    for manifest in (training, tuned):
        stage.refuse_another_base(tuned_folder, model, manifest["key"]["inputs"].get("model"), "train")
