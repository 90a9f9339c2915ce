"""How a source is to be read, where a caller says so."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.scalars import is_number
from ...core.stored import parse_json
from ..errors import InputError, nearest
from .wording import show

KINDS = ("number", "category", "date", "text", "drop")
"""What a column can be declared to be."""

TASKS = ("auto", "classification", "binary", "multiclass", "regression", "retrieval", "ranking")
TEXT = "text"
"""The task of texts; tables and images have the others."""
RARE = ("drop", "merge")
SEPARATORS = {"tab": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "blanks": " ", "\\t": "\t"}
MISSING = ("?", "NA", "NaN", "nan")
"""Words that are missing among words; numbers know more (``MISSING_IN_NUMBERS``)."""


@dataclass(frozen=True)
class ReadOptions:
    """How a source is to be read; every part has a default that looks at the data.

    Attributes:
        encoding: a name that Python knows; None: by byte order mark, UTF-8, or Windows-1252.
        separator: one character; None: the one that cuts rows alike.
        header: whether the first row holds names; None: by what stands below it.
        missing: words that are missing among words, as written.
        dayfirst: whether 03/04/2024 is 3 April where no cell decides; None: the month first, with a warning.
        types: a kind of ``KINDS`` by column.
    """

    encoding: str | None = None
    separator: str | None = None
    header: bool | None = None
    missing: tuple[str, ...] = MISSING
    dayfirst: bool | None = None
    types: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TableOptions:
    """What a table is asked beside its target; the attributes are those of ``load_table``."""

    task: str = "auto"
    drop: str | Sequence[str] = ()
    group: str | None = None
    time: str | None = None
    weight: str | None = None
    rare: str | None = None
    folds: int = 5
    positive: str | None = None
    query: str | None = None

    def __post_init__(self) -> None:
        check_options(self.task, self.rare, self.folds)

    @property
    def roles(self) -> dict[str, str]:
        """The columns of groups, times, weights and queries, by role."""
        named = {"group": self.group, "time": self.time, "weight": self.weight, "query": self.query}
        return {role: column for role, column in named.items() if column is not None}


def told_apart(options: Mapping[str, Any]) -> tuple[TableOptions, ReadOptions]:
    """What the options of ``load_table`` say of the table, and of reading it.

    >>> told_apart({"folds": 3, "dayfirst": True})[1].dayfirst
    True
    """
    of_table = {name: value for name, value in options.items() if name in TableOptions.__dataclass_fields__}
    return TableOptions(**of_table), read_options(**{name: options[name] for name in options if name not in of_table})


def check_options(task: str, rare: str | None, folds: int) -> None:
    """Refuse an unknown task, an unknown way with rare classes, fewer than 2 folds."""
    if task not in TASKS:
        words = (*TASKS, TEXT)
        raise InputError(f"task: expected one of {', '.join(words)}, got {show(task)}{nearest(str(task), words)}")
    if rare is not None and rare not in RARE:
        raise InputError(f"rare: expected drop or merge, got {show(rare)}{nearest(str(rare), RARE)}")
    if not is_number(folds, integer=True) or folds < 2:
        raise InputError(f"folds: expected an integer of at least 2, got {show(folds)}")


def read_options(
    *,
    encoding: str | None = None,
    separator: str | None = None,
    header: str | bool | None = None,
    missing: str | Iterable[str] | None = None,
    dayfirst: bool | None = None,
    types: str | Path | Mapping[str, str] | None = None,
) -> ReadOptions:
    """Check what a caller gave.

    Raises:
        InputError: an option is none of what it can be.

    >>> read_options(separator="tab", missing="none,-9").missing
    ('none', '-9')
    """
    if encoding is not None:
        try:
            codecs.lookup(encoding)
        except (LookupError, TypeError, ValueError):
            raise InputError(f"encoding: {show(encoding)} is unknown; use utf-8, cp1252, utf-16, ...") from None
    if separator is not None:
        separator = SEPARATORS.get(separator, separator)
        if not isinstance(separator, str) or len(separator) != 1 or separator in '"\r\n':
            raise InputError(f"separator: expected one character or {', '.join(SEPARATORS)}, got {show(separator)}")
    if header not in (None, "auto", "yes", "no", True, False):
        raise InputError(f"header: expected auto, yes or no, got {show(header)}")
    named = None if header in (None, "auto") else header in ("yes", True)
    if missing is None:
        words = MISSING
    elif isinstance(missing, str):
        words = tuple(word.strip() for word in missing.split(",") if word.strip())
    else:
        words = tuple(str(word).strip() for word in missing)
    return ReadOptions(encoding, separator, named, words, dayfirst, {} if types is None else read_types(types))


def read_types(types: str | Path | Mapping[Any, str]) -> dict[str, str]:
    """Kinds by column, from a mapping, a JSON file of one, or a file with ``column: kind`` a line.

    Raises:
        InputError: the file cannot be read, a line has no kind, a kind is unknown.

    >>> read_types({"zip": "category"})
    {'zip': 'category'}
    """
    kinds: dict[str, str] = {}
    if isinstance(types, Mapping):
        kinds = {str(column): kind for column, kind in types.items()}
    else:
        try:
            text = Path(types).read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(f"types: cannot read {show(types, limit=200)}: {reason}") from None
        if text.lstrip().startswith("{"):
            kinds = parse_json(text, f"types: {show(types)}")
        else:
            for number, line in enumerate(text.splitlines(), 1):
                if not line.strip() or line.lstrip().startswith("#"):
                    continue
                places = [line.rfind(mark) for mark in ":=,\t"]
                if max(places) < 1:
                    raise InputError(f"types: line {number} of {show(types)}: expected column: kind, got {show(line)}")
                kinds[line[: max(places)].strip()] = line[max(places) + 1 :].strip()
    for column, kind in kinds.items():
        if kind not in KINDS:
            hint = nearest(str(kind), KINDS)
            raise InputError(f"types: {show(column)}: expected one of {', '.join(KINDS)}, got {show(kind)}{hint}")
    return kinds
