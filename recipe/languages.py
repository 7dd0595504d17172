"""The languages of data and prompts, and which of them LANGUAGES= names."""

from __future__ import annotations

from recipe.errors import RecipeError

# What each language calls itself. Wherever texts stand in every language, they stand in this order.
NAMES = {"zh": "中文", "en": "English"}
LANGUAGES = tuple(NAMES)


def parse_languages(text: str) -> tuple[str, ...]:
    """The languages that LANGUAGES= names.

    Args:
        text: language codes between commas, such as "en" or "zh,en".

    Returns:
        Some of `LANGUAGES` in their order, whatever the order of the text.

    Raises:
        RecipeError: the text names none, or a language that data and prompts do not have.
    """
    named = {part.strip() for part in text.split(",")}
    if unknown := sorted(named - set(LANGUAGES)):
        raise RecipeError(
            f"LANGUAGES={text}: {unknown[0]!r} is none of {', '.join(LANGUAGES)}; for example LANGUAGES=en"
        )
    return tuple(language for language in LANGUAGES if language in named)
