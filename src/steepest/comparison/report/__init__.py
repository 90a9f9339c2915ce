"""The report of a comparison: one page, one leaderboard in CSV and Markdown, and all results as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steepest.comparison.report.files import write_atomically
from steepest.comparison.report.html import report_html
from steepest.comparison.report.tables import leaderboard_csv, leaderboard_markdown, results_json

__all__ = ["leaderboard_csv", "leaderboard_markdown", "report_html", "results_json", "write_report"]


def write_report(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write ``report.html``, ``leaderboard.csv``, ``leaderboard.md`` and ``results.json`` into ``folder``.

    All four are made before the first is written, and each replaces its predecessor in one step.

    Args:
        results: what a comparison found; missing numbers are None (NaN is taken as missing).
        folder: is made if it does not exist.

    Returns:
        The paths of the four files, the page first.
    """
    folder = Path(folder)
    texts = {
        "report.html": report_html(results),
        "leaderboard.csv": leaderboard_csv(results),
        "leaderboard.md": leaderboard_markdown(results),
        "results.json": results_json(results),
    }
    folder.mkdir(parents=True, exist_ok=True)
    return [write_atomically(folder / name, text) for name, text in texts.items()]
