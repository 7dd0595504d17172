"""The files of data/models, and what a name stands for."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from recipe.checkpoint import base_config
from recipe.checkpoint.internlm2_llama import Shape, internlm2_config, llama_config
from recipe.languages import parse_languages
from recipe.pipeline import bases
from recipe.pipeline.run import model_name
from recipe.stages import model

FAMILY = ("internlm2-chat-1_8b", "internlm2-chat-7b", "internlm2_5-1_8b-chat", "internlm2_5-7b-chat")
# config.json as the publisher has it, of the two sizes; InternLM2.5 has InternLM2's layout.
SIZES: dict[str, dict[str, Any]] = {
    "1_8b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16},
    "7b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
PARAMETERS = {"1_8b": 1_889_110_016, "7b": 7_737_708_544}
COMMON: dict[str, Any] = {
    "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "num_key_value_heads": 8, "vocab_size": 92544,
    "bias": False, "hidden_act": "silu", "max_position_embeddings": 32768, "rms_norm_eps": 1e-05,
    "rope_theta": 1000000, "rope_scaling": {"type": "dynamic", "factor": 2.0}, "tie_word_embeddings": False,
}  # fmt: skip


def test_every_file_names_repositories_and_nothing_that_could_run() -> None:
    assert set(bases.names()) == {*FAMILY, "smollm2-135m-instruct"}
    for name in bases.names():
        pinned = bases.find(name)
        assert pinned
        assert bases.by_name(name) == pinned
        assert model_name(name) == name
        if pinned.languages:
            assert parse_languages(pinned.languages)
        for source, hub in pinned.hubs.items():
            assert bases.find(hub.repo) == pinned
            for file in sum(pinned.files(source), ()):
                assert file.endswith((".json", ".model", ".safetensors", ".whl")), file
        assert re.fullmatch(r"[0-9a-f]{40}", pinned.hubs["hf"].revision or ""), name
        assert all(re.fullmatch(r"[0-9a-f]{64}", sha256) for sha256 in pinned.sha256.values())


@pytest.mark.parametrize("name", FAMILY)
def test_the_family_is_at_both_hubs_and_introduces_itself_as_internlm(name: str) -> None:
    pinned = bases.find(name)
    assert pinned
    assert {source: hub.repo for source, hub in pinned.hubs.items()} == {
        "hf": f"internlm/{name}", "modelscope": f"Shanghai_AI_Laboratory/{name}",
    }  # fmt: skip
    assert bases.defaults(name) == {"source": "hf"}
    for text in (name, *(hub.repo for hub in pinned.hubs.values())):
        assert model.is_internlm(text)
        assert model.asks_extended_prompts(text)


def test_a_hub_without_a_fixed_revision_is_no_stand_in_for_the_other() -> None:
    pinned = bases.find("internlm2_5-7b-chat")
    assert pinned
    assert pinned.hubs["modelscope"].revision is None
    assert pinned.same_files("hf") == ["hf"]
    assert pinned.same_files("modelscope") == ["modelscope"]


@pytest.mark.parametrize("size", SIZES)
def test_the_family_s_configs_are_taken_with_their_rotation(size: str) -> None:
    config = COMMON | SIZES[size]
    assert base_config.refusal(config) is None
    shapes = Shape.of(config).llama().values()
    assert sum(shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in shapes) == PARAMETERS[size]
    llama = llama_config(config)
    assert llama["rope_scaling"] == {"rope_type": "dynamic", "factor": 2.0}
    assert (llama["rope_theta"], llama["max_position_embeddings"]) == (1000000, 32768)
    back = internlm2_config(json.loads(json.dumps(llama)))
    assert back["rope_scaling"] == config["rope_scaling"]


def test_dynamic_scaling_leaves_the_angles_alone_within_the_positions_of_the_model() -> None:
    """So that the engine may compute them once, as InternLM2's own formula does up to max_position_embeddings."""
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    sizes = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 128, "rope_theta": 1000000.0}
    plain = LlamaRotaryEmbedding(LlamaConfig(**sizes))
    scaled = LlamaRotaryEmbedding(LlamaConfig(**sizes, rope_scaling={"rope_type": "dynamic", "factor": 2.0}))
    inputs, positions = torch.zeros(1, 128, 64), torch.arange(128)[None]
    for expected, actual in zip(plain(inputs, positions), scaled(inputs, positions), strict=True):
        assert torch.equal(expected, actual)
