"""Stage `merge`: base and adapter become one model, proved to say the same.

The weights are merged tensor by tensor, one shard in memory at a time. Then each merged tensor is compared with the
base's plus what PEFT makes of the adapter. Last, base + adapter and the merged folder (as anyone would load it) run on
the same prompts in float32, and their largest difference, which is the rounding of the merged weights, goes into the
manifest.
"""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.chat_format import prompt_ids, user
from recipe.checkpoint import shards
from recipe.checkpoint.base_config import ConfigShape
from recipe.checkpoint.base_origin import base_origin
from recipe.checkpoint.model_card import CARD, Subject, merged_card
from recipe.checkpoint.shards import parse_size
from recipe.checkpoint.tokenizer import SENTENCEPIECE
from recipe.device import check_device
from recipe.errors import RecipeError
from recipe.evaluation import generation, thresholds
from recipe.paths import ROOT
from recipe.pipeline import results, stage
from recipe.pipeline.hashing import hash_ahead
from recipe.pipeline.phases import phase
from recipe.pipeline.results import ConvertResults, MergeResults
from recipe.stages import convert

if TYPE_CHECKING:
    import torch

COPIED = ("config.json", *convert.SERVED_WITH)
PROBES = ("请你介绍一下你自己", "Who are you?", "法国的首都是哪里？", "What is 3 plus 4?", "你好", "Tell me a joke.")
# Of a sum in float32, the share that may be lost to rounding: 16 units of its last place.
FLOAT32_ERROR = 2.0**-20


def make(
    folder: Path,
    *,
    adapter_folder: Path,
    identity_names: tuple[str, ...],
    max_shard_size: str | None = None,
    device: str = "auto",
) -> stage.Manifest:
    """Merge the adapter in `adapter_folder` with the base it was trained on.

    Args:
        folder: of the stage.
        adapter_folder: of stage `convert`.
        identity_names: for the card.
        max_shard_size: of a file with weights, such as 2GB; None has the files of the base.
        device: what computes the comparison, one of `device.DEVICES`; the merged weights are the same on each.

    Raises:
        RecipeError: the base has changed, the adapter is no plain LoRA, the merged model says something else, or the
            device is not there or has no room.
    """
    check_device(device)
    max_bytes = parse_size(max_shard_size) if max_shard_size else None
    adapter = results.of(stage.require(adapter_folder, "convert"), ConvertResults)
    model = ROOT / adapter.model
    stage.complete(model, "model")
    stage.refuse_another_base(adapter_folder, model, adapter.base_sha256, "train")

    def work(out: Path) -> MergeResults:
        _merge_weights(model, adapter_folder, out, max_bytes)
        for name in COPIED:
            shutil.copyfile(model / name, out / name)
        if (model / SENTENCEPIECE).is_file():
            shutil.copyfile(model / SENTENCEPIECE, out / SENTENCEPIECE)
        with generation.gpu_failures("the GPU cannot compare merged with base + adapter", "DEVICE=cpu can"):
            compared = compare(model, adapter_folder, out, device)
        proof = MergeResults(checkpoint=adapter.checkpoint, checkpoint_sha256=adapter.checkpoint_sha256, **compared)
        if not proof.mean_kl <= thresholds.MAX_MERGE_KL:  # not a number is no proof either
            raise RecipeError(
                f"merged and base + adapter disagree: {proof.mean_kl:.4f} nats a token, at most "
                f"{thresholds.MAX_MERGE_KL} is rounding; nothing was written"
            )
        card = merged_card(Subject(base_origin(model), names=identity_names), proof)
        (out / CARD).write_text(card, encoding="utf-8")
        stage.say("merge", f"largest logit difference to base + adapter: {proof.largest_logit_difference:.2g}")
        return proof

    settings = {"max_shard_bytes": max_bytes} if max_bytes else {}
    return stage.run("merge", folder, inputs={"adapter": adapter_folder, "model": model}, settings=settings, work=work)


@phase("save")
def _merge_weights(model: Path, adapter_folder: Path, out: Path, max_bytes: int | None) -> None:
    from safetensors.torch import load_file, save_file

    from recipe.checkpoint import lora

    settings = stage.read_json(adapter_folder / "adapter_config.json", lora.AdapterConfig)
    lora.refuse_more_than_lora(settings, adapter_folder)
    tensors = load_file(adapter_folder / convert.WEIGHTS)
    base = stage.read_json(model / "config.json", ConfigShape)
    lora.check(tensors, base=base, r=settings["r"], targets=tuple(settings["target_modules"]))
    merged: set[str] = set()
    files = shards.plan(model, max_bytes)
    with shards.opened(shards.tensor_files(model)) as base_tensors:
        for file, names in files.items():
            weights = {name: base_tensors[name].get_tensor(name) for name in names}
            merged |= lora.merge_into(weights, tensors, settings["lora_alpha"] / settings["r"])
            save_file(weights, out / file, {"format": "pt"})
            (out / file).chmod(0o644)
            hash_ahead(out / file)  # while it is compared
    if 2 * len(merged) != len(tensors):
        raise RecipeError(
            f"only {len(merged)} of {len(tensors) // 2} adapted weights were found in {stage.shown(model)}"
        )
    shards.write_index(out, files)


@phase("score")
def compare(model: Path, adapter_folder: Path, merged: Path, device: str = "auto") -> dict[str, float]:
    """How far base + adapter and the merged model are apart on `PROBES`, both computed in float32.

    They are loaded one after the other: float32 takes as much memory as both in 16 bits.

    Args:
        model: folder of the base.
        adapter_folder: of the adapter.
        merged: of the merged model.
        device: one of `device.DEVICES`.

    Returns:
        largest_logit_difference, mean_kl (nats a token), same_top_token (share of the positions).

    Raises:
        RecipeError: a merged weight is another than base + adapter rounds to.
    """
    import torch

    tuned, tokenizer = generation.load(model, adapter_folder, dtype=torch.float32, device=device)
    _refuse_wrong_weights(tuned, model, merged)
    separate = _logits(tuned, tokenizer)
    del tuned
    gc.collect()  # PEFT's modules refer to each other
    combined = _logits(*generation.load(merged, dtype=torch.float32, device=device))
    log_p, log_q = separate.log_softmax(-1), combined.log_softmax(-1)
    return {
        "largest_logit_difference": (separate - combined).abs().max().item(),
        "mean_kl": (log_p.exp() * (log_p - log_q)).sum(-1).mean().item(),
        "same_top_token": (separate.argmax(-1) == combined.argmax(-1)).float().mean().item(),
    }


def _logits(loaded: Any, tokenizer: Any) -> torch.Tensor:
    """The logits of all probes in float32 on the CPU: (tokens of all probes, vocabulary)."""
    import torch

    rows = [prompt_ids(tokenizer, [user(probe)]) for probe in PROBES]
    with torch.inference_mode():
        return torch.cat([loaded(torch.tensor([ids], device=loaded.device)).logits[0].float().cpu() for ids in rows])


def _refuse_wrong_weights(tuned: Any, model: Path, merged: Path) -> None:
    """Compare every tensor of the merged files with the base's file + what PEFT adds to it.

    Args:
        tuned: base + adapter in float32, a PeftModel.
        model, merged: the two folders.

    Raises:
        RecipeError: a tensor is missing, or differs where no adapter is, or is not W + scale · B·A rounded once.
    """
    from peft.tuners.lora import LoraLayer

    modules = tuned.get_base_model().named_modules()
    adapted = {f"{name}.weight": module for name, module in modules if isinstance(module, LoraLayer)}
    base_files, merged_files = shards.tensor_files(model), shards.tensor_files(merged)
    if base_files.keys() != merged_files.keys():
        name = min(base_files.keys() ^ merged_files.keys())
        raise RecipeError(f"merged and base + adapter disagree: only one of them has {name}")
    with shards.opened(base_files) as before, shards.opened(merged_files) as after:
        for name in base_files:
            layer = adapted.pop(name, None)
            delta = layer.get_delta_weight("default") if layer is not None else None
            if not _is_sum(after[name].get_tensor(name), before[name].get_tensor(name), delta):
                raise RecipeError(
                    f"merged and base + adapter disagree: {name} is not the base's weight plus what the adapter "
                    f"adds to it; nothing was written"
                )
    if adapted:
        raise RecipeError(f"merged and base + adapter disagree: {min(adapted)} has an adapter and is in no file")


def _is_sum(merged: torch.Tensor, weight: torch.Tensor, delta: torch.Tensor | None) -> bool:
    """Whether `merged` is weight + delta, rounded once to the weight's type.

    Args:
        merged, weight: of the two files, in the type that both are stored in.
        delta: what the adapter adds, float32 of the same shape, on the device that is to compare; None where there is
            no adapter.

    Returns:
        Whether each merged value lies between what the sum rounds to with a little less and with a little more, since
        float32 sums in another order differ in their last bits. Values that are not finite never do.
    """
    import torch

    if merged.dtype != weight.dtype:
        return False
    if delta is None:
        return torch.equal(merged, weight)
    merged, weight = merged.to(delta.device), weight.to(delta.device)
    total = weight.float() + delta
    margin = FLOAT32_ERROR * (total.abs() + delta.abs().max())
    lowest, highest = (total - margin).to(weight.dtype), (total + margin).to(weight.dtype)
    return bool(((lowest <= merged) & (merged <= highest) & merged.isfinite()).all())
