"""Stage `report`: what a run came to, as one HTML page and as Markdown for a pull request.

It reads manifests, scores, losses and rows, and measures nothing itself. The page is one file that asks the network for
nothing, so that it can be sent around and read years later. The same inputs give the same bytes: no date, no path of
this machine.

    facts.py     what the folders of a run say, checked to belong together
    words.py     every text in English and Chinese
    markup.py    elements, escaped by construction
    charts.py    curves as inline SVG
    page.py      index.html, with page.css and page.js
    markdown.py  report.md
"""

from __future__ import annotations

from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from recipe.evaluation import thresholds
from recipe.pipeline import stage
from recipe.pipeline.results import ReportResults
from recipe.report import facts, markdown, page

PAGE, MARKDOWN = "index.html", "report.md"
_SOURCES = sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in (".py", ".css", ".js"))


def make(folder: Path, *, run_folder: Path) -> stage.Manifest:
    """Write the report on the run in `run_folder`. RecipeError: nothing was evaluated, or something else than lies
    there."""
    gathered = facts.gather(run_folder)

    def work(out: Path) -> ReportResults:
        (out / PAGE).write_text(page.render(gathered), encoding="utf-8")
        (out / MARKDOWN).write_text(markdown.render(gathered), encoding="utf-8")
        return ReportResults(passed=gathered.passed, stages=list(gathered.stages), left_out=list(gathered.left_out))

    # A newer recipe draws another page, and other thresholds give another verdict, of the same inputs.
    code = sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()
    verdict = [asdict(check) for check in thresholds.verdict(gathered.metrics["tuned"])]
    settings = {"run": gathered.run, "code": code, "verdict": verdict}
    return stage.run("report", folder, inputs=gathered.sources, settings=settings, work=work)
