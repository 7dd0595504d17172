"""The report's texts about what a stage spends its seconds on, in Chinese and in English; words.py takes them in."""

from __future__ import annotations

PHASE_WORDS: dict[str, tuple[str, str]] = {
    "phases": ("时间花在哪里", "Where the time went"),
    "phases_note": (
        "从上一阶段结束算起，以秒计；含开工前的导入与校验，因此合计可略多于上表。",
        "Seconds from the end of the stage before: imports and checks ahead of the work count, so that the sum can be "
        "a little above that of the table.",
    ),
    "phase_import": ("导入", "import"),
    "phase_load": ("加载", "load"),
    "phase_tokenise": ("分词", "tokenise"),
    "phase_compile": ("编译", "compile"),
    "phase_generate": ("生成", "generate"),
    "phase_steps": ("训练步", "steps"),
    "phase_score": ("评分", "score"),
    "phase_save": ("保存", "save"),
    "phase_hash": ("校验", "hash"),
    "phase_other": ("其他", "other"),
}
