"""What a card or a CPU cannot do, or not in a day: said before anything is fetched."""

from __future__ import annotations

from recipe.device import BFLOAT16, card_without_bfloat16, has_gpu
from recipe.errors import RecipeError
from recipe.pipeline import stage

# Presets that compute without bfloat16 on a GPU: XTuner's own float16.
WITHOUT_BFLOAT16 = ("tutorial",)
# Models by name that two cores cannot tune in an hour.
OF_A_GPU = ("internlm2-chat-1_8b", "internlm2_5-1_8b-chat", "internlm2-chat-7b", "internlm2_5-7b-chat")
# An estimate of what a CPU computes, in operations a second, for every CPU alike. It is what one core of an AMD EPYC
# with AVX-512 reaches in torch's float32 matrix products (1024 x 2048 times 2048 x 2048); in bfloat16 the core reaches
# 215 GFLOP/s. More cores are faster, and a training's other work is slower.
CPU_SPEED = 100e9
ESTIMATE = f"by an estimate of {CPU_SPEED / 1e9:.0f} GFLOP/s"
INSTEAD = "MODEL=smollm2-135m-instruct and make quickstart need no GPU"


def cpu_seconds(parameters: float, tokens: float) -> float:
    """The estimated seconds of a training on a CPU.

    Six operations a weight and token: Kaplan et al., "Scaling Laws for Neural Language Models", 2020, section 2.1.
    """
    return 6 * parameters * tokens / CPU_SPEED


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
        minutes = cpu_seconds(1.8e9, 1000) / 60
        stage.say(
            "model",
            f"warning: no GPU here, and {model} is made for one: {ESTIMATE}, 1,000 tokens of training take "
            f"{minutes:.0f} minutes on a CPU with 1.8B weights, the whole many hours; {INSTEAD}",
        )


def warn_of_hours(parameters: int, tokens: int) -> None:
    """Say before a training on a CPU how long it takes, where that is more than an hour.

    Args:
        parameters: of the base.
        tokens: of the whole training.
    """
    hours = cpu_seconds(parameters, tokens) / 3600
    if not has_gpu() and hours > 1:
        stage.say(
            "train",
            f"warning: no GPU here: {ESTIMATE}, {tokens:,} tokens with {parameters / 1e9:.1f}B weights take about "
            f"{hours:,.0f} hours on a CPU; {INSTEAD}",
        )
