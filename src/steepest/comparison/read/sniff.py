"""What a text file's first lines say about it: encoding, comments, separator, quotes, header."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections import Counter
from dataclasses import dataclass, field

from ..errors import InputError
from .numbers import MISSING_IN_NUMBERS, rough_number
from .options import ReadOptions
from .source import refuse_other_text
from .wording import count, listing

NAMES = {"\t": "tabs", ";": "semicolons", "|": "pipes", ",": "commas", " ": "blanks"}
_ORDER = ("\t", ";", "|", ",")
_ROWS = 200
_MARKS = [
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
_COMMENT = re.compile(r"\s*(?:#(?!N/A|NUM!|VALUE!|DIV/0!|REF!|NULL!|NAME\?)|%|//)")
"""How a line of comment begins; the words of spreadsheets for errors begin no comment."""


@dataclass
class Shape:
    """How a text is cut into cells.

    Attributes:
        separator: between cells; a blank stands for any run of blanks and tabs.
        escapes: whether a backslash takes the meaning from a quote.
        skipped: how many lines lie above the first row.
        comments: how many of them are comments.
        names: of the header, or None.
        lines: how many lines the header takes.
        rows: the first rows below it, as cells.
        decisions, warnings: a line each.
    """

    separator: str
    escapes: bool = False
    skipped: int = 0
    comments: int = 0
    names: list[str] | None = None
    lines: int = 0
    rows: list[list[str]] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def to_utf8(data: bytes, name: str, encoding: str | None, warnings: list[str]) -> tuple[bytes, str]:
    """A file's bytes as UTF-8 without a byte order mark, and the name of the encoding that it had.

    Raises:
        InputError: the bytes are not text, or not in ``encoding``.
    """
    if encoding is None:
        encoding = next((kind for mark, kind in _MARKS if data.startswith(mark)), None) or _wide(data)
    if encoding is None and b"\0" in data:
        raise InputError(f"{name} is a binary file (it has NUL bytes); expected CSV or TSV text")
    kind = codecs.lookup(encoding or "utf-8").name
    if kind == "utf-8":
        data = data.removeprefix(codecs.BOM_UTF8)
        wrong = _first_wrong(data)
        if wrong is None:
            return data, kind
        if encoding is not None:
            raise InputError(f"{name} is not UTF-8 (byte {wrong}): try --encoding cp1252 or another")
        control = sum(data.count(bytes([c])) for c in range(32) if c not in (9, 10, 11, 12, 13, 26))
        if control:
            raise InputError(f"{name} is a binary file (undecodable at byte {wrong}); expected text")
        kind = "latin-1" if re.search(rb"[\x81\x8d\x8f\x90\x9d]", data) else "cp1252"
        warnings.append(f"{name} is not UTF-8 (byte {wrong}): read as {kind}; --encoding names another")
    try:
        return data.decode(kind).removeprefix("\ufeff").encode(), kind
    except (UnicodeError, LookupError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{name} is not {kind}: {reason}; --encoding names another") from None


def _first_wrong(data: bytes) -> int | None:
    """Where the first byte is that UTF-8 forbids; reads in pieces, so that no second copy is made."""
    if data.isascii():
        return None
    decoder, step = codecs.getincrementaldecoder("utf-8")(), 1 << 20
    for start in range(0, len(data), step):
        try:
            decoder.decode(data[start : start + step], final=start + step >= len(data))
        except UnicodeDecodeError as error:
            return start + error.start
    return None


def _wide(data: bytes) -> str | None:
    """UTF-16 without a mark: in the beginning most of every other byte is zero, and none of those between."""
    head = data[:1000]
    for start, kind in ((1, "utf-16-le"), (0, "utf-16-be")):
        high, low = head[start::2], head[1 - start :: 2]
        if len(high) > 1 and 2 * high.count(0) > len(high) and not low.count(0):
            return kind
    return None


def sniff(head: str, name: str, options: ReadOptions, whole: bool) -> Shape:
    """Decide how a text is cut, from its beginning.

    Args:
        head: the first lines.
        name: of the file, for errors.
        options: what the caller decided.
        whole: whether ``head`` is everything.

    Raises:
        InputError: the file is empty, or has a header only.
    """
    refuse_other_text(head, name)
    lines = list(io.StringIO(head, newline=""))
    if not whole and len(lines) > 1:
        lines = lines[:-1]
    decisions: list[str] = []
    separator, skipped = options.separator, 0
    said = re.match(r'^"?sep=(.)"?\s*$', lines[0]) if lines else None
    if said:
        separator, skipped = separator or said[1], 1
        decisions.append(f"the line sep={said[1]} names the separator")
    while skipped < len(lines) and not lines[skipped].strip():
        skipped += 1
    above, comments = _comments(lines[skipped:], separator)
    skipped += above
    if comments:
        decisions.append(f"{count(comments, 'line')} of comment above the table skipped")
    above, titles = _titles(lines[skipped:], separator)
    skipped += above
    if above:
        decisions.append(f"above the table skipped: {listing(titles) if titles else 'rows of empty cells'}")
    body = lines[skipped:]
    shape = _cut(body, separator, name)
    shape.skipped, shape.comments = skipped, comments
    if not shape.rows:
        raise InputError(f"{name} is empty: expected rows of cells separated by commas, tabs or semicolons")
    rows, starts = shape.rows, _line_counts(body, shape)
    first = [cell.strip() for cell in rows[0]]
    widths = Counter(len(row) for row in rows[1:])
    named = None
    if len(widths) == 1 and len(first) + 1 in widths and options.header is not False:
        if any(row[-1].strip() for row in rows[1:]):  # R writes names of rows without a name of their column
            first, named = ["", *first], "one cell fewer than the rows below"
        else:
            first = [*first, ""]
    below = [[row[i].strip() for row in rows[1:] if len(row) == len(first)] for i in range(len(first))]
    header, why = is_header(first, below)
    if options.header is not None:
        header, why = options.header, "as asked"
    elif named and not any(rough_number(cell) is not None for cell in first):
        header, why = True, named
    shape.decisions = decisions
    if not header:
        decisions.append(f"header: none ({why}); columns are c1 to c{len(first)}")
        return shape
    shape.names, shape.lines, shape.rows = first, starts, rows[1:]
    decisions.append(f"header: the first row ({why})")
    if shape.names and shape.names[0].startswith("#") and len(shape.names[0]) > 1:
        shape.names[0] = shape.names[0].lstrip("# ")
    if not shape.rows and whole:
        raise InputError(f"{name} has a header and no rows")
    seen = [bool(cell) and cell in set(column) for cell, column in zip(first, below)]
    if len(seen) > 1 and 2 * sum(seen) > len(seen):
        shape.warnings.append(
            "the first row was taken as the header, but its words also occur below it: is it a row of data? "
            "--header no says so"
        )
    return shape


def _comments(lines: list[str], separator: str | None) -> tuple[int, int]:
    """How many lines above the table hold comments (or nothing); a header that begins with # is none."""
    above = comments = 0
    for line in lines:
        if not line.strip():
            above += 1
        elif _COMMENT.match(line):
            above, comments = above + 1, comments + 1
        else:
            break
    if not comments or above == len(lines):
        return 0, 0
    last = max(i for i in range(above) if lines[i].strip())
    shape = _cut(lines[above:], separator, "")
    cells = _parse([lines[last]], shape.separator, shape.escapes)
    rows = shape.rows
    if rows and cells and len(cells[0]) == len(rows[0]) > 1:
        first = [cell.strip() for cell in rows[0]]
        below = [[row[i].strip() for row in rows[1:] if len(row) == len(first)] for i in range(len(first))]
        if not is_header(first, below)[0]:
            return last, comments - 1
    return above, comments


def _titles(lines: list[str], separator: str | None) -> tuple[int, list[str]]:
    """How many lines above the header hold a title or nothing, and the titles: one cell where the rows have several.

    >>> _titles(["Sales of a year\\n", ",,\\n", "x,k,y\\n", "1,2,a\\n", "3,4,b\\n"], None)
    (2, ['Sales of a year'])
    """
    shape = _cut(lines, separator, "")
    usual = Counter(len(row) for row in shape.rows).most_common(1)
    if not usual or usual[0][0] < 3:
        return 0, []
    titles: list[str] = []
    above, reading = 0, reader(lines, shape.separator, shape.escapes)
    for row in reading:
        filled = [cell.strip() for cell in row if cell.strip()]
        if len(filled) > 1 or (filled and not row[0].strip()):
            break
        titles += filled
        above = reading.line_num
    rows = _parse(lines[above:], shape.separator, shape.escapes, _ROWS) if above else []
    if not rows or len(rows[0]) != usual[0][0]:
        return 0, []
    first = [cell.strip() for cell in rows[0]]
    below = [[row[i].strip() for row in rows[1:] if len(row) == len(first)] for i in range(len(first))]
    return (above, titles) if is_header(first, below)[0] else (0, [])


def _cut(lines: list[str], separator: str | None, name: str) -> Shape:
    """The separator and whether backslashes escape, and the first rows."""
    options = [separator] if separator else [m for m in _ORDER if m == "," or any(m in line for line in lines)]
    best: tuple[int, bool, Shape] | None = None
    for mark in options:
        for escapes in (False, True) if any('\\"' in line for line in lines[:_ROWS]) else (False,):
            rows = _parse(lines, mark, escapes, _ROWS)
            widths = Counter(len(row) for row in rows[1:] or rows)
            alike = len(widths) == 1 and bool(rows) and len(rows[0]) in (min(widths), min(widths) - 1)
            shape = Shape(mark, escapes, rows=rows)
            if alike and min(widths) > 1 and (not _odd_escapes(lines) or escapes):
                return shape
            width = widths.most_common(1)[0][0] if widths else 1
            key = (width, mark == ",", shape)
            if best is None or key[:2] > best[:2]:
                best = key
    if separator is None:
        rows = _parse(lines, " ", False, _ROWS)
        widths = Counter(len(row) for row in rows[1:] or rows)
        alike = len(widths) == 1 and bool(rows) and len(rows[0]) in (min(widths), min(widths) - 1)
        if alike and min(widths) > 1:
            assert best is not None
            if min(widths) >= best[0] or len(best[2].rows[0]) == 1:  # the commas may stand in thousands
                return Shape(" ", rows=rows)
    assert best is not None
    if best[0] == 1 and separator is None:
        return Shape(",", rows=_parse(lines, ",", False, _ROWS))
    return best[2]


def _odd_escapes(lines: list[str]) -> bool:
    """Whether a backslash and a quote stand inside a cell, and not at its end."""
    return any(re.search(r'\\"(?![,;|\t\r\n"]|$)', line) for line in lines[:_ROWS])


def _parse(lines: list[str], separator: str, escapes: bool, limit: int | None = None) -> list[list[str]]:
    rows: list[list[str]] = []
    for row in reader(lines, separator, escapes):
        if len(row) > 1 or (row and row[0].strip()):
            rows.append(row)
            if len(rows) == limit:
                break
    return rows


def reader(lines: list[str], separator: str, escapes: bool) -> csv.reader:  # type: ignore[valid-type]
    """Python's reader of separated values; a blank as separator stands for a run of blanks and tabs."""
    csv.field_size_limit(2**31 - 1)
    if separator == " ":
        lines = [line.strip().replace("\t", " ") + "\n" for line in lines]
    return csv.reader(
        lines, delimiter=separator, skipinitialspace=True, strict=False, escapechar="\\" if escapes else None
    )


def _line_counts(lines: list[str], shape: Shape) -> int:
    """How many lines the first row takes, blank ones above it included."""
    rows = reader(lines, shape.separator, shape.escapes)
    for row in rows:
        if len(row) > 1 or (row and row[0].strip()):
            break
    return int(rows.line_num)


def is_missing(cell: str) -> bool:
    """Whether a cell of a first row says nothing."""
    return cell in ("", "?", "NA", "NaN", "nan", "N/A", "n/a", "#N/A", "-", "--", ".")


def is_header(first: list[str], below: list[list[str]]) -> tuple[bool, str]:
    """Whether a first row holds names, and why.

    Words alone do. Numbers may stand among them, or an empty cell, where something tells them from the cells below: a
    word above numbers; years, or 0, 1, 2 ..., that lie outside the numbers below.

    >>> is_header(["region", "2019", "2020"], [["a", "b"], ["1.5", "1.0"], ["2.5", "3.0"]])[0]
    True
    >>> is_header(["a", "1", "c"], [["x", "y"], ["2", "3"], ["z", "z"]])[0]
    False
    """
    numbers = {i: value for i, cell in enumerate(first) if (value := rough_number(cell)) is not None}
    empty = [i for i, cell in enumerate(first) if not cell]
    missing = [i for i, cell in enumerate(first) if cell and is_missing(cell) and i not in numbers]
    words = [i for i in range(len(first)) if i not in numbers and i not in empty and i not in missing]
    if not numbers and not empty and not missing:
        return True, "no number, no empty cell"
    no = "the first row has a number or an empty cell"
    if missing or (empty and len(empty) > 1 and not words):
        return False, no
    columns = {
        i: [value for cell in column if (value := rough_number(cell)) is not None] for i, column in enumerate(below)
    }
    filled = {
        i: sum(bool(cell) and cell.lower() not in MISSING_IN_NUMBERS for cell in column)
        for i, column in enumerate(below)
    }
    numeric = {i for i in columns if filled[i] and len(columns[i]) >= 0.9 * filled[i]}
    if any(value != int(value) or value < 0 for value in numbers.values() if abs(value) < 1e15):
        return False, no
    if len(set(numbers.values())) < len(numbers):
        return False, no
    if any(first[i] in set(below[i]) for i in words):
        return False, no
    if any(i in numeric for i in words):
        return True, "a word above numbers"
    if empty == [0] and not numbers and _counts(below[0]):
        return True, "words beside an unnamed index"
    values = list(numbers.values())
    counters = len(values) > 1 and values == [values[0] + k for k in range(len(values))] and values[0] in (0, 1)
    years = bool(values) and all(1900 <= value <= 2100 for value in values)
    if counters and values[0] == 0 and len(values) > 2 and len(values) + len(empty) == len(first):
        return True, "0, 1, 2 ... as pandas numbers columns"
    apart = [
        _outside(v, columns[i]) or _otherwise(below[i]) if i in numeric else years and not columns[i]
        for i, v in numbers.items()
    ]
    if (counters or years) and apart and all(apart):
        return True, "years or counters above other cells"
    return False, no


def _counts(column: list[str]) -> bool:
    """Whether cells are n, n + 1, n + 2 ..."""
    values = [int(cell) for cell in column if cell.isascii() and cell.isdigit()]
    return len(values) == len(column) > 1 and values == list(range(values[0], values[0] + len(values)))


def _outside(value: float, column: list[float]) -> bool:
    return not min(column) <= value <= max(column)


def _otherwise(cells: list[str]) -> bool:
    """Whether most numbers are written otherwise than as digits: with decimals, an exponent, parted thousands."""
    numbers = [cell for cell in cells if rough_number(cell) is not None]
    return 2 * sum(not cell.lstrip("+-").isdigit() for cell in numbers) > len(numbers)
