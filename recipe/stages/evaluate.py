"""Stage `eval`: did it learn its name, and what did that cost?

The three numbers of recipe/evaluation/scoring.py over greedy replies to prompts that the tuning data hold no wording
of, the base model beside the tuned one; what a sceptic asks besides (recipe/evaluation/suites.py); how far the tuned
model moved from the base where it should not have (recipe/evaluation/divergence.py); and whether it answers what the
user's own rows answer (recipe/evaluation/own_rows.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from recipe.evaluation.metrics import METRICS, BaseMetrics, Metrics, Names, OwnScores, TunedMetrics
from recipe.evaluation.scoring import Prompts, known_to_base, score
from recipe.languages import LANGUAGES
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
from recipe.plain_text import one_line
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
# Replies to the user's questions in the table.
SHOWN_OF_OWN = 3


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
    base_name = results.of(stage.require(model, "model"), ModelResults).model
    data = results.of(stage.require(data_folder, "data"), DataResults)
    evaluation_prompts = prompts(extended=asks_extended_prompts(base_name), languages=data.languages)
    _refuse_another_training(tuned_folder, train_folder)
    _refuse_another_base(tuned_folder, train_folder, model)
    inputs = {"model": model, "train": train_folder, "tuned": tuned_folder, "data": data_folder}
    user_file = data.own_file or (data.file if data.mode == "own" else None)

    def work(out: Path) -> EvalResults:
        rows = read_rows(data_folder / user_file) if user_file else []
        own_rows.refuse_overlap(evaluation_prompts, rows, f"{stage.shown(data_folder)}/{user_file}")
        taught = own_rows.taught_prompts(evaluation_prompts.facts, rows, identity)
        held_out = replace(evaluation_prompts, taught=taught)
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

    settings = {
        "prompts": evaluation_prompts.conversations(),
        "second_wordings": evaluation_prompts.second_wordings,
        "max_new_tokens": [MAX_NEW_TOKENS, MORE_NEW_TOKENS],
        "suites": suites.SAMPLING,
    } | ({"own": thresholds.MIN_OWN_SIMILARITY} if user_file else {})
    return stage.run("eval", folder, inputs=inputs, settings=settings, work=work)


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
        held_out, base, _asker(loaded, tokenizer, "base", identity, room)(second, "facts in other words")
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
    own_scores = _own_scores(own, loaded, tokenizer, "base")
    is_adapter = (tuned_folder / "adapter_config.json").is_file()
    tuned, tokenizer = generation.load(*((model, tuned_folder) if is_adapter else (tuned_folder,)))
    ask = _asker(tuned, tokenizer, "tuned", identity, room)
    replies = ask(held_out.conversations(), "questions and facts")
    tuned_metrics = TunedMetrics(
        *score(held_out, replies, base, identity, base_knows),
        suites=suites.measure(held_out, replies, base, identity, ask),
        divergence=divergence.kl_per_token(loaded, tuned, tokenizer, ended),
        own=_own_scores(own, tuned, tokenizer, "tuned"),
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
        max_new_tokens=min(longest + MORE_THAN_OWN_ANSWER, MAX_OWN_TOKENS), progress=f"eval {who}: your own questions",
    )  # fmt: skip
    return own_rows.score(own, replies)


def _asker(loaded: Any, tokenizer: Any, who: str, identity: Identity, room: int) -> suites.Ask:
    """What gets a model's replies of at most `room` tokens and the identity's names. who: for the progress bar."""
    names = (*identity.names, identity.author or "")
    longest = room + sum(len(text_ids(tokenizer, name)) for name in names)

    def ask(conversations: Sequence[Sequence[Message]], what: str, **sampling: Any) -> list[Reply]:
        label = f"eval {who}: {what}"
        return generation.answer(loaded, tokenizer, conversations, max_new_tokens=longest, progress=label, **sampling)

    return ask


def _base_replies(held_out: Prompts, loaded: Any, tokenizer: Any, identity: Identity) -> tuple[list[Reply], int]:
    """The base's replies to all prompts, and the room of every reply, in tokens: as long as the base talks.

    Replies that were cut are asked again with more room. It is kept if enough of them end there.
    """
    conversations = held_out.conversations()
    replies = _asker(loaded, tokenizer, "base", identity, MAX_NEW_TOKENS)(conversations, "questions and facts")
    cut = [i for i, reply in enumerate(replies) if not reply.stopped]
    ordinary = held_out.ordinary(range(len(conversations)))
    enough = WORTH_MORE_ROOM * len(ordinary)
    if sum(i in ordinary for i in cut) < enough:
        return replies, MAX_NEW_TOKENS
    ask = _asker(loaded, tokenizer, "base", identity, MORE_NEW_TOKENS)
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


def table(measured: Metrics) -> str:
    """Base and tuned side by side, the verdict, and some replies before and after."""
    base, tuned, checks = measured.base, measured.tuned, thresholds.verdict(measured.tuned)
    lines = [f"{'':18}{'base':>8}{'tuned':>8}   wanted"]
    for check in checks:
        untuned = _untuned(base, check.metric)
        before = "" if untuned is None else f"{untuned:.3f}"
        row = f"{check.metric:18}{before:>8}{check.value:8.3f}   {check.wanted:8}"
        lines.append(row + ("  ok" if check.passed else f"  FAILED: {check.why}"))
    if not tuned.identity_taught:
        lines += [
            f"{metric:18}{'':8}{_tuned(tuned, metric):8.3f}   not judged: "
            f"no row says the name / 不作判定：训练数据没有教名字"
            for metric in thresholds.OF_IDENTITY
        ]
    if not thresholds.judges_retention(tuned):
        count, least = tuned.scores.counts.facts_base_knew, thresholds.MIN_FACTS_KNOWN
        lines.append(
            f"{'retention':18}{base.scores.retention:8.3f}{tuned.scores.retention:8.3f}   "
            f"not judged: the base knew {count} facts, at least {least} are needed / "
            f"不作判定：基座只答对 {count} 条，至少需要 {least} 条"
        )
    judged = {check.metric for check in checks} | set(thresholds.OF_IDENTITY)
    besides = [f"{name} {suite.value:.3f}" for name, suite in tuned.suites.items() if name not in judged]
    lines += ["", "besides: " + ", ".join(besides)]
    if left_out := tuned.scores.counts.base_introductions:
        lines.append(f"no leak is counted for {left_out} prompts, to which the base introduces itself")
    if left_out := tuned.scores.counts.taught_prompts:
        lines.append(f"no leak is counted for {left_out} prompts, which ask what your own rows answer with the name")
    if measured.checkpoints:
        scores = ", ".join(
            f"{name} {each.identity_hit:.2f}/{each.identity_leak:.2f}/{each.retention:.2f}"
            for name, each in measured.checkpoints.items()
        )
        lines += ["", f"checkpoints (hit/leak/retention): {scores}; best: {measured.best_checkpoint}"]
    return "\n".join([*lines, "", *_examples(measured), *(_own_lines(tuned.own) if tuned.own else [])])


def _untuned(base: BaseMetrics, metric: str) -> float | None:
    """The base's own value of a number that is judged; None where the base was not asked."""
    if metric == "own_hit":
        return base.own.own_hit if base.own else None
    return base.broken if metric == "broken" else getattr(base.scores, metric, None)


def _tuned(tuned: TunedMetrics, metric: str) -> float:
    """The tuned model's value of a number of a suite or of the scores."""
    return tuned.suites[metric].value if metric in tuned.suites else tuned.scores.share(metric).value


def _examples(measured: Metrics) -> list[str]:
    """Lines of four prompts, two about who it is and two others, each with the replies before and after."""
    base, tuned = measured.base.replies, measured.tuned.replies
    split = measured.base.scores.counts.identity_questions
    lines = []
    for i in (0, split // 2, split, split + (len(base) - split) // 2):
        lines += _said({"Q": base[i].prompt, "base": base[i].reply, "tuned": tuned[i].reply})
    return lines


def _own_lines(own: OwnScores) -> list[str]:
    """How many of the user's questions are answered right, and the replies that are not, or one that is."""
    counts = own.own_counts
    lines = [
        "",
        f"your own rows: {counts.own_right} of {counts.own_questions} questions answered right, "
        f"{counts.own_held_out} of them asked in a wording that was not trained on",
    ]
    wrong = [reply for reply in own.own_replies if not reply.own_right]
    for reply in (wrong or own.own_replies)[:SHOWN_OF_OWN]:
        lines += _said({"Q": reply.prompt, "wanted": reply.expected, "tuned": reply.reply})
    return lines


def _said(texts: Mapping[str, str]) -> list[str]:
    """A line for each text. texts: who says it -> what."""
    return [f"{who:6} {one_line(text)}" for who, text in texts.items()]
