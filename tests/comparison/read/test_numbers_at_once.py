"""A column of plain numbers and usual words for missing is cast at once, to what the long way gives."""

from __future__ import annotations

import numpy as np
import pytest

from steepest.comparison.read import numbers
from steepest.comparison.read.raw import Text

COLUMNS = {
    "plain": (["1", "-2.5", "1e3", ".5", "7.", "inf", None], True),
    "with words": (["1", "N/A", "2", "NaN", "-", "null", "3", "N/A"], True),
    "odd spelling": (["1", "nAn", "2"], False),
    "a stray word": (["1", "many", "2"], False),
    "thousands": (["1,320", "7"], False),
    "a sign in front": (["+1", "2"], None),
}


@pytest.mark.parametrize("repeats", [1, 600])  # few distinct words, and many cells
@pytest.mark.parametrize("comma", ["no", "likely", "certain"])
@pytest.mark.parametrize("name", COLUMNS)
def test_cast_at_once_is_the_long_way(name, comma, repeats, monkeypatch):
    cells, at_once = COLUMNS[name]
    text = Text.of(cells * repeats)
    taken = []
    quick = numbers._cast_at_once
    monkeypatch.setattr(numbers, "_cast_at_once", lambda *given: taken.append(quick(*given)) or taken[-1])
    found = numbers.read_numbers(text, comma)
    if at_once is not None:
        assert any(result is not None for result in taken) == (at_once and comma != "certain")
    monkeypatch.setattr(numbers, "_cast_at_once", lambda *_: None)
    long_way = numbers.read_numbers(text, comma)
    np.testing.assert_array_equal(found.values, long_way.values)
    assert {**vars(found), "values": 0} == {**vars(long_way), "values": 0}


@pytest.mark.parametrize(("comma", "value"), [("no", 1234.0), ("likely", 1.234), ("certain", 1.234)])
def test_a_comma_before_three_digits_is_what_the_file_says(comma, value):
    read = numbers.read_numbers(Text.of(["1,234"]), comma)
    assert read.values.tolist() == [value]
    assert read.doubt == "1,234"
