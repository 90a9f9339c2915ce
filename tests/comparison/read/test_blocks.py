"""A file in many blocks, read by several threads, is the file that was written."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Condition

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from steepest.comparison.errors import InputError
from steepest.comparison.read import blocks, leaks, load_table, threads
from steepest.comparison.read.cells import read_file
from steepest.comparison.read.raw import Text

ROWS = 3000


class Impatient(Condition):
    """Threads that wait for each other end in an error, not for ever: nobody could end them from outside."""

    expired = False

    def wait_for(self, predicate: Callable[[], bool], timeout: float | None = None) -> bool:
        if Impatient.expired or not super().wait_for(predicate, timeout or 30):
            Impatient.expired = True
            raise AssertionError("a thread waits for ever")
        return True


@pytest.fixture(autouse=True)
def _small_blocks_and_several_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(blocks, "Condition", Impatient)
    monkeypatch.setattr(Impatient, "expired", False)
    monkeypatch.setattr(blocks, "_BLOCK", 1 << 10)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: range(4), raising=False)
    yield
    assert not Impatient.expired, "a thread waited for ever"


def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    few = rng.choice(["a", " a", "b b", "", "ü", "line\nbreak"], ROWS)
    few[ROWS - 5] = "late"
    return pd.DataFrame(
        {
            "x": rng.normal(size=ROWS).round(6),
            "few": few,
            "many": [f"w{i}" for i in rng.permutation(ROWS)],
            "holes": np.where(rng.random(ROWS) < 0.1, np.nan, rng.integers(0, 9, ROWS)),
            "y": rng.choice(["no", "yes"], ROWS),
        }
    )


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC], ids=["plain", "quoted"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_many_blocks_come_back_in_order(tmp_path: Path, quoting: int, end: str) -> None:
    written, path = frame(), tmp_path / "table.csv"
    written.to_csv(path, index=False, quoting=quoting, lineterminator=end)  # type: ignore[call-overload]
    columns = read_file(path).columns
    few = columns[1]
    assert isinstance(few, Text)
    assert set(few.words.to_pylist()) == {"a", "b b", "ü", "late", "line\nbreak"}
    for name, column in zip(written, columns):
        wanted = written[name]
        if isinstance(column, Text):
            words = wanted.str.strip()
            assert column.objects().tolist() == [word or None for word in words]
        else:
            np.testing.assert_array_equal(column, wanted)


def test_blocks_are_put_in_turn_whichever_is_parsed_first() -> None:
    columns = blocks._Columns(3, {0}, {1}, 1)
    sizes = [3, 1, 40, 2, 700, 5]

    def put(turn: int) -> None:
        rows = range(sum(sizes[:turn]), sum(sizes[: turn + 1]))
        words = pa.array([f" w{row % 3} " for row in rows]).dictionary_encode()
        table = pa.table([pa.array(rows, pa.float64()), words, pa.array(map(str, rows))], names=["a", "b", "c"])
        columns.put(turn, table, columns.words(table), columns.stripped(table), 1)

    with ThreadPoolExecutor(len(sizes) + 1) as pool:
        jobs = [pool.submit(put, turn) for turn in reversed(range(len(sizes)))]
        for job in jobs:
            job.result(timeout=60)
    numbers, few, many = columns.whole()
    rows = range(sum(sizes))
    assert isinstance(numbers, np.ndarray)
    assert isinstance(few, Text)
    assert isinstance(many, Text)
    assert numbers.tolist() == [*rows]
    assert few.words.to_pylist() == ["w0", "w1", "w2"]
    assert few.codes.tolist() == [row % 3 for row in rows]
    assert many.objects().tolist() == [str(row) for row in rows]


def test_the_first_word_in_a_column_of_numbers_decides_and_no_thread_waits_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.csv"
    lines = [f"{i}.5,{i % 7},{'ab'[i % 2]}" for i in range(20_000)]
    for row, line in ((10_000, "many,1,a"), (10_050, "1,few,b"), (19_000, "2,few,b")):
        lines[row] = line
    path.write_text("x,k,y\n" + "\n".join(lines) + "\n")
    monkeypatch.setattr("steepest.comparison.read.cells._LOOK", 100)
    monkeypatch.setattr("steepest.comparison.read.cells._PLACES", 3)
    warned = load_table(path).warnings
    assert [line.split(" is taken")[0] for line in warned if "is taken as numbers" in line] == ["'x'", "'k'"]
    assert "row 10001" in next(line for line in warned if line.startswith("'x'"))


def test_an_error_of_a_thread_is_the_first_in_order() -> None:
    def work(item: int) -> int:
        if item > 2:
            raise InputError(str(item))
        return item

    made = threads.side_by_side(work, range(9))
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="3"):
        next(made)


def test_copies_and_chosen_rows_do_not_depend_on_how_they_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    target, features = rng.integers(0, 3, ROWS), pd.DataFrame({"x": rng.integers(0, 500, ROWS).astype(float)})
    wanted = [leaks.find_copies(features, target), leaks._subsample(target, "multiclass").tolist()]
    assert features.assign(y=target).duplicated().sum() == int(wanted[0][0].split()[0])
    monkeypatch.setattr(leaks, "_ROWS_AT_ONCE", 64)
    monkeypatch.setattr(leaks, "_FEW_CLASSES", 0)
    assert [leaks.find_copies(features, target), leaks._subsample(target, "multiclass").tolist()] == wanted


@pytest.mark.parametrize(
    ("text", "cut"),
    [(b'a\n"b', 2), (b'"a\nb"\nc', 6), (b'a\n"b\nc', 2), (b'"a\nb', 0), (b'""\n""', 3), (b"a", 0)],
)
def test_a_block_ends_where_quotes_are_closed(text: bytes, cut: int) -> None:
    assert blocks._last_end(text, b"\n") == cut
