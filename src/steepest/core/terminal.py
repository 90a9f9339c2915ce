"""Text for a terminal: tables and lines that wrap between words, so that a name stays whole and can be copied."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence

GAP = "  "


def screen_width() -> int | None:
    """The columns of the terminal on standard output, or None where it is a file or a pipe: rows stay lines there."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrapped(text: str, width: int | None, *, indent: str = "") -> list[str]:
    """A text as lines of at most ``width`` columns, cut between words; a longer word stays whole on its line.

    Args:
        text: its own leading blanks are kept, and repeated on every line.
        width: None leaves it one line.
        indent: before every line but the first.

    >>> wrapped("  choosing helps a little", 14, indent="  ")
    ['  choosing', '    helps a', '    little']
    """
    if width is None or len(text) <= width:
        return [text]
    lead = text[: len(text) - len(text.lstrip())]
    lines = textwrap.wrap(
        text.strip(),
        width,
        initial_indent=lead,
        subsequent_indent=lead + indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines or [""]


def say(text: str) -> None:
    """Print a line, wrapped on a terminal."""
    print("\n".join(wrapped(text, screen_width(), indent=GAP)), flush=True)


def paragraphs(text: str) -> str:
    """A docstring as paragraphs of one line each, for whoever wraps them by the width of a terminal.

    >>> paragraphs("One\\n    line.\\n\\n    Another.")
    'One line.\\n\\nAnother.'
    """
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def table_lines(
    head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None, *, right: Collection[int] = ()
) -> list[list[str]]:
    """The lines of the head and of each row: columns side by side, cells wrapped between words.

    The first column is what one copies into the next command: it is never wrapped. Where the longest words of all
    columns have no room side by side, each row becomes a block: its first cell, and below it the others by name.

    Args:
        head: the names of the columns.
        rows: the cells.
        width: columns of the terminal; None where there is none.
        right: places of columns of numbers, which stand at the right.

    >>> table_lines(("name", "said"), [("ldr", "it helps a lot")], 14)
    [['name  said'], ['ldr   it helps', '      a lot']]
    >>> table_lines(("name", "said"), [("a-long-name", "it helps")], 14)
    [[], ['a-long-name', '  said: it', '  helps']]
    >>> table_lines(("name", "said"), [("ldr", "it helps a lot")], None)
    [['name  said'], ['ldr   it helps a lot']]
    """
    widths = _column_widths([head, *rows], width)
    if widths is None:
        return [[], *(_block(head, row, width or 0) for row in rows)]
    return [_row_lines(row, widths, right) for row in (head, *rows)]


def _column_widths(rows: Sequence[Sequence[str]], width: int | None) -> list[int] | None:
    columns = list(zip(*rows))
    widths = [max(map(len, column)) for column in columns]
    if width is None:
        return widths
    least = [widths[0], *(max(len(word) for cell in column for word in [*cell.split(), ""]) for column in columns[1:])]
    room = width - len(GAP) * (len(widths) - 1)
    if sum(least) > room:
        return None
    while sum(widths) > room:
        widest = max((place for place in range(len(widths)) if widths[place] > least[place]), key=widths.__getitem__)
        widths[widest] -= 1
    return widths


def _row_lines(row: Sequence[str], widths: Sequence[int], right: Collection[int]) -> list[str]:
    cells = [wrapped(cell.strip(), width) for cell, width in zip(row, widths)]
    height = max(map(len, cells))
    padded = [cell + [""] * (height - len(cell)) for cell in cells]
    aligned = [str.rjust if place in right else str.ljust for place in range(len(widths))]
    return [GAP.join(a(t, w) for a, t, w in zip(aligned, texts, widths)).rstrip() for texts in zip(*padded)]


def _block(head: Sequence[str], row: Sequence[str], width: int) -> list[str]:
    cells = [f"{name}: {cell}" if name.strip() else cell for name, cell in zip(head[1:], row[1:]) if cell.strip()]
    return [row[0], *wrapped(GAP + GAP.join(cells), width)] if cells else [row[0]]


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under a head, bold on a terminal; without a head where all its words are empty."""
    width = screen_width()
    first, *others = table_lines(head, rows, width)
    for line in first if any(head) else ():
        print(f"\x1b[1m{line}\x1b[0m" if width is not None else line)
    for line in (line for lines in others for line in lines):
        print(line)
