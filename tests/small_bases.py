"""Chat models of the Llama and Qwen2 layouts as their publishers lay them out: random weights, small byte-level BPE
tokenizers with the oddities of SmolLM2's and Qwen2.5's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEXTS = [
    "user assistant system 你好，世界。 Who are you? I am an assistant. 请你介绍一下你自己 法国的首都是哪里？",
    "The capital of France is Paris. 3 plus 4 is 7. 我是一个AI助手，很高兴认识你。 What is the weather like today?",
]
DEFAULT_SYSTEM = "You are a helpful AI assistant named Small."
# As both publish it: a system prompt of its own where the conversation has none.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\n" + DEFAULT_SYSTEM + "<|im_end|>\\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SMOLLM2_SPECIAL = (*SPECIAL, "<repo_name>", "<jupyter_code>")
QWEN2_MARKUP = ("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>")  # added, and not called special
UNKNOWN = "\x04"  # what SmolLM2's vocabulary lacks becomes its unknown token, <|endoftext|>
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "vocab_size": 480, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "tie_word_embeddings": True, "hidden_act": "silu",
}  # fmt: skip


def _smollm2_tokenizer() -> Any:
    """Special tokens first, digits one by one, some bytes missing, `<|endoftext|>` for the unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[0], fuse_unk=True))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder, tokenizer.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    ((unknown, _),) = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(UNKNOWN)
    alphabet = [byte for byte in pre_tokenizers.ByteLevel.alphabet() if byte != unknown]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(SMOLLM2_SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def _qwen2_tokenizer() -> Any:
    """Every byte, NFC, GPT-4's pattern, special tokens last."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in QWEN2_MARKUP])
    return tokenizer


def _tokenizer_files(kind: str) -> dict[str, Any]:
    """File name -> content, as SmolLM2-Instruct's and Qwen2.5-Instruct's repositories have them."""
    tokenizer = _smollm2_tokenizer() if kind == "llama" else _qwen2_tokenizer()
    content = json.loads(tokenizer.to_str())
    named: dict[str, Any]
    extra: dict[str, Any]
    if kind == "llama":
        ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
        named = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "unk_token": SPECIAL[0], "pad_token": SPECIAL[2]}
        generation = {"bos_token_id": ids[SPECIAL[1]], "eos_token_id": ids[SPECIAL[2]], "pad_token_id": ids[SPECIAL[2]]}
        extra = {"tokenizer_class": "GPT2Tokenizer", "additional_special_tokens": list(SPECIAL[1:])}
    else:
        ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
        named = {"bos_token": None, "eos_token": SPECIAL[2], "unk_token": None, "pad_token": SPECIAL[0]}
        generation = {"bos_token_id": ids[SPECIAL[0]], "pad_token_id": ids[SPECIAL[0]], "do_sample": True,
                      "eos_token_id": [ids[SPECIAL[2]], ids[SPECIAL[0]]], "top_p": 0.8}  # fmt: skip
        decoder = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in content["added_tokens"]}
        extra = {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "added_tokens_decoder": decoder,
                 "additional_special_tokens": list(SPECIAL[1:])}  # fmt: skip
    settings = named | extra | {"chat_template": TEMPLATE, "model_max_length": 512}
    return {"tokenizer.json": content, "tokenizer_config.json": settings, "generation_config.json": generation}


def random_model(kind: str, *, std: float = 0.2, **changes: Any) -> Any:
    """A LlamaForCausalLM or Qwen2ForCausalLM in float32, its biases and norms random too, with a tied head.

    std: of weights and norms; small ones make a model whose gradients rounding changes little.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **SIZES | changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).float()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.5)
            elif parameter.ndim == 1:
                torch.nn.init.normal_(parameter, mean=1.0, std=std)
            else:
                torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def write(folder: Path, kind: str, **changes: Any) -> Path:
    """Write such a model's repository to `folder`. kind: "llama" or "qwen2". changes: of config.json."""
    folder.mkdir(parents=True)
    random_model(kind, **changes).save_pretrained(folder)
    for name, content in _tokenizer_files(kind).items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder
