"""The Modelfile that Ollama reads beside a GGUF file: chat template, stops and sampling.

Format: https://docs.ollama.com/modelfile.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from recipe.chat_format import IM_END, IM_START

MODELFILE = "Modelfile"
# chat_format as a Go template. <s> is not in it: llama.cpp puts it first by itself.
TEMPLATE = (
    '{{ range .Messages }}{{ if or (ne .Role "system") .Content }}'
    f"{IM_START}{{{{ .Role }}}}\n{{{{ .Content }}}}{IM_END}\n"
    f"{{{{ end }}}}{{{{ end }}}}{IM_START}assistant\n"
)
# generation_config.json's name -> Ollama's.
PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "repetition_penalty": "repeat_penalty",
}
# Tokens of context that Ollama reserves memory for, at most.
MAX_CONTEXT = 8192


def modelfile(gguf: str, generation: dict[str, Any], length: int, stops: Iterable[str]) -> str:
    """The text of a Modelfile, for `ollama create`.

    Args:
        gguf: path of the GGUF file from the Modelfile's folder.
        generation: generation_config.json.
        length: tokens that the model reads.
        stops: tokens that end a reply.
    """
    sampling = generation if generation.get("do_sample") else {"temperature": 0}
    parameters = {PARAMETERS[key]: value for key, value in sampling.items() if key in PARAMETERS}
    parameters.setdefault("repeat_penalty", generation.get("repetition_penalty", 1.0))  # Ollama's own default is 1.1
    lines = [
        "# After `make gguf`, in this folder: ollama create my-assistant -f Modelfile && ollama run my-assistant",
        "# Ollama reads special tokens out of what a user types; chat, page and API of the recipe do not.",
        "# model-q8_0.gguf and model-q4_0.gguf of that folder take half and a third of it; replies change in words.",
        f"FROM {gguf}",
        f'TEMPLATE """{TEMPLATE}"""',
        *(f'PARAMETER stop "{stop}"' for stop in stops),
        *(f"PARAMETER {name} {value}" for name, value in parameters.items()),
        f"PARAMETER num_ctx {min(length, MAX_CONTEXT)}",
    ]
    return "\n".join(lines) + "\n"
