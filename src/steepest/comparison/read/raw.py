"""What every source becomes first: named columns of numbers, dates or text, none of them interpreted yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, Self

import numpy as np

from ...core.lazy import late
from ..errors import InputError, nearest
from .wording import listing, show

pa = late("pyarrow")
pc = late("pyarrow.compute")

_LOOK = 1000


class Text:
    """A column of words, each stripped of blanks around it; an empty cell is missing.

    Args:
        cells: ``[rows]`` Arrow strings, null for missing.
        declared: whether the source says that these are categories (a categorical column of a frame).

    >>> text = Text.of([" b", "a", "", "b"])
    >>> text.words.to_pylist(), text.codes.tolist(), text.objects().tolist()
    (['b', 'a'], [0, 1, -1, 0], ['b', 'a', None, 'b'])
    """

    def __init__(self, cells: pa.Array, declared: bool = False) -> None:
        self.cells, self.declared = cells, declared

    @classmethod
    def of(cls, cells: Any, declared: bool = False) -> Self:
        """From Arrow strings, in one piece or in chunks, or from any sequence of strings and None."""
        if isinstance(cells, pa.ChunkedArray):
            cells = cells.combine_chunks() if cells.num_chunks != 1 else cells.chunk(0)
        if not isinstance(cells, pa.Array):
            cells = arrow(cells)
        return cls(stripped(cells), declared)

    @classmethod
    def from_codes(cls, codes: np.ndarray, words: Any, declared: bool = False) -> Self:
        """From positions in ``words``, -1 for missing."""
        words = stripped(arrow(words))
        filled = codes if len(codes) and codes.min() >= 0 else codes[codes >= 0]
        used = np.bincount(filled, minlength=len(words)) > 0
        if not used.all():
            places = np.append(np.cumsum(used) - 1, -1)
            codes, words = places[codes], pc.filter(words, pa.array(used))
        if words.null_count or len(pc.unique(words)) < len(words):
            return cls(pc.take(words, pa.array(codes, mask=codes < 0)), declared)
        new = cls.__new__(cls)
        new._encoded, new.declared = (codes, words), declared
        return new

    def __len__(self) -> int:
        return len(self.codes) if "cells" not in self.__dict__ else len(self.cells)

    @cached_property
    def cells(self) -> pa.Array:
        """``[rows]`` Arrow strings, null for missing."""
        return pc.take(self.words, pa.array(self.codes, mask=self.codes < 0))

    @cached_property
    def _encoded(self) -> tuple[np.ndarray, pa.Array]:
        encoded = pc.dictionary_encode(self.cells)
        return pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False), encoded.dictionary

    @property
    def codes(self) -> np.ndarray:
        """``[rows]`` positions in ``words``, -1 for missing."""
        return self._encoded[0]

    @property
    def words(self) -> pa.Array:
        """The distinct words; each occurs."""
        return self._encoded[1]

    @cached_property
    def counts(self) -> np.ndarray:
        """How often each word occurs."""
        return np.bincount(self.codes + 1, minlength=len(self.words) + 1)[1:]

    @cached_property
    def missing(self) -> np.ndarray:
        """``[rows]`` whether a cell is empty."""
        if "_encoded" in self.__dict__:
            return self.codes < 0
        return ~true(pc.is_valid(self.cells))

    @cached_property
    def many(self) -> bool:
        """Whether most cells are another word, as far as the first 1,000 say; then ``words`` would be no saving."""
        if "_encoded" in self.__dict__:
            return 2 * len(self.words) > max(len(self), _LOOK)
        return 2 * len(pc.unique(self.cells.slice(0, _LOOK))) > _LOOK

    def without(self, words: Sequence[str]) -> Text:
        """The same with some words missing."""
        listed = arrow(list(words))
        if "_encoded" not in self.__dict__:
            cells = pc.if_else(pc.is_in(self.cells, value_set=listed), pa.scalar(None, pa.string()), self.cells)
            return self if cells.null_count == self.cells.null_count else Text(cells, self.declared)
        gone = true(pc.is_in(self.words, value_set=listed))
        if not gone.any():
            return self
        places = np.append(np.where(gone, -1, np.arange(len(gone))), -1)
        return Text.from_codes(places[self.codes], self.words, self.declared)

    def __getitem__(self, rows: np.ndarray) -> Text:
        if "_encoded" in self.__dict__:
            return Text.from_codes(self.codes[rows], self.words, self.declared)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Text(pc.take(self.cells, pa.array(rows)), self.declared)

    def first(self, word: str) -> int:
        """The row, counted from 1, where a word comes first."""
        return int(pc.index(self.cells, word).as_py()) + 1

    def objects(self) -> np.ndarray:
        """``[rows]`` Python strings, None for missing."""
        words = np.array([*self.words.to_pylist(), None], dtype=object)
        return words[self.codes]


Column = np.ndarray | Text
"""Numbers, booleans and dates as NumPy arrays in the dtype in which they came; everything else as text."""


def true(mask: pa.Array) -> np.ndarray:
    """An Arrow mask as NumPy's, null for False."""
    return np.asarray(pc.fill_null(mask, False).to_numpy(zero_copy_only=False), dtype=bool)


def arrow(words: Any) -> pa.Array:
    """Arrow strings of any sequence of strings and None; what UTF-8 can't hold is replaced."""
    if isinstance(words, (pa.Array, pa.ChunkedArray)):
        return words
    try:
        return pa.array(words, type=pa.string(), from_pandas=True)
    except UnicodeError:
        return pa.array([None if w is None else str(w).encode("utf-8", "replace").decode() for w in words], pa.string())


def stripped(cells: pa.Array) -> pa.Array:
    """Arrow strings without blanks around them, null where nothing is left."""
    if not pa.types.is_string(cells.type):
        cells = pc.cast(cells, pa.string())
    cells = pc.utf8_trim_whitespace(cells)
    empty = pc.equal(cells, "")
    if not pc.any(empty).as_py():
        return cells
    return pc.if_else(empty, pa.scalar(None, pa.string()), cells)


def missing_cells(column: Column) -> np.ndarray:
    """``[rows]`` whether a cell is empty, NaN or no time."""
    if isinstance(column, Text):
        return column.missing
    if column.dtype.kind == "M":
        return np.isnat(column)
    return np.isnan(column) if column.dtype.kind == "f" else np.zeros(len(column), dtype=bool)


class Hash(Protocol):
    """Who computes a hash, once started; ``hexdigest`` waits for it."""

    def start(self) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass
class RawTable:
    """Columns as read, before any is interpreted or dropped.

    Args:
        names: a name a column; ``c1 .. cN`` without a header.
        columns: ``[rows]`` each.
        header: whether the names were given.
        sha256: of the data read, or who computes it.
        comma: whether a comma in a number is a decimal comma: ``"no"``, ``"likely"`` or ``"certain"``; it decides where
            the cells of a column don't.
        arrays: whether it came from arrays in memory.
        decisions, warnings: a line each.
        dtypes: in which columns came, by name, where they did not come from text.
    """

    names: list[str]
    columns: list[Column]
    header: bool
    sha256: str | Hash
    comma: str = "no"
    arrays: bool = False
    decisions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    dtypes: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return len(self.columns[0])

    def start_digest(self) -> Callable[[], str]:
        """Begin with the SHA-256 of the data read; what is returned waits for it."""
        digest = self.sha256
        if isinstance(digest, str):
            return lambda: digest
        digest.start()
        return digest.hexdigest

    def find(self, name: object, option: str) -> int:
        """The position of a column by name, or by its number as text (1 is the first, -1 the last)."""
        return find_column(self.names, name, option)


def find_column(names: list[str], name: object, option: str) -> int:
    """The position of a column by name, or by its number as text (1 is the first, -1 the last).

    Raises:
        InputError: there is none; the line names the option.
    """
    text = str(name)
    if text in names:
        return names.index(text)
    try:
        number = int(text)
    except ValueError:
        number = 0
    if 1 <= number <= len(names):
        return number - 1
    if -len(names) <= number <= -1:
        return len(names) + number
    hint = nearest(text, names) or f"; the columns are {listing(names)}"
    raise InputError(f"{option}: no column {show(text)}{hint}")
