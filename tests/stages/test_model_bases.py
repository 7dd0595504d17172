"""Stage `model` on chat models of other families: what becomes of them, and what is refused before weights are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_bases
import torch
from safetensors.torch import load_file, save_file
from test_model import all_tensors, assert_refused, edit_json

from recipe.chat_format import prompt_ids, stop_ids, user
from recipe.errors import RecipeError
from recipe.pipeline import results
from recipe.pipeline.results import ModelResults
from recipe.pipeline.stage import read_manifest
from recipe.stages import model

Damage = Callable[[Path], None]


@pytest.fixture
def source(base_repository: Path, tmp_path: Path) -> Path:
    """A good folder to spoil."""
    return Path(shutil.copytree(base_repository, tmp_path / "source"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models" / "out"


def config(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return content


def test_weights_and_class_stay_as_they_are_and_tied(base_repository: Path, base_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    before, after = all_tensors(base_repository), all_tensors(base_model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "lm_head.weight" not in after
    assert config(base_model) == config(base_repository)
    assert config(base_model)["tie_word_embeddings"] is True
    loaded, notes = AutoModelForCausalLM.from_pretrained(base_model, output_loading_info=True)
    assert type(loaded).__name__ == {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}[base_repository.name]
    assert not any(notes.values())  # no missing, unexpected or mismatched keys
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_the_manifest_counts_a_tied_head_once(base_repository: Path, base_model: Path) -> None:
    manifest = read_manifest(base_model)
    assert manifest is not None
    parameters = small_bases.random_model(base_repository.name).num_parameters()
    assert results.of(manifest, ModelResults) == ModelResults(
        model=str(base_repository), parameters=parameters, format=base_repository.name
    )


def test_a_stored_copy_of_the_tied_head_is_left_out(source: Path, out: Path) -> None:
    weights = load_file(source / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    model.make(out, model=str(source))
    assert "lm_head.weight" not in all_tensors(out)


def test_an_untied_head_stays(tmp_path: Path, out: Path) -> None:
    source = small_bases.write(tmp_path / "untied", "qwen2", tie_word_embeddings=False)
    model.make(out, model=str(source))
    before, after = all_tensors(source), all_tensors(out)
    assert before.keys() == after.keys()
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])


def test_its_generation_config_has_its_own_ids(base_repository: Path, base_model: Path, base_tokenizer: Any) -> None:
    content = json.loads((base_model / "generation_config.json").read_text(encoding="utf-8"))
    text_end, _, end = base_tokenizer.convert_tokens_to_ids(list(small_bases.SPECIAL))
    stops = [end] if base_repository.name == "llama" else sorted((text_end, end))
    assert content == {"eos_token_id": stops, "pad_token_id": text_end, "do_sample": False}
    assert sorted(stop_ids(base_tokenizer)) == stops
    assert stop_ids(base_tokenizer)[0] == end


def test_the_chat_template_has_no_default_system_prompt(base_repository: Path, base_model: Path) -> None:
    own = json.loads((base_repository / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    written = json.loads((base_model / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]
    assert small_bases.DEFAULT_SYSTEM in own
    assert small_bases.DEFAULT_SYSTEM not in written
    assert "bos_token" not in written


def test_the_template_may_lie_in_a_file_of_its_own(source: Path, out: Path) -> None:
    edit_json(source / "tokenizer_config.json", lambda c: c.pop("chat_template"))
    (source / "chat_template.jinja").write_text(small_bases.TEMPLATE, encoding="utf-8")
    model.make(out, model=str(source))
    (source / "chat_template.jinja").write_text("{{ messages[0]['content'] }}", encoding="utf-8")
    with pytest.raises(RecipeError, match="not ChatML"):
        model.make(out, model=str(source))


def test_a_folder_without_template_is_taken_for_chatml(source: Path, base_model: Path, out: Path) -> None:
    edit_json(source / "tokenizer_config.json", lambda c: c.pop("chat_template"))
    model.make(out, model=str(source))
    assert (out / "tokenizer_config.json").read_text() == (base_model / "tokenizer_config.json").read_text()


def test_a_bos_that_the_base_s_own_template_begins_with_stays(source: Path, out: Path) -> None:
    from transformers import AutoTokenizer

    settings = {"bos_token": "<|endoftext|>", "chat_template": "{{ bos_token }}" + small_bases.TEMPLATE}
    edit_json(source / "tokenizer_config.json", lambda c: c.update(settings))
    model.make(out, model=str(source))
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = prompt_ids(tokenizer, [user("hi")])
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert tokenizer.apply_chat_template([user("hi")], add_generation_prompt=True) == ids
    generation = json.loads((out / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["bos_token_id"] == ids[0]


def test_a_rope_in_the_newer_spelling_is_read(source: Path, out: Path) -> None:
    from transformers import AutoConfig

    def newer(content: dict[str, Any]) -> None:
        del content["rope_theta"]
        content.pop("rope_scaling", None)
        content["rope_parameters"] = {"rope_type": "linear", "factor": 4.0, "rope_theta": 123.0}

    edit_json(source / "config.json", newer)
    model.make(out, model=str(source))
    read = AutoConfig.from_pretrained(out)
    assert (read.rope_theta, read.rope_scaling) == (123.0, {"rope_type": "linear", "factor": 4.0})


def edit_config(**changes: Any) -> Damage:
    return lambda folder: edit_json(folder / "config.json", lambda content: content.update(changes))


def edit_settings(**changes: Any) -> Damage:
    return lambda folder: edit_json(folder / "tokenizer_config.json", lambda content: content.update(changes))


def lose_chat_tokens(folder: Path) -> None:
    def rename(token: dict[str, Any]) -> dict[str, Any]:
        return token | {"content": token["content"].replace("im_start", "user").replace("im_end", "end")}

    edit_json(folder / "tokenizer.json", lambda c: c.update(added_tokens=[*map(rename, c["added_tokens"])]))
    edit_json(
        folder / "tokenizer_config.json",
        lambda c: c.update(added_tokens_decoder={i: rename(t) for i, t in c.get("added_tokens_decoder", {}).items()}),
    )


def prefix_space(folder: Path) -> None:
    """What SentencePiece's dummy prefix does: each text begins with a space, a turn's text after a token does not."""
    edit_json(
        folder / "tokenizer.json",
        lambda c: c.update(
            pre_tokenizer={"type": "Metaspace", "replacement": "Ġ", "prepend_scheme": "first", "split": True}
        ),
    )


def break_tokenizer(folder: Path) -> None:
    edit_json(folder / "tokenizer.json", lambda c: c.pop("model"))


def lose_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def end_with_a_word(folder: Path) -> None:
    edit_json(folder / "generation_config.json", lambda c: c.update(eos_token_id=[200]))


REFUSALS: list[tuple[Damage, str]] = [
    (edit_config(attention_bias=True), "attention_bias: biases are supported on q, k and v of Qwen2 alone"),
    (edit_config(mlp_bias=True), "mlp_bias: biases are supported"),
    (edit_config(head_dim=16), "head_dim 16 is not hidden_size / num_attention_heads, 8"),
    (edit_config(hidden_act="gelu"), "hidden_act 'gelu' is not silu"),
    (edit_config(quantization_config={"quant_method": "gptq"}), "its weights are quantised"),
    (edit_config(use_sliding_window=True, sliding_window=64), "a sliding window (use_sliding_window)"),
    (edit_config(layer_types=["full_attention", "sliding_attention"]), "a sliding window"),
    (edit_config(rope_scaling={"rope_type": "longrope", "factor": 2.0}), "rope_scaling of type 'longrope' is none of"),
    (edit_config(rope_scaling={"type": "mrope"}), "rope_scaling of type 'mrope' is none of"),
    (edit_config(architectures=["LlamaForSequenceClassification"]), "architectures ['LlamaForSequenceClassification']"),
    (edit_config(model_type="mistral"), "model_type 'mistral' is none of internlm2, llama, qwen2"),
    (edit_config(vocab_size=250), "is beyond vocab_size 250"),
    (lose_chat_tokens, "tokenizer.json: has no token <|im_start|>"),
    (lose_tokenizer, "tokenizer.json: missing"),
    (break_tokenizer, "source/tokenizer.json: cannot be read"),
    (edit_settings(chat_template="{{ messages[0]['content'] }}"), "its chat template is not ChatML"),
    (edit_settings(chat_template=small_bases.TEMPLATE + "{{ '<think>\\n' }}"), "its chat template is not ChatML"),
    (edit_settings(chat_template="{{ raise_exception('no system turn') }}"), "fails on an ordinary conversation"),
    (end_with_a_word, "generation_config.json: eos_token_id 200 is no special token"),
    (prefix_space, "reads a turn's text differently by itself"),
]


@pytest.mark.parametrize(("damage", "reason"), REFUSALS, ids=[reason for _, reason in REFUSALS])
def test_what_is_no_such_model_is_refused_before_its_weights_are_read(
    damage: Damage, reason: str, source: Path, out: Path
) -> None:
    damage(source)
    (source / "model.safetensors").write_bytes(b"")  # reading it would be another error
    assert reason in assert_refused(source, out)
