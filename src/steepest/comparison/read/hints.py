"""Columns that a user may want to name: ids whose rows belong together, dates that put rows in order."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping

import numpy as np

from ...core.lazy import late
from .raw import Column, Text
from .types import ColumnType
from .wording import show

pd = late("pandas")

_IDS = {"id", "ids", "uid", "uuid", "guid"}
_WHO = {
    *("user", "patient", "subject", "session", "customer", "client", "participant", "person", "household", "member"),
    *("account", "student", "employee", "respondent", "speaker", "donor", "animal", "family", "visitor"),
}
_NUMBERED = {*_IDS, "no", "nr", "num", "number", "code", "key", "name"}
_BIRTH = {"birth", "birthday", "birthdate", "dob", "born"}
LEAST_VALUES, MOST_ROWS, LEAST_SHARE = 10, 200, 0.5
"""An id has at least so many values, at most so many rows a value, and in this share of the rows one that repeats."""


def _words(name: str) -> list[str]:
    """The words of a column's name, in small letters; an id at the end of a word counts by itself.

    >>> _words("PatientID"), _words("user_id"), _words("sessionid 2")
    (['patient', 'id'], ['user', 'id'], ['session', 'id'])
    """
    words = []
    for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name):
        word = word.lower()
        stem = word[:-2] if word.endswith("id") else word.removesuffix("s")
        words += [stem, "id"] if stem in _WHO and word.endswith("id") else [stem if stem in _WHO else word]
    return words


def names_an_id(name: str) -> bool:
    """Whether a column is named as ids of persons or things are: ``user_id``, ``Patient``, ``subject no``.

    >>> [names_an_id(name) for name in ("user_id", "Subject", "customer_age", "session_type", "identity", "grid")]
    [True, True, False, False, False, False]
    """
    words = _words(name)
    return bool(words) and (words[-1] in _IDS or (bool({*words} & _WHO) and {*words} <= _WHO | _NUMBERED))


def group_hint(columns: Iterable[tuple[str, Column]], rows: int) -> list[str]:
    """A line about ids whose values repeat, each with few rows: folds would have them on both sides.

    Of several the one with the fewest values is named, since its groups hold those of the others where they are nested.
    """
    repeating = {}
    for name, column in columns:
        if not names_an_id(name) or not _whole(column):
            continue
        counts = np.bincount(column.codes[column.codes >= 0]) if isinstance(column, Text) else _counts(column)
        several = counts[counts > 1].sum() >= LEAST_SHARE * rows
        if several and len(counts) >= LEAST_VALUES and rows <= MOST_ROWS * len(counts):
            repeating[name] = len(counts)
    if not repeating:
        return []
    name = min(repeating, key=repeating.__getitem__)
    return [
        f"{show(name)} has {repeating[name]} values in {rows} rows: if the rows of one belong together, --group "
        f"{shlex.quote(name)} keeps them on one side of every split"
    ]


def _counts(column: np.ndarray) -> np.ndarray:
    return pd.Series(column).value_counts().to_numpy()


def _whole(column: Column) -> bool:
    """Whether a column holds words or whole numbers."""
    if isinstance(column, Text):
        numbers = pd.to_numeric(pd.Series(column.words.to_pylist(), dtype=object), errors="coerce").to_numpy()
        if np.isnan(numbers).any():
            return True
    elif column.dtype.kind in "biu":
        return column.dtype.kind != "b"
    elif column.dtype.kind != "f":
        return False
    else:
        numbers = column[np.isfinite(column)]
    return bool((numbers == np.floor(numbers)).all())


def time_hint(frame: pd.DataFrame, types: Mapping[str, ColumnType]) -> list[str]:
    """A line about the first feature that holds dates, those of birth apart."""
    dates = [name for name, kind in types.items() if kind.kind == "date" and not {*_words(name)} & _BIRTH]
    if not dates:
        return []
    name = dates[0]
    first, last = (f"{moment:%Y-%m-%d}" for moment in (frame[name].min(), frame[name].max()))
    return [
        f"{show(name)} holds dates ({first} to {last}): if later rows are to be predicted from earlier ones, --time "
        f"{shlex.quote(name)} makes the folds go forward in time"
    ]
