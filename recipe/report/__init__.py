"""Stage `report`: what a run came to, as one HTML page and as Markdown for a pull request.

It reads manifests, scores, losses and rows, and measures nothing itself. The page is one file that asks the network for
nothing, so that it can be sent around and read years later. The same inputs give the same bytes: no date, no path of
this machine.

    facts.py       what the folders of a run say, checked to belong together
    presenter.py   what is shown of it, gathered once: the result
    numbers.py     the same: the numbers and the checkpoints
    background.py  the same: how the result came about
    charts.py      geometry of the curves
    words.py       every text in English and Chinese
    render.py      the templates' environment: printable, escaped, nothing left undefined
    templates/     index.html.jinja with charts.svg.jinja, page.css and page.js; report.md.jinja
"""

from __future__ import annotations

from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from recipe.evaluation import thresholds
from recipe.pipeline import stage
from recipe.pipeline.results import ReportResults
from recipe.report import facts, presenter, render

PAGE, MARKDOWN = "index.html", "report.md"
_SOURCES = sorted(path for path in Path(__file__).parent.rglob("*") if path.suffix in (".py", ".jinja", ".css", ".js"))


def make(folder: Path, *, run_folder: Path) -> stage.Manifest:
    """Write the report on the run in `run_folder`. RecipeError: nothing was evaluated, or something else than lies
    there."""
    gathered = facts.gather(run_folder)

    def work(out: Path) -> ReportResults:
        report = presenter.present(gathered)
        (out / PAGE).write_text(render.page(report), encoding="utf-8")
        (out / MARKDOWN).write_text(render.markdown(report), encoding="utf-8")
        return ReportResults(passed=gathered.passed, stages=list(gathered.stages), left_out=list(gathered.left_out))

    # A newer recipe draws another page, and other thresholds give another verdict, of the same inputs.
    code = sha256(b"".join(path.read_bytes() for path in _SOURCES)).hexdigest()
    verdict = [asdict(check) for check in thresholds.verdict(gathered.metrics.tuned)]
    settings = {"run": gathered.run, "code": code, "verdict": verdict}
    return stage.run("report", folder, inputs=gathered.sources, settings=settings, work=work)
