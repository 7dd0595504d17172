"""Stage `replay`: the base model's own answers to ordinary prompts.

Mixed into the training data, they hold the tuned model to what the base was: rehearsal without any outside data set
(Robins 1995, "Catastrophic forgetting, rehearsal and pseudorehearsal"). The prompts are those of data/knowledge that
evaluation does not ask. Beside the replies lie the base's distributions over their tokens, see training/teacher.py.
"""

from __future__ import annotations

from pathlib import Path

from recipe import files
from recipe.chat_format import assistant, user
from recipe.corpus.identity import BASE_NAMES
from recipe.corpus.knowledge import replay_prompts
from recipe.evaluation import generation, scoring
from recipe.pipeline import stage
from recipe.pipeline.results import ReplayResults

FILE = "replay.jsonl"
# Longer replies teach little more per token, and small models repeat themselves there.
MAX_NEW_TOKENS = 128


def worth(reply: generation.Reply) -> bool:
    """Whether to train on a reply: it says something, does not go round in circles, and does not introduce the base.

    A reply that reached the limit is worth it: as far as it goes, it is what the base says.
    """
    introduces = any(name in reply.text for name in BASE_NAMES)
    return bool(reply.text.strip()) and not scoring.loops(reply) and not introduces


def make(folder: Path, *, model: Path) -> stage.Manifest:
    """Write the base's greedy answers to the replay prompts, those that are `worth` it.

    They depend on the model's content and the prompts alone, so that `folder` serves every run on that model.
    """
    from recipe.training import teacher

    stage.require(model, "model")
    prompts = replay_prompts()

    def work(out: Path) -> ReplayResults:
        loaded, tokenizer = generation.load(model)
        conversations = [[user(prompt)] for prompt in prompts]
        replies = generation.answer(
            loaded, tokenizer, conversations, max_new_tokens=MAX_NEW_TOKENS, progress="replay of the base's answers"
        )
        chosen = [
            ([*conversation, assistant(reply.text)], reply.stopped)
            for conversation, reply in zip(conversations, replies, strict=True)
            if worth(reply)
        ]
        rows = [{"messages": messages} | ({} if ended else {"ended": False}) for messages, ended in chosen]
        (out / FILE).write_text(files.jsonl_text(rows), encoding="utf-8")
        taught = teacher.distributions(
            loaded,
            tokenizer,
            [messages for messages, _ in chosen],
            [ended for _, ended in chosen],
            progress="the base's distributions",
        )
        teacher.save(taught, out)
        return ReplayResults(prompts=len(prompts), rows=len(rows))

    settings = {"prompts": prompts, "max_new_tokens": MAX_NEW_TOKENS, "likeliest": teacher.LIKELIEST}
    return stage.run("replay", folder, inputs={"model": model}, settings=settings, work=work, shared=True)
