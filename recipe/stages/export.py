"""Stage `export`: a model of this recipe written in InternLM2's own layout, for tools that expect that one.

With a Modelfile for Ollama, which names what stage `gguf` writes.

The way back of stage `model`: wqkv fused again, the old names, config.json of an InternLM2 model, tokenizer.model where
the base brought one. Bit for bit the same weights, and still no Python: a tool that knows InternLM2 brings its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipe import files
from recipe.chat_format import EOS, IM_END
from recipe.checkpoint import safetensors_io
from recipe.checkpoint.base_config import ConfigShape
from recipe.checkpoint.base_origin import base_origin
from recipe.checkpoint.chat_tokenizer import GenerationConfig
from recipe.checkpoint.finite import refuse_not_finite
from recipe.checkpoint.internlm2_llama import Shape, internlm2_config, llama_names, to_internlm2
from recipe.checkpoint.model_card import CARD, Subject, export_card
from recipe.checkpoint.modelfile import MODELFILE, TEMPLATE, modelfile
from recipe.checkpoint.tokenizer import (
    SENTENCEPIECE,
    TokenizerConfig,
    TokenizerJson,
    added_tokens_decoder,
    is_internlm2s,
    sentencepiece_model,
)
from recipe.errors import RecipeError
from recipe.pipeline import stage
from recipe.pipeline.results import ExportResults
from recipe.pipeline.table import BY_VERB
from recipe.stages import gguf

# Beside this stage's folder.
GGUF = f"../{BY_VERB['gguf'].folder}/{gguf.DEFAULT}"


def make(folder: Path, *, model: Path, identity_names: Sequence[str] = ()) -> stage.Manifest:
    """Write a merged model in InternLM2's layout.

    Args:
        folder: of the stage.
        model: folder of the merged model.
        identity_names: for the card; empty after training on own data.
    """
    base = gguf.base_of(model)
    _refuse_other_bases(model)

    def work(out: Path) -> ExportResults:
        config = stage.read_json(model / "config.json", ConfigShape)
        parameters = _weights(model, out, Shape.of(config))
        files.write_json(out / "config.json", internlm2_config(config))
        for name in ("tokenizer.json", "generation_config.json"):
            shutil.copyfile(model / name, out / name)
        named = added_tokens_decoder(stage.read_json(model / "tokenizer.json", TokenizerJson))
        settings = stage.read_json(model / "tokenizer_config.json", TokenizerConfig) | {"added_tokens_decoder": named}
        files.write_json(out / "tokenizer_config.json", settings)
        generation = stage.read_json(model / "generation_config.json", GenerationConfig)
        written = modelfile(GGUF, generation, int(config["max_position_embeddings"]), (IM_END, EOS))
        (out / MODELFILE).write_text(written, encoding="utf-8")
        (out / CARD).write_text(export_card(Subject(base_origin(base), names=identity_names)), encoding="utf-8")
        if sentencepiece := sentencepiece_model(base):
            shutil.copyfile(sentencepiece, out / SENTENCEPIECE)
        else:
            stage.say("export", f"{stage.shown(base)} came without tokenizer.model: tokenizer.json alone is written")
        stage.say("export", f"for tools that know InternLM2's layout; transformers loads {stage.shown(model)} instead")
        return ExportResults(parameters=parameters, tokenizer_model=sentencepiece is not None)

    settings = {"template": TEMPLATE, "gguf": GGUF}
    return stage.run("export", folder, inputs={"merged": model, "model": base}, settings=settings, work=work)


def _refuse_other_bases(model: Path) -> None:
    """RecipeError where InternLM2's layout cannot hold the model, or its tools would misread the tokenizer."""
    config = stage.read_json(model / "config.json", ConfigShape)
    shape = Shape.of(config)
    if shape.qkv_bias or shape.tied:
        what = "biases on q, k and v" if shape.qkv_bias else "a tied head"
    elif not is_internlm2s(stage.read_json(model / "tokenizer_config.json", TokenizerConfig)):
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
        refuse_not_finite(tensors.items(), model)
        name = names[next(iter(tensors))]
        return {name: to_internlm2(name, tensors, shape)}

    return safetensors_io.rewrite(model, out, safetensors_io.locate(model, shape.llama()), plan, change)
