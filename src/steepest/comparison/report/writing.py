"""The files of a report: one page, one leaderboard in CSV and Markdown, and all results as JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .files import write_atomically
from .html import report_html
from .tables import leaderboard_csv, leaderboard_markdown, results_json


def write_report(results: dict[str, Any], folder: Path, *, missing: bool = False) -> list[Path]:
    """Write ``report.html``, ``leaderboard.csv``, ``leaderboard.md`` and ``results.json`` into ``folder``.

    All are made before the first is written, and each replaces its predecessor in one step.

    Args:
        results: what a comparison found; missing numbers are None (NaN is taken as missing).
        folder: is made if it does not exist.
        missing: whether only files that are not there are written.

    Returns:
        The paths of the files that were written, the page first.
    """
    folder = Path(folder)
    makers: dict[str, Callable[[dict[str, Any]], str]] = {
        "report.html": report_html,
        "leaderboard.csv": leaderboard_csv,
        "leaderboard.md": leaderboard_markdown,
        "results.json": results_json,
    }
    texts = {name: make(results) for name, make in makers.items() if not (missing and (folder / name).is_file())}
    folder.mkdir(parents=True, exist_ok=True)
    return [write_atomically(folder / name, text) for name, text in texts.items()]
