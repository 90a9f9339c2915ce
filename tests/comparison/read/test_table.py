import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import roc_auc_score

from steepest.comparison.errors import InputError
from steepest.comparison.read import load_table, table_from_arrays
from steepest.comparison.read.leaks import _auroc, find_leaks

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 3))
Y = np.arange(60) % 2


@pytest.mark.parametrize(
    ("source", "task", "shape", "classes"),
    [
        ("iris", "multiclass", (150, 4), 3),
        ("wine", "multiclass", (178, 13), 3),
        ("digits", "multiclass", (1797, 61), 10),
        ("breast_cancer", "binary", (569, 30), 2),
        ("diabetes", "regression", (442, 10), 0),
    ],
)
def test_built_in_tables(source, task, shape, classes):
    table = load_table(source)
    assert (table.task, table.frame.shape, len(table.classes), table.name) == (task, shape, classes, source)
    assert table.target.dtype == (np.float64 if task == "regression" else np.int64)
    assert table.frame.dtypes.eq(np.float64).all()
    assert len(table.sha256) == 64
    assert not any("leak" in line for line in table.warnings)


@pytest.mark.parametrize(
    ("y", "task", "classes"),
    [
        (Y, "binary", ("0", "1")),
        (Y == 1, "binary", ("False", "True")),
        (Y * 9 + 1.0, "binary", ("1", "10")),
        (np.where(Y, "9", "10"), "binary", ("9", "10")),
        (np.where(Y, "b", "10"), "binary", ("10", "b")),
        (list(np.where(Y, "yes", "no")), "binary", ("no", "yes")),
        (np.where(Y, "yes", "no").astype(object), "binary", ("no", "yes")),
        (pd.Series(np.where(Y, "yes", "no")).astype("category"), "binary", ("no", "yes")),
        (np.arange(60) % 10, "multiclass", tuple("0123456789")),
        (-(np.arange(60) % 3), "multiclass", ("-2", "-1", "0")),
        (np.arange(60) % 11, "regression", ()),
        (Y + 0.5, "binary", ("0.5", "1.5")),
        (np.arange(60) % 3 + 0.5, "regression", ()),
    ],
)
def test_the_task_follows_from_the_target(y, task, classes):
    table = table_from_arrays(X, y)
    assert (table.task, table.classes) == (task, classes)
    if classes:
        assert [table.classes[c] for c in table.target] == [str(v) for v in np.asarray(y, dtype=object).tolist()] or (
            np.asarray(y).dtype == np.float64
        )
    else:
        assert np.array_equal(table.target, np.asarray(y, dtype=np.float64))
    assert any(line.startswith(f"task: {task}") for line in table.decisions)


@pytest.mark.parametrize(("task", "expected"), [("regression", "regression"), ("multiclass", "multiclass")])
def test_the_task_may_be_given(task, expected):
    assert table_from_arrays(X, np.arange(60) % 3, task=task).task == expected


def test_task_binary_needs_two_classes():
    with pytest.raises(InputError, match="task binary needs 2 classes, but the target 'target' has 3: '0', '1', '2'"):
        table_from_arrays(X, np.arange(60) % 3, task="binary")


def rare_target():
    return np.array(["a"] * 30 + ["b"] * 24 + ["c"] * 3 + ["d"] * 3)


def test_rare_classes_are_refused_dropped_or_merged():
    y = rare_target()
    with pytest.raises(InputError, match=r"2 classes with fewer than 5 members \(c: 3, d: 3\); choose --rare drop"):
        table_from_arrays(X, y)
    dropped = table_from_arrays(X, y, rare="drop")
    assert (dropped.task, dropped.classes, len(dropped.frame)) == ("binary", ("a", "b"), 54)
    assert np.array_equal(dropped.frame["c1"], X[:54, 0])
    assert any("dropped with 6 rows" in line for line in dropped.warnings)
    merged = table_from_arrays(X, y, rare="merge")
    assert (merged.task, merged.classes) == ("multiclass", ("a", "b", "rare"))
    assert np.bincount(merged.target).tolist() == [30, 24, 6]
    assert any("merged into 'rare'" in line for line in merged.warnings)
    assert table_from_arrays(X, y, rare="merge", folds=7).classes == ("a", "b")  # 6 together are too few for 7 folds
    assert table_from_arrays(X[:58], np.array(["a"] * 30 + ["b"] * 24 + ["c"] * 4), folds=2).classes == ("a", "b", "c")
    with pytest.raises(InputError, match="fewer than 4 members"):
        table_from_arrays(X[:57], y[:57], folds=2)


def test_a_few_rows_of_rare_classes_are_no_refusal():
    """A comparison answers at once: one row in twenty may be left out, and a warning says which."""
    y = np.array(["a"] * 30 + ["b"] * 27 + ["c", "d", "d"])
    table = table_from_arrays(X, y)
    assert (table.classes, len(table.frame)) == (("a", "b"), 57)
    assert table.warnings[0] == (
        "2 rare classes (c: 1, d: 2) dropped with 3 rows: not enough for 5 folds; --rare merge makes one class of "
        "rare ones"
    )
    with pytest.raises(InputError, match=r"2 classes with fewer than 5 members \(c: 2, d: 2\); choose --rare drop"):
        table_from_arrays(X, np.array(["a"] * 30 + ["b"] * 26 + ["c", "c", "d", "d"]))
    with pytest.raises(InputError, match=r"1 class with fewer than 5 members \(c: 1\); choose --rare drop"):
        table_from_arrays(X, np.array(["a"] * 59 + ["c"]))


def test_rare_rows_leave_all_parts_of_a_row():
    frame = pd.DataFrame({"x": X[:, 0], "g": np.arange(60) // 2, "t": np.arange(60)[::-1], "w": np.arange(60) + 1.0})
    table = table_from_arrays(frame, rare_target(), rare="drop", group="g", time="t", weight="w")
    assert list(table.frame.columns) == ["x"]
    assert table.groups.tolist() == [i // 2 for i in range(54)]
    assert table.times.tolist() == [59 - i for i in range(54)]
    assert table.weights.tolist() == [i + 1 for i in range(54)]


def test_columns_that_say_nothing_are_dropped_a_line_each():
    frame = pd.DataFrame(
        {
            "x": X[:, 0],
            "count": np.arange(60) + 7,
            "shuffled": RNG.permutation(60) + 1,
            "constant": 3,
            "same": "word",
            "void": np.nan,
            "who": [f"p{i % 31}" for i in range(60)],
            "key": [f"p{i}" for i in range(60)],
            "kind": [f"k{i % 30}" for i in range(60)],
            "sparse": [None, "only"] * 30,
        }
    )
    table = table_from_arrays(frame, Y)
    assert list(table.frame.columns) == ["x", "who", "kind", "sparse"]
    assert table.types["who"].kind == "text"
    lines = [line for line in table.decisions if line.startswith("dropped")]
    assert [line.split("'")[1] for line in lines] == ["count", "shuffled", "constant", "same", "void", "key"]
    assert "dropped 'key': another word in each of 60 rows: it names the row" in lines


def test_same_names_with_equal_contents_are_one_column():
    frame = pd.DataFrame(np.column_stack([X[:, 0], X[:, 1], X[:, 0]]), columns=["a", "b", "a"])
    table = table_from_arrays(frame, Y)
    assert list(table.frame.columns) == ["a", "b"]
    assert any("both named 'a' and equal: one kept" in line for line in table.warnings)
    frame.iloc[3, 2] += 1e-9
    with pytest.raises(InputError, match="columns 1 and 3 are both named 'a' and differ"):
        table_from_arrays(frame, Y)


def test_numbers_in_text_and_stray_words():
    frame = pd.DataFrame({"n": [str(v) for v in X[:, 0]], "b": ["True", "false"] * 30, "w": ["1", "2", "3"] * 20})
    frame.loc[7, "w"] = "many"
    table = table_from_arrays(frame, Y[::-1])
    assert np.array_equal(table.frame["n"], X[:, 0])
    assert table.frame["b"].tolist() == [1.0, 0.0] * 30
    assert np.isnan(table.frame["w"][7])
    assert table.frame["w"].drop(7).tolist() == frame["w"].drop(7).astype(float).tolist()
    said = "'w' is taken as numbers: 1 word among them now missing (first: 'many', row 8): 'many' (1 cell)"
    assert said in table.warnings


@pytest.mark.parametrize("noise", [0.0, 1e-3])
@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_feature_that_gives_the_target_away_is_a_leak(task, noise):
    rng = np.random.default_rng(2)
    y = {"binary": np.arange(300) % 2, "multiclass": np.arange(300) % 5, "regression": rng.standard_normal(300)}[task]
    x = rng.standard_normal((300, 2))
    frame = pd.DataFrame({"fair": x[:, 0], "leak": y * 3.0 + noise * x[:, 1]})
    if task != "regression":
        frame["word"] = [f"w{v}" for v in y]
    table = table_from_arrays(frame, y)
    leaks = [line.split("'")[1] for line in table.warnings if line.startswith("likely leak")]
    assert leaks == [c for c in frame if c != "fair"]


def test_the_leak_measure_is_the_area_under_the_curve():
    rng = np.random.default_rng(5)
    y, scores = rng.integers(0, 2, 80), rng.integers(0, 6, 80) / 5
    assert _auroc(y, scores) == pytest.approx(roc_auc_score(y, scores), abs=1e-12)


def test_missingness_alone_may_leak():
    rng = np.random.default_rng(3)
    y = np.arange(200) % 2
    frame = pd.DataFrame({"late": np.where(y == 1, rng.standard_normal(200), np.nan), "fair": rng.standard_normal(200)})
    assert [line.split("'")[1] for line in find_leaks(frame, y, "binary")] == ["late"]


def test_a_strong_feature_is_no_leak():
    rng = np.random.default_rng(4)
    y = np.arange(400) % 2
    frame = pd.DataFrame({"strong": y * 2 + rng.standard_normal(400)})  # AUROC about 0.92
    assert find_leaks(frame, y, "binary") == []


def test_copies_of_rows_are_counted():
    table = table_from_arrays(np.vstack([X, X[:4]]), np.concatenate([Y, Y[:3], 1 - Y[3:4]]))
    assert any(line.startswith("3 rows repeat an earlier one") for line in table.warnings)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (["2020-01-03", "2019-05-01", "2020-01-03", "2021-12-31"], [1, 0, 1, 2]),
        (["13/01/2020", "02/01/2020", "01/02/2020", "01/02/2020"], [1, 0, 2, 2]),
        (["02/01/2020", "13/01/2020", "01/02/2020", "01/01/2020"], [1, 2, 3, 0]),
        (["10", "9", "9.5", "-1"], [3, 1, 2, 0]),
    ],
)
def test_times_are_ranks_of_numbers_or_dates(times, expected):
    frame = pd.DataFrame({"x": X[:, 0], "t": np.tile(times, 15)})
    table = table_from_arrays(frame, np.repeat(np.arange(15), 4) * 0.5, time="t")
    assert table.times.dtype == np.float64
    assert table.times.tolist() == expected * 15


def test_targets_by_name_and_number(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("".join(f"{a},{b},{c}\n" for a, b, c in zip(X[:, 0], Y, X[:, 1])))
    for target in ("c2", "2", 2, "-2"):
        table = load_table(path, target=target)
        assert (table.target_name, table.task, list(table.frame.columns)) == ("c2", "binary", ["c1", "c3"])
    assert load_table(path).target_name == "c3"


def test_names_of_arrays_series_and_frames():
    assert list(table_from_arrays(X.tolist(), Y.tolist()).frame.columns) == ["c1", "c2", "c3"]
    assert table_from_arrays(X, pd.Series(Y, name="answer")).target_name == "answer"
    frame = pd.DataFrame(X, columns=["target", 1, "<script>"])
    table = table_from_arrays(frame, Y)
    assert (list(table.frame.columns), table.target_name) == (["target", "1", "<script>"], "target_")


def test_the_hash_of_arrays_follows_their_contents():
    other = X.copy()
    other[5, 1] = np.nextafter(other[5, 1], 9)
    one = table_from_arrays(X, Y).sha256
    assert one == table_from_arrays(X.copy(), Y.copy()).sha256
    assert one != table_from_arrays(other, Y).sha256
    assert one != table_from_arrays(X, 1 - Y).sha256


def with_cell(value):
    frame = pd.DataFrame({"a": X[:, 0], "b": X[:, 1]}, dtype=object)
    frame.iloc[4, 1] = value
    return frame


BAD_ARRAYS = {
    "lengths": (X, Y[:-1], {}, "X has 60 rows and y has 59"),
    "one_dimension": (X[:, 0], Y, {}, "X: expected 2 dimensions"),
    "three_dimensions": (X[..., None], Y, {}, "X: expected 2 dimensions"),
    "y_two_dimensions": (X, X, {}, "y: expected 1 dimension"),
    "complex": (X + 1j, Y, {}, "got complex"),
    "complex_target": (X, Y + 1j, {}, "got complex"),
    "objects": (X.astype(object), Y, {}, "got objects"),
    "ragged": ([[1, 2], [3]], [0, 1], {}, "X: expected an array"),
    "none": (None, Y, {}, "X: expected"),
    "lists_in_cells": (with_cell([1, 2]), Y, {}, "X column 'b': expected numbers or text, got list in row 5"),
    "complex_in_cells": (with_cell(1j), Y, {}, "X column 'b': expected numbers or text, got complex in row 5"),
    "sparse": (sparse.eye(60), Y, {}, "expected a dense array"),
    "no_rows": (X[:0], Y[:0], {}, "at least one row"),
    "no_columns": (X[:, :0], Y, {}, "at least one column"),
    "nan_target": (X, np.where(Y, np.nan, X[:, 0]), {}, "missing in 30 rows (first: row 2)"),
    "inf_target": (X, np.where(Y, np.inf, X[:, 0]), {}, "infinite in row 2"),
    "inf_feature": (np.where(np.arange(180).reshape(60, 3) == 19, -np.inf, X), Y, {}, "column 'c2' has -inf in row 7"),
    "one_class": (X, Y * 0, {}, "one class only ('0')"),
    "one_value": (X, Y * 0.0 + 0.5, {}, "one value only"),
    "few_rows": (X[:4], X[:4, 0], {}, "at least 5 rows"),
    "negative_weights": (X, Y, {"weight": "c2"}, "expected finite numbers >= 0"),
    "zero_weights": (np.column_stack([X, 0 * Y]), Y, {"weight": "c4"}, "0 in every row"),
    "missing_group": (pd.DataFrame({"x": X[:, 0], "g": [None, *Y[1:]]}), Y, {"group": "g"}, "'g' is missing in 1 row"),
    "missing_time": (pd.DataFrame({"x": X[:, 0], "t": [np.nan, *Y[1:]]}), Y, {"time": "t"}, "'t' is missing in 1 row"),
    "no_date": (
        pd.DataFrame({"x": X[:, 0], "t": ["2020-01-01"] * 59 + ["soon"]}),
        Y,
        {"time": "t"},
        "'soon' in row 60",
    ),
    "only_one_frequent": (X, ["a"] * 58 + ["b", "c"], {"rare": "drop"}, "one class with 5 members or more"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_one_clear_line(case):
    features, y, options, expected = BAD_ARRAYS[case]
    with pytest.raises(InputError) as error:
        table_from_arrays(features, y, **options)
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
