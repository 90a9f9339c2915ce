"""The terminal's view of a run: curves, the last readings and alarms, drawn again while the run writes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from ..core.curves import plot_lines
from ..core.terminal import screen_width, table_lines
from .journal import RunRecord, read_run
from .page import compact, running_median, sentence, thinned

READINGS, NOTES = 24, 6
"""Most numbers and alarms on the screen."""


def run_text(record: RunRecord, width: int = 80, height: int = 12) -> str:
    """A run as text: what it did, its loss, the last readings, the last alarms.

    Args:
        record: of the run.
        width: columns.
        height: lines of the curve.
    """
    lines = [f"run {record.name}" + ("" if record.ended else "  (goes on)"), sentence(record), ""]
    steps, values = record.losses
    if values:
        window = max(1, min(50, len(values) // 20))
        x, y = thinned(steps, running_median(values, window))
        positive = [v for v in y if math.isfinite(v)]
        logarithmic = bool(positive) and min(positive) > 0 and max(positive) > 30 * min(positive)
        title = "loss, running median" + (", log10" if logarithmic else "")
        drawn = [math.log10(v) if math.isfinite(v) else v for v in y] if logarithmic else y
        lines += [title, *plot_lines(x, drawn, width=max(20, width - 12), height=height), ""]
    rows = []
    for name, (at, numbers) in sorted(record.series.items())[:READINGS]:
        finite = [v for v in numbers if math.isfinite(v)]
        least, largest = (compact(f(finite)) if finite else "" for f in (min, max))
        rows.append([name, str(at[-1]), compact(numbers[-1]), least, largest])
    if rows:
        head = ["number", "step", "last", "least", "largest"]
        lines += ["\n".join(row) for row in table_lines(head, rows, width, right={1, 2, 3, 4})]
        if len(record.series) > READINGS:
            lines.append(f"and {len(record.series) - READINGS} more: see the page")
        lines.append("")
    for note in record.notes[-NOTES:]:
        cause = note.get("cause", note.get("text", ""))
        words = ", ".join(map(str, cause)) if isinstance(cause, list) else str(cause)
        lines.append(
            f"step {note.get('step', '?')}: {str(note.get('action', note['kind'])).replace('_', ' ')}: {words}"
        )
    return "\n".join(lines).rstrip()


def follow(
    path: Path, *, seconds: float = 2.0, draw: Callable[[str], None], until: Callable[[], bool] = lambda: False
) -> RunRecord:
    """Draw a run again and again until it says that it has ended.

    Args:
        path: of its file or folder.
        seconds: between two drawings.
        draw: shows a text.
        until: whether to stop although the run goes on.
    """
    while True:
        record = read_run(path)
        draw(run_text(record, screen_width() or 80))
        if record.ended or until():
            return record
        time.sleep(seconds)
