"""Made-up tables come back as they were put in, in whatever separators, encodings, words and dates they are written."""

from __future__ import annotations

import random
import traceback
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from steepest.comparison.errors import InputError
from steepest.comparison.read import load_table, whole

SEPARATORS = (",", ";", "\t", "|", " ")
ENCODINGS = ("utf-8", "utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-be")
MISSING = ("", "NA", "?", "N/A", "NULL", "-", "nan", "None", "n/a", "#N/A")
WORDS = (
    "red",
    "green",
    "blue",
    "no",
    "yes",
    "Zürich",
    "Genève",
    "x-1",
    "A",
    "b b",
    "semi;colon",
    "com,ma",
    "o'k",
    'q"q',
)


@dataclass
class Written:
    """A table as bytes, and what was put in.

    Attributes:
        data: the file.
        options: what its reader must be told.
        columns: by name float64, datetime64 or objects (None: missing).
        target: classes as text, or numbers.
        said: how it was written, for a failure.
    """

    data: bytes
    options: dict[str, Any]
    columns: dict[str, np.ndarray]
    target: np.ndarray
    said: list[str] = field(default_factory=list)


def generated(number: int) -> Written:
    """The table of a number, always the same."""
    rng = random.Random(number)
    rows, width = rng.randint(14, 60), rng.randint(1, 9)
    separator, encoding = rng.choice(SEPARATORS), rng.choice(ENCODINGS)
    end = rng.choice(["\n", "\n", "\r\n", "\r"]) if separator != " " else rng.choice(["\n", "\r\n"])
    if encoding.startswith("utf-16") and end == "\r":
        end = "\n"
    comma = (separator == ";" and rng.random() < 0.6) or (separator in "\t," and rng.random() < 0.15)
    names, cells, columns, said = [], [], {}, [f"{separator!r} {encoding} {end!r} comma={comma}"]
    for i in range(width):
        kind = rng.choice(["number", "number", "number", "word", "date"])
        name = rng.choice(["size", "weight kg", "größe", "Price (EUR)", "t", "201", "a.b"]) + str(i)
        values, texts, way = _column(rng, kind, rows, separator, comma)
        names.append(name if separator != " " else name.replace(" ", "_"))
        cells.append(texts)
        columns[names[-1]] = values
        said.append(f"{names[-1]}: {way}")
    target, texts = _target(rng, rows)
    names.append("goal")
    cells.append(texts)
    header = rng.random() < 0.85 or not any(values.dtype == np.float64 for values in columns.values())
    index = header and rng.random() < 0.15
    table = [list(row) for row in zip(*cells)]
    lines = [_line(rng, row, separator) for row in table]
    if header:
        lines.insert(0, _line(rng, names, separator))
    else:
        columns = {f"c{i + 1}": values for i, values in enumerate(columns.values())}
    if index:
        lines = [
            (('""' if separator == " " else "") if i == 0 else str(i - 1)) + separator + line
            for i, line in enumerate(lines)
        ]
        said.append("index")
    if header and rng.random() < 0.1:
        lines = ["# made up", "# in one of many ways", *lines]
        said.append("comments")
    elif separator in ",;\t|" and rng.random() < 0.05:
        lines = [f"sep={separator}", *lines]
        said.append("sep=")
    text = end.join(lines) + (end if rng.random() < 0.9 else "")
    data = text.encode(encoding, errors="strict")
    said.append(f"{rows} rows, header {header}")
    return Written(data, {} if header else {"header": "no"}, columns, target, said)


def _column(rng: random.Random, kind: str, rows: int, separator: str, comma: bool) -> tuple[np.ndarray, list[str], str]:
    holes = rng.choice([0.0, 0.0, 0.1, 0.3])
    gone = [rng.random() < holes for _ in range(rows)]
    if all(gone):
        gone[0] = False
    if kind == "number":
        values, texts, way = _numbers(rng, rows, separator, comma)
        words = [w for w in MISSING if w or separator != " "]
        word = rng.choice(words)
        array = np.where(gone, np.nan, values)
        if gone[0] and word in ("", "NA"):  # a first row of holes and a header look alike to nobody, but keep it plain
            gone[0], array[0] = False, values[0]
        return array, [word if g else t for g, t in zip(gone, texts)], f"{way}, missing {word!r}"
    word = rng.choice([w for w in ("", "NA", "?") if w or separator != " "])
    if kind == "word":
        some = [w for w in rng.sample(WORDS, rng.randint(2, 6)) if separator != " " or " " not in w]
        some += ["one", "two"] if len(some) < 2 else []
        texts = [some[i % len(some)] if i < len(some) else rng.choice(some) for i in range(rows)]
        array = np.array(
            [None if g and i >= len(some) else t for i, (g, t) in enumerate(zip(gone, texts))], dtype=object
        )
        return array, [word if t is None else t for t in array], f"words, missing {word!r}"
    return _dates(rng, rows, gone, word, separator)


def _numbers(rng: random.Random, rows: int, separator: str, comma: bool) -> tuple[np.ndarray, list[str], str]:
    way = rng.choice(["plain", "integer", "long", "thousands", "currency", "percent", "exponent", "signed"])
    point = "," if comma else "."
    values, texts = [], []
    for i in range(rows):
        number = round(rng.uniform(-9000, 9000), 2)
        if way == "integer":
            number = float(rng.randint(-999, 999))
            text = str(int(number))
        elif way == "long":
            number = rng.gauss(0, 1) * 10.0 ** rng.randint(-4, 4)
            text = repr(number).replace(".", point)
            if "e" in text and comma:
                number, text = 0.25, "0,25"
        elif way == "thousands":
            number = round(rng.uniform(1000, 9_999_999), 2) if i else 1234567.25
            text = f"{number:,.2f}"
            text = text.replace(",", "_").replace(".", point).replace("_", "." if comma else ",")
        elif way == "currency":
            sign = rng.choice(["$", "€"]) if not i else texts[0].strip("0123456789.,-")
            number = abs(number)
            text = f"{sign}{number:.2f}".replace(".", point)
        elif way == "percent":
            text = f"{number:.2f}%".replace(".", point)
        elif way == "exponent" and not comma:
            number = float(f"{rng.gauss(0, 1) * 10.0 ** rng.randint(-30, 30):.6e}")
            text = f"{number:.6e}"
        else:
            text = f"{number:+.2f}".replace(".", point) if way == "signed" else f"{number:.2f}".replace(".", point)
        values.append(
            float(f"{number:.2f}") if way in ("thousands", "currency", "percent", "plain", "signed") else number
        )
        texts.append(text)
    return np.array(values), texts, f"numbers {way}"


def _dates(
    rng: random.Random, rows: int, gone: list[bool], word: str, separator: str
) -> tuple[np.ndarray, list[str], str]:
    form = rng.choice(["%Y-%m-%d", "%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%Y/%m/%d", "%Y-%m-%dT%H:%M:%S", "%d %b %Y"])
    if separator == " ":
        form = form.replace(" ", "-")
    days = [datetime(1990, 1, 1) + timedelta(days=rng.randint(0, 14000), seconds=rng.randint(0, 86399)) for _ in gone]
    days[1] = days[1].replace(day=28)  # tells the day from the month
    gone = [g and i != 1 for i, g in enumerate(gone)]
    texts = [word if g else day.strftime(form) for g, day in zip(gone, days)]
    if "%H" not in form:
        days = [day.replace(hour=0, minute=0, second=0) for day in days]
    values = np.array(
        [np.datetime64("NaT") if g else np.datetime64(day, "us") for g, day in zip(gone, days)], dtype="M8[us]"
    )
    return values, texts, f"dates {form}, missing {word!r}"


def _target(rng: random.Random, rows: int) -> tuple[np.ndarray, list[str]]:
    classes = rng.choice([["no", "yes"], ["0", "1"], ["a", "b"], ["-1", "1"], ["True", "False"]])
    texts = [classes[i % 2] for i in range(rows)]
    rng.shuffle(texts)
    return np.array(texts, dtype=object), texts


def _line(rng: random.Random, row: list[str], separator: str) -> str:
    special = ('"', separator, "\n", "\r") if separator != " " else ('"', " ")
    quoted = ['"' + cell.replace('"', '""') + '"' if any(s in cell for s in special) else cell for cell in row]
    return separator.join(quoted)


def differences(table: Any, written: Written) -> list[str]:
    """What came back otherwise than it was put in."""
    found = []
    for name, values in written.columns.items():
        if name not in table.frame:
            found.append(f"{name} is gone: {[line for line in table.decisions if 'dropped' in line]}")
            continue
        column = table.frame[name]
        if values.dtype == object:
            read = column.astype(object)
            same = [None if pd.isna(cell) else cell for cell in read] == values.tolist()
        elif values.dtype.kind == "M":
            same = column.dtype.kind == "M" and np.array_equal(
                column.to_numpy().astype("M8[us]").view(np.int64), values.view(np.int64)
            )
        else:
            same = column.dtype == np.float64 and np.array_equal(column.to_numpy(), values, equal_nan=True)
        if not same:
            found.append(f"{name} ({column.dtype}): {column.tolist()[:6]} for {values.tolist()[:6]}")
    if [table.classes[code] for code in table.target] != written.target.tolist():
        found.append(f"target: {table.classes}")
    return found


def came_back(number: int, folder: Path) -> list[str]:
    written = generated(number)
    path = folder / "table.csv"
    path.write_bytes(written.data)
    try:
        return differences(load_table(path, **written.options), written)
    except InputError as error:
        return [f"refused: {error}"]
    except Exception:
        return [f"traceback: {traceback.format_exc()}"]


def wrong(numbers: range, folder: Path) -> dict[int, list[str]]:
    found = {number: came_back(number, folder) for number in numbers}
    for number, lines in found.items():
        if lines:
            print(number, generated(number).said, *lines, sep="\n  ")
    return {number: lines for number, lines in found.items() if lines}


@pytest.mark.parametrize("shortest", [whole.SHORTEST, 0], ids=["in blocks", "as a whole"])
def test_some_made_up_tables_come_back_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shortest: int) -> None:
    monkeypatch.setattr(whole, "SHORTEST", shortest)
    assert wrong(range(60), tmp_path) == {}


@pytest.mark.slow
@pytest.mark.parametrize("shortest", [whole.SHORTEST, 0], ids=["in blocks", "as a whole"])
def test_two_thousand_made_up_tables_come_back_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shortest: int
) -> None:
    monkeypatch.setattr(whole, "SHORTEST", shortest)
    found = wrong(range(2000), tmp_path)
    print(f"\n{2000 - len(found)} of 2,000 tables came back exactly")
    assert found == {}
