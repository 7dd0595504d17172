"""Stage `export`: a model of this recipe written in InternLM2's own layout, for tools that expect that one.

With a Modelfile for Ollama, which takes what llama.cpp converts from this layout.

The way back of stage `model`: wqkv fused again, the old names, config.json of an InternLM2 model, tokenizer.model where
the base brought one. Bit for bit the same weights, and still no Python: a tool that knows InternLM2 brings its own.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from recipe import files
from recipe.chat_format import EOS, IM_END, IM_START
from recipe.checkpoint import safetensors_io
from recipe.checkpoint.internlm2_llama import Shape, internlm2_config, llama_names, to_internlm2
from recipe.checkpoint.tokenizer import SENTENCEPIECE, added_tokens_decoder, is_internlm2s, sentencepiece_model
from recipe.errors import RecipeError
from recipe.paths import ROOT
from recipe.pipeline import stage
from recipe.pipeline.results import ExportResults

MODELFILE = "Modelfile"
# chat_format as a Go template. <s> is not in it: llama.cpp puts it first by itself.
TEMPLATE = (
    '{{ range .Messages }}{{ if or (ne .Role "system") .Content }}'
    f"{IM_START}{{{{ .Role }}}}\n{{{{ .Content }}}}{IM_END}\n"
    f"{{{{ end }}}}{{{{ end }}}}{IM_START}assistant\n"
)


def modelfile(generation: dict[str, Any], length: int) -> str:
    """For `ollama create`. generation: generation_config.json. length: tokens that the model reads."""
    sampling = generation if generation.get("do_sample") else {"temperature": 0}
    parameter_names = {
        "temperature": "temperature",
        "top_p": "top_p",
        "top_k": "top_k",
        "repetition_penalty": "repeat_penalty",
    }
    parameters = {parameter_names[key]: value for key, value in sampling.items() if key in parameter_names}
    parameters.setdefault("repeat_penalty", generation.get("repetition_penalty", 1.0))  # Ollama's own default is 1.1
    lines = [
        "# In this folder: python llama.cpp/convert_hf_to_gguf.py . --outfile model.gguf --outtype f16",
        "#                 ollama create my-assistant -f Modelfile && ollama run my-assistant",
        "# Both read special tokens out of what a user types; chat, page and API of the recipe do not.",
        "FROM ./model.gguf",
        f'TEMPLATE """{TEMPLATE}"""',
        *(f'PARAMETER stop "{stop}"' for stop in (IM_END, EOS)),
        *(f"PARAMETER {name} {value}" for name, value in parameters.items()),
        f"PARAMETER num_ctx {min(length, 8192)}",
    ]
    return "\n".join(lines) + "\n"


def make(folder: Path, *, model: Path) -> stage.Manifest:
    """Write the merged model in `model` to `folder` in InternLM2's layout."""
    merged = stage.require(model, "merge")
    base = ROOT / merged["inputs"]["model"]
    if stage.content_sha256(base) != merged["key"]["inputs"]["model"]:
        raise RecipeError(
            f"{stage.shown(base)} is not the base of {stage.shown(model)} any more: bring that base back with "
            f"`make model`, or run `make merge` again"
        )
    _refuse_other_bases(model)

    def work(out: Path) -> ExportResults:
        config = stage.read_json(model / "config.json")
        parameters = _weights(model, out, Shape.of(config))
        files.write_json(out / "config.json", internlm2_config(config))
        for name in ("tokenizer.json", "generation_config.json"):
            shutil.copyfile(model / name, out / name)
        named = added_tokens_decoder(stage.read_json(model / "tokenizer.json"))
        settings = stage.read_json(model / "tokenizer_config.json") | {"added_tokens_decoder": named}
        files.write_json(out / "tokenizer_config.json", settings)
        generation = stage.read_json(model / "generation_config.json")
        written = modelfile(generation, int(config["max_position_embeddings"]))
        (out / MODELFILE).write_text(written, encoding="utf-8")
        if sentencepiece := sentencepiece_model(base):
            shutil.copyfile(sentencepiece, out / SENTENCEPIECE)
        else:
            stage.say("export", f"{stage.shown(base)} came without tokenizer.model: tokenizer.json alone is written")
        return ExportResults(parameters=parameters, tokenizer_model=sentencepiece is not None)

    return stage.run(
        "export", folder, inputs={"merged": model, "model": base}, settings={"template": TEMPLATE}, work=work
    )


def _refuse_other_bases(model: Path) -> None:
    """RecipeError where InternLM2's layout cannot hold the model, or its tools would misread the tokenizer."""
    config = stage.read_json(model / "config.json")
    shape = Shape.of(config)
    if shape.qkv_bias or shape.tied:
        what = "biases on q, k and v" if shape.qkv_bias else "a tied head"
    elif not is_internlm2s(stage.read_json(model / "tokenizer_config.json")):
        what = "another tokenizer than InternLM2's"
    else:
        return
    raise RecipeError(
        f"export writes InternLM2's own layout, which cannot hold {what}: {stage.shown(model)} is already what "
        f"transformers, vLLM and llama.cpp take"
    )


def _weights(model: Path, out: Path, shape: Shape) -> int:
    """The weights, a tensor at a time; returns the parameter count."""
    plan = [safetensors_io.Rewrite(llama_names(name), {name: size}) for name, size in shape.internlm2().items()]
    names = {step.sources[0]: next(iter(step.results)) for step in plan}

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        name = names[next(iter(tensors))]
        return {name: to_internlm2(name, tensors, shape)}

    return safetensors_io.rewrite(model, out, safetensors_io.locate(model, shape.llama()), plan, change)
