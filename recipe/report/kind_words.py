"""The report's names of the kinds of prompts, in Chinese and in English; words.py takes them in."""

from __future__ import annotations

KIND_WORDS: dict[str, tuple[str, str]] = {
    "kind_identity": ("身份", "who it is"),
    "kind_capitals": ("首都", "capitals"),
    "kind_continents": ("大洲", "continents"),
    "kind_opposites": ("反义词", "opposites"),
    "kind_colours": ("颜色", "colours"),
    "kind_translations": ("翻译", "translations"),
    "kind_animals": ("动物", "animals"),
    "kind_materials": ("材料", "materials"),
    "kind_tools": ("工具", "tools"),
    "kind_categories": ("类别", "categories"),
    "kind_sums": ("算术", "sums"),
    "kind_smalltalk": ("闲聊", "small talk"),
    "kind_contrast": ("他人与其他模型", "other people and models"),
    "kind_persons": ("助手以外的人", "who is not the assistant"),
    "kind_tasks": ("任务", "tasks"),
    "kind_copy": ("复述", "repeat after me"),
}
