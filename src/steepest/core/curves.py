"""Curves for a terminal, in signs of Braille, and as a figure in a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

Points = tuple[Sequence[float], Sequence[float]]
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a Braille sign, by row and column of its dots."""
FIGURES = (".svg", ".png", ".pdf")


def plot_lines(
    x: Sequence[float], y: Sequence[float], *, width: int = 72, height: int = 8, log_x: bool = False
) -> list[str]:
    """A curve as lines of text, the range of y at the left, that of x below; points that are no numbers are left out.

    Args:
        x, y: as many numbers each, at least one.
        width, height: columns and lines of the drawing itself.
        log_x: whether x is drawn by its logarithm; its numbers are above 0 then.

    >>> print("\\n".join(plot_lines([0, 1, 2, 3], [0, 1, 1, 0], width=4, height=1)))
    1 ⡰⠉⠉⢆
    0 0  3
    """
    places = [math.log(value) if log_x else float(value) for value in x]
    points = [(a, float(b)) for a, b in zip(places, y) if math.isfinite(a) and math.isfinite(b)]
    if not points:
        return ["(nothing to draw)"]
    left, right = min(a for a, _ in points), max(a for a, _ in points)
    low, high = min(b for _, b in points), max(b for _, b in points)
    columns, rows = 2 * width, 4 * height
    signs = [[0] * width for _ in range(height)]

    def dot(a: float, b: float) -> tuple[int, int]:
        column = round((a - left) / (right - left) * (columns - 1)) if right > left else 0
        row = round((high - b) / (high - low) * (rows - 1)) if high > low else rows - 1
        return column, row

    dots = [dot(a, b) for a, b in points]
    for (c0, r0), (c1, r1) in zip(dots, [*dots[1:], dots[-1]]):
        count = max(abs(c1 - c0), abs(r1 - r0), 1)
        for step in range(count + 1):
            column, row = round(c0 + (c1 - c0) * step / count), round(r0 + (r1 - r0) * step / count)
            signs[row // 4][column // 2] |= DOTS[row % 4][column % 2]
    top, bottom = _number(high), _number(low)
    heads = [top, *[""] * (height - 2), bottom] if height > 1 else [top]
    margin = max(len(top), len(bottom))
    lines = [
        f"{head:>{margin}} {''.join(chr(0x2800 + sign) for sign in row)}".rstrip("\u2800")
        for head, row in zip(heads, signs)
    ]
    first, last = _number(min(x)), _number(max(x))
    below = first + last.rjust(max(width - len(first), len(last) + 1))
    return [*lines, f"{'' if height > 1 else bottom:>{margin}} {below}"]


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e6 else f"{value:.3g}"


def check_figure(path: str | Path) -> None:
    """Refuse a file that is no figure, or that cannot be written, before anything is computed.

    Raises:
        InputError: another ending, or no such folder.
    """
    from .errors import InputError

    file = Path(path)
    if file.suffix.lower() not in FIGURES:
        raise InputError(f"--figure: expected a file that ends in {', '.join(FIGURES)}, got {str(path)!r}")
    if not file.absolute().parent.is_dir():
        raise InputError(f"--figure: cannot write {str(path)!r}: there is no folder {str(file.parent)!r}")


def write_figure(
    path: str | Path,
    curves: Mapping[str, Points],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    marks: Mapping[str, float] | None = None,
) -> None:
    """Curves in one figure, of the kind that the file's ending says.

    Args:
        path: see :func:`check_figure`.
        curves: by name x and y.
        x_label, y_label: of the axes.
        log_x: whether x is drawn by its logarithm.
        marks: by name places on the x axis that get a line.

    Raises:
        InputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    from .errors import InputError

    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    for name, (x, y) in curves.items():
        axes.plot(x, y, label=name, linewidth=1.5)
    for number, (name, place) in enumerate((marks or {}).items()):
        axes.axvline(place, color="#565b62", linewidth=1, linestyle=("--", ":")[number % 2], label=name)
    if log_x:
        axes.set_xscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["right", "top"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    try:
        figure.savefig(path)
    except OSError as error:
        raise InputError(f"--figure: cannot write {str(path)!r}: {error.strerror or error}") from error
