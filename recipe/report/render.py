"""The two templates, filled with what a report shows.

Whatever enters an output passes through the environment's `finalize`, which replaces what cannot be printed; then it is
escaped, for HTML by Jinja, for Markdown by `escape`. A template need not think of either, and nothing that stands in a
value is read as a template.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from recipe.evaluation.metrics import METRICS
from recipe.report.presenter import Report
from recipe.report.words import LANG, text

TEMPLATES = Path(__file__).parent / "templates"
# Control characters, halves of surrogate pairs, no characters at all, and marks that turn the reading direction around.
UNPRINTABLE = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\ud800-\\udfff\\ufffe\\uffff\\u202a-\\u202e\\u2066-\\u2069]"
)


def printable(value: str) -> str:
    """Replace what a page cannot hold by U+FFFD, so that it is seen."""
    return UNPRINTABLE.sub("\ufffd", value)


def escape(value: str) -> str:
    """Write a text as Markdown that shows as itself: no markup, no new cell or line, no mention, no link.

    Args:
        value: any text.

    Returns:
        One line of Markdown, printable.
    """
    value = re.sub(r"\s+", " ", printable(value)).strip()
    value = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    value = re.sub(r"([\\`*_{}\[\]()|~!$])", r"\\\1", value)
    value = re.sub(r"([@#])", "\\1\u200b", value)
    return re.sub(r"(?i)(https?|www)(?=:|\.)", "\\1\u200b", value)


def _environment(finalize: Callable[[str], str]) -> Environment:
    """Templates whose every value passes through `finalize`, except markup; a name without a value is an error."""

    def enter(value: object) -> str:
        return value if isinstance(value, Markup) else finalize(str(value))

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True, finalize=enter,
    )  # fmt: skip
    environment.globals |= {"text": text, "LANG": LANG, "METRICS": METRICS}
    environment.filters["fmt"] = format  # Python's own: 1234 | fmt(",") is 1,234
    return environment


HTML = _environment(printable)
MARKDOWN = _environment(lambda value: Markup(escape(value)))  # noqa: S704 - Markdown's escape, so not HTML's again


def page(report: Report) -> str:
    """index.html: the whole report in one file, in two languages, without any request to a network.

    Args:
        report: what is shown.

    Returns:
        The HTML, with page.css and page.js in it and a policy that lets no other script run.
    """
    style, script = ((TEMPLATES / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return HTML.get_template("index.html.jinja").render(
        report=report,
        style=Markup(style),  # noqa: S704 - a file of ours
        script=Markup(script),  # noqa: S704 - a file of ours
        digest=base64.b64encode(sha256(script.encode()).digest()).decode(),
    )


def markdown(report: Report) -> str:
    """report.md: the same for a pull request, both languages side by side.

    Args:
        report: what is shown.

    Returns:
        The Markdown, short enough for a comment on GitHub.
    """
    return MARKDOWN.get_template("report.md.jinja").render(report=report).strip() + "\n"
