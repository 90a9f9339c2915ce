"""From text to numbers: words for missing, thousands, decimal commas, currencies, per cent."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from ...core.lazy import late
from .raw import Text, true
from .wording import count, listing

pa = late("pyarrow")
pc = late("pyarrow.compute")

MISSING_IN_NUMBERS = frozenset(
    [
        "?",
        "na",
        "nan",
        "-nan",
        "n/a",
        "n.a.",
        "#n/a",
        "<na>",
        "null",
        "(null)",
        "none",
        "nil",
        "nat",
        "missing",
        "-",
        "--",
        "---",
        ".",
        "..",
        "–",
        "—",
        "#num!",
        "#value!",
        "#div/0!",
        "#ref!",
        "#null!",
        "#name?",
    ]
)
"""In a column that else holds numbers these words, in any case, say that there is none."""

_EXPONENT = r"(?:[eE][+-]?\d+)?"
PLAIN = rf"^(?:[+-]?(?:\d+\.?\d*|\.\d+){_EXPONENT}|[+-]?(?i:inf|infinity))$"
_GAPS = "'\u2019 \u00a0\u202f"


def _grouped(mark: str, gaps: str) -> str:
    """A number with the decimal mark ``mark`` whose thousands are set apart by one of ``gaps``, or by nothing."""
    mark = re.escape(mark)
    parted = "|".join(rf"\d{{1,3}}(?:{re.escape(gap)}\d{{3}})+" for gap in gaps)
    return rf"^[+-]?(?:(?:{parted}|\d+)(?:{mark}\d*)?|{mark}\d+){_EXPONENT}$"


POINT, COMMA = _grouped(".", "," + _GAPS), _grouped(",", "." + _GAPS)
_DOTS_OF_THREE = r"^[+-]?\d{1,3}(?:\.\d{3})+$"
_CURRENCY = (
    r"(?:US\$|R\$|[$€£¥₹₽₩₺₪฿¢]|USD|EUR|GBP|CHF|JPY|CNY|INR|SEK|NOK|"
    r"DKK|PLN|CZK|kr\.?|zł|Fr\.)"
)
_BEFORE, _AFTER, _PER_CENT = rf"^([+-]?)\s*{_CURRENCY}\s*([+-]?)\s*", rf"\s*{_CURRENCY}$", r"\s*%$"
_BRACKETS = r"^\(([^()]*\d[^()]*)\)$"
_EXAMPLES = 20


@dataclass
class Numbers:
    """What the cells of a text column are as numbers.

    Attributes:
        values: ``[rows]`` float64, NaN where a cell is missing or no number.
        cells: how many hold a number.
        missing: words for missing, with how often they occur.
        others: how many cells hold another word.
        words: the first of those words, with how often they occur.
        decimal: ``"."`` or ``","``.
        sure: whether some cell can be read with ``decimal`` alone.
        doubt: a cell that the other decimal mark would read otherwise, where no cell decides; else None.
        written: ways of writing found.
        mixed: which units stand side by side, where they do; else None.
    """

    values: np.ndarray
    cells: int
    missing: Counter[str] = field(default_factory=Counter)
    others: int = 0
    words: Counter[str] = field(default_factory=Counter)
    decimal: str = "."
    sure: bool = False
    doubt: str | None = None
    written: list[str] = field(default_factory=list)
    mixed: str | None = None


def is_plain(cells: pa.Array) -> np.ndarray:
    """Whether each is a number as programs write it; missing ones are not.

    >>> is_plain(pa.array(["1e3", "-.5", "1_000", "1,5", "ten", None])).tolist()
    [True, True, False, False, False, False]
    """
    return true(pc.match_substring_regex(cells, PLAIN))


def number(cell: str) -> float | None:
    """The number a plain cell holds, or None for a word.

    >>> number("1e3"), number("1_000"), number("ten")
    (1000.0, None, None)
    """
    return float(cell) if re.match(PLAIN, cell, re.ASCII) else None


def rough_number(cell: str) -> float | None:
    """About the number that a cell holds in any way of writing, or None for a word; tells headers from cells below.

    >>> rough_number("$1,320.5"), rough_number("7 %"), rough_number("1.234,5"), rough_number("2 of 3")
    (1320.5, 7.0, 1234.5, None)
    """
    if (plain := number(cell)) is not None:
        return plain
    bare = re.sub(_PER_CENT, "", re.sub(_BRACKETS, r"-\1", cell).replace("\u2212", "-"))
    bare = re.sub(_AFTER, "", re.sub(_BEFORE, r"\1\2", bare))
    for form, gaps in ((POINT, "," + _GAPS), (COMMA, "." + _GAPS)):
        if re.match(form, bare, re.ASCII):
            return float(re.sub(f"[{gaps}]", "", bare).replace(",", "."))
    return None


def read_numbers(text: Text, comma: str = "no") -> Numbers:
    """Read a column as numbers; the caller judges from ``cells``, ``missing`` and ``others`` whether it is one.

    Args:
        text: the column.
        comma: whether a comma is a decimal comma where no cell decides: ``"no"``, ``"likely"``, or ``"certain"`` (then
            points before three digits part thousands too).

    >>> numbers = read_numbers(Text.of(["1,320.5", "$7.76", "7%", "n/a", "many"]))
    >>> numbers.values.tolist(), numbers.missing, numbers.words
    ([1320.5, 7.76, 7.0, nan, nan], Counter({'n/a': 1}), Counter({'many': 1}))
    >>> read_numbers(Text.of(["1.234,5", "0,25"])).values.tolist()
    [1234.5, 0.25]
    """
    if text.many:
        return _read(text.cells, np.ones(len(text), dtype=np.int64), comma)
    numbers = _read(text.words, text.counts, comma)
    numbers.values = np.append(numbers.values, np.nan)[text.codes]
    return numbers


def _read(cells: pa.Array, counts: np.ndarray, comma: str) -> Numbers:
    """Numbers of ``cells``, of which each occurs ``counts`` times."""
    if comma != "certain" and (plain_numbers := _cast_at_once(cells, counts)) is not None:
        return plain_numbers
    plain = is_plain(cells)
    others = ~plain & true(pc.is_valid(cells))
    rest = Text(pc.filter(cells, pa.array(others)))
    often = np.bincount(rest.codes, weights=counts[others], minlength=len(rest.words)).astype(np.int64)
    bare, written = _bare(rest.words)
    gone = true(pc.is_in(pc.utf8_lower(rest.words), value_set=pa.array(sorted(MISSING_IN_NUMBERS))))
    point, with_comma = (true(pc.match_substring_regex(bare, form)) & ~gone for form in (POINT, COMMA))
    numbers = Numbers(np.full(len(cells), np.nan), int(counts[plain].sum()))
    use_comma, good = False, point
    points_decide = np.zeros(len(cells), dtype=bool)  # plain cells that a decimal comma rules out
    if with_comma.any() or comma == "certain":
        threes = plain & true(pc.match_substring_regex(cells, _DOTS_OF_THREE))
        points_decide = plain & ~threes & true(pc.match_substring(cells, "."))
        balance = int(often[with_comma].sum()) - int(often[point].sum()) - int(counts[points_decide].sum())
        either = point & with_comma & true(pc.match_substring(bare, ","))
        use_comma, numbers.sure = balance > 0, balance != 0
        if balance == 0 and (either.any() or threes.any()):
            use_comma = comma == "certain" or (comma == "likely" and bool(either.any()))
            examples = pc.filter(rest.words, pa.array(either)) if either.any() else pc.filter(cells, pa.array(threes))
            numbers.doubt = examples[0].as_py()
    if use_comma:
        good = with_comma
        numbers.decimal = ","
        numbers.cells -= int(counts[points_decide].sum())
        plain, lost = plain & ~points_decide, pc.filter(cells, pa.array(points_decide))
        numbers.others = int(counts[points_decide].sum())
        numbers.words.update(lost.slice(0, _EXAMPLES).to_pylist())
        numbers.values[plain] = _cast(pc.replace_substring(pc.filter(cells, pa.array(plain)), ".", ""))
    elif plain.any():
        numbers.values[plain] = _cast(pc.filter(cells, pa.array(plain)))
    values = np.full(len(rest.words), np.nan)
    if good.any():
        numbers.mixed = _mixed(rest.words, often, good, written, int(counts[plain].sum()))
        values[good] = _cast(_ungrouped(pc.filter(bare, pa.array(good)), use_comma))
        gaps = true(pc.match_substring_regex(bare, rf"\d[{'.' if use_comma else ','}{_GAPS}]\d{{3}}"))
        written |= {"thousands set apart": gaps, "decimal commas": good & use_comma}
        numbers.written = [name for name, mask in written.items() if (mask & good).any()]
    numbers.values[others] = values[rest.codes]
    numbers.cells += int(often[good].sum())
    numbers.missing = _counted(rest.words, often, gone)
    numbers.others += int(often[~gone & ~good].sum())
    numbers.words += _counted(rest.words, often, ~gone & ~good)
    return numbers


@cache
def _spelled() -> pa.Array:
    """The words for missing as they are mostly written."""
    spellings = (str, str.upper, str.title)
    return pa.array(sorted({spelling(word) for word in MISSING_IN_NUMBERS for spelling in spellings} | {"NaN"}))


def _cast_at_once(cells: pa.Array, counts: np.ndarray) -> Numbers | None:
    """The same where every cell is a plain number or a usual spelling of a word for missing, else None."""
    gone = true(pc.is_in(cells, value_set=_spelled()))
    valid = true(pc.is_valid(cells))
    try:
        values = _cast(pc.if_else(pa.array(gone), pa.scalar(None, pa.string()), cells))
    except pa.ArrowInvalid:
        return None
    if np.isnan(values[valid & ~gone]).any():
        return None
    missing = Text(pc.filter(cells, pa.array(gone)))
    often = np.bincount(missing.codes, weights=counts[gone], minlength=len(missing.words)).astype(np.int64)
    every = np.ones(len(missing.words), dtype=bool)
    return Numbers(values, int(counts[valid & ~gone].sum()), missing=_counted(missing.words, often, every))


def _mixed(
    words: pa.Array, often: np.ndarray, good: np.ndarray, written: dict[str, np.ndarray], plain: int
) -> str | None:
    """Per cent beside other numbers, or several currencies."""
    per_cent = written["per cent signs"] & good
    others = int(often[good & ~per_cent].sum()) + plain
    if per_cent.any() and others:
        return f"{count(int(often[per_cent].sum()), 'cell')} with a per cent sign and {others} without"
    money = pc.filter(words, pa.array(written["currency signs"] & good))
    signs = pc.unique(pc.struct_field(pc.extract_regex(money, rf"(?P<sign>{_CURRENCY})"), "sign")).to_pylist()
    return f"the currencies {listing(signs)}" if len(signs) > 1 else None


def _counted(words: pa.Array, often: np.ndarray, mask: np.ndarray) -> Counter[str]:
    places = np.flatnonzero(mask)[:_EXAMPLES]
    return Counter(dict(zip(pc.take(words, pa.array(places)).to_pylist(), often[places].tolist())))


def _bare(words: pa.Array) -> tuple[pa.Array, dict[str, np.ndarray]]:
    """Words without currency, per cent and brackets (a minus), and which had them."""
    written = {"brackets for minus": true(pc.match_substring_regex(words, _BRACKETS))}
    bare = pc.replace_substring_regex(words, _BRACKETS, r"-\1")
    bare = pc.replace_substring(bare, "\u2212", "-")
    written["per cent signs"] = true(pc.match_substring_regex(bare, _PER_CENT))
    bare = pc.replace_substring_regex(bare, _PER_CENT, "")
    before, after = (true(pc.match_substring_regex(bare, form)) for form in (_BEFORE, _AFTER))
    written["currency signs"] = before | after
    bare = pc.replace_substring_regex(bare, _BEFORE, r"\1\2")
    return pc.replace_substring_regex(bare, _AFTER, ""), written


def _ungrouped(bare: pa.Array, comma: bool) -> pa.Array:
    bare = pc.replace_substring_regex(bare, rf"[{'.' if comma else ','}{_GAPS}]", "")
    return pc.replace_substring(bare, ",", ".") if comma else bare


def _cast(cells: pa.Array) -> np.ndarray:
    return np.array(pc.cast(cells, pa.float64()).to_numpy(zero_copy_only=False))
