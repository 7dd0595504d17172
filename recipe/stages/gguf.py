"""Stage `gguf`: the merged model as GGUF files for llama.cpp and Ollama: 16, 8 and 4 bits, and a Modelfile.

Written by the library `gguf` alone, without a checkout of llama.cpp; `checkpoint.gguf_file` has the format. Fewer bits
may cost the name. Where the merged model was evaluated, the weights of each file are read back and asked what `eval`
asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from recipe.chat_format import stop_ids
from recipe.checkpoint import gguf_file
from recipe.checkpoint.base_config import ConfigShape
from recipe.checkpoint.loaded_tokenizer import load_tokenizer
from recipe.checkpoint.modelfile import MODELFILE, modelfile
from recipe.checkpoint.tokenizer import sentencepiece_model
from recipe.device import has_gpu
from recipe.evaluation import generation, metrics, thresholds
from recipe.evaluation.metrics import METRICS
from recipe.paths import ROOT
from recipe.pipeline import results, stage
from recipe.pipeline.phases import phase
from recipe.pipeline.results import GgufResults, GgufScores
from recipe.records import to_json
from recipe.stages import evaluate

# The file that both Modelfiles name: the one whose replies are those that `eval` measured.
DEFAULT = gguf_file.file_name("f16")
FILES = [gguf_file.file_name(kind) for kind in gguf_file.KINDS]


def base_of(model: Path) -> Path:
    """The folder of the base that a merged model was made on.

    Raises:
        RecipeError: `model` is no merged model, or another base lies there now.
    """
    name, sha256 = stage.input_of(stage.require(model, "merge"), "model")
    base = ROOT / name
    stage.refuse_another_base(model, base, sha256, "merge")
    return base


def make(
    folder: Path, *, model: Path, run: str, evaluation: Path | None = None, unverified: bool = False
) -> stage.Manifest:
    """Write a merged model as GGUF files, and ask their weights what `eval` asked.

    Args:
        folder: of the stage.
        model: folder of the merged model.
        run: the name of the run, and so of the model.
        evaluation: folder of stage `eval`; where it is not of this merged model, the files are not asked.
        unverified: ask them nothing; what an earlier call measured of the same files stays.
    """
    base = ROOT / stage.input_of(stage.require(model, "merge"), "model")[0]
    sentencepiece = sentencepiece_model(model)
    if sentencepiece is None and (sentencepiece := sentencepiece_model(base)):
        base_of(model)
    inputs, settings = {"merged": model, "model": base}, {"kinds": list(gguf_file.KINDS), "name": run}
    if evaluation and evaluate.is_of(evaluation, model):
        with_evaluation = inputs | {"eval": evaluation / metrics.FILE}
        if not unverified or (stage.read_manifest(folder) or {}).get("key") == stage.key_of(with_evaluation, settings):
            inputs = with_evaluation
    elif evaluation and not unverified:
        stage.say(
            "gguf",
            f"the files are not asked for the name, since {stage.shown(evaluation)} is not of this merged model: "
            f"`make eval gguf RUN={run}` evaluates it first",
        )

    def work(out: Path) -> GgufResults:
        written = _write(out, model, sentencepiece, run)
        return replace(written, scores=_scores(out, model, evaluation)) if evaluation and "eval" in inputs else written

    return stage.run("gguf", folder, inputs=inputs, settings=settings, work=work)


@phase("save")
def _write(out: Path, model: Path, sentencepiece: Path | None, run: str) -> GgufResults:
    """Write the files and the Modelfile to `out`."""
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
    return GgufResults(parameters, FILES, vocabulary.kind, vocabulary.pre)


def scores_beside(manifest: stage.Manifest | None, evaluation: Path) -> Mapping[str, GgufScores]:
    """The numbers of GGUF files that stand beside an evaluation.

    Args:
        manifest: of this stage; None where it never ran.
        evaluation: folder of stage `eval`.

    Returns:
        File -> its numbers; empty where the files were not asked, or what another evaluation asked.
    """
    if manifest is None or not (evaluation / metrics.FILE).is_file():
        return {}
    if manifest["key"]["inputs"].get("eval") != stage.file_sha256(evaluation / metrics.FILE):
        return {}
    return results.of(manifest, GgufResults).scores


def _scores(folder: Path, model: Path, evaluation: Path) -> dict[str, GgufScores]:
    """The numbers of each file in `folder`: the merged model answers with the file's weights in place of its own."""
    _announce(evaluation)
    scores = {}
    with generation.gpu_failures("the GPU cannot answer with these weights", "UNVERIFIED=1 writes the files without"):
        loaded, tokenizer = generation.load(model)
        parameters = dict(loaded.named_parameters())
        for file in FILES:
            generation.release()  # what the engine made of the weights before
            with phase("load"):
                for name, values in gguf_file.read(folder / file, model):
                    parameters[name].copy_(values)
            numbers = evaluate.ask_again(evaluation, loaded, tokenizer, f"gguf {file}")
            scores[file] = GgufScores(
                **{metric: getattr(numbers, metric) for metric in METRICS}, counts=to_json(numbers.counts)
            )
    generation.release()
    return scores


def _announce(evaluation: Path) -> None:
    """Say what the files are asked, and how long that takes by the seconds of the evaluation."""
    prompts = len(metrics.read(evaluation).base.replies)
    seconds = len(FILES) * evaluate.seconds_of_replies(evaluation)
    time = f": about {_duration(seconds)}" if seconds else ""  # older manifests lack it
    if "gpu_peak_mib" in stage.complete(evaluation, "eval") and not has_gpu():
        time += " on the GPU that `eval` had, and much longer on this CPU"
    stage.say(
        "gguf",
        f"asking the weights of {len(FILES)} files the {prompts} prompts of `eval`{time}; UNVERIFIED=1 writes the "
        f"files without",
    )


def _duration(seconds: float) -> str:
    """Seconds as people say them: of 100 or more the next larger unit."""
    for size, unit in ((1, "seconds"), (60, "minutes")):
        if seconds < 100 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.0f} hours"


def verdict(scores: Mapping[str, GgufScores], evaluation: Path) -> str:
    """The numbers of all files beside the tuned model's as one line, and which files are below the thresholds.

    Args:
        scores: of `scores_beside`; at least one.
        evaluation: folder of stage `eval`.
    """
    tuned = metrics.read(evaluation).tuned
    checks = [check for check in thresholds.verdict(tuned) if check.metric in METRICS]
    shown = {"tuned": tuned.scores, **scores}
    numbers = ", ".join(
        f"{name} {'/'.join(f'{getattr(each, metric):.3f}' for metric in METRICS)}" for name, each in shown.items()
    )
    below = {file: [c.metric for c in checks if not c.allows(getattr(each, c.metric))] for file, each in scores.items()}
    failed = "; ".join(f"{file} ({', '.join(names)})" for file, names in below.items() if names)
    return f"hit/leak/retention: {numbers}" + (f"; below the thresholds: {failed}" if failed else "")
