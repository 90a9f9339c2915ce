"""What a column is: numbers, categories, dates or text; decided once, and applied to every later row."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from ...core.lazy import late
from ..errors import InputError
from .dates import Dates, both_readings, read_dates
from .numbers import MISSING_IN_NUMBERS, Numbers, read_numbers
from .options import ReadOptions
from .raw import Column, Text, missing_cells, true
from .wording import count, listing, show

pa = late("pyarrow")
pc = late("pyarrow.compute")

MOST_CATEGORIES, FEW_CATEGORIES = 64, 10
"""Text with more than 64 distinct words, or with more than 10 where most rows differ, is taken apart into letters."""

STRAY = 0.1
"""The largest share of words in a column that still counts as one of numbers (or dates)."""


@dataclass(frozen=True)
class ColumnType:
    """What a column holds, and how it was written where its cells leave that open.

    Attributes:
        kind: ``"number"``, ``"category"``, ``"date"`` or ``"text"``.
        decimal: of numbers in text: ``"."`` or ``","``.
        dayfirst: of dates in text: whether 03/04/2024 is 3 April; None where no date was written so and nobody said.
    """

    kind: str
    decimal: str = "."
    dayfirst: bool | None = None


@dataclass
class Typed:
    """A column that was read.

    Attributes:
        values: ``[rows]`` float64 (NaN: missing), datetime64[us] (NaT: missing), or text.
        type: what it is.
        notes, warnings: a line each.
    """

    values: Column
    type: ColumnType
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def infer(column: Column, name: str, options: ReadOptions, comma: str = "no") -> Typed:
    """Decide what a column is, and read it so.

    Text is numbers, else dates, where at most a tenth of its cells are other words: those are then missing, and a
    warning names them. Else it is categories, or text where the words are many.

    >>> infer(Text.of(["1", "2.5", "N/A"]), "x", ReadOptions()).values.tolist()
    [1.0, 2.5, nan]
    """
    declared = options.types.get(name)
    if declared is not None:
        type = ColumnType(declared, "," if comma == "certain" else ".", options.dayfirst)
        return convert(column, name, type, options.missing, comma, strict=False)
    if not isinstance(column, Text):
        kind = "date" if column.dtype.kind == "M" else "number"
        return Typed(_floats(column) if kind == "number" else column, ColumnType(kind))
    missing, warnings = options.missing, []
    code = None
    if not column.declared:
        numbers = read_numbers(column, comma)
        code = first_code(column) if numbers.cells and not numbers.others else None
        if code is not None:
            missing = (*missing, *numbers.missing)
            warnings.append(
                f"{show(name)} holds codes with leading zeros, as {show(code)}: taken as words; --types with "
                f"{name}: number takes numbers"
            )
        elif numbers.cells and _few(numbers.others, numbers.cells):
            return _number(column, name, numbers, missing)
        if not numbers.cells + numbers.others:  # nothing but words for missing
            return Typed(Text(pa.nulls(len(column), pa.string())), ColumnType("category"))
        if (flags := _booleans(column)) is not None:
            return Typed(flags, ColumnType("number"))
    text = column.without(missing)
    if not column.declared and code is None and _may_be_dates(text):
        dates = read_dates(text, options.dayfirst)
        if dates.cells and _few(dates.others, dates.cells):
            return _date(name, dates, options.dayfirst)
    kind = "text" if not column.declared and is_many_valued(text) else "category"
    return Typed(text, ColumnType(kind), warnings=warnings)


def first_code(text: Text) -> str | None:
    """The first word with zeros in front, of three digits or more, where no word is else than digits; else None.

    >>> first_code(Text.of(["00501", "90210", ""])), first_code(Text.of(["007", "7.5"])), first_code(Text.of(["07"]))
    ('00501', None, None)
    """
    words = text.cells if text.many else text.words
    codes = true(pc.starts_with(words, "0"))
    codes[codes] = true(pc.match_substring_regex(pc.filter(words, pa.array(codes)), r"^0\d\d+$"))
    if not codes.any():
        return None
    gone = true(pc.is_in(pc.utf8_lower(words), value_set=pa.array(sorted(MISSING_IN_NUMBERS))))
    if (true(pc.is_valid(words)) & ~gone & ~true(pc.match_substring_regex(words, r"^\d+$"))).any():
        return None
    return str(words[int(codes.argmax())].as_py())


def convert(
    column: Column, name: str, type: ColumnType, missing: tuple[str, ...], comma: str = "no", strict: bool = True
) -> Typed:
    """Read a column as what an earlier one was.

    Args:
        column: as it came.
        name: of the column, for errors.
        type: what it is.
        missing: words that are missing among words.
        comma: as of ``RawTable``, where the cells don't say.
        strict: refuse a column of which more than a tenth is something else, and dates written otherwise.

    Raises:
        InputError: the cells are something else.
    """
    if type.kind == "number":
        if not isinstance(column, Text):
            if column.dtype.kind == "M":
                raise InputError(f"column {show(name)} has dates: expected numbers")
            return Typed(_floats(column), type)
        return _convert_numbers(column, name, type, missing, comma, strict)
    if type.kind == "date":
        if not isinstance(column, Text):
            if column.dtype.kind != "M" and not missing_cells(column).all():
                raise InputError(f"column {show(name)} has numbers: expected dates")
            return Typed(column.astype("M8[us]") if column.dtype.kind == "M" else _no_dates(len(column)), type)
        dates = read_dates(column.without(missing), type.dayfirst)
        if strict and dates.sure and type.dayfirst not in (None, dates.dayfirst):
            order = "month" if dates.dayfirst is False else "day"
            raise InputError(f"column {show(name)} has dates with the {order} first, unlike the rows it was learnt on")
        if strict and not _few(dates.others, dates.cells):
            raise _stranger(column, name, dates.words, "a date")
        typed = _date(name, dates, type.dayfirst)
        return Typed(typed.values, typed.type if type.dayfirst is None else type, typed.notes, typed.warnings)
    text = labels(column)
    return Typed(Text(text.without(missing).cells, text.declared), ColumnType(type.kind))


def labels(column: Column) -> Text:
    """A column as words: whole numbers without a point, other numbers in full, text as it is.

    >>> labels(np.array([1.0, 2.5, np.nan])).objects().tolist()
    ['1', '2.5', None]
    """
    if isinstance(column, Text):
        return column
    distinct, codes = np.unique(column, return_inverse=True)
    if column.dtype.kind == "f":
        words = [str(int(v)) if v == np.floor(v) else repr(v) for v in distinct[np.isfinite(distinct)].tolist()]
        words += [str(v) for v in distinct[~np.isfinite(distinct)].tolist()]
        order = np.concatenate([np.flatnonzero(np.isfinite(distinct)), np.flatnonzero(~np.isfinite(distinct))])
        places = np.empty(len(distinct), dtype=np.int64)
        places[order] = np.arange(len(distinct))
        codes = places[codes]
    else:
        words = [str(v) for v in distinct.tolist()]
    return Text.from_codes(np.where(missing_cells(column), -1, codes), words)


def is_many_valued(text: Text) -> bool:
    """Whether text is more than categories: many distinct words, or another one in most rows."""
    if text.many:
        return True
    filled, distinct = len(text) - int(text.missing.sum()), len(text.words)
    return distinct > MOST_CATEGORIES or (distinct > FEW_CATEGORIES and 2 * distinct > filled)


def _few(others: int, cells: int) -> bool:
    return others <= STRAY * (others + cells)


def _may_be_dates(text: Text) -> bool:
    """Whether the first words say so; spares a long column of other words."""
    some = read_dates(Text.of(text.words.slice(0, 200)))
    return 2 * some.cells > some.others


def _floats(column: np.ndarray) -> np.ndarray:
    return column if column.dtype == np.float64 else column.astype(np.float64)


def _no_dates(rows: int) -> np.ndarray:
    return np.full(rows, np.datetime64("NaT"), dtype="M8[us]")


def _booleans(text: Text) -> np.ndarray | None:
    """Words that are all true or false (any case), or say that there is none, as 1, 0 and NaN."""
    if text.many or len(text.words) > 16:
        return None
    words = pc.utf8_lower(text.words)
    yes, no = true(pc.equal(words, "true")), true(pc.equal(words, "false"))
    gone = true(pc.is_in(words, value_set=pa.array(sorted(MISSING_IN_NUMBERS))))
    if not (yes | no).any() or not (yes | no | gone).all():
        return None
    return np.append(np.where(yes, 1.0, np.where(no, 0.0, np.nan)), np.nan)[text.codes]


def _number(text: Text, name: str, numbers: Numbers, missing: tuple[str, ...]) -> Typed:
    typed = Typed(numbers.values, ColumnType("number", numbers.decimal))
    if numbers.written:
        typed.notes.append(f"{show(name)} is read as numbers: {', '.join(numbers.written)}")
    if numbers.doubt:
        swapped_mark = "," if numbers.decimal == "." else "."
        one, two = (_reading(numbers.doubt, mark) for mark in (numbers.decimal, swapped_mark))
        typed.warnings.append(
            f"{show(name)}: {show(numbers.doubt)} is read as {one:.15g}; with {show(swapped_mark)} as the decimal mark "
            f"it is {two:.15g}"
        )
    if numbers.mixed:
        typed.warnings.append(f"{show(name)} mixes units: {numbers.mixed}; the numbers are taken as they stand")
    unusual = Counter({word: n for word, n in numbers.missing.items() if word not in missing})
    if unusual:
        typed.warnings.append(f"{show(name)} is taken as numbers; missing there: {_cells(unusual)}")
    if numbers.others:
        more = numbers.others - sum(numbers.words.values())
        rest = f" and {count(more, 'further cell')}" if more > 0 else ""
        word = next(iter(numbers.words))
        typed.warnings.append(
            f"{show(name)} is taken as numbers: {count(numbers.others, 'word')} among them now missing "
            f"(first: {show(word)}, row {text.first(word)}): {_cells(numbers.words)}{rest}"
        )
    return typed


def _reading(cell: str, decimal: str) -> float:
    return float(read_numbers(Text.of([cell]), "certain" if decimal == "," else "no").values[0])


def _date(name: str, dates: Dates, dayfirst: bool | None) -> Typed:
    """Dates; ``dayfirst`` was said of those that later rows may bring, where none of these needed it."""
    own = dayfirst if dates.dayfirst is None else dates.dayfirst
    typed = Typed(dates.values, ColumnType("date", dayfirst=own))
    if dates.doubt:
        typed.warnings.append(
            f"{show(name)}: {both_readings(dates.doubt)}; the month is taken, --dayfirst takes the day"
        )
    if dates.others:
        typed.warnings.append(f"{show(name)} is taken as dates; missing there: {_cells(dates.words)}")
    return typed


def _cells(words: Counter[str]) -> str:
    """Words with how often each occurs, in a line."""
    some = ", ".join(f"{show(word)} ({count(n, 'cell')})" for word, n in words.most_common(5))
    return some if len(words) <= 5 else f"{some} and {len(words) - 5} more"


def _convert_numbers(
    text: Text, name: str, type: ColumnType, missing: tuple[str, ...], comma: str, strict: bool
) -> Typed:
    if comma == "no" and type.decimal == ",":
        comma = "certain"
    numbers = read_numbers(text, comma)
    if numbers.others:
        lower = pc.utf8_lower(text.cells)
        for word, value in (("true", 1.0), ("false", 0.0)):
            mask = true(pc.equal(lower, word))
            numbers.values[mask] = value
            numbers.others, numbers.cells = numbers.others - int(mask.sum()), numbers.cells + int(mask.sum())
        numbers.words = Counter({w: n for w, n in numbers.words.items() if w.lower() not in ("true", "false")})
    if strict and not _few(numbers.others, numbers.cells):
        raise _stranger(text, name, numbers.words, "a number")
    typed = _number(text, name, numbers, missing)
    return Typed(typed.values, type if strict else typed.type, typed.notes, typed.warnings)


def _stranger(text: Text, name: str, words: Counter[str], wanted: str) -> InputError:
    rows = {text.first(word): word for word in words}
    row = min(rows)
    more = f" (and {len(words) - 1} further words: {listing(list(words)[1:4])})" if len(words) > 1 else ""
    return InputError(f"column {show(name)} has {show(rows[row])} in row {row}: expected {wanted}{more}")


def plain_integers(text: Text) -> bool:
    """Whether every cell that is filled is an integer of digits."""
    return bool(len(text.words)) and true(pc.match_substring_regex(text.words, r"^[+-]?\d+$")).all()


def exact_integers(text: Text) -> np.ndarray | Text:
    """Integers of digits as int64 where they fit; else as words without leading zeros, so that equal ones are equal."""
    try:
        digits = pc.replace_substring_regex(text.cells, r"^\+", "")
        return np.array(pc.cast(digits, pa.int64()).to_numpy(zero_copy_only=False))
    except pa.ArrowInvalid:
        return Text(pc.replace_substring_regex(text.cells, r"^(\+?)(-?)0*(\d)", r"\2\3"), text.declared)
