"""The README.md that goes with an adapter and with a merged model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from recipe.checkpoint.tokenizer import is_internlm2s
from recipe.languages import LANGUAGES
from recipe.pipeline.results import MergeResults
from recipe.pipeline.stage import read_json

# model_type of a base that is not InternLM2 -> the name of its layout.
_LAYOUTS = {"llama": "Llama", "qwen2": "Qwen2"}


def _base_facts(folder: Path) -> tuple[str, list[str], str]:
    """(what the model in `folder` is, its tags, its chat format) by its config.json and tokenizer_config.json."""
    kind, settings = read_json(folder / "config.json")["model_type"], read_json(folder / "tokenizer_config.json")
    chat_format = (
        f"`{settings.get('bos_token') or ''}<|im_start|>user\\n…<|im_end|>\\n<|im_start|>assistant\\n`, "
        f"stop at `<|im_end|>`"
    )
    if is_internlm2s(settings):
        return "InternLM2 in the Llama layout", ["internlm2", "llama"], chat_format
    return f"a chat model in the {_LAYOUTS[kind]} layout", [kind], chat_format


def _front_matter(**fields: object) -> str:
    return (
        "---\n"
        + "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in fields.items())
        + "---\n"
    )


def adapter_card(base: str, folder: Path, parameters: int) -> str:
    """The card of a PEFT adapter.

    Args:
        base: the path or repository of the model that it was trained on.
        folder: that model's folder.
        parameters: of the adapter.
    """
    what, tags, chat_format = _base_facts(folder)
    front = _front_matter(library_name="peft", base_model=base, tags=["lora", "xtuner", *tags])
    return f"""{front}
# Identity adapter

A LoRA adapter of {parameters:,} parameters, trained with XTuner 0.1.17. It fits the model that it was trained on
(`{base}`, {what}) and no other.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "path/to/this/folder")
```

Chat format: {chat_format}. `manifest.json` holds what it was made from.
"""


def merged_card(base: str, folder: Path, names: Sequence[str], proof: MergeResults) -> str:
    """The card of a merged model.

    Args:
        base: the path or repository of the model that was tuned.
        folder: that model's folder.
        names: of the identity, the first of which is the owner's; empty after training on own data.
        proof: of stage `merge`, that the model is base + adapter.
    """
    what, tags, chat_format = _base_facts(folder)
    front = _front_matter(library_name="transformers", pipeline_tag="text-generation", language=list(LANGUAGES),
                          base_model=base, tags=["xtuner", *tags])  # fmt: skip
    who = f"It says that it is the assistant of {names[0]}." if names else "It was tuned on its owner's own data."
    return f"""{front}
# {Path(base).name} with an identity

This is {what} with a LoRA adapter merged into its weights. {who}

```python
from transformers import pipeline

chat = pipeline("text-generation", "path/to/this/folder")
messages = [{{"role": "user", "content": "你是谁？"}}]
print(chat(messages, max_new_tokens=128, do_sample=False)[0]["generated_text"][-1]["content"])
```

No code from a model hub is needed. Chat format: {chat_format}.
Base + adapter and this model differ by at most {proof.largest_logit_difference:.2g} in any logit of the check that
`merge` made. `manifest.json` holds what it was made from.
"""
