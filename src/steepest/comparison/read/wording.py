"""How values, lists and counts are put into a line for people."""

from __future__ import annotations


def show(value: object, limit: int = 60) -> str:
    """A value as one short line.

    >>> show("two\\nlines")
    "'two\\\\nlines'"
    """
    text = repr(str(value))
    return text if len(text) <= limit else text[: limit - 4] + "...'"


def listing(values: list[str], limit: int = 8) -> str:
    """Some names as one line.

    >>> listing(["a", "b", "c"], limit=2)
    "'a', 'b' and 1 more"
    """
    text = ", ".join(show(v) for v in values[:limit])
    return text if len(values) <= limit else f"{text} and {len(values) - limit} more"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """``1 row``, ``2 rows``.

    >>> count(1, "row"), count(2, "class", "classes")
    ('1 row', '2 classes')
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
