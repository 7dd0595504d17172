"""The cards say what the base is and how it is spoken to."""

from __future__ import annotations

from pathlib import Path

from recipe.checkpoint.model_card import adapter_card, merged_card
from recipe.pipeline.results import MergeResults

PROOF = MergeResults("iter_2.pth", "0" * 64, largest_logit_difference=1e-5, mean_kl=0.0, same_top_token=1.0)


def test_a_card_of_internlm2_says_so(tiny_model: Path) -> None:
    for card in (
        adapter_card("work/models/tiny", tiny_model, 5),
        merged_card("work/models/tiny", tiny_model, (), PROOF),
    ):
        assert "InternLM2 in the Llama layout" in card
        assert '"internlm2"' in card.split("---")[1]
        assert "`<s><|im_start|>user" in card


def test_a_card_of_another_base_names_its_layout_and_its_own_format(base_model: Path) -> None:
    layout = base_model.name.capitalize()
    for card in (adapter_card("work/models/x", base_model, 5), merged_card("work/models/x", base_model, (), PROOF)):
        assert f"a chat model in the {layout} layout" in card
        assert f'"{base_model.name}"' in card.split("---")[1]
        assert "InternLM2" not in card
        assert "`<|im_start|>user" in card
        assert "<s>" not in card
