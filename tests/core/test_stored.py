"""What comes from a file is refused in one line that names the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from steepest.core.errors import InputError
from steepest.core.stored import (
    LARGEST_FILE,
    Flag,
    Listed,
    Maybe,
    Named,
    Number,
    Record,
    Row,
    Text,
    Whole,
    Word,
    parse_json,
    read_json,
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("NaN", "NaN is no number"),
        ("[-Infinity]", "-Infinity is no number"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' stands twice"),
        ("[" * 100_000, "recursion"),
        ("9" * 5000, "digits"),
        ("{", "Expecting"),
        (b"\xff", "utf-8"),
        ("", "Expecting value"),
    ],
)
def test_json_is_strict(text: str | bytes, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        parse_json(text, "here")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"facts: cannot read '.*nowhere.json'"):
        read_json(tmp_path / "nowhere.json", "facts")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(LARGEST_FILE + 1)
    with pytest.raises(InputError, match="more than 268,435,456"):
        read_json(tmp_path / "large.json", "facts")


FITS = [
    (Whole(1, 3), 3),
    (Number(), 3),
    (Number(), -1e150),
    (Number(0.0, 1.0), 1),
    (Flag(), False),
    (Text(), "a\nb"),
    (Text(drawn=True), "a\tb"),
    (Word(("a", 1)), 1),
    (Maybe(Flag()), None),
    (Listed(Flag()), []),
    (Row((Flag(), Text())), [True, ""]),
    (Named(Number()), {"a": 1.5}),
    (Record({"a": Flag()}, {"b": Flag()}), {"a": True}),
]
FAILS = [
    (Whole(1, 3), 4),
    (Whole(1, 3), 0),
    (Whole(), True),
    (Whole(), 1.0),
    (Whole(), "1"),
    (Whole(), None),
    (Whole(), 10**30),
    (Number(), "1"),
    (Number(), True),
    (Number(), float("inf")),
    (Number(), float("nan")),
    (Number(), 1e160),
    (Number(), 10**400),
    (Number(positive=True), 0),
    (Number(positive=True), -1.0),
    (Number(0.0, 1.0), 1.1),
    (Flag(), 1),
    (Flag(), None),
    (Text(), 1),
    (Text(), "\ud800"),
    (Text(drawn=True), "\x1b"),
    (Word(("a", 1)), True),
    (Word(("a", 1)), 1.0),
    (Word(("a",)), ["a"]),
    (Maybe(Flag()), 0),
    (Listed(Flag()), (True,)),
    (Listed(Flag(), 2, 2), [True]),
    (Listed(Flag(), 0, 1), [True, True]),
    (Listed(Flag()), [1]),
    (Row((Flag(),)), []),
    (Row((Flag(),)), [1]),
    (Named(Flag()), []),
    (Named(Flag()), {"a": 1}),
    (Record({"a": Flag()}), {}),
    (Record({"a": Flag()}), {"a": True, "b": 1}),
    (Record({"a": Flag()}), []),
    (Record({"a": Flag()}, {"b": Flag()}), {"a": True, "b": None}),
]


def test_shapes_take_what_fits_and_nothing_else() -> None:
    for shape, value in FITS:
        shape.check(value, "here")
    for shape, value in FAILS:
        with pytest.raises(InputError, match=r"^here") as caught:
            shape.check(value, "here")
        assert "\n" not in str(caught.value)


def test_the_place_is_named() -> None:
    shape = Record({"a": Listed(Record({"b": Number()}))})
    with pytest.raises(InputError, match=r"^x.json: a\[1\].b: expected a finite number, got '3'$"):
        shape.check({"a": [{"b": 3}, {"b": "3"}]}, "x.json")
