"""Every text of the report, in English and in Chinese. The page holds both and shows one."""

from __future__ import annotations

from dataclasses import dataclass

from recipe.languages import LANGUAGES as CORPUS_LANGUAGES
from recipe.report.own_words import OWN_WORDS

# The page shows English first; the tuples below are in this order.
LANGUAGES = tuple(reversed(CORPUS_LANGUAGES))
# How HTML names them: what a browser chooses fonts and voices by.
LANG = {"en": "en", "zh": "zh-CN"}

WORDS: dict[str, tuple[str, str]] = OWN_WORDS | {
    # The head
    "report": ("Identity report", "身份微调报告"),
    "assistant_of": ("{name}’s assistant", "{name}的小助手"),
    "run": ("run", "运行"),
    "base_model": ("base model", "基座模型"),
    "preset": ("preset", "预设"),
    "seed": ("seed", "随机种子"),
    "passed": ("Passed", "通过"),
    "failed": ("Not good enough", "未达标"),
    "passed_why": (
        "It answers to its name, keeps the name to itself where nobody asked, and still knows what the base knew.",
        "它认得自己的名字，不相干时不提名字，基座原有的知识也都还在。",
    ),
    "failed_why": ("{count} of {all} numbers are outside what is wanted.", "{all} 个指标中有 {count} 个未达到要求。"),
    # The numbers
    "numbers": ("The numbers", "主要指标"),
    "identity_hit": ("Identity hit", "身份命中"),
    "identity_leak": ("Identity leak", "身份泄漏"),
    "retention": ("Retention", "知识保持"),
    "identity_hit_is": (
        "Held-out questions about who it is that are answered with the name",
        "未参与训练的身份问题中，回答里有名字的比例",
    ),
    "identity_leak_is": (
        "Prompts about anything else that are answered with the name, where the base’s reply has it not",
        "与身份无关的问题中，回答冒出名字而基座没有的比例",
    ),
    "leak_without_name": ("Leak without the name", "无名字的泄漏"),
    "leak_without_name_is": (
        "the same prompts: the owner’s phrase, the maker’s words, or the name misspelt or in part, where neither prompt nor "
        "base has it",
        "同样的问题：回答出现“的小助手”、训练者的说法、写错或残缺的名字，而提问与基座都没有",
    ),
    "introductions": (
        "No leak is counted for {count} prompts: the base takes them for questions about itself, and introduces itself.",
        "有 {count} 个问题不计泄漏：基座把它们当成在问自己，并作了自我介绍。",
    ),
    "retention_not_judged": (
        "Retention is not judged: the base knew {known} facts, at least {least} are needed.",
        "知识保持不作判定：基座只答对 {known} 条，至少需要 {least} 条。",
    ),
    "retention_is": ("Facts the base answers right that are still answered right", "基座答对的知识中，微调后仍然答对的比例"),
    "why_identity_hit": (
        "Asked who it is in words it was not trained on, it does not give its name: more varied questions, or more "
        "steps (SET='max_iters=…', or max_epochs=… with the miniature).",
        "换一种没训练过的问法，它就说不出自己的名字：需要更多样的问题，或更多步数（SET='max_iters=…'；miniature 用 max_epochs=…）。",
    ),
    "why_identity_leak": (
        "It gives its name where nobody asked, which is over-fitting: MODE=balanced, or fewer steps.",
        "没人问它也报名字，这是过拟合：请用 MODE=balanced，或减少步数。",
    ),
    "why_leak_without_name": (
        "Where nobody asked, it speaks of its owner or maker, or gives a part of its name: MODE=balanced, or fewer steps.",
        "没人问它也提主人、训练者或名字的一部分：请用 MODE=balanced，或减少步数。",
    ),
    "why_kl_per_token": (
        "It moved far from the base where nothing was to change: more replay, fewer steps, or a lower lr.",
        "它在本不该变的地方偏离基座太远：请增加回放、减少步数，或降低 lr。",
    ),
    "why_retention": (
        "It forgot what the base knew: mix the base’s own answers in (MODE=balanced does), or a lower lr.",
        "它忘记了基座原有的知识：请混入基座自答（MODE=balanced 会这样做），或降低 lr。",
    ),
    "metric": ("number", "指标"),
    "base": ("base", "基座"),
    "tuned": ("tuned", "微调后"),
    "wanted": ("wanted", "要求"),
    "of": ("{part} of {all}", "{part} / {all}"),
    "interval": ("interval {low} to {high}", "区间 {low} 至 {high}"),
    "kl_per_token": ("KL from the base, nats a token", "与基座的 KL 散度（奈特/token）"),
    "kl_per_token_is": (
        "on the base’s own replies to ordinary prompts: how far tuning moved what should stay; {worst} in the worst reply",
        "在基座对普通问题的自答上：微调使本该不变的部分偏离了多少；最差的一条为 {worst}",
    ),
    "multi_turn_hit": ("Hit, deep in a conversation", "多轮之后的命中"),
    "multi_turn_hit_is": ("the held-out questions after two ordinary exchanges", "先聊两轮普通话题，再问未参与训练的身份问题"),
    "multi_turn_leak": ("Leak, after an introduction", "自我介绍之后的泄漏"),
    "multi_turn_leak_is": ("ordinary prompts right after it said who it is", "刚说完自己是谁，紧接着问普通问题"),
    "injection_hit": ("Hit, under injection", "诱导之下的命中"),
    "injection_hit_is": (
        "the held-out questions inside attempts to talk it out of its answer that it was not trained on",
        "把未参与训练的身份问题放进没训练过的诱导话术里",
    ),
    "sampled_hit": ("Hit, sampled", "采样时的命中"),
    "sampled_hit_is": ("at temperature 0.8 and top-p 0.8", "温度 0.8、top-p 0.8"),
    "sampled_leak": ("Leak, sampled", "采样时的泄漏"),
    "sampled_leak_is": ("likewise, of ordinary prompts", "同上，普通问题"),
    "broken": ("Broken replies", "异常回答"),
    "broken_is": (
        "of all replies above, those that loop or do not end and would not without tuning",
        "以上全部回答中，因微调而陷入重复或不结束的比例",
    ),
    "why_multi_turn_hit": (
        "After other talk it forgets its name: more conversations of several turns in the data, or more steps.",
        "聊过别的之后它忘了自己的名字：数据里需要更多多轮对话，或更多步数。",
    ),
    "why_injection_hit": (
        "It is talked out of its name: more attempts of that kind in the data, or more steps.",
        "它会被话术带偏，说不出自己的名字：数据里需要更多这类话术，或更多步数。",
    ),
    "why_broken": (
        "Replies loop or do not end where the base’s do neither: fewer steps, or a lower lr.",
        "基座能正常结束的回答，它却陷入重复或不结束：请减少步数，或降低 lr。",
    ),
    "looping_replies": ("replies that loop", "陷入重复的回答"),
    "before_that": ("the base: {count}", "基座：{count}"),
    "base_own": ("the base, of its own replies to ordinary prompts: {share}", "基座自己对普通问题的回答：{share}"),
    "no_scores": ("The config of this training does not score its checkpoints.", "本次训练的配置没有对检查点评分。"),
    "suite": ("further measurements", "其他测量"),
    "count": ("count", "数量"),
    "unstopped_replies": ("replies that did not end", "未正常结束的回答"),
    # Appendix
    "ablation": ("Appendix: other data", "附录：消融实验"),
    "ablation_note": (
        "The same model, preset, seed and number of steps, trained on other data.",
        "模型、预设、随机种子和步数都相同，只换训练数据。",
    ),
    "trained_on": ("trained on", "训练数据"),
    "ablation_tutorial": ("the tutorial’s one sample", "教程的单一样本"),
    "ablation_no-replay": ("balanced, without replay", "均衡数据，无回放"),
    "ablation_balanced": ("balanced, with replay", "均衡数据，有回放"),
    # Charts
    "training": ("Training", "训练过程"),
    "loss": ("Loss", "损失"),
    "loss_desc": (
        "Training loss from step {first} to {last}: {start} at the beginning, {end} at the end. {points} values.",
        "第 {first} 步到第 {last} 步的训练损失：开始为 {start}，结束为 {end}，共 {points} 个值。",
    ),
    "lr": ("Learning rate", "学习率"),
    "lr_desc": (
        "Learning rate from step {first} to {last}, at most {peak}. {points} values.",
        "第 {first} 步到第 {last} 步的学习率，最高 {peak}，共 {points} 个值。",
    ),
    "each": ("as logged", "原始记录"),
    "smooth": ("mean of {window}", "{window} 点均值"),
    "step": ("step", "步"),
    "log_axis": ("log scale", "对数刻度"),
    "checkpoints": ("Checkpoints", "检查点"),
    "over_desc": (
        "{metric} of the base and of every checkpoint: {values}. Wanted: {wanted}.",
        "基座与各检查点的{metric}：{values}。要求：{wanted}。",
    ),
    "marks": (
        "A ring is the checkpoint that was converted, a cross a number outside what is wanted.",
        "圆环表示已转换的检查点，叉号表示未达到要求的数值。",
    ),
    "best": ("best", "最佳"),
    "converted": ("converted", "已转换"),
    "checkpoint": ("checkpoint", "检查点"),
    "best_rule": (
        "Scored while it trained, by questions that the evaluation above does not ask. Best is the last checkpoint whose "
        "hit − leak + retention is within {tolerance} of the highest; that one is converted unless CHECKPOINT says otherwise.",
        "训练过程中用另一组问题评分，与上面的评测不重复。“最佳”指 命中 − 泄漏 + 保持 与最高值相差不超过 {tolerance} 的最后一个检查点；"
        "除非指定 CHECKPOINT，转换的就是它。",
    ),
    "not_best": (
        "The converted checkpoint is not the best one: CHECKPOINT={best} takes that.",
        "转换的不是最佳检查点：CHECKPOINT={best} 可改用最佳者。",
    ),
    # Replies
    "replies": ("Before and after", "前后对比"),
    "replies_note": (
        "All {count} replies of the evaluation, greedy, the base model’s beside the tuned one’s; in each group what went "
        "wrong comes first.",
        "评测的全部 {count} 条回答（贪心解码），左为基座，右为微调后；每组中有问题的排在前面。",
    ),
    "show": ("Show", "筛选"),
    "all": ("all", "全部"),
    "wrong": ("wrong", "有问题"),
    "missed": ("name missed", "未答名字"),
    "leaked": ("leaked", "泄漏"),
    "leaked_without_name": ("leaked without the name", "泄漏（无名字）"),
    "forgotten": ("forgotten", "遗忘"),
    "unstopped": ("did not end", "未结束"),
    "nothing_wrong": ("nothing wrong", "没有问题"),
    "prompt": ("prompt", "提问"),
    "before": ("before", "微调前"),
    "after": ("after", "微调后"),
    "expected": ("expected: {answer}", "应含：{answer}"),
    "faults": ("what is wrong", "问题"),
    "more_wrong": (
        "{count} more are wrong; index.html holds every reply.",
        "另有 {count} 条有问题；全部回答见 index.html。",
    ),
    "kind_identity": ("who it is", "身份"),
    "kind_capitals": ("capitals", "首都"),
    "kind_opposites": ("opposites", "反义词"),
    "kind_colours": ("colours", "颜色"),
    "kind_translations": ("translations", "翻译"),
    "kind_animals": ("animals", "动物"),
    "kind_materials": ("materials", "材料"),
    "kind_tools": ("tools", "工具"),
    "kind_categories": ("categories", "类别"),
    "kind_sums": ("sums", "算术"),
    "kind_smalltalk": ("small talk", "闲聊"),
    "kind_contrast": ("other people and models", "他人与其他模型"),
    "kind_persons": ("who is not the assistant", "助手以外的人"),
    "kind_tasks": ("tasks", "任务"),
    "kind_copy": ("repeat after me", "复述"),
    # Data
    "data": ("Training data", "训练数据"),
    "rows_data": ("rows about who it is", "身份数据行数"),
    "rows_replay": ("replay rows: the base’s own answers", "回放行数：基座自答"),
    "no_replay": ("none: nothing held it to what the base was", "无：没有约束它保持基座原样"),
    "distinct": ("{count} distinct", "其中互不相同 {count}"),
    "language_zh": ("{count} Chinese", "中文 {count}"),
    "language_en": ("{count} English", "英文 {count}"),
    "language_other": ("{count} other", "其他 {count}"),
    "mode": ("mode", "模式"),
    "tokens": ("tokens in one pass", "一遍的 token 数"),
    "packs": ("packs", "数据包"),
    "packs_of": ("{count} of {length} tokens", "{count} 个，每个 {length} token"),
    "padding": ("padding", "填充占比"),
    "at_least": ("at least {share}", "至少 {share}"),
    "dropped": ("tokens dropped by packing, each pass", "每遍打包丢弃的 token"),
    "truncated": ("rows that lose their end", "被截断的行数"),
    "epochs": ("passes over the data", "遍数"),
    "iterations": ("iterations", "迭代数"),
    "optimizer_steps": ("optimizer steps", "优化器步数"),
    "trained_tokens": ("tokens trained on, padding included", "训练 token 总数（含填充）"),
    # Settings
    "settings": ("Settings", "设置"),
    "changed": ("changed from the preset", "与预设不同的设置"),
    "unchanged": ("None: every value is that of the preset.", "无：全部取值与预设相同。"),
    "own_config": (
        "Trained by a config of the user’s own ({file}): what the preset would have amounted to is not shown.",
        "使用自备配置训练（{file}）：不显示预设对应的数据量与步数。",
    ),
    "resolved": ("the whole config", "完整配置"),
    "device": ("device", "设备"),
    "gpu": ("GPU", "GPU"),
    "cpu": ("CPU", "CPU"),
    "deepspeed": ("DeepSpeed", "DeepSpeed"),
    "processes": ("processes, one a GPU", "进程数（每块 GPU 一个）"),
    "setting": ("setting", "设置项"),
    "value": ("value", "取值"),
    # Speed and memory
    "cost": ("Speed and memory", "速度与内存"),
    "tokens_per_second": ("training tokens a second", "训练 token/秒"),
    "speed_note": (
        "Trained tokens, padding included, over the whole stage train: loading, sample replies and checkpoints count.",
        "训练 token 数（含填充）除以 train 阶段的全部用时，含模型加载、回答采样和保存检查点。",
    ),
    "resumed_note": (
        "The training was stopped and resumed: its seconds are those of the last part alone, so no speed is given.",
        "训练中断后恢复：用时只含最后一段，故不给出速度。",
    ),
    "memory_note": (
        "Peaks are those of the process until the stage’s end; stages that share a process, as in quickstart, share them.",
        "峰值为进程截至该阶段结束时的最高值；quickstart 等在同一进程中运行的阶段共享该值。",
    ),
    "stage": ("stage", "阶段"),
    "seconds": ("seconds", "秒"),
    "together": ("together", "合计"),
    "process_peak_mib": ("process peak, MiB", "进程峰值 MiB"),
    "gpu_peak_mib": ("GPU peak, MiB", "显存峰值 MiB"),
    # Merge
    "merge": ("Merge", "合并"),
    "merge_note": (
        "Every merged weight is the base’s plus what PEFT makes of the adapter, rounded once. What that rounding changes: base + "
        "adapter and the merged model, both computed in float32, on the same prompts.",
        "合并后的每个权重都等于基座权重加上 PEFT 算出的增量，只舍入一次。舍入带来的差别：“基座 + 适配器”与合并后的模型都以 float32 计算同样的提问。",
    ),
    "not_merged": ("Nothing was merged: base + adapter is what was evaluated.", "未合并：评测的是“基座 + 适配器”。"),
    "largest_logit_difference": ("largest difference of a logit", "logit 最大差"),
    "mean_kl": ("mean KL, nats a token", "平均 KL（奈特/token）"),
    "same_top_token": ("same likeliest token", "最可能的 token 相同"),
    "parameters": ("adapter parameters", "适配器参数量"),
    # Provenance
    "origin": ("Where it comes from", "来源"),
    "origin_note": ("sha256 of everything each stage read and wrote.", "各阶段全部输入与输出的 sha256。"),
    "versions": ("Versions", "版本"),
    "package": ("package", "软件包"),
    "git_commit": ("git commit", "git 提交"),
    "image": ("image", "镜像"),
    "no_image": ("none: outside a container", "无：未在容器中运行"),
    "unknown": ("unknown", "未知"),
    "differs": (
        "Not every stage ran on these versions, this commit and this image: {stages} differ.",
        "并非所有阶段都使用上述版本、提交和镜像：{stages} 不同。",
    ),
    "left_out": (
        "Also in this run, but nothing that this result was made from: {stages}.",
        "同一运行中还有以下内容，但本结果并非由其产生：{stages}。",
    ),
    "inputs": ("inputs", "输入"),
    "outputs": ("outputs", "输出"),
    "file": ("file", "文件"),
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
    filled = (
        words.format(
            **{name: getattr(slot, language) if isinstance(slot, Text) else slot for name, slot in slots.items()}
        )
        for language, words in zip(LANGUAGES, WORDS[key], strict=True)
    )
    return Text(*filled)


def label(key: str, prefix: str = "") -> Text:
    """The text for a key of metrics.json; a key that is newer than WORDS stands for itself."""
    return text(prefix + key) if prefix + key in WORDS else plain(key.replace("_", " "))
