"""The one conversion: from a file, a frame or an array to a matrix, as it was learnt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np

from ..errors import InputError
from . import state
from .columns import check_finite
from .encoders import (
    CategoryPlaces,
    NumberPlace,
    TextPlaces,
    date_parts,
    fit_categories,
    fit_numbers,
    numbers_of,
)
from .frames import feature_columns
from .new_rows import converted, rows_like
from .options import KINDS, ReadOptions, read_options
from .raw import Column, RawTable, Text
from .types import ColumnType, infer
from .wording import count, listing, show


class Preprocessor:
    """Rows as a matrix float64 ``[rows, width]`` without NaN; the width depends on the fitted rows alone.

    Numbers: ``(x - mean) / scale``; a missing one is the median of the fitted rows (0 if all are missing), and a
    further place says so where the fitted rows had missing ones. Dates: days since 1970 and the calendar parts that
    differed, each as a number. Categories: one-hot; missing is a category if the fitted rows had it; a category that
    they had not is 0 in every place (beyond 256 categories the rarer ones and new ones share a place). Text: pieces of
    2 to 4 letters, hashed into 64 columns.

    Args:
        types: what columns are: a kind (number, category, date, text) or a :class:`ColumnType` by name; others are
            decided by :meth:`fit`.
        missing: words that are missing among words, default ``? NA NaN nan``.
        dayfirst: whether 03/04/2024 is 3 April where no cell decides.
        standardise: False leaves numbers as they are, but for missing ones.

    >>> import pandas as pd
    >>> dates = ["1/2/24", "1/3/24", "1/4/24"]
    >>> frame = pd.DataFrame({"size": [1.0, 3.0, np.nan], "kind": ["a", "b", None], "seen": dates})
    >>> learnt = Preprocessor().fit(frame)
    >>> learnt.feature_names
    ['size', 'seen: days', 'seen: day', 'seen: weekday', 'size is missing', 'kind = a', 'kind = b', 'kind is missing']
    >>> learnt.transform(frame)[:, 0].round(3).tolist()
    [-1.225, 1.225, 0.0]
    """

    def __init__(
        self,
        types: Mapping[str, str | ColumnType] | None = None,
        *,
        missing: str | tuple[str, ...] | None = None,
        dayfirst: bool | None = None,
        standardise: bool = True,
    ) -> None:
        given = {} if types is None else {str(name): kind for name, kind in types.items()}
        for name, kind in given.items():
            if not isinstance(kind, ColumnType) and kind not in KINDS[:-1]:
                raise InputError(f"types: {show(name)}: expected one of {', '.join(KINDS[:-1])}, got {show(kind)}")
        self.given, self.standardise = given, standardise
        self.options = read_options(missing=missing, dayfirst=dayfirst)
        self.types: dict[str, ColumnType] = {}
        self.numbers: list[NumberPlace] = []
        self.categories: list[CategoryPlaces] = []
        self.texts: list[TextPlaces] = []
        self.warnings: list[str] = []

    def fit(self, X: Any, sample_weight: np.ndarray | None = None) -> Self:
        """Learn what each column is, medians, means, scales and categories.

        Args:
            X: a frame, an array ``[rows, features]`` or a path, of at least one row and one feature.
            sample_weight: ``[rows]`` >= 0; integer ones are as repeated rows.
        """
        raw = self._raw(X)
        if not raw.columns or not raw.rows:
            shape = (raw.rows if raw.columns else 0, len(raw.columns))
            raise InputError(f"expected at least one row and one feature to fit on, got shape {shape}")
        columns = self._typed(raw)
        weight = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        numbers: list[tuple[str, str | None, np.ndarray]] = []
        dates: list[tuple[str, str | None, np.ndarray]] = []
        self.categories, self.texts = [], []
        for name, values in columns.items():
            kind = self.types[name].kind
            if isinstance(values, Text):
                if kind == "text":
                    self.texts.append(TextPlaces(name, indicator=bool(values.missing.any())))
                else:
                    self.categories.append(fit_categories(name, values))
            elif kind == "date":
                dates += [(name, unit, numbers_of(values, unit)) for unit in date_parts(values)]
            else:
                numbers.append((name, None, values))
        self.numbers = fit_numbers([*numbers, *dates], weight, self.standardise)
        return self

    def _raw(self, X: Any) -> RawTable:
        if isinstance(X, (str, bytes)) or hasattr(X, "__fspath__"):
            from .table import read_source

            return read_source(X, self.options)
        names, columns, given = feature_columns(X)
        if len(set(names)) < len(names):
            raise InputError("X: expected columns of different names")
        return RawTable(names, columns, given, "", arrays=True)

    def _typed(self, raw: RawTable) -> dict[str, Column]:
        """Decide the types of what was not given, and read every column so."""
        self.warnings, self.types = [], {}
        columns: dict[str, Column] = {}
        for name, column in zip(raw.names, raw.columns):
            kind = self.given.get(name)
            if isinstance(kind, ColumnType):
                typed = converted(_one(raw, name, column), {name: kind}, self.options.missing)[name]
                typed.type = kind
            else:
                options = ReadOptions(
                    missing=self.options.missing,
                    dayfirst=self.options.dayfirst,
                    types={} if kind is None else {name: kind},
                )
                typed = infer(column, name, options, raw.comma)
                check_finite(name, typed.values)
            self.warnings += typed.warnings
            self.types[name], columns[name] = typed.type, typed.values
        return columns

    @property
    def columns(self) -> list[str]:
        """Names of the columns it takes, in order."""
        return list(self.types)

    @property
    def numeric(self) -> list[str]:
        """Names of those that hold numbers."""
        return [name for name, type in self.types.items() if type.kind == "number"]

    @property
    def indicated(self) -> list[NumberPlace]:
        """Those numbers (one part a date) that have a place for missing."""
        seen: dict[str, NumberPlace] = {}
        for place in self.numbers:
            if place.indicator:
                seen.setdefault(place.column, place)
        return list(seen.values())

    @property
    def feature_names(self) -> list[str]:
        """A name for each column of the matrix."""
        names = [p.column if p.part is None else f"{p.column}: {p.part}" for p in self.numbers]
        names += [f"{place.column} is missing" for place in self.indicated]
        for places in (*self.categories, *self.texts):
            names += places.names
        return names

    @property
    def width(self) -> int:
        """The number of columns of the matrix."""
        return len(self.numbers) + len(self.indicated) + sum(len(p.names) for p in (*self.categories, *self.texts))

    def rows(self, path: Any, **reading: Any) -> RawTable:
        """The columns of a file, to :meth:`transform`; ``reading``: encoding, separator, header of the file."""
        own = read_options(missing=self.options.missing, dayfirst=self.options.dayfirst, **reading)
        return rows_like(path, self.types, own)

    def transform(self, X: Any) -> np.ndarray:
        """Rows as float64 ``[rows, width]``; what there was to warn of is in ``warnings``.

        Args:
            X: a frame (columns are found by name, others ignored), an array (by place), or a path (by name, or without
                a header by place).

        Raises:
            InputError: a column is absent, or holds something else than it did.
        """
        raw = X if isinstance(X, RawTable) else rows_like(X, self.types, self.options)
        columns = {name: typed.values for name, typed in converted(raw, self.types, self.options.missing).items()}
        self.warnings = list(raw.warnings)
        out = np.zeros((raw.rows if raw.columns else 0, self.width))
        at = 0
        for place in self.numbers:
            values = numbers_of(columns[place.column], place.part)
            out[:, at] = (np.where(np.isnan(values), place.median, values) - place.mean) / place.scale
            at += 1
        for place in self.indicated:
            out[:, at] = np.isnan(numbers_of(columns[place.column], place.part))
            at += 1
        for places in (*self.categories, *self.texts):
            text, width = columns[places.column], len(places.names)
            assert isinstance(text, Text)
            places.write(text, out[:, at : at + width])
            at += width
            if isinstance(places, CategoryPlaces) and (new := places.strangers(text)) and not places.other:
                self.warnings.append(
                    f"{show(places.column)} has {count(len(new), 'category', 'categories')} that the fitted rows had "
                    f"not ({listing(new, limit=3)}): 0 in each of its places"
                )
        return out

    def to_json(self) -> dict[str, Any]:
        """All that was learnt, for ``json.dumps``; the form is described in :mod:`steepest.comparison.read.state`."""
        return state.to_json(self.types, self.options, self.numbers, self.categories, self.texts)

    @classmethod
    def from_json(cls, values: Any, where: str = "preprocessing") -> Self:
        """What ``to_json`` gave, made whole again.

        Args:
            values: from a file: nothing of it is taken unchecked.
            where: it stood, for errors.

        Raises:
            InputError: it is not what ``to_json`` gives.
        """
        new = cls()
        new.types, new.options, new.numbers, new.categories, new.texts = state.from_json(values, where)
        new.given = dict(new.types)
        return new


def _one(raw: RawTable, name: str, column: Column) -> RawTable:
    return RawTable([name], [column], raw.header, "", raw.comma, raw.arrays)
