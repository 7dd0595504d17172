"""Verb `gguf`: what the files hold, read back with the library's own reader; llama.cpp itself is in test_llama_cpp."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import small_bases
import torch
from damage import sign
from golden_ids import FILE
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from test_export import merged_from

from recipe.chat_format import CHAT_TOKENS, control_token_in, stop_ids, text_ids
from recipe.checkpoint import gguf_file, gguf_llama, gguf_vocabulary
from recipe.checkpoint.internlm2_llama import Shape
from recipe.checkpoint.modelfile import MODELFILE
from recipe.errors import RecipeError
from recipe.paths import MINIATURE
from recipe.pipeline import stage
from recipe.stages import gguf as stage_gguf
from recipe.stages import model

KINDS = ("internlm2", "llama", "qwen2")
GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))


def merged_model(kind: str, work: Path) -> Path:
    """A merged model: the miniature, or a small one of the Llama or Qwen2 layout with a byte-level tokenizer."""
    source = MINIATURE if kind == "internlm2" else small_bases.write(work / "source", kind)
    model.make(work / "models" / "base", model=str(source))
    return merged_from(work / "models" / "base", work / "main" / "merged")


@pytest.fixture(scope="module", params=KINDS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """(kind of base, merged folder, the stage's folder)."""
    work = tmp_path_factory.mktemp(f"gguf_{request.param}")
    merged = merged_model(request.param, work)
    stage_gguf.make(work / "main" / "gguf", model=merged, run="main")
    return request.param, merged, work / "main" / "gguf"


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    return merged_model("llama", tmp_path)


def fields_of(folder: Path, kind: str = "f16") -> dict[str, Any]:
    reader = gguf.GGUFReader(folder / gguf_file.file_name(kind))
    return {name: field.contents() for name, field in reader.fields.items()}


def edit_json(file: Path, change: Any) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("kind", gguf_file.KINDS)
def test_every_tensor_is_the_merged_one(written: tuple[str, Path, Path], kind: str) -> None:
    base, merged, folder = written
    config = json.loads((merged / "config.json").read_text(encoding="utf-8"))
    shape = Shape.of(config)
    weights = {gguf_file.gguf_name(name): tensor for name, tensor in load_file(merged / "model.safetensors").items()}
    reader = gguf.GGUFReader(folder / gguf_file.file_name(kind))
    assert sorted(tensor.name for tensor in reader.tensors) == sorted(weights)
    for tensor in reader.tensors:
        wanted = weights[tensor.name].float()
        heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(tensor.name.split(".")[-2])
        if heads and base != "qwen2":
            # The reader of GGUF bases has the inverse, which tests/checkpoint/test_gguf_llama.py proves by itself.
            rows = torch.arange(wanted.shape[0]).view(-1, 1)
            wanted = wanted[torch.argsort(gguf_llama.split_halves(rows, heads).flatten())]
        allowed = ("F32",) if wanted.ndim == 1 else ("F16",) if wanted.shape[1] % 32 else (kind.upper(), "Q8_0")
        assert tensor.tensor_type.name in allowed
        stored = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(wanted.shape)
        if tensor.tensor_type.name in ("F32", "F16"):
            assert np.array_equal(stored, wanted.half().float() if wanted.ndim > 1 else wanted), tensor.name
        else:
            again = gguf.quants.quantize(wanted.numpy(), tensor.tensor_type)
            assert np.array_equal(tensor.data.reshape(again.shape), again), tensor.name


@pytest.mark.parametrize("kind", gguf_file.KINDS)
def test_what_is_read_back_is_the_merged_model(written: tuple[str, Path, Path], kind: str) -> None:
    _, merged, folder = written
    weights = load_file(merged / "model.safetensors")
    back = dict(gguf_file.read(folder / gguf_file.file_name(kind), merged))
    assert back.keys() == weights.keys()
    steps = {"f16": 0.0, "q8_0": 127.0, "q4_0": 8.0}  # of a block's largest value
    for name, values in back.items():
        wanted = weights[name].float()
        assert values.dtype == torch.float32
        if values.ndim == 1:
            assert torch.equal(values, wanted), name
        elif kind == "f16" or wanted.shape[1] % 32:
            assert torch.equal(values, wanted.half().float()), name
        else:
            step = wanted.abs().view(len(wanted), -1, 32).amax(-1).repeat_interleave(32, -1) / steps[kind]
            assert ((values - wanted).abs() <= 1.01 * step).all(), name


def test_parts_of_a_tensor_are_read_back_as_the_whole(
    written: tuple[str, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, merged, folder = written
    whole = dict(gguf_file.read(folder / gguf_file.file_name("q4_0"), merged))
    monkeypatch.setattr(gguf_llama, "CHUNK", 100)
    for name, values in gguf_file.read(folder / gguf_file.file_name("q4_0"), merged):
        assert torch.equal(values, whole[name]), name


def test_four_bits_keep_eight_where_every_token_passes(written: tuple[str, Path, Path]) -> None:
    reader = gguf.GGUFReader(written[2] / gguf_file.file_name("q4_0"))
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["token_embd.weight"] == "Q8_0"
    assert types["blk.0.ffn_up.weight"] == "Q4_0"
    assert ("output.weight" in types) == (written[0] == "internlm2")  # the others' heads are tied


def test_metadata_is_config_json_s(written: tuple[str, Path, Path]) -> None:
    base, merged, folder = written
    config = json.loads((merged / "config.json").read_text(encoding="utf-8"))
    fields = fields_of(folder)
    kind = "qwen2" if base == "qwen2" else "llama"
    assert fields["general.architecture"] == kind
    for key, name in gguf_llama.SIZES.items():
        assert fields[f"{kind}.{name}"] == config[key], name
    assert fields[f"{kind}.attention.layer_norm_rms_epsilon"] == pytest.approx(config["rms_norm_eps"])
    assert fields[f"{kind}.rope.freq_base"] == config["rope_theta"]
    assert [fields_of(folder, each)["general.file_type"] for each in gguf_file.KINDS] == [1, 7, 2]


def test_the_vocabulary_is_the_tokenizer_s(written: tuple[str, Path, Path]) -> None:
    from transformers import AutoTokenizer

    base, merged, folder = written
    tokenizer = AutoTokenizer.from_pretrained(merged)
    fields = fields_of(folder)
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    size = json.loads((merged / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    assert len(tokens) == len(types) == size
    assert {token: i for i, token in enumerate(tokens[: len(tokenizer)])} == tokenizer.get_vocab()
    assert set(types[len(tokenizer) :]) <= {gguf_vocabulary.UNUSED}
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert {i for i, kind in enumerate(types) if kind == gguf_vocabulary.CONTROL} == special
    names = {"internlm2": ("llama", "default"), "llama": ("gpt2", "smollm"), "qwen2": ("gpt2", "qwen2")}
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == names[base]
    assert fields["tokenizer.ggml.add_space_prefix"] is False
    assert fields["tokenizer.ggml.add_bos_token"] is (base == "internlm2")
    if base == "internlm2":
        pieces = SentencePieceProcessor(model_file=str(MINIATURE / "tokenizer.model"))
        scores = fields["tokenizer.ggml.scores"]
        named = {i for i, kind in enumerate(types) if kind == gguf_vocabulary.CONTROL}
        assert all(scores[i] == pieces.get_score(i) for i in range(len(tokens)) if i not in named)
        assert [i for i, kind in enumerate(types) if kind == gguf_vocabulary.BYTE] == [
            i for i in range(len(tokens)) if pieces.is_byte(i)
        ]
        assert set(CHAT_TOKENS) <= set(tokens)
    else:
        merges = json.loads((merged / "tokenizer.json").read_bytes())["model"]["merges"]
        assert [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]] == merges


def test_stops_and_chat_template_go_along(written: tuple[str, Path, Path]) -> None:
    from transformers import AutoTokenizer

    _, merged, folder = written
    tokenizer = AutoTokenizer.from_pretrained(merged)
    fields = fields_of(folder, "q4_0")
    named = {fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")} - {None}
    assert named == set(stop_ids(tokenizer))
    assert fields["tokenizer.ggml.eot_token_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    template = fields["tokenizer.chat_template"]
    assert "generation %}" not in template
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    plain = tokenizer.apply_chat_template(talk, chat_template=template, tokenize=False, add_generation_prompt=True)
    assert plain == tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)


@pytest.mark.tool("transformers", "gguf")
def test_transformers_computes_the_same_from_the_file_of_16_bits(written: tuple[str, Path, Path]) -> None:
    from transformers import AutoModelForCausalLM

    _, merged, folder = written
    file = {"gguf_file": gguf_file.file_name("f16"), "dtype": torch.float32}
    ours = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    theirs = AutoModelForCausalLM.from_pretrained(folder, **file).eval()
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        wanted, computed = ours(ids).logits, theirs(ids).logits
    assert wanted.std() > 0.5
    assert (wanted - computed).abs().max() < 0.01  # two of the bases are rounded to 16 bits


@pytest.mark.tool("AutoTokenizer of transformers", "gguf")
def test_transformers_reads_the_tokenizer_out_of_the_file(written: tuple[str, Path, Path]) -> None:
    from transformers import AutoTokenizer

    _, merged, folder = written
    ours = AutoTokenizer.from_pretrained(merged)
    theirs = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file.file_name("f16"))
    texts = [text for text in GOLDEN["texts"] if control_token_in(ours, text) is None]
    assert len(texts) > 10
    different = [text for text in texts if theirs(text, add_special_tokens=False)["input_ids"] != text_ids(ours, text)]
    assert different == []


def test_the_modelfile_names_a_file_beside_it_and_every_stop(written: tuple[str, Path, Path]) -> None:
    from transformers import AutoTokenizer

    _, merged, folder = written
    text = (folder / MODELFILE).read_text(encoding="utf-8")
    (file,) = re.findall(r"^FROM (.*)$", text, re.MULTILINE)
    assert (folder / file).is_file()
    tokenizer = AutoTokenizer.from_pretrained(merged)
    stops = re.findall(r'^PARAMETER stop "(.*)"$', text, re.MULTILINE)
    assert tokenizer.convert_tokens_to_ids(stops) == stop_ids(tokenizer)


def test_the_manifest_names_the_files_and_nothing_is_done_twice(
    written: tuple[str, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    _, merged, folder = written
    manifest = stage_gguf.make(folder, model=merged, run="main")
    assert "up to date" in capsys.readouterr().err
    assert set(manifest["results"]["files"]) | {MODELFILE} == set(manifest["outputs"])


def test_without_a_merged_model_there_is_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="make merge"):
        stage_gguf.make(tmp_path / "gguf", model=tmp_path / "merged", run="main")


def spoil_split(folder: Path) -> None:
    edit_json(folder / "tokenizer.json", lambda content: content.update(pre_tokenizer={"type": "Whitespace"}))


def spoil_rope(folder: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0}
    edit_json(folder / "config.json", lambda content: content.update(rope_scaling=scaling))


def spoil_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][0, 0] = 1e6
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def spoil_template(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", lambda content: content.update(chat_template={"default": "x"}))


def spoil_templates(folder: Path) -> None:
    several = [{"name": "default", "template": "x"}]
    edit_json(folder / "tokenizer_config.json", lambda content: content.update(chat_template=several))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_template, "for chat_template"),
        (spoil_templates, "its chat_template is no text"),
        (spoil_split, "splits text in a way that is none of gpt-2, smollm, qwen2, llama-bpe"),
        (spoil_rope, "rope_scaling of type 'llama3' is not written to GGUF here"),
        (spoil_weight, "beyond float16"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_nothing(merged: Path, spoil: Any, reason: str) -> None:
    spoil(merged)
    sign(merged)
    with pytest.raises(RecipeError, match=re.escape(reason)) as caught:
        stage_gguf.make(merged.parent / "gguf", model=merged, run="main")
    assert "\n" not in str(caught.value)
    assert not list(merged.parent.glob("*gguf/*")) + list(merged.parent.glob(".gguf.partial"))


def test_scores_come_from_the_base_that_an_earlier_version_wrote(tiny_model: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "models" / "base"))
    (base / "sentencepiece").mkdir()
    (base / "tokenizer.model").rename(base / "sentencepiece" / "tokenizer.model")
    merged = merged_from(base, tmp_path / "main" / "merged")
    stage_gguf.make(tmp_path / "main" / "gguf", model=merged, run="main")
    assert fields_of(tmp_path / "main" / "gguf")["tokenizer.ggml.model"] == "llama"
    shutil.rmtree(base / "sentencepiece")
    shutil.rmtree(tmp_path / "main" / "gguf")
    with pytest.raises(RecipeError, match=r"llama.cpp needs its scores"):
        stage_gguf.make(tmp_path / "main" / "gguf", model=merged, run="main")


def test_scores_of_another_base_in_the_place_of_the_merged_model_s_are_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "models" / "base"))
    (base / "sentencepiece").mkdir()
    (base / "tokenizer.model").rename(base / "sentencepiece" / "tokenizer.model")
    merged = merged_from(base, tmp_path / "main" / "merged")
    (base / "stage.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"was made on another base than .*make merge"):
        stage_gguf.make(tmp_path / "main" / "gguf", model=merged, run="main")


def test_another_model_s_tokenizer_model_is_refused(tiny_model: Path, sentencepiece_file: Path) -> None:
    with pytest.raises(RecipeError, match="the files are not of one model"):
        gguf_vocabulary.read(tiny_model, sentencepiece_file, 2048)


def test_yarn_goes_along(merged: Path) -> None:
    from transformers import AutoTokenizer

    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    edit_json(merged / "config.json", lambda content: content.update(rope_scaling=scaling))
    folder = merged.parent / "out"
    folder.mkdir()
    gguf_file.write(merged, folder, tokenizer=AutoTokenizer.from_pretrained(merged), sentencepiece=None, name="yarn")
    fields = fields_of(folder)
    assert fields["llama.rope.scaling.type"] == "yarn"
    assert fields["llama.rope.scaling.factor"] == 4.0
    assert fields["llama.rope.scaling.original_context_length"] == 128


def test_stage_named_in_the_manifest(written: tuple[str, Path, Path]) -> None:
    manifest = stage.require(written[2], "gguf")
    assert manifest["stage"] == "gguf"
    assert set(manifest["inputs"]) == {"merged", "model"}
