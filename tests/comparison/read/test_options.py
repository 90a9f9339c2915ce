"""What a caller says about a file, and the formats a file may have."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from steepest.comparison.errors import InputError
from steepest.comparison.read import load_table
from steepest.comparison.read.options import read_options

X = [round(1.25 + 0.75 * i, 2) for i in range(40)]
K = [10 + 7 * i % 83 for i in range(40)]
Y = ["ab"[i % 3 == 0] for i in range(40)]


def write(path: Path, lines: list[str], encoding: str = "utf-8") -> Path:
    path.write_bytes(("\n".join(lines) + "\n").encode(encoding))
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return write(tmp_path / "data.csv", ["x,k,y", *(f"{x},{k},{y}" for x, k, y in zip(X, K, Y))])


def test_encoding_is_taken_at_its_word(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", ["größe,k,y", *(f"{x},{k},{y}" for x, k, y in zip(X, K, Y))], "cp437")
    assert list(load_table(path, encoding="cp437").frame) == ["größe", "k"]
    assert list(load_table(path).frame) != ["größe", "k"]
    with pytest.raises(InputError, match="is not UTF-8"):
        load_table(path, encoding="utf-8")
    with pytest.raises(InputError, match="encoding: 'klingon' is unknown"):
        load_table(path, encoding="klingon")


@pytest.mark.parametrize("separator", [":", "^", "pipe", "~", "tab", "\u00a6"])
def test_separator_is_taken_at_its_word(tmp_path: Path, separator: str) -> None:
    sign = {"pipe": "|", "tab": "\t"}.get(separator, separator)
    path = write(tmp_path / "data.txt", [sign.join("xky"), *(sign.join(map(str, row)) for row in zip(X, K, Y))])
    table = load_table(path, separator=separator)
    assert table.frame["x"].tolist() == X
    if sign not in "|\t":
        with pytest.raises(InputError, match="only one column was found; --separator"):
            load_table(path)


@pytest.mark.parametrize("separator", ["", "::", '"', "\n"])
def test_a_separator_is_one_sign(plain: Path, separator: str) -> None:
    with pytest.raises(InputError, match="separator: expected one character or tab"):
        load_table(plain, separator=separator)


def test_header_is_taken_at_its_word(tmp_path: Path) -> None:
    numbers = write(tmp_path / "numbers.csv", [f"{x},{k},{x + k}" for x, k in zip(X, K)])
    assert len(load_table(numbers).target) == 40
    assert list(load_table(numbers, header="yes").frame) == ["1.25", "10"]
    words = write(tmp_path / "words.csv", [f"{'uv'[i % 2]},{'st'[i % 3 == 0]},{y}" for i, y in enumerate(Y)])
    assert any("--header no says so" in line for line in load_table(words).warnings)
    assert len(load_table(words, header="no").target) == 40
    with pytest.raises(InputError, match="header: expected auto, yes or no"):
        load_table(words, header="maybe")


def test_missing_words_are_those_named(tmp_path: Path) -> None:
    cells = [f"{x},{['-9', 'low', 'NA', 'none'][i % 4]},{y}" for i, (x, y) in enumerate(zip(X, Y))]
    path = write(tmp_path / "data.csv", ["x,t,y", *cells])
    words = {given: set(load_table(path, missing=given).frame["t"].dropna()) for given in (None, "", "-9,none")}
    assert words == {None: {"-9", "low", "none"}, "": {"-9", "low", "NA", "none"}, "-9,none": {"low", "NA"}}
    assert read_options(missing=["a,b", " c "]).missing == ("a,b", "c")


@pytest.mark.parametrize("form", ["mapping", "json", "lines"])
def test_types_are_those_declared(tmp_path: Path, form: str) -> None:
    cells = [f"{x},{i % 5},{1_700_000_000 + i},zip{i % 3},{i % 4},{y}" for i, (x, y) in enumerate(zip(X, Y))]
    path = write(tmp_path / "data.csv", ["x,code,t,note,more,y", *cells])
    types = {"code": "category", "note": "text", "more": "drop"}
    given = {
        "mapping": types,
        "json": write(tmp_path / "types.json", [json.dumps(types)]),
        "lines": write(tmp_path / "types.txt", ["# kinds", "code: category", "note = text", "", "more\tdrop"]),
    }[form]
    table = load_table(path, types=given)
    kinds = {name: type.kind for name, type in table.types.items()}
    assert kinds == {"x": "number", "code": "category", "note": "text"}
    assert table.frame["code"].tolist() == [str(i % 5) for i in range(40)]


BAD_TYPES = {
    "a kind nobody knows": ({"x": "nummer"}, "expected one of number, category, date, text, drop, got 'nummer'"),
    "a column that is not there": ({"xx": "number"}, "types: no column 'xx'"),
    "a line without a kind": ("x\n", "types: line 1 of"),
    "broken JSON": ('{"x": ', "is not valid JSON"),
    "a column twice": ('{"x": "number", "x": "text"}', "stands twice"),
    "words that are no numbers": ({"y": "number", "k": "number"}, "task regression needs numbers"),
}


@pytest.mark.parametrize("case", BAD_TYPES)
def test_bad_types_are_one_clear_line(plain: Path, tmp_path: Path, case: str) -> None:
    types, words = BAD_TYPES[case]
    if isinstance(types, str):
        types = write(tmp_path / "types", [types])
    with pytest.raises(InputError) as error:
        load_table(plain, types=types)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_target_of_a_declared_type_is_of_that_task(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", ["x,k,y", *(f"{x},{k},{i % 20}" for i, (x, k) in enumerate(zip(X * 3, K * 3)))])
    assert load_table(path).task == "regression"
    assert load_table(path, types={"y": "category"}).task == "multiclass"
    path = write(tmp_path / "data.csv", ["x,k,y", *(f"{x},{k},{i % 2}" for i, (x, k) in enumerate(zip(X, K)))])
    assert load_table(path, types={"y": "number"}).task == "regression"


def test_the_command_takes_what_python_takes(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each option arrives where the file is read; the comparison itself is cut off there."""
    from steepest.comparison import api
    from steepest.comparison.request import Request

    seen: dict[str, object] = {}

    def prepare(request: Request) -> None:
        seen.update(vars(request))
        raise InputError("seen")

    monkeypatch.setattr(api, "prepare", prepare)
    monkeypatch.chdir(tmp_path)
    Path("data.csv").write_text("x,y\n1,a\n", encoding="utf-8")
    Path("kinds.txt").write_text("x: number\n", encoding="utf-8")
    words = "--encoding cp437 --separator pipe --header no --missing none,-9 --positive a --types kinds.txt --dayfirst"
    code, _, err = command("compare", "data.csv", *words.split())
    assert (code, err.count("seen")) == (2, 1)
    expected = {
        "encoding": "cp437",
        "separator": "pipe",
        "header": "no",
        "missing": "none,-9",
        "positive": "a",
        "types": "kinds.txt",
        "dayfirst": True,
    }
    assert {name: seen[name] for name in expected} == expected
    command("compare", "data.csv", "--monthfirst")
    assert (seen["dayfirst"], seen["header"], seen["missing"]) == (False, None, None)


def test_the_options_of_reading_are_a_group_of_the_help(command: Callable[..., tuple[int, str, str]]) -> None:
    _, out, _ = command("compare", "--help")
    group = out[out.index("Reading") :]
    for option in ("--types", "--missing", "--dayfirst", "--encoding", "--separator", "--header"):
        assert option in group
    assert "--separator ';'" in out


PACKED: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("kind", [*PACKED, "zip", "xlsx", "parquet"])
def test_packed_files_and_workbooks_are_the_table_they_hold(plain: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"packed.{kind}"
    if kind in PACKED:
        path.write_bytes(PACKED[kind](plain.read_bytes()))
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(plain, "folder/data.csv")
            archive.writestr("__MACOSX/._data.csv", "x")
    elif kind == "xlsx":
        pd.read_csv(plain).to_excel(path, index=False)
    else:
        pd.read_csv(plain).to_parquet(path)
    table, expected = load_table(path), load_table(plain)
    pd.testing.assert_frame_equal(table.frame, expected.frame)
    assert np.array_equal(table.target, expected.target)
    assert table.classes == expected.classes
    broken = tmp_path / f"broken.{kind}"
    broken.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="broken"):
        load_table(broken)


def test_a_zip_of_several_files_is_refused_by_their_names(plain: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.write(plain, "one.csv")
        archive.write(plain, "two.csv")
    with pytest.raises(InputError, match=r"holds 2 files \('one.csv', 'two.csv'\): expected one table"):
        load_table(tmp_path / "two.zip")
