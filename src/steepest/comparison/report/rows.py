"""Scored rows as a file, as a table on a terminal and as a small page."""

from __future__ import annotations

import csv
import html
import io
from typing import Any

import numpy as np

from ..design.folds import CLASSES
from ..names import OF_NUMBERS, ROW_SCORES
from ..read.inputs import Data
from ..statistics.results import PairedResult
from ..work.row_scores import LeftOut, RowScores

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.2rem .7rem;text-align:left;border-bottom:1px solid #8884}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}@media(prefers-color-scheme:dark)"
    "{body{background:#111;color:#eee}}"
)


def scored_rows(data: Data, scores: RowScores, score: str) -> list[dict[str, Any]]:
    """A dict a row, the most suspicious first: rank and row from 1 on, label, predicted, and each score."""
    names = ROW_SCORES if data.task in CLASSES else OF_NUMBERS
    positions = getattr(data, "positions", np.empty(0))
    rows = []
    for rank, place in enumerate(scores.order(score).tolist(), 1):
        label, predicted = data.target[place], scores.predicted[place]
        rows.append(
            {
                "rank": rank,
                "row": int(positions[place]) + 1 if len(positions) else place + 1,
                "label": data.classes[label] if data.task in CLASSES else float(label),
                "predicted": data.classes[predicted] if data.task in CLASSES else _plain(predicted),
                **{name: _plain(getattr(scores, name)[place]) for name in names},
            }
        )
    return rows


def _plain(value: float) -> float:
    """Six digits."""
    return float(f"{float(value):.6g}")


def rows_csv(rows: list[dict[str, Any]]) -> str:
    """The rows in the order of the file, with their ranks."""
    stream = io.StringIO()
    first = ("row", "label", "predicted")
    writer = csv.DictWriter(stream, [*first, *(name for name in rows[0] if name not in (*first, "rank")), "rank"])
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: row["row"]))
    return stream.getvalue().replace("\r\n", "\n")


def rows_table(rows: list[dict[str, Any]], top: int) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and cells of the first ``top`` rows."""
    cells = [tuple(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()) for row in rows[:top]]
    return tuple(rows[0]), cells


def effect_lines(effect: LeftOut, rows: int) -> list[str]:
    """What leaving rows out did, in sentences.

    Args:
        effect: as measured.
        rows: of a training part.
    """
    label, splits = effect.metric.label, len(effect.everything)
    means = [float(values.mean()) for values in (effect.everything, effect.without, effect.at_random)]
    head = (
        f"held-out {label} over {splits} splits: {means[0]:.4g} with all {rows} rows of a training part, "
        f"{means[1]:.4g} without the {effect.count} most suspicious, {means[2]:.4g} without {effect.count} at random"
    )
    return [
        head,
        f"leaving out the most suspicious: {_change(effect.gain)}",
        f"leaving out as many at random: {_change(effect.gain_at_random)}",
        "labels of held-out rows were left as they are; wrong ones among them count against every way alike",
    ]


def _change(gain: PairedResult) -> str:
    """A difference with its interval, and whether it can be told from none."""
    verdict = "better" if gain.low > 0 else "worse" if gain.high < 0 else "not told apart from all rows"
    return f"{verdict}, {gain.mean:+.4g} [{gain.low:+.4g}, {gain.high:+.4g}] (above 0 is better)"


def rows_page(title: str, lines: list[str], rows: list[dict[str, Any]], top: int) -> str:
    """A page of its own: what was done, and the most suspicious rows; all that users name is escaped."""
    head, cells = rows_table(rows, top)
    numeric = {place for place, name in enumerate(head) if name not in ("label", "predicted")}
    body = "".join(
        "<tr>"
        + "".join(
            f"<td{' class=n' if place in numeric else ''}>{html.escape(cell)}</td>" for place, cell in enumerate(row)
        )
        + "</tr>\n"
        for row in cells
    )
    text = "".join(f"<p>{html.escape(line)}</p>\n" for line in lines)
    columns = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{html.escape(title)}</h1>\n{text}<table><thead><tr>{columns}</tr></thead>\n"
        f"<tbody>\n{body}</tbody></table></body></html>\n"
    )
