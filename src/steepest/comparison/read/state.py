"""What a preprocessor learnt, as JSON and back; whatever is not of this form is refused.

``columns``: what each column is, in the order in which arrays are taken. ``missing``: words. ``numeric``: a place for
each column of numbers and each calendar part of a date. ``categories``: words, null for a missing cell, last. ``text``:
hashed pieces of words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...core import stored
from ...core.stored import Flag, Listed, Maybe, Number, Record, Whole, Word, refuse_stored
from .encoders import MOST_ONE_HOT, PARTS, CategoryPlaces, NumberPlace, TextPlaces
from .options import KINDS, ReadOptions
from .types import ColumnType

_WORD = stored.Text()
STORED = Record(
    {
        "columns": Listed(
            Record({"name": _WORD, "kind": Word(KINDS[:-1]), "decimal": Word((".", ",")), "dayfirst": Maybe(Flag())}),
            least=1,
        ),
        "missing": Listed(_WORD),
        "numeric": Listed(
            Record(
                {
                    "column": _WORD,
                    "part": Maybe(Word(PARTS)),
                    "median": Number(),
                    "mean": Number(),
                    "scale": Number(positive=True),
                    "indicator": Flag(),
                }
            )
        ),
        "categories": Listed(
            Record({"column": _WORD, "categories": Listed(Maybe(_WORD), most=MOST_ONE_HOT + 1), "other": Flag()})
        ),
        "text": Listed(
            Record(
                {
                    "column": _WORD,
                    "width": Whole(1, 1 << 12),
                    "ngrams": Listed(Whole(1, 16), least=2, most=2),
                    "indicator": Flag(),
                }
            )
        ),
    }
)
"""What :func:`to_json` gives."""

Parts = tuple[dict[str, ColumnType], ReadOptions, list[NumberPlace], list[CategoryPlaces], list[TextPlaces]]


def to_json(
    types: Mapping[str, ColumnType],
    options: ReadOptions,
    numbers: Sequence[NumberPlace],
    categories: Sequence[CategoryPlaces],
    texts: Sequence[TextPlaces],
) -> dict[str, Any]:
    """The parts of a preprocessor as plain lists, numbers and text."""
    return {
        "columns": [{"name": name, **vars(type)} for name, type in types.items()],
        "missing": list(options.missing),
        "numeric": [dict(vars(place)) for place in numbers],
        "categories": [{**vars(places), "categories": list(places.categories)} for places in categories],
        "text": [{**vars(places), "ngrams": list(places.ngrams)} for places in texts],
    }


def from_json(values: Any, where: str) -> Parts:
    """The parts of a preprocessor.

    Raises:
        InputError: they are of another form, or don't agree; in one line that says where.
    """
    STORED.check(values, where)
    types = {c["name"]: ColumnType(c["kind"], c["decimal"], c["dayfirst"]) for c in values["columns"]}
    if len(types) < len(values["columns"]):
        refuse_stored(f"{where}.columns", "one or more columns, each once", [c["name"] for c in values["columns"]])
    numbers = [NumberPlace(**{**p, **_floats(p)}) for p in values["numeric"]]
    categories = [CategoryPlaces(p["column"], tuple(p["categories"]), p["other"]) for p in values["categories"]]
    texts = [TextPlaces(p["column"], p["width"], tuple(p["ngrams"]), p["indicator"]) for p in values["text"]]
    _check_places(where, types, numbers, categories, texts)
    for i, places in enumerate(categories):
        known = places.categories
        if len(set(known)) < len(known) or None in known[:-1]:
            refuse_stored(f"{where}.categories[{i}].categories", "each category once, a missing one last", list(known))
        if not places.width:
            refuse_stored(f"{where}.categories[{i}].categories", "at least one", list(known))
    for i, place in enumerate(texts):
        if place.ngrams[0] > place.ngrams[1]:
            refuse_stored(f"{where}.text[{i}].ngrams", "the shorter first", list(place.ngrams))
    return types, ReadOptions(missing=tuple(values["missing"])), numbers, categories, texts


def _floats(place: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(place[name]) for name in ("median", "mean", "scale")}


def _check_places(
    where: str,
    types: Mapping[str, ColumnType],
    numbers: Sequence[NumberPlace],
    categories: Sequence[CategoryPlaces],
    texts: Sequence[TextPlaces],
) -> None:
    """Each column has the places of its kind, each once; those of numbers come before those of dates."""
    lists = {"number": [p for p in numbers if p.part is None], "date": [p for p in numbers if p.part is not None]}
    lists |= {"category": list(categories), "text": list(texts)}
    for kind, places in lists.items():
        wanted = [name for name, type in types.items() if type.kind == kind]
        columns = list(dict.fromkeys(place.column for place in places))
        name = {"number": "numeric", "date": "numeric", "category": "categories"}.get(kind, kind)
        if columns != wanted:
            refuse_stored(f"{where}.{name}", f"a place for each column of kind {kind}, in order", columns)
        if len({(place.column, getattr(place, "part", None)) for place in places}) < len(places):
            refuse_stored(f"{where}.{name}", "one or more columns, each once", columns)
    if [place.part is None for place in numbers] != sorted((place.part is None for place in numbers), reverse=True):
        refuse_stored(f"{where}.numeric", "the parts of dates last", [place.column for place in numbers])
