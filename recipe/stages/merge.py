"""Stage `merge`: base and adapter become one model, proved to say the same.

The weights are merged tensor by tensor, one shard in memory at a time. Then base + adapter (through PEFT) and the
merged folder (as anyone would load it) run on the same prompts, and their largest difference goes into the manifest.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from recipe.chat_format import prompt_ids, user
from recipe.checkpoint.model_card import merged_card
from recipe.errors import RecipeError
from recipe.evaluation import generation, thresholds
from recipe.paths import ROOT
from recipe.pipeline import results, stage
from recipe.pipeline.results import ConvertResults, MergeResults
from recipe.stages import convert

COPIED = ("config.json", *convert.SERVED_WITH)
PROBES = ("请你介绍一下你自己", "Who are you?", "法国的首都是哪里？", "What is 3 plus 4?", "你好", "Tell me a joke.")
PLAIN_LORA = {"use_dora": False, "use_rslora": False, "bias": "none"}


def make(folder: Path, *, adapter_folder: Path, identity_names: tuple[str, ...]) -> stage.Manifest:
    """Merge the adapter in `adapter_folder` with the base it was trained on."""
    adapter = results.of(stage.require(adapter_folder, "convert"), ConvertResults)
    model = ROOT / adapter.model
    stage.require(model, "model")
    if stage.content_sha256(model) != adapter.base_sha256:
        raise RecipeError(
            f"{stage.shown(adapter_folder)} was made on another base than {stage.shown(model)} holds now: "
            f"run `make train` again, or bring that base back"
        )

    def work(out: Path) -> MergeResults:
        _merge_weights(model, adapter_folder, out)
        for name in COPIED:
            shutil.copyfile(model / name, out / name)
        proof = compare(model, adapter_folder, out)
        if not proof["mean_kl"] <= thresholds.MAX_MERGE_KL:  # not a number is no proof either
            raise RecipeError(
                f"merged and base + adapter disagree: {proof['mean_kl']:.4f} nats a token, at most "
                f"{thresholds.MAX_MERGE_KL} "
                f"is rounding; nothing was written"
            )
        card = merged_card(adapter.model, model, identity_names, proof)
        (out / "README.md").write_text(card, encoding="utf-8")
        stage.say("merge", f"largest logit difference to base + adapter: {proof['largest_logit_difference']:.2g}")
        return MergeResults(checkpoint=adapter.checkpoint, checkpoint_sha256=adapter.checkpoint_sha256, **proof)

    return stage.run("merge", folder, inputs={"adapter": adapter_folder, "model": model}, settings={}, work=work)


def _merge_weights(model: Path, adapter_folder: Path, out: Path) -> None:
    from safetensors.torch import load_file, save_file

    from recipe.checkpoint import lora

    settings = json.loads((adapter_folder / "adapter_config.json").read_text(encoding="utf-8"))
    if odd := [key for key, plain in PLAIN_LORA.items() if settings.get(key, plain) != plain]:
        raise RecipeError(
            f"{stage.shown(adapter_folder)}: {odd[0]}={settings[odd[0]]!r} is more than plain LoRA, not merged here"
        )
    tensors = load_file(adapter_folder / convert.WEIGHTS)
    base = json.loads((model / "config.json").read_text(encoding="utf-8"))
    lora.check(tensors, base=base, r=settings["r"], targets=tuple(settings["target_modules"]))
    merged: set[str] = set()
    for shard in sorted(model.glob("*.safetensors")):
        weights = load_file(shard)
        merged |= lora.merge_into(weights, tensors, settings["lora_alpha"] / settings["r"])
        save_file(weights, out / shard.name, {"format": "pt"})
        (out / shard.name).chmod(0o644)
    if 2 * len(merged) != len(tensors):
        raise RecipeError(
            f"only {len(merged)} of {len(tensors) // 2} adapted weights were found in {stage.shown(model)}"
        )
    for index in model.glob("*.index.json"):
        shutil.copyfile(index, out / index.name)


def compare(model: Path, adapter_folder: Path, merged: Path) -> dict[str, float]:
    """How far base + adapter and the merged model are apart on `PROBES`, in the precision they are served in."""
    import torch

    answers = []
    for loaded, tokenizer in (generation.load(model, adapter_folder), generation.load(merged)):
        with torch.inference_mode():
            rows = [prompt_ids(tokenizer, [user(probe)]) for probe in PROBES]
            logits = [loaded(torch.tensor([ids], device=loaded.device)).logits[0].float().cpu() for ids in rows]
        answers.append(torch.cat(logits))
        del loaded
    ours, theirs = answers
    log_p, log_q = ours.log_softmax(-1), theirs.log_softmax(-1)
    return {
        "largest_logit_difference": (ours - theirs).abs().max().item(),
        "mean_kl": (log_p.exp() * (log_p - log_q)).sum(-1).mean().item(),
        "same_top_token": (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item(),
    }
