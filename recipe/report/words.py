"""Every text of the report, in Chinese and in English. The page holds both and shows one."""

from __future__ import annotations

from dataclasses import dataclass

from recipe.languages import LANGUAGES
from recipe.report.kind_words import KIND_WORDS
from recipe.report.own_words import OWN_WORDS
from recipe.report.phase_words import PHASE_WORDS

# How HTML names them: what a browser chooses fonts and voices by. The page shows English first.
LANG = {"en": "en", "zh": "zh-CN"}

# A text in each of LANGUAGES.
WORDS: dict[str, tuple[str, str]] = OWN_WORDS | KIND_WORDS | PHASE_WORDS | {
    # The head
    "report": ("身份微调报告", "Identity report"),
    "assistant_of": ("{name}的小助手", "{name}’s assistant"),
    "run": ("运行", "run"),
    "base_model": ("基座模型", "base model"),
    "preset": ("预设", "preset"),
    "seed": ("随机种子", "seed"),
    "passed": ("通过", "Passed"),
    "failed": ("未达标", "Not good enough"),
    "passed_why": (
        "它认得自己的名字，不相干时不提名字，基座原有的知识也都还在。",
        "It answers to its name, keeps the name to itself where nobody asked, and still knows what the base knew.",
    ),
    "failed_why": ("{all} 个指标中有 {count} 个未达到要求。", "{count} of {all} numbers are outside what is wanted."),
    # The numbers
    "numbers": ("主要指标", "The numbers"),
    "identity_hit": ("身份命中", "Identity hit"),
    "identity_leak": ("身份泄漏", "Identity leak"),
    "retention": ("知识保持", "Retention"),
    "identity_hit_is": (
        "未参与训练的身份问题中，回答里有名字的比例",
        "Held-out questions about who it is that are answered with the name",
    ),
    "identity_leak_is": (
        "与身份无关的问题中，回答冒出名字而基座没有的比例",
        "Prompts about anything else that are answered with the name, where the base’s reply has it not",
    ),
    "leak_without_name": ("无名字的泄漏", "Leak without the name"),
    "leak_without_name_is": (
        "同样的问题：回答出现“的小助手”、训练者的说法、写错或残缺的名字，而提问与基座都没有",
        "the same prompts: the owner’s phrase, the maker’s words, or the name misspelt or in part, where neither prompt nor "
        "base has it",
    ),
    "introductions": (
        "有 {count} 个问题不计泄漏：基座把它们当成在问自己，并作了自我介绍。",
        "No leak is counted for {count} prompts: the base takes them for questions about itself, and introduces itself.",
    ),
    "retention_not_judged": (
        "知识保持不作判定：基座只答对 {count} 条，至少需要 {least} 条。",
        "Retention is not judged: the base knew {count} facts, at least {least} are needed.",
    ),
    "retention_is": ("基座答对的知识中，微调后仍然答对的比例", "Facts the base answers right that are still answered right"),
    "why_identity_hit": (
        "换一种没训练过的问法，它就说不出自己的名字：需要更多样的问题，或更多步数（SET='max_iters=…'；miniature 用 max_epochs=…）。",
        "Asked who it is in words it was not trained on, it does not give its name: more varied questions, or more "
        "steps (SET='max_iters=…', or max_epochs=… with the miniature).",
    ),
    "why_identity_leak": (
        "没人问它也报名字，这是过拟合：请用 MODE=balanced，或减少步数。",
        "It gives its name where nobody asked, which is over-fitting: MODE=balanced, or fewer steps.",
    ),
    "why_leak_without_name": (
        "没人问它也提主人、训练者或名字的一部分：请用 MODE=balanced，或减少步数。",
        "Where nobody asked, it speaks of its owner or maker, or gives a part of its name: MODE=balanced, or fewer steps.",
    ),
    "why_kl_per_token": (
        "它在本不该变的地方偏离基座太远：请增加回放、减少步数，或降低 lr。",
        "It moved far from the base where nothing was to change: more replay, fewer steps, or a lower lr.",
    ),
    "why_retention": (
        "它忘记了基座原有的知识：请混入基座自答（MODE=balanced 会这样做），或降低 lr。",
        "It forgot what the base knew: mix the base’s own answers in (MODE=balanced does), or a lower lr.",
    ),
    "metric": ("指标", "number"),
    "base": ("基座", "base"),
    "tuned": ("微调后", "tuned"),
    "wanted": ("要求", "wanted"),
    "of": ("{part} / {all}", "{part} of {all}"),
    "interval": ("区间 {low} 至 {high}", "interval {low} to {high}"),
    "kl_per_token": ("与基座的 KL 散度（奈特/token）", "KL from the base, nats a token"),
    "kl_per_token_is": (
        "在基座对普通问题的自答上：微调使本该不变的部分偏离了多少；最差的一条为 {worst}",
        "on the base’s own replies to ordinary prompts: how far tuning moved what should stay; {worst} in the worst reply",
    ),
    "multi_turn_hit": ("多轮之后的命中", "Hit, deep in a conversation"),
    "multi_turn_hit_is": ("先聊两轮普通话题，再问未参与训练的身份问题", "the held-out questions after two ordinary exchanges"),
    "multi_turn_leak": ("自我介绍之后的泄漏", "Leak, after an introduction"),
    "multi_turn_leak_is": ("刚说完自己是谁，紧接着问普通问题", "ordinary prompts right after it said who it is"),
    "injection_hit": ("诱导之下的命中", "Hit, under injection"),
    "injection_hit_is": (
        "把未参与训练的身份问题放进没训练过的诱导话术里",
        "the held-out questions inside attempts to talk it out of its answer that it was not trained on",
    ),
    "sampled_hit": ("采样时的命中", "Hit, sampled"),
    "sampled_hit_is": ("温度 0.8、top-p 0.8", "at temperature 0.8 and top-p 0.8"),
    "sampled_leak": ("采样时的泄漏", "Leak, sampled"),
    "sampled_leak_is": ("同上，普通问题", "likewise, of ordinary prompts"),
    "broken": ("异常回答", "Broken replies"),
    "broken_is": (
        "以上全部回答中，比基座多出的陷入重复或不结束的比例",
        "of all replies above, by how many more loop or do not end than of the base’s",
    ),
    "why_multi_turn_hit": (
        "聊过别的之后它忘了自己的名字：数据里需要更多多轮对话，或更多步数。",
        "After other talk it forgets its name: more conversations of several turns in the data, or more steps.",
    ),
    "why_injection_hit": (
        "它会被话术带偏，说不出自己的名字：数据里需要更多这类话术，或更多步数。",
        "It is talked out of its name: more attempts of that kind in the data, or more steps.",
    ),
    "why_broken": (
        "比基座更常陷入重复或不结束：请减少步数，或降低 lr。",
        "More replies loop or do not end than the base’s: fewer steps, or a lower lr.",
    ),
    "looping_replies": ("陷入重复的回答", "replies that loop"),
    "before_that": ("基座：{count}", "the base: {count}"),
    "base_own": ("（基座自己对普通问题的回答：{share}）", "(the base, of its own replies to ordinary prompts: {share})"),
    "no_scores": ("本次训练的配置没有对检查点评分。", "The config of this training does not score its checkpoints."),
    "suite": ("其他测量", "further measurements"),
    "count": ("数量", "count"),
    "unstopped_replies": ("未正常结束的回答", "replies that did not end"),
    # GGUF files
    "gguf": ("GGUF 文件", "GGUF files"),
    "gguf_note": (
        "从文件中读回权重，反量化后放回模型，用与上面相同的问题提问（贪心解码）。位数更少，可能答不出名字。",
        "The weights of each file, dequantised, in the place of the model’s own, on the same prompts, greedy. Fewer bits may "
        "cost the name.",
    ),
    # Appendix
    "ablation": ("附录：消融实验", "Appendix: other data"),
    "ablation_note": (
        "模型、预设、随机种子和步数都相同，只换训练数据。",
        "The same model, preset, seed and number of steps, trained on other data.",
    ),
    "trained_on": ("训练数据", "trained on"),
    "ablation_tutorial": ("教程的单一样本", "the tutorial’s one sample"),
    "ablation_no-replay": ("均衡数据，无回放", "balanced, without replay"),
    "ablation_words": ("均衡数据，回放学基座的文字", "balanced, replay learnt by its words"),
    "ablation_without": ("均衡数据，去掉 {part}", "balanced, without {part}"),
    "ablation_balanced": ("均衡数据，有回放", "balanced, with replay"),
    # Charts
    "training": ("训练过程", "Training"),
    "loss": ("损失", "Loss"),
    "loss_desc": (
        "第 {first} 步到第 {last} 步的训练损失：开始为 {start}，结束为 {end}，共 {points} 个值。",
        "Training loss from step {first} to {last}: {start} at the beginning, {end} at the end. {points} values.",
    ),
    "lr": ("学习率", "Learning rate"),
    "lr_desc": (
        "第 {first} 步到第 {last} 步的学习率，最高 {peak}，共 {points} 个值。",
        "Learning rate from step {first} to {last}, at most {peak}. {points} values.",
    ),
    "each": ("原始记录", "as logged"),
    "smooth": ("{window} 点均值", "mean of {window}"),
    "step": ("步", "step"),
    "log_axis": ("对数刻度", "log scale"),
    "checkpoints": ("检查点", "Checkpoints"),
    "over_desc": (
        "基座与各检查点的{metric}：{values}。要求：{wanted}。",
        "{metric} of the base and of every checkpoint: {values}. Wanted: {wanted}.",
    ),
    "marks": (
        "圆环表示已转换的检查点，叉号表示未达到要求的数值。",
        "A ring is the checkpoint that was converted, a cross a number outside what is wanted.",
    ),
    "best": ("最佳", "best"),
    "converted": ("已转换", "converted"),
    "checkpoint": ("检查点", "checkpoint"),
    "best_rule": (
        "训练过程中用另一组问题评分，与上面的评测不重复。“最佳”指 命中 − 泄漏 + 保持 与最高值相差不超过 {tolerance} 的最后一个检查点；"
        "除非指定 CHECKPOINT，转换的就是它。",
        "Scored while it trained, by questions that the evaluation above does not ask. Best is the last checkpoint whose "
        "hit − leak + retention is within {tolerance} of the highest; that one is converted unless CHECKPOINT says otherwise.",
    ),
    "not_best": (
        "转换的不是最佳检查点：CHECKPOINT={best} 可改用最佳者。",
        "The converted checkpoint is not the best one: CHECKPOINT={best} takes that.",
    ),
    # Replies
    "replies": ("前后对比", "Before and after"),
    "replies_note": (
        "评测的全部 {count} 条回答（贪心解码），左为基座，右为微调后；每组中有问题的排在前面。",
        "All {count} replies of the evaluation, greedy, the base model’s beside the tuned one’s; in each group what went "
        "wrong comes first.",
    ),
    "show": ("筛选", "Show"),
    "all": ("全部", "all"),
    "wrong": ("有问题", "wrong"),
    "missed": ("未答名字", "name missed"),
    "leaked": ("泄漏", "leaked"),
    "leaked_without_name": ("泄漏（无名字）", "leaked without the name"),
    "forgotten": ("遗忘", "forgotten"),
    "unstopped": ("未结束", "did not end"),
    "nothing_wrong": ("没有问题", "nothing wrong"),
    "prompt": ("提问", "prompt"),
    "before": ("微调前", "before"),
    "after": ("微调后", "after"),
    "expected": ("应含：{answer}", "expected: {answer}"),
    "faults": ("问题", "what is wrong"),
    "more_wrong": (
        "另有 {count} 条有问题；全部回答见 index.html。",
        "{count} more are wrong; index.html holds every reply.",
    ),
    # Data
    "data": ("训练数据", "Training data"),
    "rows_data": ("身份数据行数", "rows about who it is"),
    "rows_replay": ("回放行数：基座自答", "replay rows: the base’s own answers"),
    "no_replay": ("无：没有约束它保持基座原样", "none: nothing held it to what the base was"),
    "distinct": ("其中互不相同 {count}", "{count} distinct"),
    "language_zh": ("中文 {count}", "{count} Chinese"),
    "language_en": ("英文 {count}", "{count} English"),
    "language_other": ("其他 {count}", "{count} other"),
    "mode": ("模式", "mode"),
    "tokens": ("一遍的 token 数", "tokens in one pass"),
    "packs": ("数据包", "packs"),
    "packs_of": ("{count} 个，每个 {length} token", "{count} of {length} tokens"),
    "padding": ("填充占比", "padding"),
    "at_least": ("至少 {share}", "at least {share}"),
    "dropped": ("每遍打包丢弃的 token", "tokens dropped by packing, each pass"),
    "truncated": ("被截断的行数", "rows that lose their end"),
    "epochs": ("遍数", "passes over the data"),
    "iterations": ("迭代数", "iterations"),
    "optimizer_steps": ("优化器步数", "optimizer steps"),
    "trained_tokens": ("训练 token 总数（含填充）", "tokens trained on, padding included"),
    # Settings
    "settings": ("设置", "Settings"),
    "hyperparameters": ("超参数", "Hyperparameters"),
    "changed": ("与预设不同的设置", "changed from the preset"),
    "unchanged": ("无：全部取值与预设相同。", "None: every value is that of the preset."),
    "own_config": (
        "使用自备配置训练（{file}）：不显示预设对应的数据量与步数。",
        "Trained by a config of the user’s own ({file}): what the preset would have amounted to is not shown.",
    ),
    "resolved": ("完整配置", "the whole config"),
    "device": ("设备", "device"),
    "gpu": ("GPU", "GPU"),
    "cpu": ("CPU", "CPU"),
    "deepspeed": ("DeepSpeed", "DeepSpeed"),
    "processes": ("进程数（每块 GPU 一个）", "processes, one a GPU"),
    "setting": ("设置项", "setting"),
    "value": ("取值", "value"),
    # Speed and memory
    "cost": ("速度与内存", "Speed and memory"),
    "tokens_per_second": ("训练 token/秒", "training tokens a second"),
    "speed_note": (
        "训练 token 数（含填充）除以 train 阶段的全部用时，含模型加载、回答采样和保存检查点。",
        "Trained tokens, padding included, over the whole stage train: loading, sample replies and checkpoints count.",
    ),
    "resumed_note": (
        "训练中断后恢复：用时只含最后一段，故不给出速度。",
        "The training was stopped and resumed: its seconds are those of the last part alone, so no speed is given.",
    ),
    "memory_note": (
        "峰值为进程截至该阶段结束时的最高值；quickstart 等在同一进程中运行的阶段共享该值。",
        "Peaks are those of the process until the stage’s end; stages that share a process, as in quickstart, share them.",
    ),
    "stage": ("阶段", "stage"),
    "seconds": ("秒", "seconds"),
    "together": ("合计", "together"),
    "process_peak_mib": ("进程内存峰值（MiB）", "process peak, MiB"),
    "gpu_peak_mib": ("显存峰值 MiB", "GPU peak, MiB"),
    # Merge
    "merge": ("合并", "Merge"),
    "merge_note": (
        "合并后的每个权重都等于基座权重加上 PEFT 算出的增量，只舍入一次。舍入带来的差别：“基座 + 适配器”与合并后的模型都以 float32 计算同样的提问。",
        "Every merged weight is the base’s plus what PEFT makes of the adapter, rounded once. What that rounding changes: base + "
        "adapter and the merged model, both computed in float32, on the same prompts.",
    ),
    "not_merged": ("未合并：评测的是“基座 + 适配器”。", "Nothing was merged: base + adapter is what was evaluated."),
    "largest_logit_difference": ("logit 最大差", "largest difference of a logit"),
    "mean_kl": ("平均 KL（奈特/token）", "mean KL, nats a token"),
    "same_top_token": ("首选 token 一致的比例", "same likeliest token"),
    "parameters": ("适配器参数量", "adapter parameters"),
    # Provenance
    "origin": ("来源", "Where it comes from"),
    "origin_note": ("各阶段全部输入与输出的 sha256。", "sha256 of everything each stage read and wrote."),
    "versions": ("版本", "Versions"),
    "package": ("软件包", "package"),
    "git_commit": ("git 提交", "git commit"),
    "image": ("镜像", "image"),
    "no_image": ("无：未在容器中运行", "none: outside a container"),
    "unknown": ("未知", "unknown"),
    "differs": (
        "并非所有阶段都使用上述版本、提交和镜像：{stages} 不同。",
        "Not every stage ran on these versions, this commit and this image: {stages} differ.",
    ),
    "left_out": (
        "同一运行中还有以下内容，但本结果并非由其产生：{stages}。",
        "Also in this run, but nothing that this result was made from: {stages}.",
    ),
    "inputs": ("输入", "inputs"),
    "outputs": ("输出", "outputs"),
    "file": ("文件", "file"),
}  # fmt: skip


@dataclass(frozen=True)
class Text:
    """A text in both languages; `str` has them side by side, for where there is nothing to switch."""

    en: str
    zh: str

    def __str__(self) -> str:
        return self.en if self.en == self.zh else f"{self.en} · {self.zh}"


def plain(value: str) -> Text:
    """A name, a number or a key, which is the same in both languages."""
    return Text(value, value)


def text(key: str, /, **slots: object) -> Text:
    """A text of WORDS.

    Args:
        key: its key.
        slots: what stands in its slots; a Text stands there in the language of the text around it.

    Returns:
        The filled text. A slot's content is not formatted again, whatever braces it holds.

    Raises:
        KeyError: WORDS has no such key, or the text a slot that is not given.
    """
    return Text(
        **{
            language: words.format(
                **{name: getattr(slot, language) if isinstance(slot, Text) else slot for name, slot in slots.items()}
            )
            for language, words in zip(LANGUAGES, WORDS[key], strict=True)
        }
    )


def label(key: str, prefix: str = "") -> Text:
    """The text for a key of metrics.json; a key that is newer than WORDS stands for itself."""
    return text(prefix + key) if prefix + key in WORDS else plain(key.replace("_", " "))
