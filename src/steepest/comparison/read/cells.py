"""From a file to named columns of cells."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from ...core.lazy import late
from ..errors import InputError
from .blocks import IrregularError, Kinds, Layout, NotANumber, read_blocks, read_lines
from .frames import from_frame
from .numbers import is_plain
from .options import ReadOptions
from .raw import Column, RawTable, Text, true
from .sniff import NAMES, Shape, reader, sniff, to_utf8
from .source import excel, open_file, parquet, refuse_other_bytes, unpacked
from .whole import Hashing, read_whole, takes_whole
from .wording import count, show

pd = late("pandas")
pa = late("pyarrow")
pc = late("pyarrow.compute")

Exact = Callable[[list[str]], Collection[int]]
_HEAD = 1 << 18
_PLACES, _LOOK, _RETRIES = 64, 1 << 12, 3
_BINARY = (b"PK\x03\x04", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"PAR1", b"\xd0\xcf\x11\xe0", b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"
_CODE = r"^0\d\d+$"
_TRUTH = r"(?i)^(true|false)$"
_SURE_COMMA = re.compile(r"[+-]?(?:\d+,(?:\d{1,2}|\d{4,})|\d{1,3}(?:\.\d{3})+,\d+|0,\d+)")
_SURE_POINT = re.compile(r"[+-]?(?:\d*\.(?:\d{1,2}|\d{4,})|\d{1,3}(?:,\d{3})+\.\d+|0\.\d+)")


def read_file(path: str | Path, options: ReadOptions | None = None, exact: Exact = lambda names: ()) -> RawTable:
    """Read a table from text (packed or not), Parquet or Excel.

    Args:
        path: the file.
        options: what the caller decided.
        exact: from names to the positions of columns that must keep every character; others may be read as numbers at
            once where they look so throughout.

    Raises:
        InputError: the file is missing, a folder, binary, empty, ragged, or has a header only.
    """
    options = ReadOptions() if options is None else options
    path = Path(path)
    name = show(path.name)
    with open_file(path) as stream:
        start = stream.read(16)
        refuse_other_bytes(start, name)
        if not start.startswith(_BINARY) and options.encoding is None:
            stream.seek(0)
            raw = _streamed(stream, name, options, exact, path)
            if raw is not None:
                return raw
        stream.seek(0)
        data = stream.read()
    sha256 = hashlib.sha256(data).hexdigest()
    data, packed = unpacked(data, name)
    if data.startswith(b"PAR1") or path.suffix.lower() == ".parquet":
        return _of_frame(parquet(data, name), "a Parquet file", sha256)
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        return _of_frame(excel(data, name), "the first sheet of an Excel file", sha256)
    warnings: list[str] = []
    data, encoding = to_utf8(data, name, options.encoding, warnings)
    raw = _streamed(io.BytesIO(data), name, options, exact) or _irregular(data, name, options)
    raw.sha256, raw.warnings = sha256, warnings + raw.warnings
    raw.decisions[0] += "" if encoding == "utf-8" else f", in {encoding}"
    raw.decisions[0] += f", from {packed}" if packed else ""
    return raw


def _of_frame(frame: pd.DataFrame, what: str, sha256: str) -> RawTable:
    raw = from_frame(frame.reset_index(drop=True), what)
    raw.sha256, raw.arrays = sha256, False
    return raw


def _streamed(
    stream: BinaryIO, name: str, options: ReadOptions, exact: Exact, path: Path | None = None
) -> RawTable | None:
    """A table of UTF-8 text that is regular; None where it is not; ``path``: of the file, where it is one."""
    digest = hashlib.sha256()
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    head = _head(stream)
    digest_start = len(_BOM) if head.startswith(_BOM) else 0
    body = head[digest_start:]
    if b"\0" in head:
        return None
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return None
    shape = sniff(text, name, options, whole=len(head) == size)
    names = _names(shape)
    if shape.escapes or shape.separator == " " or len(shape.separator.encode()) > 1:
        return None
    if body.count(b'"') % 2 and len(head) == size:
        return None
    offset = digest_start + _offset(body, shape.skipped + shape.lines)
    end = b"\n" if b"\n" in head or b"\r" not in head else b"\r"
    longest = max((sum(map(len, row)) + len(row) for row in shape.rows), default=0)
    layout = Layout(shape.separator, end, len(names), longest)
    comma = _comma(shape)
    words = set(exact(names))
    if comma == "certain":
        words |= {i for i in range(len(names)) if any("." in row[i] for row in shape.rows)}
    kinds = _kinds(stream, offset, size, shape, layout, words)
    if path is not None and takes_whole(size, layout, kinds):
        try:
            columns, hashing = read_whole(path, offset, shape.skipped + shape.lines, layout, kinds)
            return _table(columns, shape, names, comma, 0, name, hashing)
        except IrregularError:
            pass  # blocks tell in which column a word is
    numeric = set(kinds.numeric)
    for retry in range(_RETRIES + 1):
        digest = hashlib.sha256(head[:offset])
        stream.seek(offset)
        try:
            columns = read_blocks(stream, layout, numeric, kinds.repeated - numeric, size - offset, digest.update)
        except NotANumber as error:
            numeric = numeric - {error.args[0]} if retry < _RETRIES - 1 else set()
            continue
        except IrregularError:
            return None
        return _table(columns, shape, names, comma, 0, name, digest.hexdigest())
    return None


def _irregular(data: bytes, name: str, options: ReadOptions) -> RawTable:
    """A table of UTF-8 text by Python's reader, which knows the line of each row."""
    head = _head(io.BytesIO(data))
    shape = sniff(head.decode(errors="ignore"), name, options, whole=len(head) == len(data))
    names = _names(shape)
    columns, comments = _slow(data, shape, names, name)
    return _table(columns, shape, names, _comma(shape), comments, name, "")


def _table(
    columns: list[Column],
    shape: Shape,
    names: list[str],
    comma: str,
    comments: int,
    name: str,
    sha256: str | Hashing,
) -> RawTable:
    if not len(columns[0]):
        raise InputError(f"{name} has a header and no rows")
    warnings, decisions = list(shape.warnings), list(shape.decisions)
    width, given = len(names), list(shape.names or ())
    while len(given) > 1 and not given[-1] and isinstance(columns[-1], Text) and columns[-1].missing.all():
        names, columns, given = names[:-1], columns[:-1], given[:-1]
        decisions.append(f"column {len(names) + 1} has no name and no cell: left out")
    warnings += [
        f"column {i + 1} has no name: called {show(names[i])}" for i, cell in enumerate(given) if not cell and i
    ]
    separated = f", separated by {NAMES.get(shape.separator, show(shape.separator))}" if width > 1 else ""
    decisions.insert(0, f"read: {count(len(columns[0]), 'row')}, {count(len(names), 'column')}{separated}")
    if comments:
        decisions.append(f"{count(comments, 'line')} of comment inside the table skipped")
    return RawTable(names, columns, shape.names is not None, sha256, comma, decisions=decisions, warnings=warnings)


def _head(stream: BinaryIO) -> bytes:
    """The beginning up to the end of a line; at least a few lines."""
    head = stream.read(_HEAD)
    while head.count(b"\n") + head.count(b"\r") < 8 and (more := stream.read(4 * _HEAD)):
        head += more
    if not stream.read(1):
        return head
    end = max(head.rfind(b"\n"), head.rfind(b"\r")) + 1
    return head[: end or len(head)]


def _names(shape: Shape) -> list[str]:
    """Names of the columns: those of the header, ``Unnamed: 0`` for an empty one, or ``c1 .. cN``."""
    if shape.names is None:
        return [f"c{i + 1}" for i in range(len(shape.rows[0]))]
    names, taken = list(shape.names), set(shape.names)
    for i, cell in enumerate(names):
        if not cell:
            names[i] = f"Unnamed: {i}"
            while names[i] in taken:
                names[i] += "_"
            taken.add(names[i])
    return names


def _comma(shape: Shape) -> str:
    """Whether a comma in a number of this file is a decimal comma."""
    cells = [cell.strip() for row in shape.rows for cell in row]
    commas, points = (
        any(mark in cell and form.fullmatch(cell) for cell in cells)
        for mark, form in ((",", _SURE_COMMA), (".", _SURE_POINT))
    )
    if commas and not points:
        return "certain"
    return "likely" if shape.separator == ";" and not points else "no"


def _offset(data: bytes, lines: int) -> int:
    """Where the lines after the first ``lines`` begin."""
    ends = (match.end() for match in re.finditer(rb"\r\n|\n|\r", data))
    return next(islice(ends, lines - 1, None), len(data)) if lines else 0


def _kinds(stream: BinaryIO, offset: int, size: int, shape: Shape, layout: Layout, words: Collection[int]) -> Kinds:
    """What the columns hold; a small file is looked at whole, another at places all over it.

    Args:
        stream, offset, size, shape, layout: the text, and how its rows are cut.
        words: positions of columns that are not to be read as numbers, whatever they hold.
    """
    step = (size - offset) // _PLACES
    if step <= _LOOK:
        pieces = [(0, size)]
    else:
        pieces = [(k * step, _LOOK) for k in range(_PLACES)]
    lines: list[bytes] = []
    for start, length in pieces:
        stream.seek(offset + start)
        some = stream.read(length).splitlines(keepends=True)
        lines += some[1 if start else 0 : -1 if length < size else None]
    numeric, repeated, wordy = set(), set(), set()
    for i, cells in enumerate(_columns_of(lines, shape, layout)):
        distinct = pc.unique(pc.drop_null(cells))
        if not len(distinct):
            continue
        plain = is_plain(distinct)
        if i not in words and plain.all() and not true(pc.match_substring_regex(distinct, _CODE)).any():
            numeric.add(i)
        if 4 * len(distinct) <= len(cells) - cells.null_count:
            repeated.add(i)
        if not (plain | true(pc.match_substring_regex(distinct, _TRUTH))).all():
            wordy.add(i)
    return Kinds(frozenset(numeric), frozenset(repeated), frozenset(wordy))


def _columns_of(lines: list[bytes], shape: Shape, layout: Layout) -> list[pa.Array]:
    """The cells of lines, by column; those of rows of another width are left out."""
    if all(line.count(b'"') % 2 == 0 for line in lines):  # no cell goes on in the next line
        try:
            return [column.cells for column in read_lines(b"".join(lines), layout)]
        except IrregularError:
            pass
    text = list(io.StringIO(b"".join(lines).decode(errors="ignore"), newline=""))
    rows = [row for row in reader(text, shape.separator, shape.escapes) if len(row) == layout.width]
    return [Text.of(pa.array([row[i] for row in rows], pa.string())).cells for i in range(layout.width)]


def _slow(data: bytes, shape: Shape, names: list[str], name: str) -> tuple[list[Column], int]:
    """Columns by Python's reader, for whatever is irregular; it knows the line of each row."""
    lines = list(io.StringIO(data.decode(), newline=""))[shape.skipped + shape.lines :]
    start, width, comments = shape.skipped + shape.lines, len(names), 0
    _check_quotes(lines, shape, name)
    rows: list[list[str]] = []
    reading = reader(lines, shape.separator, shape.escapes)
    first = start + 1
    try:
        for row in reading:
            if len(row) > 1 or (row and row[0].strip()):
                if len(row) == width:
                    rows.append(row)
                elif row[0].lstrip().startswith("#"):
                    comments += 1
                else:
                    wanted = "as in the header" if shape.names is not None else "as in the first row"
                    raise InputError(f"{name}, line {first}: expected {count(width, 'cell')}, {wanted}, got {len(row)}")
            first = start + reading.line_num + 1
    except csv.Error as error:
        raise InputError(f"{name} cannot be read as CSV: {error}") from None
    cells: Sequence[Sequence[str]] = list(zip(*rows)) or [()] * width
    return [Text.of(pa.array(column, type=pa.string())) for column in cells], comments


def _check_quotes(lines: list[str], shape: Shape, name: str) -> None:
    strict = csv.reader(
        lines,
        delimiter=shape.separator,
        skipinitialspace=True,
        strict=True,
        escapechar="\\" if shape.escapes else None,
    )
    try:
        for _ in strict:
            pass
    except csv.Error as error:
        if "unexpected end" in str(error):
            raise InputError(f"{name}: a quoted cell is opened and never closed") from None
