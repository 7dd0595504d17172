"""Stage `replay`: the base model's own answers to ordinary prompts.

Mixed into the training data, they hold the tuned model to what the base was: rehearsal without any outside data set
(Robins 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal"). The prompts are those of data/knowledge that
evaluation does not ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recipe import files
from recipe.chat_format import assistant
from recipe.corpus.identity import BASE_NAMES
from recipe.corpus.knowledge import conversation, replay_prompts
from recipe.evaluation import generation, scoring
from recipe.languages import LANGUAGES
from recipe.pipeline import results, stage
from recipe.pipeline.results import ModelResults, ReplayResults
from recipe.stages.model import asks_extended_prompts

FILE = "replay.jsonl"
# Longer replies teach little more per token, and small models repeat themselves there.
MAX_NEW_TOKENS = 128


def worth(reply: generation.Reply) -> bool:
    """Whether to train on a reply: it says something, is not broken, and does not introduce the base itself."""
    introduces = any(name in reply.text for name in BASE_NAMES)
    return bool(reply.text.strip()) and not scoring.broken(reply) and not introduces


def make(folder: Path, *, model: Path, languages: Sequence[str] = LANGUAGES) -> stage.Manifest:
    """Write the base's greedy answers to the replay prompts of some languages, those that are `worth` it.

    They depend on the model's content and the prompts alone, so that `folder` serves every run on that model.
    """
    base_name = results.of(stage.require(model, "model"), ModelResults).model
    prompts = replay_prompts(extended=asks_extended_prompts(base_name), languages=languages)

    def work(out: Path) -> ReplayResults:
        loaded, tokenizer = generation.load(model)
        conversations = [conversation(prompt) for prompt in prompts]
        replies = generation.answer(
            loaded, tokenizer, conversations, max_new_tokens=MAX_NEW_TOKENS, progress="replay of the base's answers"
        )
        rows = [
            {"messages": [*turns, assistant(reply.text)]}
            for turns, reply in zip(conversations, replies, strict=True)
            if worth(reply)
        ]
        (out / FILE).write_text(files.jsonl_text(rows), encoding="utf-8")
        return ReplayResults(prompts=len(prompts), rows=len(rows))

    settings = {"prompts": prompts, "max_new_tokens": MAX_NEW_TOKENS}
    return stage.run("replay", folder, inputs={"model": model}, settings=settings, work=work, shared=True)
