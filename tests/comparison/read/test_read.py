import hashlib

import numpy as np
import pandas as pd
import pytest

from steepest.comparison.errors import InputError
from steepest.comparison.read import load_like, load_table
from steepest.comparison.read.build import typed_frame
from steepest.comparison.read.cells import read_file
from steepest.comparison.read.new_rows import converted, rows_like
from steepest.comparison.read.options import ReadOptions
from steepest.comparison.read.types import ColumnType

ROWS = "".join(f"{i * 0.5},{'ab'[i % 2]},{'yes' if i % 3 else 'no'}\n" for i in range(1, 25))


def write(folder, text, name="data.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def read_features(path, columns, numeric):
    """New rows to predict, as a frame."""
    types = {name: ColumnType("number" if name in numeric else "category") for name in columns}
    return typed_frame(converted(rows_like(path, types, ReadOptions()), types, ("?", "NA")))


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_one_table_in_many_writings(tmp_path, delimiter, end, bom):
    text = ("size,kind,answer\n" + ROWS).replace(",", delimiter).replace("\n", end)
    table = load_table(write(tmp_path, bom + text.encode()))
    assert list(table.frame.columns) == ["size", "kind"]
    assert table.frame["size"].tolist() == [i * 0.5 for i in range(1, 25)]
    assert table.frame["kind"].tolist() == [*"ba"] * 12
    assert table.classes == ("no", "yes")
    assert table.target.tolist() == [int(i % 3 > 0) for i in range(1, 25)]
    assert not table.warnings


@pytest.mark.parametrize(
    ("first", "header"),
    [
        ("a,b,c", True),
        ("a,<script>alert(1)</script>,c", True),
        ("a,1,c", False),
        ("a,1e-3,c", False),
        ("a,,c", False),
        ("a,?,c", False),
        ("a,1_000,c", True),
    ],
)
def test_a_header_is_a_first_row_without_a_number_and_without_an_empty_cell(tmp_path, first, header):
    raw = read_file(write(tmp_path, f"{first}\n" + "x,y,z\n" * 3))
    assert raw.header == header
    assert raw.rows == 3 + (not header)
    assert raw.names == (first.split(",") if header else ["c1", "c2", "c3"])


def test_quoted_cells_may_hold_separators_quotes_and_newlines(tmp_path):
    raw = read_file(write(tmp_path, 'a,"b, ""c"""\n1,"x\ny, z"\n\n2,  " w " \n'))
    assert raw.names == ["a", 'b, "c"']
    assert raw.columns[1].objects().tolist() == ["x\ny, z", "w"]


@pytest.mark.parametrize("token", ["", "?", "NA", "NaN", "  "])
def test_missing_cells(tmp_path, token):
    table = load_table(write(tmp_path, "size,kind,answer\n" + ROWS + f"{token},{token},no\n"))
    assert np.isnan(table.frame["size"].iloc[-1])
    assert pd.isna(table.frame["kind"].iloc[-1])
    assert any("missing: 2 cells in 2 features" in line for line in table.decisions)


def test_western_text_is_read_with_a_warning(tmp_path):
    path = write(tmp_path, "größe,art,y\n" + ROWS.replace("b,", "ü,"), encoding="latin-1")
    table = load_table(path)
    assert list(table.frame.columns) == ["größe", "art"]
    assert set(table.frame["art"]) == {"a", "ü"}
    assert "cp1252" in table.warnings[0]


def test_decimal_commas_between_semicolons(tmp_path):
    table = load_table(write(tmp_path, "a;b;y\n" + "".join(f"{i},5;{i % 7},25;{i % 2}\n" for i in range(20))))
    assert table.frame["a"].tolist() == [i + 0.5 for i in range(20)]


def test_text_table_without_header_is_warned_of(tmp_path):
    table = load_table(write(tmp_path, "p,q,r\n" + "p,q,r\nu,v,w\n" * 8))
    assert any("is it a row of data" in line for line in table.warnings)


def test_the_hash_is_that_of_the_bytes(tmp_path):
    path = write(tmp_path, "size,kind,answer\n" + ROWS)
    assert load_table(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


BAD_FILES = {
    "ragged": ("a,b,y\n1,2,3\n\n4,5\n", "line 4: expected 3 cells, as in the header, got 2"),
    "ragged_after_newline_in_quotes": ('a,y\n"1\n2",3\n4\n', "line 4: expected 2 cells, as in the header, got 1"),
    "header_only": ("a,b,y\n", "has a header and no rows"),
    "empty": ("", "is empty"),
    "blank": ("\n\n  \n", "is empty"),
    "nul": (b"a,b\n1,\x00\n", "binary file"),
    "undecodable": (b"\xff\x01\x02,\xfe\n", "binary file"),
    "open_quote": ('a,b\n1,"2\n3,4\n', "never closed"),
    "same_names": ("a,a,y\n1,2,0\n3,4,1\n", "both named 'a' and differ"),
    "missing_target": ("a,y\n" + "1,0\n2,1\n" * 8 + "3,\n4,?\n", "'y' is missing in 2 rows (first: row 17); drop them"),
    "one_class": ("a,y\n" + "1,0\n2,0\n" * 5, "one class only ('0')"),
    "rare": ("a,y\n" + "1,0\n2,1\n" * 5 + "2,2\n", "choose --rare drop or --rare merge"),
    "inf_target": ("a,y\n" + "".join(f"{i},{i}.5\n" for i in range(9)) + "1,inf\n", "infinite in row 10"),
    "inf_feature": ("a,y\n" + "1.5,0\n2,1\n" * 5 + "inf,0\n", "column 'a' has inf in row 11"),
    "huge_feature": ("a,y\n" + "1.5,0\n2,1\n" * 5 + "1e200,0\n", "column 'a' has 1e+200 in row 11"),
    "nothing_left": ("a,b,y\n" + "".join(f"{i},7,{i % 2}\n" for i in range(10)), "no feature is left"),
    "target_alone": ("y\n" + "0\n1\n" * 5, "only one column was found; --separator"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_one_clear_line(tmp_path, case):
    text, expected = BAD_FILES[case]
    with pytest.raises(InputError) as error:
        load_table(write(tmp_path, text))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_suggests_the_nearest_name(tmp_path):
    path = write(tmp_path, "size,kind,answer\n" + ROWS, name="quality.csv")
    with pytest.raises(InputError, match=r"did you mean 'quality.csv'"):
        load_table(path.with_name("qualty.csv"))
    with pytest.raises(InputError, match="did you mean 'digits'"):
        load_table("digit")
    with pytest.raises(InputError, match="cannot read"):
        load_table("x" * 5000)
    with pytest.raises(InputError, match="expected a built-in name or a path"):
        load_table("")
    with pytest.raises(InputError, match="no file"):
        load_table(tmp_path / "nowhere" / "x.csv")


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="is a folder"):
        load_table(tmp_path)


BAD_OPTIONS = [
    ({"target": "answr"}, "target: no column 'answr'; did you mean 'answer'?"),
    ({"target": "9"}, "target: no column '9'"),
    ({"drop": ["kid"]}, "drop: no column 'kid'; did you mean 'kind'?"),
    ({"drop": "size,nope"}, "drop: no column 'nope'"),
    ({"group": "kin"}, "group: no column 'kin'"),
    ({"time": "zzz"}, "time: no column 'zzz'; the columns are 'size', 'kind', 'answer'"),
    ({"weight": "sizes"}, "weight: no column 'sizes'; did you mean 'size'?"),
    ({"task": "regresion"}, "did you mean 'regression'?"),
    ({"task": "regression"}, "task regression needs numbers, but the target 'answer' has 'yes' in row 1"),
    ({"rare": "keep"}, "rare: expected drop or merge"),
    ({"folds": 1}, "folds: expected an integer of at least 2"),
    ({"weight": "kind"}, "the weight 'kind' has 'b' in row 1: expected numbers"),
    ({"time": "kind"}, "expected numbers or dates"),
    ({"drop": ["answer"]}, "drop: 'answer' is the target"),
    ({"group": "answer"}, "group: 'answer' is the target"),
    ({"drop": ["size", "kind"]}, "no feature is left"),
    ({"target": "size", "task": "binary"}, "choose --rare"),
]


@pytest.mark.parametrize(("options", "expected"), BAD_OPTIONS)
def test_a_bad_option_is_one_clear_line(tmp_path, options, expected):
    with pytest.raises(InputError) as error:
        load_table(write(tmp_path, "size,kind,answer\n" + ROWS), **options)
    assert expected in str(error.value)


def test_a_test_file_takes_the_coding_of_its_table(tmp_path):
    table = load_table(write(tmp_path, "size,kind,answer\n" + ROWS))
    again = load_like(write(tmp_path, "kind,more,answer,size\nnew,1,yes,\nb,1,no,2\n", name="test.csv"), table)
    assert list(again.frame.columns) == ["size", "kind"]
    assert again.frame["kind"].tolist() == ["new", "b"]
    assert np.isnan(again.frame["size"].iloc[0])
    assert again.frame["size"].iloc[1] == 2.0
    assert again.target.tolist() == [1, 0]
    assert again.name == "test.csv"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("size,kind,answer\n1,a,maybe\n", "unknown class 'maybe' in row 1"),
        ("size,kinds,answer\n1,a,yes\n", "no column 'kind'; did you mean 'kinds'?"),
        ("size,kind,answer\nbig,a,yes\n", "column 'size' has 'big' in row 1: expected a number"),
        ("size,kind,answer\n1,a,\n", "is missing in 1 row"),
        ("1,a\n", "expected 3, or a header"),
    ],
)
def test_a_test_file_that_does_not_fit(tmp_path, text, expected):
    table = load_table(write(tmp_path, "size,kind,answer\n" + ROWS))
    with pytest.raises(InputError) as error:
        load_like(write(tmp_path, text, name="test.csv"), table)
    assert expected in str(error.value)


def test_a_text_column_stays_text_in_a_test_file_of_digits(tmp_path):
    table = load_table(write(tmp_path, "a,b,y\n" + "1,01,0\nx,2.0,1\n" * 6))
    again = load_like(write(tmp_path, "a,b,y\n1,3,0\n", name="test.csv"), table)
    assert again.frame["a"].tolist() == ["1"]
    assert again.frame["b"].tolist() == [3.0]


@pytest.mark.parametrize(
    ("text", "columns", "numeric", "expected"),
    [
        ("y,b,a\n0,u,1\n", ["a", "b"], ["a"], [[1.0, "u"]]),
        ("1,u\n", ["a", "b"], ["a"], [[1.0, "u"]]),
        ("1,u,9\n", ["a", "b"], ["a"], [[1.0, "u"]]),
        ("1,2,3,4,5\n", ["c1", "c4"], ["c1", "c4"], [[1.0, 4.0]]),
        ("1,2\n", ["c1", "c4"], ["c1", "c4"], [[1.0, 2.0]]),
        ("1\n2\n", ["a"], ["a"], [[1.0], [2.0]]),
        ("a,b\ntrue,\n", ["a", "b"], ["a"], [[1.0, None]]),
    ],
)
def test_new_rows_to_predict(tmp_path, text, columns, numeric, expected):
    frame = read_features(write(tmp_path, text), columns, numeric)
    assert list(frame.columns) == columns
    cells = frame.astype(object)
    assert cells.where(cells.notna(), None).to_numpy().tolist() == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("b,aa\nu,1\n", "no column 'a'; did you mean 'aa'?"),
        ("1\n", "expected 2 or 3, or a header with 'a', 'b'"),
        ("1,u,3,4\n", "expected 2 or 3"),
        ("a,b\nx,u\n", "column 'a' has 'x' in row 1"),
        ("a,b\ninf,u\n", "column 'a' has inf in row 1"),
    ],
)
def test_new_rows_that_do_not_fit(tmp_path, text, expected):
    with pytest.raises(InputError) as error:
        read_features(write(tmp_path, text), ["a", "b"], ["a"])
    assert expected in str(error.value)


def test_numbers_are_read_to_the_last_bit(tmp_path):
    values = np.random.default_rng(0).standard_normal(200) * 10.0 ** np.arange(-100, 100)
    text = "a,y\n" + "".join(f"{float(v)!r},{i % 2}\n" for i, v in enumerate(values))
    assert np.array_equal(load_table(write(tmp_path, text)).frame["a"].to_numpy(), values)


def test_a_file_that_pandas_wrote_reads_the_same(tmp_path):
    rng = np.random.default_rng(1)
    frame = pd.DataFrame(
        {"n": rng.standard_normal(40), "t": rng.choice(["x, y", 'q"', "ü"], 40), "y": rng.integers(0, 2, 40)}
    )
    frame.to_csv(tmp_path / "frame.csv", index=False)
    table = load_table(tmp_path / "frame.csv")
    assert np.array_equal(table.frame["n"], frame["n"])
    assert table.frame["t"].tolist() == frame["t"].tolist()
    assert np.array_equal(table.target, frame["y"])
