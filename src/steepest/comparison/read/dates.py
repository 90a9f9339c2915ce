"""From text to dates: one order of day and month a column."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from ...core.lazy import late
from .raw import Text, true

pd = late("pandas")
pa = late("pyarrow")
pc = late("pyarrow.compute")

_MINUTES = r":(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?\s*(?P<half>[AaPp]\.?[Mm]\.?)?"
_CLOCK = rf"(?:[T ]+(?P<hour>\d{{1,2}}){_MINUTES}\s*(?P<zone>Z|UTC|GMT|[+-]\d{{2}}(?::?\d{{2}})?)?)?$"
_CLOCK_ALONE = rf"^(?P<hour>\d{{1,3}}){_MINUTES}$"
_YEAR_FIRST = r"^(?P<year>\d{4})(?P<mark>[-/.])(?P<one>\d{1,2})(?:(?P<again>[-/.])(?P<two>\d{1,2}))?" + _CLOCK
_YEAR_LAST = r"^(?P<one>\d{1,2})(?P<mark>[-/.])(?P<two>\d{1,2})(?P<again>[-/.])(?P<year>\d{4}|\d{2})" + _CLOCK
_MONTHS = r"(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)"
_NAMED = (
    r"^(?:(?i:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?,?\s+)?"
    rf"(?:\d{{1,2}}(?:st|nd|rd|th)?[-. ]+{_MONTHS}[a-z]*\.?[-., ]+\d{{2,4}}"
    rf"|{_MONTHS}[a-z]*\.?\s+\d{{1,2}}(?:st|nd|rd|th)?,?\s+\d{{4}}"
    rf"|\d{{4}}[- ]{_MONTHS}[a-z]*[- ]\d{{1,2}})(?:[T ,]+.*)?$"
)
_EXAMPLES = 20


@dataclass
class Dates:
    """What the cells of a text column are as dates.

    Attributes:
        values: ``[rows]`` datetime64[us] in UTC, NaT where a cell is missing or no date.
        cells: how many hold a date.
        others: how many hold another word.
        words: the first of those, with how often they occur.
        dayfirst: whether 03/04/2024 was read as 3 April; None where no date is written so.
        sure: whether some date can be read this way alone.
        doubt: a date that could be read either way, where none decides; else None.
    """

    values: np.ndarray
    cells: int
    others: int = 0
    words: Counter[str] = field(default_factory=Counter)
    dayfirst: bool | None = None
    sure: bool = False
    doubt: str | None = None


def read_dates(text: Text, dayfirst: bool | None = None) -> Dates:
    """Read a column as dates; the caller judges from ``cells`` and ``others`` whether it is one.

    A column of nothing but times of the day (or hours and minutes that something took) lies on 1970-01-01, and beyond.

    Args:
        text: the column.
        dayfirst: whether the day comes before the month where no cell decides (None: only between points, as in
            03.04.2024).

    >>> dates = read_dates(Text.of(["03/04/2024", "01/05/2024"]))
    >>> dates.values.astype("M8[D]").tolist(), dates.doubt
    ([datetime.date(2024, 3, 4), datetime.date(2024, 1, 5)], '03/04/2024')
    >>> read_dates(Text.of(["13/04/2024", "01/05/2024"])).values.astype("M8[D]").tolist()
    [datetime.date(2024, 4, 13), datetime.date(2024, 5, 1)]
    """
    words, counts = text.words, text.counts
    values = np.full(len(words), np.datetime64("NaT"), dtype="M8[us]")
    dates = Dates(values, 0)
    for form in (_YEAR_FIRST, _YEAR_LAST):
        mask = true(pc.match_substring_regex(words, form))
        if mask.any():
            fields = _Fields(pc.extract_regex(pc.filter(words, pa.array(mask)), form))
            swapped = False
            if form == _YEAR_LAST:
                swapped = _day_is_first(fields, counts[mask], dayfirst, dates)
            values[mask] = fields.dates(swapped)
    named = np.isnat(values) & true(pc.match_substring_regex(words, _NAMED))
    if named.any():
        values[named] = _parsed(pc.filter(words, pa.array(named)))
    clock = true(pc.match_substring_regex(words, _CLOCK_ALONE))
    if clock.any() and np.isnat(values).all():
        values[clock] = _Clock(pc.extract_regex(pc.filter(words, pa.array(clock)), _CLOCK_ALONE)).times()
    wrong = np.flatnonzero(np.isnat(values))
    examples = wrong[:_EXAMPLES]
    dates.words = Counter(dict(zip(pc.take(words, pa.array(examples)).to_pylist(), counts[examples].tolist())))
    dates.others = int(counts[wrong].sum())
    dates.cells = int(counts.sum()) - dates.others
    dates.values = np.append(values, np.datetime64("NaT"))[text.codes]
    return dates


def both_readings(cell: str) -> str:
    """What a doubtful date can mean, for a warning.

    >>> both_readings("03/04/2024")
    "'03/04/2024' is 2024-03-04 with the month first and 2024-04-03 with the day first"
    """
    month, day = (str(read_dates(Text.of([cell]), first).values[0])[:10] for first in (False, True))
    return f"{cell!r} is {month} with the month first and {day} with the day first"


class _Clock:
    """The parts of times of the day that one pattern took apart."""

    def __init__(self, parts: pa.StructArray) -> None:
        self.parts = parts

    def _integers(self, name: str) -> np.ndarray:
        digits = self.parts.field(name)
        whole = pc.if_else(pc.equal(digits, ""), "0", digits)
        return np.array(pc.cast(whole, pa.int64()).to_numpy(zero_copy_only=False))

    def clock(self, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """Microseconds since midnight, and whether a clock shows so; the last hour ``longest`` has no minutes."""
        hour, minute, second = (self._integers(name) for name in ("hour", "minute", "second"))
        good = (hour < longest) | ((hour == longest) & (minute == 0) & (second == 0))
        good &= (minute < 60) & (second < 61)
        half = pc.utf8_lower(pc.utf8_slice_codeunits(self.parts.field("half"), 0, 1))
        noon, morning = true(pc.equal(half, "p")), true(pc.equal(half, "a"))
        hour = np.where(noon & (hour < 12), hour + 12, np.where(morning & (hour == 12), 0, hour))
        fraction = pc.utf8_slice_codeunits(pc.utf8_rpad(self.parts.field("fraction"), 6, "0"), 0, 6)
        micro = np.array(pc.cast(fraction, pa.int64()).to_numpy(zero_copy_only=False))
        return ((hour * 60 + minute) * 60 + second) * 1_000_000 + micro, good

    def times(self) -> np.ndarray:
        """datetime64[us] from 1970-01-01 on, NaT for what no clock shows."""
        micro, good = self.clock(1000)
        return np.where(good, micro, np.iinfo(np.int64).min).astype("M8[us]")


class _Fields(_Clock):
    """The parts of dates that one pattern took apart."""

    def __init__(self, parts: pa.StructArray) -> None:
        super().__init__(parts)
        self.year, self.one, self.two = (self._integers(name) for name in ("year", "one", "two"))
        self.mark, self.again = parts.field("mark"), parts.field("again")

    def text(self, row: int) -> str:
        one, mark, two, year = (self.parts.field(name)[row].as_py() for name in ("one", "mark", "two", "year"))
        return f"{one}{mark}{two}{mark}{year}"

    def dates(self, swapped: bool) -> np.ndarray:
        """datetime64[us], NaT for what is on no calendar; ``swapped``: the day is ``one``."""
        month, day = (self.two, self.one) if swapped else (self.one, self.two)
        short = true(pc.equal(self.again, ""))
        day = np.where(short, 1, day)  # 2024-05
        year = self.year + np.where(self.year < 70, 2000, np.where(self.year < 100, 1900, 0))
        good = true(pc.equal(self.mark, self.again)) | (short & true(pc.equal(self.mark, "-")))
        good &= (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)
        months = ((year - 1970) * 12 + np.where(good, month, 1) - 1).astype("M8[M]")
        days = months.astype("M8[D]") + (np.where(good, day, 1) - 1)
        good &= days.astype("M8[M]") == months  # 31 April is no day
        micro, shown = self.clock(24)  # 24:00 is the end of a day
        good &= shown
        zone = pc.replace_substring(
            pc.replace_substring_regex(self.parts.field("zone"), "^(Z|UTC|GMT)?$", "+0000"), ":", ""
        )
        digits = pc.cast(pc.utf8_slice_codeunits(pc.utf8_rpad(zone, 5, "0"), 1, 5), pa.int64())
        ahead = np.array(digits.to_numpy(zero_copy_only=False))
        ahead = (ahead // 100 * 60 + ahead % 100) * np.where(true(pc.starts_with(zone, "-")), -1, 1)
        moments = days.astype("M8[us]") + (micro - ahead * 60_000_000)
        moments[~good] = np.datetime64("NaT")
        return moments


def _day_is_first(fields: _Fields, counts: np.ndarray, dayfirst: bool | None, dates: Dates) -> bool:
    """Whether days come before months: what the cells say, else the option, else only between points."""
    balance = int(counts[fields.one > 12].sum()) - int(counts[fields.two > 12].sum())
    points = true(pc.equal(fields.mark, "."))
    dates.sure = balance != 0
    dates.dayfirst = balance > 0 if balance else bool(points.all()) if dayfirst is None else dayfirst
    doubtful = np.flatnonzero((fields.one != fields.two) & ~points)
    if not balance and dayfirst is None and doubtful.size:
        dates.doubt = fields.text(int(doubtful[0]))
    return dates.dayfirst


def _parsed(cells: pa.Array) -> np.ndarray:
    """Dates with names of months."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas warns of names of zones; what it can't read is no date
        dates = pd.to_datetime(pd.Series(cells.to_pylist(), dtype=object), format="mixed", errors="coerce", utc=True)
    return dates.dt.tz_localize(None).to_numpy().astype("M8[us]")
