"""The one table of stages: the verb, its folder, what it reads, and what `--help` says of it.

The command line takes its verbs from here, the report its folders, and the tests of README and Makefile what they
compare.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One row.

    Attributes:
        verb: of `python -m recipe`, and the target of `make`.
        folder: what the stage writes, under work/RUN/, or under work/ where `shared`.
        reads: verbs of the stages whose folders the stage reads.
        summary: the line of `--help`, in English and Chinese.
        shared: whether all runs on the same base share the folder.
    """

    verb: str
    folder: str
    reads: tuple[str, ...]
    summary: str
    shared: bool = False


# In the order of the work: each stage reads only what stands above it.
STAGES = (
    Stage("data", "data", (), "training rows from a name, and your own checked / 生成训练数据，检查自备数据"),
    Stage(
        "model",
        "models",
        (),
        "fetch or take a model, check it, convert it to the Llama layout / 获取、检查并转换基座模型",
        shared=True,
    ),
    Stage(
        "replay",
        "replay",
        ("data", "model"),
        "the base's own answers to ordinary prompts, against forgetting / 基座自答，防遗忘",
        shared=True,
    ),
    Stage(
        "config",
        "config",
        ("data", "model", "replay"),
        "resolve a preset; list or copy XTuner's configs / 选择并解析训练配置",
    ),
    Stage("train", "train", ("config", "data", "model", "replay"), "train with XTuner / 用 XTuner 训练"),
    Stage("convert", "adapter", ("train", "model"), "checkpoint -> PEFT adapter (safetensors) / 转换为 PEFT 适配器"),
    Stage("merge", "merged", ("convert", "model", "data"), "adapter + base -> one model, proved equal / 合并并验证"),
    Stage(
        "eval",
        "eval",
        ("data", "model", "train", "merge"),
        "hit, leak and retention, base beside tuned; fails below the thresholds / 评测与把关",
    ),
    Stage(
        "report",
        "report",
        ("data", "config", "train", "convert", "merge", "eval"),
        "one page about it all, in two languages, and the same as Markdown / 生成报告",
    ),
    Stage(
        "ablation",
        "ablation",
        ("data", "config", "train", "eval"),
        "the same training on the tutorial's data, and without replay: an appendix to the report / 消融实验",
    ),
    Stage(
        "export",
        "export",
        ("merge", "model"),
        "the merged model in InternLM2's own layout, for tools that expect it / 导出 InternLM2 格式",
    ),
    Stage(
        "gguf",
        "gguf",
        ("merge", "model"),
        "the merged model for llama.cpp and Ollama, in 16, 8 and 4 bits / 导出 GGUF（16、8、4 位）",
    ),
    Stage(
        "publish",
        "publish",
        ("data", "train", "convert", "merge", "eval", "export", "gguf"),
        "the result as a private repository of Hugging Face or ModelScope / 发布到模型社区（默认私有）",
    ),
)
BY_VERB = {stage.verb: stage for stage in STAGES}
# The folders under work/RUN/ that a result is made of, in the order of the work.
RESULT_FOLDERS = tuple(stage.folder for stage in STAGES if stage.verb in BY_VERB["report"].reads and not stage.shared)
# What `quickstart` runs one after the other before it evaluates.
BEFORE_EVAL = tuple(stage.verb for stage in STAGES[: [stage.verb for stage in STAGES].index("eval")])
