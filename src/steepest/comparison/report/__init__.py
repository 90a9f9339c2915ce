"""Last stage of a comparison, from results to what people read and use.

Comes in: the results of a verdict, and the run that they are of.
Goes out: a page, a leaderboard, the results as JSON, tables on the terminal, a saved winner; in Python a Comparison.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.lazy import lazily

if TYPE_CHECKING:
    from .html import report_html
    from .tables import leaderboard_csv, leaderboard_markdown, results_json
    from .writing import write_report

_HOMES = {
    "leaderboard_csv": "tables",
    "leaderboard_markdown": "tables",
    "report_html": "html",
    "results_json": "tables",
    "write_report": "writing",
}
__all__ = ["leaderboard_csv", "leaderboard_markdown", "report_html", "results_json", "write_report"]

__getattr__, __dir__ = lazily(__name__, _HOMES)
