"""Stage `model`: a model folder checked, and converted to the layout that every tool takes.

In: the embedded miniature, or a folder in InternLM2's or Llama's format. Out: safetensors in the Llama layout,
tokenizer.json with the chat template, and no Python at all. Python files of a model repository are never read, copied
or run; a folder that holds any is refused, so that nobody can believe they were.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from recipe import stage
from recipe.chat_format import CHAT_TOKENS, IM_END
from recipe.errors import RecipeError
from recipe.layout import Shape, llama_config, to_llama
from recipe.paths import MINIATURE
from recipe.tokenizer import build_tokenizer_json, fast_tokenizer_config, renamed_tokens

DEFAULT_MODEL = "internlm2-chat-1_8b"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SUMS = "SHA256SUMS"
FORMATS = ("internlm2", "llama")
LLAMA_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def source_folder(model: str) -> Path:
    """The folder that MODEL= means. RecipeError if there is none."""
    if model == "miniature":
        return MINIATURE
    if Path(model).is_dir():
        return Path(model)
    if re.fullmatch(r"([\w.-]+/)?internlm2-chat-1_8b", model):
        raise RecipeError(
            f"MODEL={model}: this version does not download models: fetch the repository internlm/internlm2-chat-1_8b "
            f"without its *.py files, and pass the folder as MODEL=/path/to/folder; or try MODEL=miniature, which is here"
        )
    raise RecipeError(f"MODEL={model}: no such folder; give a folder, or miniature, which needs no download")


def model_name(model: str) -> str:
    """The name of the folder under work/models."""
    return re.sub(r"[^\w.-]", "_", Path(model).name).strip(".") or "model"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{stage.shown(path)}: missing; is the model folder complete?") from None
    except ValueError as error:
        raise RecipeError(f"{stage.shown(path)}: is not JSON ({error}); download the file again") from None
    if not isinstance(content, dict):
        raise RecipeError(f"{stage.shown(path)}: must hold a JSON object")
    return content


def check_folder(folder: Path) -> None:
    """Refuse a folder that holds Python or files other than SHA256SUMS says."""
    if python := sorted(path.name for path in folder.rglob("*.py")):
        raise RecipeError(
            f"{stage.shown(folder)}: holds Python ({', '.join(python[:3])}), which this recipe never runs: remove it, "
            f"or copy the folder without it (rsync -a --exclude='*.py' {folder.name}/ clean/)"
        )
    if not (folder / SUMS).is_file():
        return
    for number, line in enumerate((folder / SUMS).read_text(encoding="utf-8").splitlines(), 1):
        digest, _, name = line.partition("  ")
        if not re.fullmatch(r"[0-9a-f]{64}", digest) or not name:
            raise RecipeError(f"{stage.shown(folder / SUMS)}, line {number}: is not '<sha256>  <file>'")
        if not (folder / name).is_file():
            raise RecipeError(f"{stage.shown(folder / name)}: missing, though {SUMS} lists it; fetch the folder again")
        if (actual := stage.file_sha256(folder / name)) != digest:
            raise RecipeError(
                f"{stage.shown(folder / name)}: sha256 is {actual[:12]}…, {SUMS} says {digest[:12]}…; fetch it again"
            )


def _shards(folder: Path) -> list[str]:
    """The weight files, in order, all of them present."""
    if (folder / INDEX).is_file():
        weight_map = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise RecipeError(f"{stage.shown(folder / INDEX)}: has no weight_map")
        names = sorted(set(weight_map.values()))
    elif (folder / SINGLE).is_file():
        names = [SINGLE]
    else:
        raise RecipeError(
            f"{stage.shown(folder)}: has neither {SINGLE} nor {INDEX}; weights as pickles (.bin) are not taken"
        )
    for name in names:
        if Path(name).name != name:
            raise RecipeError(f"{stage.shown(folder / INDEX)}: names a shard outside of its folder: {name}")
        if not (folder / name).is_file():
            raise RecipeError(f"{stage.shown(folder / name)}: missing, though {INDEX} lists it; fetch that shard")
    return names


def _tensors(folder: Path, shards: list[str], expected: dict[str, tuple[int, ...]]) -> Iterator[tuple[str, str]]:
    """(shard, tensor name) of every tensor, once names and shapes of all of them are what config.json says."""
    found: dict[str, str] = {}
    for shard in shards:
        try:
            with safe_open(folder / shard, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    if name.endswith("rotary_emb.inv_freq"):
                        continue  # a buffer that some versions stored and every one computes
                    shape = tuple(file.get_slice(name).get_shape())
                    if name not in expected:
                        raise RecipeError(f"{stage.shown(folder / shard)}: unknown tensor {name}")
                    if shape != expected[name]:
                        raise RecipeError(
                            f"{stage.shown(folder / shard)}: {name} is {list(shape)}, config.json makes it "
                            f"{list(expected[name])}; the files are not of one model"
                        )
                    found[name] = shard
        except SafetensorError as error:
            raise RecipeError(f"{stage.shown(folder / shard)}: cannot be read ({error}); fetch it again") from None
    if missing := sorted(set(expected) - set(found)):
        raise RecipeError(
            f"{stage.shown(folder)}: {len(missing)} tensors are missing, the first is {missing[0]}; fetch it again"
        )
    yield from ((shard, name) for name, shard in found.items())


def _convert_weights(folder: Path, out: Path, config: dict[str, Any]) -> int:
    """Write the weights to `out` in the Llama layout, one shard in memory at a time; returns the parameter count."""
    from safetensors.torch import save_file

    shape, internlm2 = Shape.of(config), config["model_type"] == "internlm2"
    shards = _shards(folder)
    by_shard: dict[str, list[str]] = {shard: [] for shard in shards}
    for shard, name in _tensors(folder, shards, shape.internlm2() if internlm2 else shape.llama()):
        by_shard[shard].append(name)
    weight_map: dict[str, str] = {}
    parameters, total = 0, 0
    for shard, names in by_shard.items():
        tensors: dict[str, Any] = {}
        with safe_open(folder / shard, framework="pt") as file:
            for name in names:
                tensor = file.get_tensor(name)
                tensors |= to_llama(name, tensor, shape) if internlm2 else {name: tensor}
        save_file(tensors, out / shard, metadata={"format": "pt"})
        (out / shard).chmod(0o644)
        weight_map |= dict.fromkeys(tensors, shard)
        parameters += sum(tensor.numel() for tensor in tensors.values())
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        _write_json(out / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return parameters


def _without_code(content: dict[str, Any]) -> dict[str, Any]:
    """Without the key by which a model repository names its Python."""
    return {key: value for key, value in content.items() if key != "auto_map"}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _convert_tokenizer(folder: Path, out: Path, config: dict[str, Any]) -> dict[str, int]:
    """Write tokenizer.json and its config; returns the ids of the chat tokens."""
    if config["model_type"] == "llama":
        for name in LLAMA_TOKENIZER:
            if not (folder / name).is_file():
                raise RecipeError(f"{stage.shown(folder / name)}: missing; is the model folder complete?")
            _write_json(out / name, _without_code(_read_json(folder / name)))
        tokens = {token["content"]: token["id"] for token in _read_json(out / "tokenizer.json")["added_tokens"]}
    else:
        if not (folder / "tokenizer.model").is_file():
            raise RecipeError(f"{stage.shown(folder / 'tokenizer.model')}: missing; is the model folder complete?")
        names = renamed_tokens(_read_json(folder / "tokenizer_config.json"))
        _write_json(out / "tokenizer.json", build_tokenizer_json(folder / "tokenizer.model", names))
        _write_json(out / "tokenizer_config.json", fast_tokenizer_config(config["max_position_embeddings"]))
        tokens = {name: i for i, name in names.items()}
    if missing := [name for name in CHAT_TOKENS if name not in tokens]:
        raise RecipeError(f"{stage.shown(folder)}: the tokenizer has no {missing[0]}; is this an InternLM2-Chat model?")
    if (last := max(tokens.values())) >= config["vocab_size"]:
        raise RecipeError(f"{stage.shown(folder)}: token id {last} is beyond vocab_size {config['vocab_size']}")
    return tokens


def make(folder: Path, *, model: str) -> stage.Manifest:
    """Check the model that MODEL= names and write it to `folder` in the Llama layout."""
    source = source_folder(model)
    listing = {p.name: [p.stat().st_size, p.stat().st_mtime_ns] for p in sorted(source.iterdir()) if p.is_file()}

    def work(out: Path) -> dict[str, Any]:
        check_folder(source)
        config = _read_json(source / "config.json")
        if (kind := config.get("model_type")) not in FORMATS:
            raise RecipeError(
                f"{stage.shown(source / 'config.json')}: model_type {kind!r} is none of {', '.join(FORMATS)}"
            )
        if config.get("bias") or config.get("tie_word_embeddings"):
            raise RecipeError(
                f"{stage.shown(source / 'config.json')}: biases and tied embeddings are not InternLM2-1.8B's"
            )
        try:
            Shape.of(config).llama()
            fast_tokenizer_config(config["max_position_embeddings"])
        except KeyError as error:
            raise RecipeError(f"{stage.shown(source / 'config.json')}: lacks {error}") from None
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise RecipeError(f"{stage.shown(source / 'config.json')}: its sizes cannot be ({error})") from None
        tokens = _convert_tokenizer(source, out, config)
        parameters = _convert_weights(source, out, config)
        _write_json(out / "config.json", llama_config(config) if kind == "internlm2" else _without_code(config))
        generation = {"bos_token_id": 1, "eos_token_id": [2, tokens[IM_END]], "pad_token_id": 2, "do_sample": False}
        _write_json(out / "generation_config.json", generation)
        stage.say("model", f"{model}: {parameters:,} parameters, converted from the {kind} format")
        return {"model": model, "parameters": parameters, "format": kind}

    return stage.run("model", folder, inputs={}, settings={"model": model, "files": listing}, work=work)
