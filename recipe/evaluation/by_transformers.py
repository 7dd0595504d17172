"""Replies by transformers' own `generate`, for the models that the engine does not compute.

Shapes: batch = conversations; width = tokens of the longest prompt of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from recipe.engine.reply import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 64  # prompts that `generate` answers together


def generate(
    model: PreTrainedModel,
    prompts: Sequence[list[int]],
    stops: list[int],
    pad: int | None,
    sampling: Sampling,
    advance: Callable[[int], object],
) -> list[tuple[list[int], bool]]:
    """Generate in batches of `BATCH` that take as long as their longest reply.

    That is what ZeRO-3 takes: only a module's own forward pass gathers its weights from all processes, so all of them
    must run the same passes in the same order, and none may skip one.

    Args:
        prompts: token ids of each.
        stops: the token ids that end a reply.
        pad: the token id that fills a batch.
        advance: called with the number of replies of each batch.

    Returns:
        For each prompt the reply's token ids, and whether the model ended it.
    """
    import torch

    hot = sampling.temperature > 0
    options = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if hot else {}
    replies: list[tuple[list[int], bool]] = [([], False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    with torch.inference_mode(), torch.random.fork_rng(enabled=hot):
        if hot:
            torch.manual_seed(sampling.seed or 0)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            width = max(len(prompts[i]) for i in batch)
            ids = torch.full((len(batch), width), pad)  # padding comes first: (batch, width)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
                mask[row, width - len(prompts[i]) :] = 1
            output = model.generate(  # (batch, width + new tokens)
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=_generation(stops, pad, sampling.max_new_tokens, do_sample=hot, **options),
            )
            for row, i in enumerate(batch):
                output_ids = output[row, width:].tolist()
                end = next((at for at, token in enumerate(output_ids) if token in stops), None)
                replies[i] = output_ids[:end], end is not None
            advance(len(batch))
    return replies


def _generation(stops: list[int], pad: int | None, max_new_tokens: int, **sampling: Any) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=pad, **sampling)
