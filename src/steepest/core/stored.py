"""Values read back from a file: strict JSON, and shapes that say what a value must be.

Whatever a file holds is a stranger's word until a shape has checked it. A shape refuses with an
:class:`~steepest.core.errors.InputError` of one line that names the place, what was expected and what came; nothing is
converted, so that a text never stands for a number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from .errors import InputError, nearest

LARGEST_FILE = 256 * 2**20
"""Bytes that a JSON file may have."""

LARGEST = 1e152
"""The size of numbers: their squares stay finite, and sums of a hundred of those."""


def read_json(path: Path, what: str) -> Any:
    """The value of a JSON file, strictly: no NaN, no infinity, no key twice.

    Args:
        path: of the file.
        what: it is, for the error.

    Raises:
        InputError: it cannot be read, or is not JSON.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise InputError(f"{what}: {str(path)!r} has {size:,} bytes, more than {LARGEST_FILE:,}")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{what}: cannot read {str(path)!r}: {error.strerror or error}") from error
    return parse_json(data, f"{what}: {str(path)!r}")


def parse_json(data: bytes | str, where: str, *, finite: bool = True) -> Any:
    """The value of JSON text, strictly.

    Args:
        data: the text.
        where: it stands, for the error.
        finite: whether NaN and infinities are refused; other libraries write them into their logs.

    Raises:
        InputError: it is not JSON, or holds NaN, an infinity or a key twice.

    >>> parse_json('{"a": NaN}', "here")
    Traceback (most recent call last):
    steepest.core.errors.InputError: here is not valid JSON: NaN is no number
    """

    def constant(word: str) -> float:
        if finite:
            raise ValueError(f"{word} is no number")
        return float(word.replace("Infinity", "inf"))

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice")
        return values

    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        return json.loads(text, parse_constant=constant, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise InputError(f"{where} is not valid JSON: {error}") from error


def refuse_stored(where: str, expected: str, got: object) -> NoReturn:
    """Raise the uniform refusal: the place, what was expected, what came."""
    from .checks import describe  # it knows tensors, and most files are right

    raise InputError(f"{where}: expected {expected}, got {describe(got)}")


class Shape:
    """What a stored value must be."""

    def check(self, value: object, where: str) -> None:
        """Refuse what does not fit; ``where`` names the place."""
        raise NotImplementedError


@dataclass(frozen=True)
class Anything(Shape):
    """Any JSON value."""

    def check(self, value: object, where: str) -> None:
        pass


@dataclass(frozen=True)
class Text(Shape):
    """Text that can be written as UTF-8; that can be drawn, which means in XML, if ``drawn``.

    >>> Text(drawn=True).check("a\\0b", "name")
    Traceback (most recent call last):
    steepest.core.errors.InputError: name: expected text without control signs, got 'a\\x00b'
    """

    drawn: bool = False

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, str) or any("\ud800" <= sign <= "\udfff" for sign in value):
            refuse_stored(where, "text", value)
        if self.drawn and any((sign < " " and sign not in "\t\n\r") or sign in "\ufffe\uffff" for sign in value):
            refuse_stored(where, "text without control signs", value)


@dataclass(frozen=True)
class Flag(Shape):
    """True or false."""

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, bool):
            refuse_stored(where, "true or false", value)


@dataclass(frozen=True)
class Whole(Shape):
    """An integer in ``low..high``."""

    low: int = 0
    high: int = 2**53

    def check(self, value: object, where: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not self.low <= value <= self.high:
            refuse_stored(where, f"an integer in {self.low}..{self.high}", value)


@dataclass(frozen=True)
class Number(Shape):
    """A finite number in ``low..high``; above ``low`` if ``positive``.

    >>> Number(positive=True).check(0.0, "scale")
    Traceback (most recent call last):
    steepest.core.errors.InputError: scale: expected a number above 0, got 0.0
    """

    low: float = -LARGEST
    high: float = LARGEST
    positive: bool = False

    def check(self, value: object, where: str) -> None:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        if fits:
            fits = self.low <= value <= self.high and not (self.positive and value <= 0)  # type: ignore[operator]
        if not fits:
            bounds = ["above 0" if self.positive else f"of at least {self.low:g}" if self.low > -LARGEST else ""]
            bounds += [f"at most {self.high:g}" if self.high < LARGEST else ""]
            said = " and ".join(bound for bound in bounds if bound)
            refuse_stored(where, f"a number {said}" if said else "a finite number", value)


@dataclass(frozen=True)
class Word(Shape):
    """One of several texts or numbers."""

    options: tuple[str | int, ...]

    def check(self, value: object, where: str) -> None:
        if not any(type(value) is type(option) and value == option for option in self.options):
            refuse_stored(where, "one of " + ", ".join(map(repr, self.options)), value)


@dataclass(frozen=True)
class Maybe(Shape):
    """A value, or null."""

    shape: Shape

    def check(self, value: object, where: str) -> None:
        if value is not None:
            self.shape.check(value, where)


@dataclass(frozen=True)
class Listed(Shape):
    """A list of ``least`` to ``most`` values of one shape."""

    shape: Shape
    least: int = 0
    most: int | None = None

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, list):
            refuse_stored(where, "a list", value)
        if len(value) < self.least or (self.most is not None and len(value) > self.most):
            count = f"{self.least}" if self.least == self.most else f"{self.least} or more"
            refuse_stored(where, f"a list of {count} values", value)
        for position, item in enumerate(value):
            self.shape.check(item, f"{where}[{position}]")


@dataclass(frozen=True)
class Row(Shape):
    """A list whose places have a shape each."""

    shapes: tuple[Shape, ...]

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, list) or len(value) != len(self.shapes):
            refuse_stored(where, f"a list of {len(self.shapes)} values", value)
        for position, (item, shape) in enumerate(zip(value, self.shapes)):
            shape.check(item, f"{where}[{position}]")


@dataclass(frozen=True)
class Named(Shape):
    """Values of one shape by names that are not known beforehand."""

    shape: Shape
    names: Shape = field(default_factory=Text)

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            refuse_stored(where, "names with values", value)
        for name, item in value.items():
            self.names.check(name, f"{where}, a name")
            self.shape.check(item, f"{where}[{name!r}]")


@dataclass(frozen=True)
class Record(Shape):
    """Exactly these fields; the optional ones may be absent.

    >>> Record({"a": Whole()}).check({"a": 1, "b": 2}, "here")
    Traceback (most recent call last):
    steepest.core.errors.InputError: here: unknown field 'b'
    """

    fields: Mapping[str, Shape]
    optional: Mapping[str, Shape] = field(default_factory=dict)

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            refuse_stored(where, f"fields {', '.join(self.fields)}", value)
        for name in self.fields:
            if name not in value:
                raise InputError(f"{where}: the field {name!r} is missing")
        known = {**self.fields, **self.optional}
        for name, item in value.items():
            if name not in known:
                raise InputError(f"{where}: unknown field {name[:80]!r}{nearest(name[:80], known)}")
            known[name].check(item, inside(where, name))


def inside(where: str, name: str) -> str:
    """The place of a field.

    >>> inside("winner.json", "info"), inside(inside("winner.json", "info"), "task")
    ('winner.json: info', 'winner.json: info.task')
    """
    return f"{where}.{name}" if ": " in where else f"{where}: {name}"
