"""Loads a model, and generates replies in batches: for replay, evaluation, and samples while training.

Shapes: batch = conversations; width = tokens of the longest prompt of a batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.chat_format import Message, prompt_ids, stop_ids
from recipe.errors import RecipeError
from recipe.pipeline.stage import shown

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Prompts answered together. On two CPU cores larger batches gain nothing; on a GPU 64 is past the knee for short
# replies.
BATCH = 64


@dataclass(frozen=True)
class Reply:
    """One reply.

    Attributes:
        text: without special tokens.
        stopped: whether the model ended it; False where it reached the length limit.
    """

    text: str
    stopped: bool


def load(
    folder: Path, adapter: Path | None = None, *, dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model for inference. Nothing is fetched, and no Python from the folder is run.

    Args:
        folder: of the model.
        adapter: a PEFT folder to put on it.
        dtype: to compute in; None for the model's own on the GPU and float32 on the CPU.

    Returns:
        The model, on the GPU if there is one, and its tokenizer.

    Raises:
        RecipeError: a folder holds no model or no adapter, or the model cannot be loaded.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise RecipeError(f"{shown(folder)}: holds no model (no config.json); run `make model`, or `make merge`, first")
    gpu = torch.cuda.is_available()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or ("auto" if gpu else torch.float32),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise RecipeError(f"{shown(folder)}: cannot be loaded: {str(error).splitlines()[0]}") from error
    if adapter is not None:
        from peft import PeftModel

        if not (adapter / "adapter_config.json").is_file():
            raise RecipeError(f"{shown(adapter)}: holds no adapter (no adapter_config.json); run `make convert` first")
        model = PeftModel.from_pretrained(model, str(adapter), local_files_only=True)
    model = model.to("cuda" if gpu else "cpu").eval()
    return model, tokenizer


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    progress: str | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[Reply]:
    """Generate the reply to each conversation.

    Args:
        model, tokenizer: of `load`.
        conversations: each ends with the user's message.
        max_new_tokens: of a reply, at most.
        progress: a label for a progress bar on stderr; None for no bar.
        temperature: 0 is greedy; above, tokens are sampled.
        top_p: from the likeliest tokens that together reach this probability.
        seed: of the sampling; the same seed and batches give the same replies.

    Returns:
        The replies, in the order of the conversations.
    """
    import torch
    from tqdm import tqdm

    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    prompts = [prompt_ids(tokenizer, conversation) for conversation in conversations]
    stops = stop_ids(tokenizer)
    replies: list[Reply | None] = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    bar = tqdm(total=len(prompts), desc=progress, unit="reply", disable=progress is None, leave=False)
    with torch.inference_mode(), torch.random.fork_rng(enabled=temperature > 0), bar:
        if temperature > 0:
            torch.manual_seed(seed)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            width = max(len(prompts[i]) for i in batch)
            ids = torch.full((len(batch), width), tokenizer.pad_token_id)  # padding comes first: (batch, width)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, width - len(prompts[i]) :] = torch.tensor(prompts[i])
                mask[row, width - len(prompts[i]) :] = 1
            output = model.generate(  # (batch, width + new tokens)
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                generation_config=_generation(stops, tokenizer.pad_token_id, max_new_tokens, **sampling),
            )
            for row, i in enumerate(batch):
                replies[i] = _reply(tokenizer, output[row, width:].tolist(), stops)
            bar.update(len(batch))
    return [reply for reply in replies if reply is not None]


def _generation(stops: list[int], pad: int | None, max_new_tokens: int, **sampling: Any) -> Any:
    from transformers import GenerationConfig

    sampling = sampling or {"do_sample": False}
    return GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=pad, **sampling)


def _reply(tokenizer: PreTrainedTokenizerBase, ids: list[int], stops: list[int]) -> Reply:
    end = next((i for i, token in enumerate(ids) if token in stops), None)
    return Reply(tokenizer.decode(ids[:end], skip_special_tokens=True), end is not None)


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """A context in which the model is in inference mode with its key-value cache on; afterwards it is as before."""
    training, cache = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = True
    try:
        yield
    finally:
        model.train(training)
        model.config.use_cache = cache
