"""Files as spreadsheets, data bases and people write them, beyond those that were reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steepest.comparison.errors import InputError
from steepest.comparison.read import load_like, load_table

N = 40
Y = ["ab"[i % 3 == 0] for i in range(N)]
K = [i * 7 % 83 for i in range(N)]


def column(cell: Callable[[int], object]) -> str:
    return "x,k,y\n" + "".join(f"{cell(i)},{K[i]},{Y[i]}\n" for i in range(N))


PLAIN = column(lambda i: i * 7 % 41 + 0.5)


def read(folder: Path, data: str | bytes, **options: Any) -> Any:
    path = folder / "data.csv"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return load_table(path, **options)


AROUND = {
    "a mark and sep=": b"\xef\xbb\xbfsep=;\r\n" + PLAIN.replace(",", ";").replace("\n", "\r\n").encode(),
    "sep=tab in UTF-16": ("sep=\t\r\n" + PLAIN.replace(",", "\t").replace("\n", "\r\n")).encode("utf-16"),
    "no end of the last line": PLAIN.rstrip("\n").encode(),
    "separators at the end of lines": PLAIN.replace("\n", ",\n").encode(),
    "separators at the end of rows": PLAIN.replace("\n", ",\n").replace("y,\n", "y\n", 1).encode(),
    "empty lines between": PLAIN.replace("\n", "\n\n").encode(),
    "rows of empty cells below": (PLAIN + ",,\n , ,\n").encode(),
    "a row of empty cells above": (",,\n" + PLAIN).encode(),
    "a title": ("Sales of a year\n\n" + PLAIN).encode(),
    "a title of a spreadsheet": ("Sales of a year,,\n,,\n" + PLAIN).encode(),
    "two kinds of ends": PLAIN.replace("\n", "\r\n", 5).encode(),
    "blanks around names": PLAIN.replace("x,k,y", " x , k , y ").encode(),
    "quotes around everything": "\n".join(
        ",".join(f'"{c}"' for c in line.split(",")) for line in PLAIN.split("\n")[:-1]
    ).encode(),
}


@pytest.mark.parametrize("case", AROUND)
def test_the_same_table_with_something_around_it(tmp_path: Path, case: str) -> None:
    table = read(tmp_path, AROUND[case])
    assert table.frame["x"].tolist() == [i * 7 % 41 + 0.5 for i in range(N)]
    assert table.frame["k"].tolist() == K
    assert [table.classes[code] for code in table.target] == Y


CELLS: dict[str, tuple[Callable[[int], object], str, Callable[[int], object] | None]] = {
    "dates with zones": (lambda i: f"2024-01-{1 + i % 28:02d}T10:00+02:00", "date", None),
    "the end of a day as 24:00": (
        lambda i: f"2024-01-{1 + i % 28:02d} {24 if i % 5 == 0 else i % 24:02d}:00",
        "date",
        None,
    ),
    "times of the day": (lambda i: f"{i % 24:02d}:{i % 60:02d}", "date", None),
    "what something took": (lambda i: f"{i * 5}:{i % 60:02d}:30", "date", None),
    "flags in several spellings": (
        lambda i: ["TRUE", "False", "true", "FALSE"][i % 4],
        "number",
        lambda i: [1, 0][i % 2],
    ),
    "flags and words for missing": (
        lambda i: ["TRUE", "False", "N/A", ""][i % 4],
        "number",
        lambda i: [1, 0, None, None][i % 4],
    ),
    "yes and no": (lambda i: ["yes", "no"][i % 2], "category", lambda i: ["yes", "no"][i % 2]),
    "post codes": (lambda i: f"{501 + i % 8 * 1237:05d}", "category", lambda i: f"{501 + i % 8 * 1237:05d}"),
    "codes and words for missing": (
        lambda i: ["007", "042", "NULL"][i % 3],
        "category",
        lambda i: ["007", "042", None][i % 3],
    ),
    "two digits are numbers": (lambda i: f"{i % 12 + 1:02d}", "number", lambda i: i % 12 + 1),
    "numbers of blanks that don't break": (
        lambda i: f"\u00a0{i * 7 % 41}.5\u00a0",
        "number",
        lambda i: i * 7 % 41 + 0.5,
    ),
    "apostrophes": (lambda i: f"{i * 7 % 41 + 1}'000.5", "number", lambda i: (i * 7 % 41 + 1) * 1000 + 0.5),
    "serial numbers of days": (lambda i: 45000 + i * 3, "number", lambda i: 45000 + i * 3),
    "too small for a double": (
        lambda i: "1e-400" if i == 5 else i * 7 % 41,
        "number",
        lambda i: 0 if i == 5 else i * 7 % 41,
    ),
    "limits": (lambda i: "<5" if i % 15 == 0 else i, "number", lambda i: None if i % 15 == 0 else i),
    "line ends in quotes": (lambda i: f'"line {i % 4}\r\nmore"', "category", lambda i: f"line {i % 4}\r\nmore"),
    "quotes within cells": (lambda i: f'5" pipe {i % 4}', "category", lambda i: f'5" pipe {i % 4}'),
    "another alphabet": (lambda i: ["да", "нет", "😀"][i % 3], "category", lambda i: ["да", "нет", "😀"][i % 3]),
}


@pytest.mark.parametrize("case", CELLS)
def test_cells_of_every_kind(tmp_path: Path, case: str) -> None:
    write, kind, meant = CELLS[case]
    table = read(tmp_path, column(write))
    assert table.types["x"].kind == kind
    cells = table.frame["x"].astype(object)
    assert len(cells) == N
    if meant is not None:
        assert cells.where(cells.notna(), None).tolist() == [meant(i) for i in range(N)]
    else:
        assert cells.notna().all()


def test_what_dates_with_clocks_say(tmp_path: Path) -> None:
    day = read(tmp_path, column(lambda i: f"2024-02-29 {24 if i == 0 else i % 24:02d}:00")).frame["x"]
    assert day[0] == np.datetime64("2024-03-01")
    zones = ["Z", "+02:00", "-0500", "+05:30"]
    mixed = read(tmp_path, column(lambda i: f"2024-01-{1 + i % 28:02d}T10:00" + zones[i % 4])).frame["x"]
    assert [str(time)[11:16] for time in mixed[:4]] == ["10:00", "08:00", "15:00", "04:30"]
    clock = read(tmp_path, column(lambda i: f"{i % 12 + 1}:30 {'pm' if i % 2 else 'am'}")).frame["x"]
    assert [str(time) for time in clock[:3]] == ["1970-01-01 01:30:00", "1970-01-01 14:30:00", "1970-01-01 03:30:00"]


SAID = {
    "codes": (lambda i: f"{i % 12:03d}", "'x' holds codes with leading zeros, as '000': taken as words"),
    "per cent beside numbers": (
        lambda i: f"{i}%" if i % 2 else i / 100,
        "'x' mixes units: 20 cells with a per cent sign and 20 without",
    ),
    "two currencies": (lambda i: f"{'$€'[i % 2]}{i * 7 % 41}", "'x' mixes units: the currencies '$', '€'"),
    "a word among numbers": (lambda i: "x" if i == 20 else i, "1 word among them now missing (first: 'x', row 21)"),
}


@pytest.mark.parametrize("case", SAID)
def test_what_may_be_meant_otherwise_is_warned_of(tmp_path: Path, case: str) -> None:
    write, words = SAID[case]
    assert any(words in line for line in read(tmp_path, column(write)).warnings)


def test_codes_are_found_anywhere_in_a_small_file_and_numbers_where_asked(tmp_path: Path) -> None:
    text = "x,k,y\n" + "".join(f"{'007' if i == 390 else 100 + i % 9},{i * 7 % 83},{Y[i % N]}\n" for i in range(400))
    assert read(tmp_path, text).types["x"].kind == "category"
    table = read(tmp_path, text, types={"x": "number"})
    assert table.frame["x"][390] == 7


REFUSED = {
    "one column": ("y\n" + "0\n1\n" * 20, "only one column was found; --separator names"),
    "another separator": (PLAIN.replace(",", "^"), "only one column was found; --separator names"),
    "infinity": (column(lambda i: "inf" if i == 5 else i), "column 'x' has inf in row 6"),
    "beyond doubles": (column(lambda i: "1e400" if i == 5 else i), "column 'x' has inf in row 6"),
    "one name twice": (PLAIN.replace("x,k,y", "x,x,y"), "columns 1 and 2 are both named 'x' and differ"),
    "a cell too many": (column(lambda i: "1,2" if i == 20 else 1), "line 22: expected 3 cells"),
    "a note below": (PLAIN + "Source: an office\n", "line 42: expected 3 cells, as in the header, got 1"),
    "a sum below": (PLAIN + "Total,,\n", "the target 'y' is missing in 1 row (first: row 41)"),
    "NUL": (column(lambda i: "a\0b" if i == 20 else "c"), "binary file"),
    "JSON": ('[{"a": 1, "y": 0},\n {"a": 2, "y": 1}]', "looks like JSON (pandas.read_json)"),
    "lines of JSON": ('{"a": 1, "y": 0}\n{"a": 2, "y": 1}\n', "looks like JSON (pandas.read_json)"),
    "HTML": ("<!DOCTYPE html>\n<table></table>\n", "looks like HTML or XML"),
    "ARFF": ("% a comment\n@RELATION x\n@attribute a numeric\n@data\n1,0\n", "looks like ARFF"),
    "LIBSVM": ("".join(f"{i % 2} 1:{i}.5 2:{K[i]}\n" for i in range(N)), "looks like LIBSVM rows"),
    "a NumPy array": (b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'}", "looks like a NumPy array (numpy.load)"),
    "a data base": (b"SQLite format 3\0" + bytes(64), "looks like a SQLite data base"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_table_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    data, words = REFUSED[case]
    with pytest.raises(InputError) as error:
        read(tmp_path, data)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("spellings", "classes", "dtype"),
    [
        (["True", "TRUE", "false", "False"], ("False", "True"), "str"),
        (["true", "false"], ("false", "true"), "str"),
        (["007", "042"], ("007", "042"), "str"),
        (["1", "1.0", "2", "2.0"], ("1", "2"), "int64"),
        (["1", "2"], ("1", "2"), "int64"),
    ],
)
def test_labels_in_several_spellings(
    tmp_path: Path, spellings: list[str], classes: tuple[str, ...], dtype: str
) -> None:
    cells = [spellings[i % len(spellings)] for i in range(N)]
    text = "x,k,y\n" + "".join(f"{i * 7 % 41},{K[i]},{cell}\n" for i, cell in enumerate(cells))
    table = read(tmp_path, text)
    assert (table.classes, table.label_dtype) == (classes, dtype)
    again = load_like(tmp_path / "data.csv", table)
    assert np.array_equal(again.target, table.target)
