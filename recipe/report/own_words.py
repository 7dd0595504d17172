"""The report's texts about the user's own rows, in Chinese and in English; words.py takes them in."""

from __future__ import annotations

OWN_WORDS: dict[str, tuple[str, str]] = {
    "own_hit": ("自备数据命中", "Your own rows"),
    "own_hit_is": (
        "你的问题中，按自备数据作答的比例：数字相同，文字基本一致",
        "Your questions answered as your rows answer them: the same numbers, and nearly the same words",
    ),
    "own_held_out": (
        "你的问题中有 {count} 个换成了没训练过的问法，其余按原样提问。",
        "{count} of your questions were asked in a wording that was not trained on, the others as in your rows.",
    ),
    "why_own_hit": (
        "它没有按自备数据作答：请在数据里增加问法，或增加步数（SET='max_iters=…'；miniature 用 max_epochs=…）。",
        "It does not answer your questions as your rows do: more wordings of them in the data, or more steps "
        "(SET='max_iters=…', or max_epochs=… with the miniature).",
    ),
    "taught_prompts": (
        "有 {count} 个问题不计泄漏：自备数据正是用名字回答它们的。",
        "No leak is counted for {count} prompts that ask what your own rows answer with the name.",
    ),
    "identity_not_judged": (
        "名字相关的指标不作判定：训练数据没有教名字。",
        "The name is not judged: no training row says it.",
    ),
    "not_learnt": ("未学会", "not learnt"),
    "kind_own": ("自备数据", "your own rows"),
    "rows_own": ("自备数据行数", "rows of your own data"),
    "own_passes": ("每行自备数据的训练遍数", "times each of your rows is seen"),
}
