"""A long file parsed as a whole by pandas is what its blocks say, and what pandas takes amiss is left to the blocks."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from steepest.comparison.errors import InputError
from steepest.comparison.read import cells, load_table, whole
from steepest.comparison.read.cells import read_file
from steepest.comparison.read.raw import Text


@pytest.fixture
def whole_files(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Files of any length are tried as a whole; the list says of each whether that went."""
    went: list[bool] = []

    def tried(*args: object) -> object:
        went.append(False)
        result = read_whole(*args)  # type: ignore[arg-type]
        went[-1] = True
        return result

    read_whole = whole.read_whole
    monkeypatch.setattr(cells, "read_whole", tried)
    monkeypatch.setattr(whole, "SHORTEST", 0)
    return went


@pytest.fixture
def few_rows_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is odd further down comes as a surprise."""
    monkeypatch.setattr(cells, "_HEAD", 100)
    monkeypatch.setattr(cells, "_PLACES", 2)
    monkeypatch.setattr(cells, "_LOOK", 100)


def reading(path: Path) -> tuple[object, ...]:
    """All that loading a file gives, in a form that can be compared, or why it is refused."""
    try:
        table = load_table(path)
    except InputError as error:
        return (str(error),)
    columns = {name: [str(column.dtype), *map(repr, column.tolist())] for name, column in table.frame.items()}
    return columns, table.target.tolist(), table.classes, table.sha256, table.decisions, table.warnings


ROWS = [f"{i},{i / 7:.6f},w{i % 3},{'no' if i % 2 else 'yes'}" for i in range(60)]


def file(tmp_path: Path, changed: dict[int, bytes], end: bytes = b"\n") -> Path:
    """A table of 60 rows, some of them other than the rest."""
    path = tmp_path / "table.csv"
    lines = [changed.get(i, row.encode()) for i, row in enumerate(ROWS)]
    path.write_bytes(end.join([b"a,b,c,y", *lines, b""]))
    return path


REGULAR = {
    "nothing": {},
    "a missing number": {17: b",0.5,w1,no"},
    "a missing last cell": {17: b"1,0.5,w1,"},
    "blanks around": {17: b" 1 ,\t0.5, w1 , no"},
    "an empty line": {17: b"1,0.5,w1,no\n\n   \n2,1,w2,yes"},
    "a quoted comma": {17: b'1,0.5,"w1, w2",no'},
    "a quoted number": {17: b'"1",0.5,w1,no'},
    "a number among words": {17: b"1,0.5,5,no"},
    "other letters": {17: "1,0.5,Zürich,no".encode()},
    "a plus": {17: b"+1,0.5,w1,no"},
    "seventeen digits": {17: b"1,0.12345678901234567,w1,no"},
}
IRREGULAR = {
    "a short row": {17: b"1,0.5,w1"},
    "a short row and a long one": {17: b"1,0.5,w1", 40: b"1,0.5,w1,no,5"},
    "a long row and a short one": {17: b"1,0.5,w1,no,5", 40: b"1,0.5,w1"},
    "a long first row": {0: b"1,0.5,w1,no,5"},
    "a word among numbers": {17: b"N/A,0.5,w1,no"},
    "not a number": {17: b"nan,0.5,w1,no"},
    "a quote behind blanks": {17: b'1,0.5, "w1, w2",no'},
    "a quote inside": {17: b'1,0.5,5"w,no'},
    "a quote that stays open": {17: b'1,0.5,"w1,no'},
    "NUL in a word": {17: b"1,0.5,w\0,no"},
    "NUL in a number": {17: b"1\0,0.5,w1,no"},
    "not UTF-8": {17: b"1,0.5,Z\xfcrich,no"},
}


@pytest.mark.usefixtures("few_rows_looked_at")
@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("case", [*REGULAR, *IRREGULAR])
def test_odd_rows_are_what_blocks_say(
    tmp_path: Path, whole_files: list[bool], monkeypatch: pytest.MonkeyPatch, case: str, end: bytes
) -> None:
    path = file(tmp_path, (REGULAR | IRREGULAR)[case], end)
    at_once = reading(path)
    assert whole_files in ([case in REGULAR], [])
    monkeypatch.setattr(whole, "SHORTEST", 1 << 62)
    assert at_once == reading(path)


def test_codes_and_ids_keep_their_cells(tmp_path: Path, whole_files: list[bool]) -> None:
    rows = [f"{i:05d},{2**60 + i},{i % 2 == 0}" + f",{i * 0.1:.1f}" * 5 for i in range(40)]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["code,id,flag,a,b,c,d,y", *rows, ""]))
    code, number, flag, *_ = read_file(path, exact=lambda names: [1]).columns
    assert whole_files == [True]
    assert isinstance(code, Text)
    assert isinstance(number, Text)
    assert isinstance(flag, Text)
    assert code.objects()[39] == "00039"
    assert number.objects()[39] == str(2**60 + 39)
    assert flag.objects()[:2].tolist() == ["True", "False"]


def test_rows_of_several_threads_come_back(tmp_path: Path, whole_files: list[bool]) -> None:
    rng = np.random.default_rng(0)
    rows = 60_000
    written = pd.DataFrame({f"x{i}": rng.normal(size=rows) for i in range(4)})
    written["few"] = rng.choice(["a", "b b", "ü", "7"], rows)
    written["many"] = np.where(np.arange(rows) < rows // 2, "", "w") + pd.Series(range(rows)).astype(str)
    written.loc[rows - 3, ["x1", "few"]] = np.nan
    path = tmp_path / "table.csv"
    written.to_csv(path, index=False)
    assert path.stat().st_size > 5 << 20, "or pandas takes one thread"
    columns = read_file(path).columns
    assert whole_files == [True]
    for name, column in zip(written, columns):
        if isinstance(column, Text):
            assert column.objects().tolist() == [None if word != word else word for word in written[name]]
        else:
            np.testing.assert_array_equal(column, written[name])


def test_the_hash_is_of_the_bytes_that_were_read(tmp_path: Path, whole_files: list[bool]) -> None:
    path = file(tmp_path, {})
    assert load_table(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    raw = read_file(path)
    with path.open("ab") as stream:
        stream.write(b"1,2,w1,no\n")
    with pytest.raises(InputError, match=r"table\.csv' has changed while it was read"):
        raw.start_digest()()
    raw = read_file(path)
    os.remove(path)
    with pytest.raises(InputError, match=r"table\.csv' cannot be read: No such file"):
        raw.start_digest()()


def test_much_text_is_read_in_blocks(tmp_path: Path, whole_files: list[bool]) -> None:
    rows = [f"{i},w{i},v{i},{i * 0.1:.1f}" for i in range(40)]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["a,b,c,y", *rows, ""]))
    read_file(path)
    assert whole_files == []


def test_older_pandas_reads_blocks(tmp_path: Path, whole_files: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pd, "__version__", "3.0.4")
    read_file(file(tmp_path, {}))
    monkeypatch.setattr(pd, "__version__", "3.10.0")
    read_file(file(tmp_path, {}))
    assert whole_files == [True]
