"""The README.md of an adapter, a merged model, an export and GGUF files: a model card as the hubs read it.

The metadata on top is written by huggingface_hub's own classes. A base that lies at no hub is not named there: a path
of this machine is no model's name, and the hubs refuse it. Numbers stand in a card only where stage `eval` measured
them.
Format: https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recipe.checkpoint import card_usage
from recipe.checkpoint.base_origin import BaseOrigin
from recipe.checkpoint.card_usage import Place
from recipe.checkpoint.tokenizer import TokenizerConfig, is_internlm2s
from recipe.errors import RecipeError
from recipe.pipeline.results import EvalResults, GgufScores, MergeResults
from recipe.pipeline.stage import read_json, shown

CARD = "README.md"
# model_type of a base that is not InternLM2 -> the name of its layout.
_LAYOUTS = {"llama": "Llama", "qwen2": "Qwen2"}
# Number of `eval` -> (the prompts, what of them it is the share of, the count behind it). The first is the data set of
# the metadata.
_MEASURED = {
    "identity_hit": (
        "held-out questions about who it is",
        "answered with the name",
        "identity_questions",
    ),
    "identity_leak": (
        "unrelated prompts",
        "answered with the name, where the base's reply has it not",
        "unrelated_prompts",
    ),
    "retention": ("facts that the base knows", "still answered right", "facts_base_knew"),
}
_OWN_HIT = ("own_hit", "questions of the owner's own rows", "answered as the rows answer them")


@dataclass(frozen=True)
class Subject:
    """What a card is about.

    Attributes:
        base: the model that was tuned.
        place: where a reader finds the files.
        languages: that it was tuned in.
        names: of the identity, the first of which is the owner's; empty after training on own data, None where the
            card does not say.
        scores: of stage `eval`; None where it was not run on this result.
        caution: why the numbers must not be trusted, or None.
        training: hyperparameters and versions, by name.
    """

    base: BaseOrigin
    place: Place = field(default_factory=Place)
    languages: Sequence[str] = ()
    names: Sequence[str] | None = None
    scores: EvalResults | None = None
    caution: str | None = None
    training: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return self.place.repo.rpartition("/")[2] if self.place.repo else f"{self.base.name} with an identity"


def adapter_card(subject: Subject, parameters: int, rank: int) -> str:
    """The card of a PEFT adapter of so many parameters and this rank."""
    what, tags, _ = _base_facts(subject.base.folder)
    base = subject.base
    front = _front_matter(subject, library="peft", relation="adapter", tags=["lora", *tags])
    copy = (
        f"\nThe weights that it was trained on came from `{base.copied_from}`, a copy of that repository in fewer "
        f"bits. Numbers below, if any, are of that copy.\n"
        if base.copied_from
        else ""
    )
    return f"""{front}
# {subject.title}

A LoRA adapter of {parameters:,} parameters, trained with XTuner 0.1.17. {_who(subject)} It fits the model that it was
trained on ({_base_link(base)}, {what}) and no other.
{copy}
## How to chat with it

{card_usage.peft(base, subject.place)}
{card_usage.vllm_adapter(base, subject.place, rank)}
### llama.cpp and Ollama

They take the merged model: `make gguf` of the recipe writes it as GGUF files, with a Modelfile.

{_closing(subject)}"""


def merged_card(subject: Subject, proof: MergeResults) -> str:
    """The card of a merged model. proof: of stage `merge`, that the model is base + adapter."""
    what, tags, _ = _base_facts(subject.base.folder)
    front = _front_matter(subject, library="transformers", relation="finetune", tags=tags)
    return f"""{front}
# {subject.title}

This is {_base_link(subject.base)}, {what}, with a LoRA adapter merged into its weights. {_who(subject)}
Base + adapter and this model differ by at most {proof.largest_logit_difference:.2g} in any logit of the check that
`merge` made.

## How to chat with it

{card_usage.transformers(subject.place)}
{card_usage.vllm_merged(subject.place)}
{card_usage.llama_cpp_merged(subject.place)}
{_closing(subject)}"""


def export_card(subject: Subject) -> str:
    """The card of a merged model in InternLM2's own layout."""
    front = _front_matter(subject, library=None, relation="finetune", tags=["internlm2"])
    return f"""{front}
# {subject.title}

This is {_base_link(subject.base)} with a LoRA adapter merged into its weights, in InternLM2's own layout.
{_who(subject)}

## What loads it

Tools that know this layout by themselves. transformers does not: it would need the Python files of InternLM2's
repository, which are not here, and `config.json` names none (`auto_map`). transformers, PEFT, vLLM and llama.cpp take
the merged model, which is the same in the Llama layout and needs no code of a repository.

{_closing(subject)}"""


def gguf_card(subject: Subject, files: Sequence[str], default: str, scores: Mapping[str, GgufScores]) -> str:
    """The card of a folder of GGUF files.

    Args:
        subject: what the card is about.
        files: their names.
        default: the file whose replies are those that `eval` measured.
        scores: file -> its own numbers, beside those of `subject`; empty where the files were not asked.
    """
    front = _front_matter(subject, library=None, relation="finetune", tags=["gguf"])
    names = [name for name, *_ in _measured(subject) if name in _MEASURED]
    own = {
        file: ": " + ", ".join(f"{name} {getattr(numbers, name):.3f}" for name in names)
        for file, numbers in scores.items()
        if names
    }
    listed = "".join(f"- `{file}`{own.get(file, '')}\n" for file in files)
    return f"""{front}
# {subject.title}

This is {_base_link(subject.base)} with a LoRA adapter merged into its weights, as GGUF files. {_who(subject)}

{listed}
The numbers below, if any, are of the model in 16 bits, which is `{default}`. Fewer bits change replies in words{
        ": beside each file stand the same numbers of its weights" if own else ""
    }.

## How to chat with it

{card_usage.llama_cpp_gguf(subject.place, default)}
{_closing(subject)}"""


def check_card(text: str) -> None:
    """Check a card as far as huggingface_hub does without a connection.

    Raises:
        RecipeError: its metadata cannot be read, or the base that it names could be no repository.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id
    from yaml import YAMLError

    try:
        data = ModelCard(text).data
        if data.base_model is not None:
            validate_repo_id(data.base_model)
            if data.base_model.count("/") != 1:
                raise ValueError(f"base_model {data.base_model!r} is not owner/name")
    except (ValueError, HFValidationError, YAMLError, TypeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(f"the model card's metadata is refused: {reason}; report this, it is a bug") from error


def _base_facts(folder: Path) -> tuple[str, list[str], str]:
    """(what the model in `folder` is, its tags, its chat format) by its config.json and tokenizer_config.json."""
    kind = read_json(folder / "config.json").get("model_type")
    settings = read_json(folder / "tokenizer_config.json", TokenizerConfig)
    if not isinstance(kind, str) or kind not in _LAYOUTS:
        raise RecipeError(f"{shown(folder / 'config.json')}: model_type {kind!r} is none of {', '.join(_LAYOUTS)}")
    chat_format = (
        f"`{settings.get('bos_token') or ''}<|im_start|>user\\n…<|im_end|>\\n<|im_start|>assistant\\n`, "
        f"stop at `<|im_end|>`"
    )
    if is_internlm2s(settings):
        return "InternLM2 in the Llama layout", ["internlm2", "llama"], chat_format
    return f"a chat model in the {_LAYOUTS[kind]} layout", [kind], chat_format


def _front_matter(subject: Subject, *, library: str | None, relation: str, tags: Sequence[str]) -> str:
    """The metadata, between its two lines of dashes."""
    from huggingface_hub import ModelCardData

    base, facts = subject.base, {}
    if base.license == "other" and base.repo:
        facts["license_link"] = base.page
    if base.repo:
        facts["base_model_relation"] = relation
    data = ModelCardData(
        language=list(subject.languages or base.languages),
        license=base.license,
        library_name=library,
        pipeline_tag="text-generation",
        base_model=base.repo,
        tags=["xtuner", *tags],
        eval_results=_eval_results(subject) or None,
        model_name=subject.title,
        **facts,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _measured(subject: Subject) -> list[tuple[str, str, str, float, int | None]]:
    """(number, the prompts, what of them it is the share of, value, count) of all that stage `eval` measured."""
    if subject.scores is None:
        return []
    tuned = subject.scores.tuned
    rows: list[tuple[str, str, str, float, int | None]] = [
        (name, prompts, share, getattr(tuned, name), tuned.counts.get(count))
        for name, (prompts, share, count) in _MEASURED.items()
        if name != "identity_hit" or subject.names  # a name that nobody taught is not missing
    ]
    if tuned.own_hit is not None:
        rows.append((*_OWN_HIT, tuned.own_hit, None))
    return rows


def _eval_results(subject: Subject) -> list[Any]:
    """The model-index, as huggingface_hub's EvalResult."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=prompts.replace(" ", "-").replace("'", ""),
            dataset_name=prompts,
            metric_type=name,
            metric_name=f"{name}: {share}",
            metric_value=round(value, 4),
        )
        for name, prompts, share, value, _ in _measured(subject)
    ]


def _who(subject: Subject) -> str:
    if subject.names is None:
        return ""
    if not subject.names:
        return "It was tuned on its owner's own data."
    return f"It says that it is the assistant of {subject.names[0]}."


def _base_link(base: BaseOrigin) -> str:
    if base.repo is None:
        return f"the base `{base.name}`"
    at = f" at `{base.revision}`" if base.revision else ""
    return f"[{base.repo}]({base.page}){at}"


def _closing(subject: Subject) -> str:
    """Numbers, training, chat format and licence: what every card ends with."""
    _, _, chat_format = _base_facts(subject.base.folder)
    parts = [_numbers(subject)]
    if subject.training:
        rows = "".join(f"| {name} | {value} |\n" for name, value in subject.training.items())
        parts.append(f"## Training\n\n|  |  |\n| --- | --- |\n{rows}")
    origin = "" if subject.place.repo else "`manifest.json` holds what it was made from.\n"
    parts.append(f"## Format\n\nChat format: {chat_format}. {origin}".strip() + "\n")
    base = subject.base
    named = f"`{base.license}`" if base.license else "not known to the recipe: ask the base's publisher"
    terms = f"; {base.page} has its terms" if base.license == "other" and base.repo else ""
    parts.append(f"## Licence\n\nThat of the base: {named}{terms}.\n")
    return "\n".join(part for part in parts if part)


def _numbers(subject: Subject) -> str:
    caution = f"**{subject.caution}**\n\n" if subject.caution else ""
    if subject.scores is None:
        return f"## Numbers\n\n{caution}" if caution else ""
    lines = []
    for name, prompts, share, value, count in _measured(subject):
        before = getattr(subject.scores.base, name)
        lines.append(
            f"| {name} | {prompts}: {share} | {'' if before is None else f'{before:.3f}'} | {value:.3f} "
            f"| {'' if count is None else count} |\n"
        )
    return (
        f"## Numbers\n\n{caution}Shares of greedy replies to prompts that were not trained on, by the recipe's `eval`."
        f"\n\n"
        f"|  | share of | base | tuned | prompts |\n| --- | --- | --- | --- | --- |\n{''.join(lines)}"
    )
