"""What a card or a CPU cannot do, or not in a day: said before anything is fetched."""

from __future__ import annotations

from recipe.cores import cores
from recipe.device import BFLOAT16, card_without_bfloat16, cpu_precision, has_gpu
from recipe.errors import RecipeError
from recipe.pipeline import stage

# Presets that compute without bfloat16 on a GPU: XTuner's own float16.
WITHOUT_BFLOAT16 = ("tutorial",)
# Models by name that two cores cannot tune in an hour, and their weights.
OF_A_GPU = {
    "internlm2-chat-1_8b": 1.9e9,
    "internlm2_5-1_8b-chat": 1.9e9,
    "internlm2-chat-7b": 7.7e9,
    "internlm2_5-7b-chat": 7.7e9,
}
TOKENS = 1e6  # of a training by the presets, about
# Operations a second of one core, by `cpu_seconds`' count: a step of 1,024 tokens of SmolLM2-135M takes one of an AMD
# EPYC with AVX-512 8.0 s in float32 and 4.5 s in bfloat16 (docs/experiments.md).
CORE_SPEED = {"float32": 100e9, "bfloat16": 180e9}
INSTEAD = "MODEL=smollm2-135m-instruct and make quickstart need no GPU"


def cpu_seconds(parameters: float, tokens: float, precision: str) -> float:
    """The estimated seconds of a training on this CPU.

    Six operations a weight and token: Kaplan et al., "Scaling Laws for Neural Language Models", 2020, section 2.1.

    Args:
        precision: see `device.cpu_precision`.
    """
    return 6 * parameters * tokens / (CORE_SPEED[precision] * cores())


def _estimate(precision: str) -> str:
    count = cores()
    speed = f"{CORE_SPEED[precision] / 1e9:.0f} GFLOP/s"
    return f"by an estimate of {speed} on each of {count} cores" if count > 1 else f"by an estimate of {speed}"


def refuse_card(preset: str | None) -> None:
    """Refuse a training in bfloat16 on a card that has none.

    Args:
        preset: that was chosen; None for the default.

    Raises:
        RecipeError: with the card, and what runs there.
    """
    if preset in WITHOUT_BFLOAT16 or not (card := card_without_bfloat16()):
        return
    computes = f"PRESET={preset} computes" if preset else "the default presets compute"
    raise RecipeError(
        f"{card} has no bfloat16, in which {computes}: use a card of compute capability {BFLOAT16} or newer (RTX 30, "
        f"A10, A100), or PRESET=tutorial, which computes in float16, or hide the card with CUDA_VISIBLE_DEVICES=, "
        f"where {INSTEAD}"
    )


def warn_without_gpu(model: str) -> None:
    """Say before a download that a model is made for a GPU, where there is none."""
    if not has_gpu() and model in OF_A_GPU:
        precision = cpu_precision("bfloat16")  # all of them are published in it
        hours = cpu_seconds(OF_A_GPU[model], TOKENS, precision) / 3600
        stage.say(
            "model",
            f"warning: no GPU here, and {model} is made for one: {_estimate(precision)}, a training takes about "
            f"{hours:,.0f} hours on this CPU; {INSTEAD}",
        )


def warn_of_hours(parameters: int, tokens: int, precision: str) -> None:
    """Say before a training on a CPU how long it takes, where that is more than an hour.

    Args:
        parameters: of the base.
        tokens: of the whole training.
        precision: in which the base computes.
    """
    hours = cpu_seconds(parameters, tokens, precision) / 3600
    if not has_gpu() and hours > 1:
        stage.say(
            "train",
            f"warning: no GPU here: {_estimate(precision)}, {tokens:,} tokens with {parameters / 1e9:.1f}B weights "
            f"take about {hours:,.0f} hours on this CPU; {INSTEAD}",
        )
