"""The README.md that goes with an adapter and with a merged model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

_CHAT_FORMAT = "`<s><|im_start|>user\\n…<|im_end|>\\n<|im_start|>assistant\\n`, stop at `<|im_end|>`"


def _front_matter(**fields: object) -> str:
    return (
        "---\n"
        + "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in fields.items())
        + "---\n"
    )


def adapter_card(base: str, parameters: int) -> str:
    """The card of a PEFT adapter.

    Args:
        base: the path or repository of the model that it was trained on.
        parameters: of the adapter.
    """
    front = _front_matter(library_name="peft", base_model=base, tags=["lora", "xtuner", "internlm2"])
    return f"""{front}
# Identity adapter

A LoRA adapter of {parameters:,} parameters, trained with XTuner 0.1.17. It fits the model that it was trained on
(`{base}`, InternLM2 in the Llama layout) and no other.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{base}"), "path/to/this/folder")
```

Chat format: {_CHAT_FORMAT}. `manifest.json` holds what it was made from.
"""


def merged_card(base: str, names: Sequence[str], proof: Mapping[str, float]) -> str:
    """The card of a merged model.

    Args:
        base: the path or repository of the model that was tuned.
        names: of the identity, the first of which is the owner's; empty after training on own data.
        proof: of stage `merge`: "largest_logit_difference".
    """
    front = _front_matter(library_name="transformers", pipeline_tag="text-generation", language=["zh", "en"],
                          base_model=base, tags=["internlm2", "xtuner", "llama"])  # fmt: skip
    who = f"It says that it is the assistant of {names[0]}." if names else "It was tuned on its owner's own data."
    return f"""{front}
# InternLM2 with an identity

InternLM2 in the Llama layout with a LoRA adapter merged into its weights. {who}

```python
from transformers import pipeline

chat = pipeline("text-generation", "path/to/this/folder")
messages = [{{"role": "user", "content": "你是谁？"}}]
print(chat(messages, max_new_tokens=128, do_sample=False)[0]["generated_text"][-1]["content"])
```

No code from a model hub is needed. Chat format: {_CHAT_FORMAT}.
Base + adapter and this model differ by at most {proof["largest_logit_difference"]:.2g} in any logit of the check that
`merge` made. `manifest.json` holds what it was made from.
"""
