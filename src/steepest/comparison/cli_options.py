"""Options of the command line that say how data are read; ``compare`` and ``predict`` share some."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_READING = "Reading files"

Encoding = Annotated[
    str | None, typer.Option(help="Of the file. Default: UTF-8, else cp1252.", rich_help_panel=_READING)
]
Separator = Annotated[
    str | None,
    typer.Option(help="Between cells: one character, tab or blanks. Default: found.", rich_help_panel=_READING),
]
Header = Annotated[
    str, typer.Option(help="Whether the first row holds names: auto, yes or no.", rich_help_panel=_READING)
]
Missing = Annotated[
    str | None,
    typer.Option(
        help="Words that are missing among words, commas between. Default: ?,NA,NaN,nan.", rich_help_panel=_READING
    ),
]
DayFirst = Annotated[
    bool | None, typer.Option("--dayfirst/--monthfirst", help="How 03/04/2024 is read.", rich_help_panel=_READING)
]
Types = Annotated[
    str | None,
    typer.Option(
        help="A file with `column: kind` a line: number, category, date, text or drop.", rich_help_panel=_READING
    ),
]
Positive = Annotated[
    str | None, typer.Option(help="Of two classes the one looked for. Default: the later.", rich_help_panel="Data")
]


def dropped_columns(drop: list[str] | None) -> list[str]:
    """Column names: commas part them, ``@FILE`` holds one a line."""
    from .errors import InputError

    names: list[str] = []
    for word in drop or []:
        if word.startswith("@"):
            try:
                names += [
                    line.strip() for line in Path(word[1:]).read_text(encoding="utf-8").splitlines() if line.strip()
                ]
            except OSError as error:
                raise InputError(f"--drop: cannot read {word[1:]!r}: {error.strerror}") from error
        else:
            names += [column.strip() for column in word.split(",") if column.strip()]
    return names
