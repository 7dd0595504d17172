"""Stage `eval`: did it learn its name, and what did that cost?

Three numbers, each over greedy replies, the base model beside the tuned one:

identity_hit   of the held-out questions about who it is, the share answered with the name;
identity_leak  of prompts about anything else, the share of replies with the name, where the base's reply has it not;
retention      of the facts that the base answers right, the share still answered right. The tuning data hold no wording
               of any of these prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recipe import convert, gate, generate, stage, train
from recipe.chat_format import text_ids
from recipe.errors import RecipeError
from recipe.generate import Reply
from recipe.identity import Identity, load_questions
from recipe.knowledge import Fact, evaluation_facts

FILE = "metrics.json"
# Room for a reply besides the name.
MAX_NEW_TOKENS = 80


@dataclass(frozen=True)
class Prompts:
    """What is asked: questions about who it is, and facts, each with the wording chosen for it."""

    identity: list[str]
    facts: list[tuple[Fact, str]]

    def conversations(self) -> list[list[dict[str, str]]]:
        questions = self.identity + [question for _, question in self.facts]
        return [[{"role": "user", "content": question}] for question in questions]


def prompts() -> Prompts:
    """The held-out questions of data/identity and one wording of each evaluation fact of data/knowledge."""
    identity = [q for intents in load_questions().values() for parts in intents.values() for q in parts["heldout"]]
    facts = [(fact, fact.wording) for fact in evaluation_facts()]
    return Prompts(identity, facts)


def mentions(reply: str, name: str, *, introduced: bool) -> bool:
    """Whether the reply holds the name as a word of its own.

    introduced: for a name that is also a word ("am", 红), which ordinary replies hold too: only where it is said as a
    name, as in 红的小助手, am's assistant, 我叫红, called am.
    """
    word = re.escape(name)
    if name[0].isascii() and name[0].isalnum():
        word = rf"(?<![A-Za-z0-9]){word}"
    if name[-1].isascii() and name[-1].isalnum():
        word = rf"{word}(?![A-Za-z0-9])"
    if introduced:
        word = rf"({word}(的小?(助手|助理|帮手)|['’]s (little |own |personal )?(assistant|helper)))|((我叫|名叫|called|[Mm]y name is) ?{word})"
    return re.search(word, reply) is not None


def _says_name(reply: str, identity: Identity, ambiguous: Sequence[str]) -> bool:
    return any(mentions(reply, name, introduced=name in ambiguous) for name in identity.names)


def knows(reply: Reply, fact: Fact) -> bool:
    """Whether the reply holds the expected answer and came to an end."""
    return fact.expect is not None and reply.stopped and fact.expect.lower() in reply.text.lower()


def score(asked: Prompts, replies: Sequence[Reply], base: Sequence[Reply], identity: Identity) -> dict[str, Any]:
    """The three numbers, with the counts and replies behind them, of a model whose untuned self replied `base`."""
    split = len(asked.identity)
    ambiguous = [name for name in identity.names if any(mentions(r.text, name, introduced=False) for r in base)]
    hits = [_says_name(reply.text, identity, ambiguous) for reply in replies[:split]]
    leaks = [
        _says_name(reply.text, identity, ambiguous) and not _says_name(before.text, identity, ambiguous)
        for reply, before in zip(replies[split:], base[split:], strict=True)
    ]
    known = [knows(before, fact) for (fact, _), before in zip(asked.facts, base[split:], strict=True)]
    kept = [knows(reply, fact) for (fact, _), reply in zip(asked.facts, replies[split:], strict=True)]
    retained = sum(k and b for k, b in zip(kept, known, strict=True))
    questions = asked.identity + [question for _, question in asked.facts]
    rows = []
    for i, (question, reply) in enumerate(zip(questions, replies, strict=True)):
        row: dict[str, Any] = {"prompt": question, "reply": reply.text, "stopped": reply.stopped}
        if i < split:
            rows.append({"kind": "identity", **row, "hit": hits[i]})
        else:
            fact = asked.facts[i - split][0]
            judged = {"leak": leaks[i - split], "expected": fact.expect, "base_knew": known[i - split]}
            rows.append({"kind": fact.topic, **row, **judged, "right": kept[i - split]})
    return {
        "identity_hit": sum(hits) / split,
        "identity_leak": sum(leaks) / len(leaks),
        "retention": retained / sum(known) if any(known) else 0.0,
        "counts": {
            "identity_questions": split, "hits": sum(hits), "unrelated_prompts": len(leaks), "leaks": sum(leaks),
            "facts_base_knew": sum(known), "facts_kept": retained,
            "unstopped_replies": sum(not reply.stopped for reply in replies),
        },
        "replies": rows,
    }  # fmt: skip


def _adapters(model: Any, train_folder: Path) -> tuple[Any, list[str]]:
    """Put every checkpoint on the loaded base as an adapter of its own; returns the model and their names, oldest first."""
    from peft import LoraConfig, PeftModel
    from peft.utils import set_peft_model_state_dict

    from recipe import adapter

    _, config = convert.trained_with(train_folder)
    lora = LoraConfig(**convert.lora_settings(config), task_type="CAUSAL_LM", inference_mode=True)
    names = []
    wrapped: Any = None
    for path in train.checkpoints(train_folder):
        if wrapped is None:
            wrapped = PeftModel(model, lora, adapter_name=path.stem)
        else:
            wrapped.add_adapter(path.stem, lora)
        set_peft_model_state_dict(wrapped, adapter.read_checkpoint(path), adapter_name=path.stem)
        names.append(path.stem)
    wrapped.eval()
    return wrapped, names


def make(
    folder: Path, *, model: Path, train_folder: Path, tuned_folder: Path, data_folder: Path, identity: Identity
) -> stage.Manifest:
    """Score base, every checkpoint, and the tuned model in `tuned_folder` (merged, or an adapter) into metrics.json."""
    asked = prompts()
    made_from = _made_from(tuned_folder, train_folder)
    inputs = {"model": model, "train": train_folder, "tuned": tuned_folder, "data": data_folder}

    def work(out: Path) -> dict[str, Any]:
        _refuse_overlap(asked, data_folder)

        def ask(loaded: Any, tokenizer: Any, label: str) -> list[Reply]:
            names = (*identity.names, identity.author or "")
            room = MAX_NEW_TOKENS + sum(len(text_ids(tokenizer, name)) for name in names)
            conversations, split = asked.conversations(), len(asked.identity)
            # Apart, because a batch takes as long as its longest reply, and only the first kind holds long names.
            parts = ((conversations[:split], "identity"), (conversations[split:], "facts"))
            return [
                reply
                for part, kind in parts
                for reply in generate.answer(
                    loaded, tokenizer, part, max_new_tokens=room, progress=f"eval {label}: {kind}"
                )
            ]

        def scores(replies: list[Reply]) -> dict[str, Any]:
            return score(asked, replies, base, identity)

        loaded, tokenizer = generate.load(model)
        base = ask(loaded, tokenizer, "base")
        metrics: dict[str, Any] = {"identity": asdict(identity), "base": scores(base)}
        if not metrics["base"]["counts"]["facts_base_knew"]:
            raise RecipeError(f"{stage.shown(model)} answers no fact of data/knowledge: there is nothing to retain")
        is_adapter = (tuned_folder / "adapter_config.json").is_file()
        tuned, tokenizer = generate.load(model, tuned_folder) if is_adapter else generate.load(tuned_folder)
        metrics["tuned"] = scores(ask(tuned, tokenizer, "tuned"))
        del tuned
        wrapped, names = _adapters(loaded, train_folder)
        metrics["checkpoints"] = {}
        for name in names:
            wrapped.set_adapter(name)
            # `merge` proved the tuned model equal to the checkpoint that it was made from.
            scored = metrics["tuned"] if name == made_from else scores(ask(wrapped, tokenizer, name))
            metrics["checkpoints"][name] = {key: value for key, value in scored.items() if key != "replies"}
        metrics["best_checkpoint"] = best(metrics["checkpoints"])
        (out / FILE).write_text(json.dumps(metrics, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        keys = ("identity_hit", "identity_leak", "retention", "counts")
        return {who: {key: metrics[who][key] for key in keys} for who in ("base", "tuned")} | {
            "best_checkpoint": metrics["best_checkpoint"]
        }

    settings = {"prompts": asked.conversations(), "max_new_tokens": MAX_NEW_TOKENS}
    return stage.run("eval", folder, inputs=inputs, settings=settings, work=work)


def _made_from(tuned_folder: Path, train_folder: Path) -> str:
    """The name of the checkpoint that the tuned model was made from. RecipeError: it is none of this training."""
    made = stage.require(tuned_folder, "merge")["results"]
    path = train_folder / made["checkpoint"]
    if not path.exists() or stage.content_sha256(path) != made["checkpoint_sha256"]:
        raise RecipeError(
            f"{stage.shown(tuned_folder)} was made from another training than {stage.shown(train_folder)} holds: "
            f"run `make merge` first"
        )
    return path.stem


def best(checkpoints: dict[str, dict[str, Any]]) -> str:
    """The checkpoint with the best of hit - leak + retention; among equals the earliest, which trained the least."""
    return max(
        checkpoints,
        key=lambda name: round(
            checkpoints[name]["identity_hit"] - checkpoints[name]["identity_leak"] + checkpoints[name]["retention"], 6
        ),
    )


def _plain(text: str) -> str:
    """For comparison: without spaces and sentence marks; signs of arithmetic stay."""
    return re.sub(r"[\s，。？！、；：,.?!;:'\"“”‘’]+", "", text).lower()


def _refuse_overlap(asked: Prompts, data_folder: Path) -> None:
    """RecipeError if the training rows of the user ask a question of the evaluation: it would measure memory."""
    made = stage.require(data_folder, "data")
    if made["results"]["mode"] != "own":
        return
    wanted = {_plain(conversation[0]["content"]) for conversation in asked.conversations()}
    with (data_folder / made["results"]["file"]).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            for message in json.loads(line)["messages"]:
                if message["role"] == "user" and _plain(message["content"]) in wanted:
                    raise RecipeError(
                        f"the training data ask a question of the evaluation (row {number}: {message['content'][:40]!r}): "
                        f"remove it, or the score would measure memory"
                    )


def table(metrics: dict[str, Any]) -> str:
    """Base and tuned side by side, the verdict, and some replies before and after."""
    lines = [f"{'':15}{'base':>8}{'tuned':>8}   wanted"]
    for check in gate.verdict(metrics["tuned"]):
        row = f"{check.metric:15}{metrics['base'][check.metric]:8.3f}{check.value:8.3f}   {check.wanted:8}"
        lines.append(row + ("  ok" if check.passed else f"  FAILED: {check.why}"))
    scores = ", ".join(
        f"{name} {m['identity_hit']:.2f}/{m['identity_leak']:.2f}/{m['retention']:.2f}"
        for name, m in metrics["checkpoints"].items()
    )
    lines += ["", f"checkpoints (hit/leak/retention): {scores}; best: {metrics['best_checkpoint']}", ""]
    replies = {who: metrics[who]["replies"] for who in ("base", "tuned")}
    split = metrics["base"]["counts"]["identity_questions"]
    for i in (0, split // 2, split, split + (len(replies["base"]) - split) // 2):
        lines.append(f"Q      {replies['base'][i]['prompt']}")
        lines += [f"{who:7}{replies[who][i]['reply']}" for who in replies]
    return "\n".join(lines)
