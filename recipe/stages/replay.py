"""Stage `replay`: the base model's own answers to ordinary prompts.

Mixed into the training data, they hold the tuned model to what the base was: rehearsal without any outside data set
(Robins 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal"). The prompts are those of data/knowledge that
evaluation does not ask. Beside the replies lie the base's distributions over their tokens, see training/teacher.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from recipe import files
from recipe.chat_format import assistant
from recipe.corpus.knowledge import contrast_answers, conversation, replay_parts, replay_prompts
from recipe.evaluation import generation, scoring
from recipe.evaluation.mentions import introduces_itself
from recipe.languages import LANGUAGES
from recipe.pipeline import results, stage
from recipe.pipeline.results import ModelResults, ReplayResults
from recipe.stages.model import asks_extended_prompts
from recipe.training.sizes import LIKELIEST

FILE = "replay.jsonl"
# Longer replies teach little more per token, and small models repeat themselves there.
MAX_NEW_TOKENS = 128
# Beside its greedy reply the base begins each prompt's reply so often at random: a reply turns into an introduction in
# its first words, also in those that are likely but not the likeliest.
BEGINNINGS, BEGINNING_TOKENS, SEED = 1, 24, 0


def worth(reply: generation.Reply, prompt: str = "") -> bool:
    """Whether to train on a reply: it says something, does not go round in circles, and does not introduce the base.

    A reply that reached the limit is worth it: as far as it goes, it is what the base says.
    """
    return bool(reply.text.strip()) and not scoring.loops(reply) and not introduces_itself(reply.text, prompt)


def make(folder: Path, *, model: Path, languages: Sequence[str] = LANGUAGES) -> stage.Manifest:
    """Write the base's greedy answers to the replay prompts of some languages, those that are `worth` it.

    After the extended prompts follow sampled beginnings of answers. All of them depend on the model's content and the
    prompts alone, so that `folder` serves every run on that model.
    """
    extended = asks_extended_prompts(results.of(stage.require(model, "model"), ModelResults).model)
    prompts = replay_prompts(extended=extended, languages=languages)
    parts = replay_parts(extended=extended, languages=languages)
    answers = contrast_answers() if extended else {}

    @generation.gpu_failures("the base cannot answer on the GPU", generation.FREE_THE_GPU)
    def work(out: Path) -> ReplayResults:
        from recipe.training import teacher

        loaded, tokenizer = generation.load(model)
        conversations = [conversation(prompt) for prompt in prompts]
        answer = partial(generation.answer, loaded, tokenizer, likeliest=LIKELIEST)
        replies = answer(conversations, max_new_tokens=MAX_NEW_TOKENS, progress="replay of the base's answers")
        begun = conversations * BEGINNINGS if extended else []
        beginnings = answer(
            begun, max_new_tokens=BEGINNING_TOKENS, temperature=1.0, seed=SEED, progress="beginnings of other answers"
        )
        generation.release()  # the distributions want the memory
        chosen = [
            ([*turns, assistant(reply.text)], reply, part)
            for turns, reply, part in zip(
                [*conversations, *begun], [*replies, *beginnings], [*parts, *["beginnings"] * len(begun)], strict=True
            )
            if worth(reply, turns[-1]["content"])
        ]
        # A base that takes a question about the user or others for one about itself would be held to that.
        by_words = [
            ([*turns, assistant(answers[turns[-1]["content"]])], part)
            for turns, reply, part in zip(conversations, replies, parts, strict=True)
            if turns[-1]["content"] in answers and introduces_itself(reply.text, turns[-1]["content"])
        ]
        rows = [
            {"messages": messages} | ({} if reply.stopped else {"ended": False}) | {"part": part}
            for messages, reply, part in chosen
        ]
        rows += [{"messages": messages, "part": part} for messages, part in by_words]
        (out / FILE).write_text(files.jsonl_text(rows), encoding="utf-8")
        distributions = teacher.distributions(
            loaded,
            tokenizer,
            [*(messages for messages, _, _ in chosen), *(None for _ in by_words)],
            [*(reply.stopped for _, reply, _ in chosen), *(True for _ in by_words)],
            [reply.likeliest for _, reply, _ in chosen],
        )
        teacher.save(distributions, out)
        return ReplayResults(prompts=len(prompts), rows=len(rows))

    settings = {"prompts": prompts, "max_new_tokens": MAX_NEW_TOKENS, "likeliest": LIKELIEST}
    if extended:
        settings["beginnings"] = [BEGINNINGS, BEGINNING_TOKENS, SEED]
    return stage.run("replay", folder, inputs={"model": model}, settings=settings, work=work, shared=True)
