"""From a file's bytes to named columns of cells: encoding, separator, header, ragged rows."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import InputError, nearest
from .arrays import from_frame
from .builtin import BUILTIN
from .columns import number
from .raw import MISSING, RawTable, count, show

DELIMITERS = {"\t": "tabs", ";": "semicolons", ",": "commas"}
_SAMPLE = 200


def read_file(path: str | Path) -> RawTable:
    """Read a Parquet file, or CSV or TSV: UTF-8 (latin-1 with a warning), separated by commas, tabs or semicolons.

    A first row without a number and without an empty cell is a header; without one the columns are ``c1 .. cN``.

    Raises:
        InputError: for a file that is missing, a folder, binary, empty, ragged, or has a header only.
    """
    path = Path(path)
    data = _bytes(path)
    name = show(path.name)
    if path.suffix.lower() == ".parquet":
        return _parquet(data, name)
    warnings: list[str] = []
    text = _decode(data, name, warnings)
    delimiter = _sniff(text)
    rows, lines = _rows(text, delimiter, name)
    if not rows:
        raise InputError(f"{name} is empty: expected rows of cells separated by commas, tabs or semicolons")
    _check_ragged(rows, lines, name)
    first = [cell.strip() for cell in rows[0]]
    header = not any(cell in MISSING or number(cell) is not None for cell in first)
    if header:
        rows = rows[1:]
        if not rows:
            raise InputError(f"{name} has a header and no rows")
    columns = [_cells(column) for column in zip(*rows)]
    if header:
        _check_mistaken_header(first, columns, warnings)
    else:
        _check_gap_in_header(first, columns, name)
    separated = f", separated by {DELIMITERS[delimiter]}" if len(columns) > 1 else ""
    decisions = [
        f"read: {count(len(rows), 'row')}, {count(len(columns), 'column')}{separated}",
        "header: the first row (no number, no empty cell)"
        if header
        else f"header: none (the first row has a number or an empty cell); columns are c1 to c{len(columns)}",
    ]
    return RawTable(
        names=first if header else [f"c{i + 1}" for i in range(len(columns))],
        columns=columns,
        header=header,
        sha256=hashlib.sha256(data).hexdigest(),
        decimal_comma=delimiter == ";",
        decisions=decisions,
        warnings=warnings,
    )


def _parquet(data: bytes, name: str) -> RawTable:
    """A Parquet file; its reader is an optional dependency."""
    try:
        frame = pd.read_parquet(io.BytesIO(data))
    except ImportError as error:
        raise InputError(f"{name}: reading Parquet needs pyarrow; pip install 'steepest[parquet]'") from error
    except Exception as error:
        raise InputError(f"{name} is not a Parquet file that can be read: {error}") from error
    raw = from_frame(frame.reset_index(drop=True), name)
    raw.decisions = [f"read: {count(raw.rows, 'row')}, {count(len(raw.names), 'column')} of a Parquet file"]
    raw.sha256 = hashlib.sha256(data).hexdigest()
    return raw


def _bytes(path: Path) -> bytes:
    named = show(path, limit=200)
    try:
        if path.is_dir():
            raise InputError(f"{named} is a folder; expected a CSV or TSV file")
        return path.read_bytes()
    except InputError:
        raise
    except FileNotFoundError:
        folder = path.parent
        beside = [p.name for p in folder.iterdir() if p.is_file()] if folder.is_dir() else []
        hint = nearest(path.name, [*BUILTIN, *beside])
        raise InputError(f"no file {named}{hint or '; built-in names are ' + ', '.join(BUILTIN)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot read {named}: {reason}") from None


def _decode(data: bytes, name: str, warnings: list[str]) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{name} is UTF-16 text; expected UTF-8: save it as 'CSV UTF-8'")
    if b"\0" in data:
        raise InputError(f"{name} is a binary file (it has NUL bytes); expected CSV or TSV text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        control = sum(data.count(bytes([c])) for c in range(32) if c not in (9, 10, 11, 12, 13, 26))
        if control:
            raise InputError(f"{name} is a binary file (undecodable at byte {error.start}); expected text") from None
        warnings.append(f"{name} is not UTF-8 (byte {error.start}): read as latin-1")
        return data.decode("latin-1")


def _parse(text: str, delimiter: str, strict: bool, limit: int | None = None) -> tuple[list[list[str]], list[int]]:
    """Rows of cells with the line each one starts on; blank lines are left out."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=strict)
    rows, lines, start = [], [], 1
    for row in reader:
        if len(row) > 1 or (row and row[0].strip()):
            rows.append(row)
            lines.append(start)
            if len(rows) == limit:
                break
        start = reader.line_num + 1
    return rows, lines


def _rows(text: str, delimiter: str, name: str) -> tuple[list[list[str]], list[int]]:
    try:
        return _parse(text, delimiter, strict=True)
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise InputError(f"{name}: a quoted cell is opened and never closed") from None
    try:  # text after a closing quote is tolerated
        return _parse(text, delimiter, strict=False)
    except csv.Error as error:
        raise InputError(f"{name} cannot be read as CSV: {error}") from None


def _sniff(text: str) -> str:
    """The first of tab, semicolon, comma that cuts all rows into one number of cells; else the one that cuts most."""
    widths = {}
    for delimiter in DELIMITERS:
        try:
            rows, _ = _parse(text, delimiter, strict=False, limit=_SAMPLE)
        except csv.Error:
            continue
        counts = Counter(len(row) for row in rows)
        if len(counts) == 1 and min(counts) > 1:
            return delimiter
        widths[delimiter] = max(counts, default=1)
    return max(widths, key=lambda d: (widths[d], d == ",")) if max(widths.values(), default=1) > 1 else ","


def _check_ragged(rows: Sequence[list[str]], lines: Sequence[int], name: str) -> None:
    width = len(rows[0])
    for row, line in zip(rows, lines):
        if len(row) != width:
            raise InputError(
                f"{name}, line {line}: expected {count(width, 'cell')}, as in the first row, got {len(row)}"
            )


def _cells(column: Sequence[str]) -> np.ndarray:
    out = np.empty(len(column), dtype=object)
    out[:] = [None if (s := cell.strip()) in MISSING else s for cell in column]
    return out


def _check_mistaken_header(first: Sequence[str], columns: Sequence[np.ndarray], warnings: list[str]) -> None:
    """A text table without a header loses its first row to the rule: say so where the row looks like data."""
    seen = [cell in set(column) for cell, column in zip(first, columns)]
    if len(seen) > 1 and 2 * sum(seen) > len(seen):
        warnings.append(
            "the first row was taken as the header, but its words also occur below it: is it a row of data?"
        )


def _check_gap_in_header(first: Sequence[str], columns: Sequence[np.ndarray], name: str) -> None:
    """A header with an empty cell (an unnamed index, say) would turn every column into text."""
    gaps = [i + 1 for i, cell in enumerate(first) if cell in MISSING]
    if not gaps or any(number(cell) is not None for cell in first):
        return
    for cell, column in zip(first, columns):
        below = [c for c in column[1:] if c is not None]
        if cell not in MISSING and below and all(number(c) is not None for c in below):
            raise InputError(
                f"{name}: the first row looks like a header, but its cell {gaps[0]} is empty: name that column"
            )
