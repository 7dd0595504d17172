"""Stage `gguf`: the merged model as GGUF files for llama.cpp and Ollama: 16, 8 and 4 bits, and a Modelfile.

Written by the library `gguf` alone, without a checkout of llama.cpp; `checkpoint.gguf_file` has the format.
"""

from __future__ import annotations

from pathlib import Path

from recipe.chat_format import stop_ids
from recipe.checkpoint import gguf_file
from recipe.checkpoint.base_config import ConfigShape
from recipe.checkpoint.loaded_tokenizer import load_tokenizer
from recipe.checkpoint.modelfile import MODELFILE, modelfile
from recipe.checkpoint.tokenizer import sentencepiece_model
from recipe.paths import ROOT
from recipe.pipeline import stage
from recipe.pipeline.results import GgufResults

# The file that both Modelfiles name: the one whose replies are those that `eval` measured.
DEFAULT = gguf_file.file_name("f16")


def base_of(model: Path) -> Path:
    """The folder of the base that a merged model was made on.

    Raises:
        RecipeError: `model` is no merged model, or another base lies there now.
    """
    name, sha256 = stage.input_of(stage.require(model, "merge"), "model")
    base = ROOT / name
    stage.refuse_another_base(model, base, sha256, "merge")
    return base


def make(folder: Path, *, model: Path, run: str) -> stage.Manifest:
    """Write the merged model in `model` to `folder` as GGUF files. run: the name of the run, and so of the model."""
    base = ROOT / stage.input_of(stage.require(model, "merge"), "model")[0]
    sentencepiece = sentencepiece_model(model)
    if sentencepiece is None and (sentencepiece := sentencepiece_model(base)):
        base_of(model)

    def work(out: Path) -> GgufResults:
        tokenizer = load_tokenizer(model)
        parameters, vocabulary = gguf_file.write(model, out, tokenizer=tokenizer, sentencepiece=sentencepiece, name=run)
        written = modelfile(
            f"./{DEFAULT}",
            stage.read_json(model / "generation_config.json"),
            stage.read_json(model / "config.json", ConfigShape)["max_position_embeddings"],
            tokenizer.convert_ids_to_tokens(stop_ids(tokenizer)),
        )
        (out / MODELFILE).write_text(written, encoding="utf-8")
        sizes = {kind: (out / gguf_file.file_name(kind)).stat().st_size for kind in gguf_file.KINDS}
        stage.say("gguf", ", ".join(f"{kind} {size / 1e6:,.0f} MB" for kind, size in sizes.items()))
        return GgufResults(
            parameters=parameters,
            files=[gguf_file.file_name(kind) for kind in gguf_file.KINDS],
            tokenizer=vocabulary.kind,
            pre_tokenizer=vocabulary.pre,
        )

    settings = {"kinds": list(gguf_file.KINDS), "name": run}
    return stage.run("gguf", folder, inputs={"merged": model, "model": base}, settings=settings, work=work)
