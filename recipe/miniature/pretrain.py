"""Trains the miniature base model of data/miniature from nothing: `python -m recipe.miniature.pretrain --out DIR`.

A Llama of 2.4 M parameters, saved as an InternLM2 repository: config.json, model.safetensors with wqkv and w1/w2/w3,
tokenizer.model, tokenizer_config.json, generation_config.json. Five minutes on an H200, hours on two CPU cores. The
weights in the repository were made by this script with its defaults; floating-point sums differ between machines, so
another run gives another model of the same abilities, and SHA256SUMS guards the one that is committed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from recipe.chat_format import CHAT_TOKENS, IGNORE_INDEX, training_ids
from recipe.checkpoint.internlm2_llama import Shape, llama_names, to_internlm2
from recipe.checkpoint.tokenizer import build_tokenizer_json, fast_tokenizer_config
from recipe.files import write_json
from recipe.miniature.corpus import conversations, tokenizer_text

PIECES = 2042  # with the six chat tokens 2,048
APART = "\t"  # where pieces end for the tokenizer's trainer; in no line of the corpus
CONTEXT = 2048
# In InternLM2's tokenizer.model the chat tokens are the entries called so.
UNUSED = [f"[UNUSED_TOKEN_{141 + i}]" for i in range(len(CHAT_TOKENS))]
NF4_BLOCK = 64
# What fine-tuning shifts a little should not be lost: a model that answers right only with exactly these weights would
# make any tuning look like forgetting. Share of what each layer adds that is left out, and noise on a weight, in
# standard deviations of its matrix.
DROPOUT = 0.1
NOISE = 0.2


def train_tokenizer(rng: random.Random) -> bytes:
    """tokenizer.model in InternLM2's form: BPE, byte fallback, identity normaliser, the chat tokens at the end.

    On so little text BPE would make one piece of 我是书生·浦语, and no tuning could then change the name alone: Chinese
    characters stay single, as a tokenizer trained on much text would keep that name apart from 我是.
    """
    model = io.BytesIO()
    lines = (re.sub(r"(?<=[^\x00-\x7f])|(?=[^\x00-\x7f])", APART, line) for line in tokenizer_text(rng, 40_000))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        model_type="bpe",
        vocab_size=PIECES,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        pretokenization_delimiter=APART,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=1,
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    for name in UNUSED:
        proto.pieces.add(piece=name, score=0.0, type=sentencepiece_model_pb2.ModelProto.SentencePiece.USER_DEFINED)
    return proto.SerializeToString(deterministic=True)


def internlm2_tokenizer_config() -> dict[str, object]:
    def token(content: str) -> dict[str, object]:
        flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        return {"content": content, **flags, "special": True}

    named = {0: "<unk>", 1: "<s>", 2: "</s>"} | {PIECES + i: name for i, name in enumerate(CHAT_TOKENS)}
    return {
        "tokenizer_class": "InternLM2Tokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
        "additional_special_tokens": list(CHAT_TOKENS[::-1]),
        "added_tokens_decoder": {str(i): token(name) for i, name in named.items()},
        "clean_up_tokenization_spaces": False,
    }


def internlm2_config() -> dict[str, object]:
    return {
        "architectures": ["InternLM2ForCausalLM"],
        "model_type": "internlm2",
        "attn_implementation": "eager",
        "bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 192,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "max_position_embeddings": CONTEXT,
        "num_attention_heads": 6,
        "num_hidden_layers": 4,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
        "rope_theta": 10000,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": PIECES + len(CHAT_TOKENS),
    }


def batches(
    tokenizer: PreTrainedTokenizerBase, rng: random.Random, tokens: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (input_ids, labels) of about `tokens` tokens each, rows of like length together, padded with </s>."""
    source = conversations(rng)
    while True:
        pool = sorted((training_ids(tokenizer, next(source)) for _ in range(2000)), key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for row in pool:
            if (len(groups[-1]) + 1) * len(row[0]) > tokens:
                groups.append([])
            groups[-1].append(row)
        rng.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            ids = torch.full((len(group), width), 2)
            labels = torch.full((len(group), width), IGNORE_INDEX)
            for i, (row_ids, row_labels) in enumerate(group):
                ids[i, : len(row_ids)] = torch.tensor(row_ids)
                labels[i, : len(row_labels)] = torch.tensor(row_labels)
            yield ids, labels


class NF4(torch.nn.Module):
    """A parametrisation that adds noise to a weight, rounds it as QLoRA's nf4 does and lets the gradient through
    unchanged.

    A model this small loses what it knows when it is rounded after training; one that was trained under rounding
    answers the same with 4-bit and with full weights, as a model of billions of parameters does by its size.
    """

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        with torch.no_grad():
            noisy = weight + NOISE * weight.std() * torch.randn_like(weight)
            packed, state = quantize_4bit(noisy, blocksize=NF4_BLOCK, quant_type="nf4")
            rounded = dequantize_4bit(packed, state)
        return weight + (rounded - weight).detach()


def _round_linear_layers(model: torch.nn.Module, on: bool) -> None:
    from torch.nn.utils import parametrize

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            if on:
                parametrize.register_parametrization(module, "weight", NF4())
            else:
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)


def _drop_out(model: torch.nn.Module) -> None:
    """Leave out `DROPOUT` of what attention and MLP add to the residual stream, which Llama has no setting for."""
    for name, module in model.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            module.register_forward_hook(lambda _module, _inputs, added: torch.nn.functional.dropout(added, DROPOUT))


def _optimizers(model: torch.nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, head and norms."""
    inner = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    outer = [p for name, p in model.named_parameters() if p.ndim != 2 or ".layers." not in name]
    return [
        torch.optim.Muon(inner, lr=lr, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=lr, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def pretrain(out: Path, *, seed: int, steps: int, tokens: int, lr: float, rounded: float) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    torch.manual_seed(seed)
    (out / "tokenizer.model").write_bytes(train_tokenizer(rng))
    names = {PIECES + i: name for i, name in enumerate(CHAT_TOKENS)}
    tokenizer = load_tokenizer(out, names)

    config = internlm2_config()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in config.items() if k not in _NOT_LLAMA})).to(device)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} token ids")
    _drop_out(model)
    optimizers = _optimizers(model, lr)
    source = batches(tokenizer, rng, tokens)
    started, mean = time.time(), None
    progress = tqdm(range(steps), unit="step", mininterval=5)
    for step in progress:
        if step == int(steps * (1 - rounded)):
            _round_linear_layers(model, on=True)
        warm = min(1.0, (step + 1) / 100)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        ids, labels = next(source)
        loss = model(input_ids=ids.to(device), labels=labels.to(device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        mean = loss.item() if mean is None else 0.98 * mean + 0.02 * loss.item()
        progress.set_postfix(loss=f"{mean:.4f}", refresh=False)
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} loss {mean:.4f} {time.time() - started:.0f} s", flush=True)
    if rounded:
        _round_linear_layers(model, on=False)
    save(model.cpu(), out, config)


_NOT_LLAMA = {"architectures", "model_type", "attn_implementation", "bias", "rope_scaling", "torch_dtype"}


def load_tokenizer(folder: Path, names: dict[int, str]) -> PreTrainedTokenizerBase:
    """The fast tokenizer of the tokenizer.model in `folder`, without leaving its files there."""
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        content = build_tokenizer_json(folder / "tokenizer.model", names)
        Path(temporary, "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
        Path(temporary, "tokenizer_config.json").write_text(
            json.dumps(fast_tokenizer_config(CONTEXT)), encoding="utf-8"
        )
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(temporary)
    return tokenizer


def save(model: LlamaForCausalLM, out: Path, config: dict[str, object]) -> None:
    """Write the model in InternLM2's own format, in float16, and SHA256SUMS last."""
    shape, llama = Shape.of(config), model.state_dict()
    tensors = {
        name: to_internlm2(name, {n: llama[n] for n in llama_names(name)}, shape).to(torch.float16).contiguous()
        for name in shape.internlm2()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    generation = {"bos_token_id": 1, "eos_token_id": [2, PIECES + CHAT_TOKENS.index("<|im_end|>")], "pad_token_id": 2}
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    for name, content in {
        "config.json": config,
        "generation_config.json": generation,
        "special_tokens_map.json": special | {"additional_special_tokens": list(CHAT_TOKENS[::-1])},
        "tokenizer_config.json": internlm2_tokenizer_config(),
    }.items():
        write_json(out / name, content)
    files = sorted(path for path in out.iterdir() if path.suffix in {".json", ".model", ".safetensors"})
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (out / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the miniature base model from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="folder for the InternLM2 repository")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--tokens", type=int, default=4608, help="tokens a step")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument(
        "--rounded", type=float, default=0.3, help="share of the steps under noise and nf4 rounding, at the end"
    )
    pretrain(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
