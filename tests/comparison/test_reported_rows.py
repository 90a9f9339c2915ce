"""Frames, arrays and files of new rows, of the kinds that users of other libraries reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import steepest
from steepest.comparison import Comparison, InputError
from steepest.comparison.api import prepare
from steepest.comparison.request import Request

Command = Callable[..., tuple[int, str, str]]
ROWS = 60
NUMBERS = np.random.default_rng(0).normal(size=(ROWS, 4))
LABELS = (NUMBERS[:, 0] > 0).astype(int)
ONCE = {"objectives": "cross_entropy", "classical": False, "repeats": 1, "folds": 2, "trials": 1, "epochs": 8}


def frame_of_every_kind() -> pd.DataFrame:
    """Padded text, a question mark among numbers, integers as categories, dates, text, a name that is a number."""
    days = pd.to_datetime("2024-01-01") + pd.to_timedelta(np.arange(ROWS) * 31 % 400, unit="D")
    return pd.DataFrame(
        {
            "size": NUMBERS[:, 1],
            7: NUMBERS[:, 2],
            "padded": np.where(LABELS == 1, " yes", " no"),
            "marked": np.where(np.arange(ROWS) % 10 == 0, "?", NUMBERS[:, 0].astype(object)),
            "kind": pd.Categorical(np.where(LABELS == 1, 7, 3)),
            "mixed": [[1, 2, "x"][i % 3] for i in range(ROWS)],
            "flag": np.arange(ROWS) // 2 % 2,
            "day": days.strftime("%d/%m/%Y"),
            "note": [f"order {i * 7 % 50} of {'red' if i % 2 else 'blue'} shoes" for i in range(ROWS)],
        },
        index=range(100, 100 + ROWS),
    )


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """One comparison of a frame that holds every kind of column, with labels of integers."""
    frame, out = frame_of_every_kind(), tmp_path_factory.mktemp("runs")
    target = pd.DataFrame({"name": LABELS}, index=frame.index)
    return steepest.compare(frame, target, **ONCE, out=out, workers=1, quiet=True)


def test_every_column_is_what_it_was(fitted: Comparison) -> None:
    prepared = fitted.winner.prepared
    kinds = {name: type.kind for name, type in prepared.types.items()}
    assert kinds == {
        "size": "number",
        "7": "number",
        "padded": "category",
        "marked": "number",
        "kind": "category",
        "mixed": "category",
        "flag": "number",
        "day": "date",
        "note": "text",
    }
    assert "kind" not in fitted.winner.facts["numeric"]


def test_a_frame_of_one_column_gives_the_target_its_name(fitted: Comparison) -> None:
    assert fitted.winner.facts["target"] == "name"


def test_labels_dtype_and_index_come_back(fitted: Comparison) -> None:
    found = fitted.predict(frame_of_every_kind())
    assert found.index.tolist() == list(range(100, 100 + ROWS))
    assert found["prediction"].dtype == np.int64
    assert (found["prediction"].to_numpy() == LABELS).mean() > 0.7
    assert found.columns.tolist() == ["prediction", "p_0", "p_1"]


def test_a_frame_and_its_file_are_one(fitted: Comparison, tmp_path: Path) -> None:
    frame = frame_of_every_kind()
    expected = fitted.predict(frame)
    for name, options in (("a.csv", {}), ("b.csv", {"sep": ";"}), ("c.csv.gz", {}), ("d.csv.xz", {})):
        frame.to_csv(tmp_path / name, index=False, **options)
        found = fitted.winner.predict_file(tmp_path / name)
        pd.testing.assert_frame_equal(found, expected.reset_index(drop=True), check_exact=True)
        pd.testing.assert_frame_equal(fitted.predict(tmp_path / name), found, check_exact=True)
    plain = frame.rename(columns=str).astype({"mixed": str, "marked": str, "kind": int})
    for write in (plain.to_parquet, plain.to_excel):
        path = tmp_path / write.__name__.replace("to_excel", "rows.xlsx").replace("to_parquet", "rows.parquet")
        write(path, index=False)
        found = fitted.winner.predict_file(path)
        pd.testing.assert_frame_equal(found, expected.reset_index(drop=True), rtol=1e-12)


SAME = {
    "stripped text": {"padded": lambda c: c.str.strip()},
    "more blanks": {"padded": lambda c: "  " + c + " "},
    "text as a category": {"padded": lambda c: c.astype("category")},
    "categories as integers": {"kind": lambda c: c.astype(int)},
    "categories as floats": {"kind": lambda c: c.astype(float)},
    "categories as text": {"kind": lambda c: c.astype(str)},
    "numbers as text": {"size": lambda c: c.map(repr).map(lambda v: v.removeprefix("np.float64(").removesuffix(")"))},
    "a missing number for the question mark": {"marked": lambda c: pd.to_numeric(c, errors="coerce")},
    "true and false for 1 and 0": {"flag": lambda c: c == 1},
    "the words true and false": {"flag": lambda c: (c == 1).map({True: "true", False: "False"})},
    "dates as dates": {"day": lambda c: pd.to_datetime(c, dayfirst=True)},
    "dates with the year first": {"day": lambda c: pd.to_datetime(c, dayfirst=True).dt.strftime("%Y-%m-%d")},
    "columns in another order": {},
}


@pytest.mark.parametrize("change", SAME)
def test_the_same_rows_otherwise_written_are_the_same_rows(fitted: Comparison, change: str) -> None:
    frame = frame_of_every_kind()
    other = frame.assign(**{name: write(frame[name]) for name, write in SAME[change].items()})
    expected = fitted.predict(frame)
    pd.testing.assert_frame_equal(fitted.predict(other[[*other.columns[::-1]]]), expected, check_exact=True)


def test_integers_of_a_mixed_column_are_its_words(fitted: Comparison) -> None:
    frame = frame_of_every_kind().iloc[[0, 1, 3, 4]]
    integers = frame.assign(mixed=frame["mixed"].astype("int64"))
    pd.testing.assert_frame_equal(fitted.predict(integers), fitted.predict(frame), check_exact=True)
    floats = frame.assign(mixed=frame["mixed"].astype("float64"))
    pd.testing.assert_frame_equal(fitted.predict(floats), fitted.predict(frame), check_exact=True)


def test_new_categories_are_no_category_and_said(fitted: Comparison) -> None:
    frame = frame_of_every_kind()
    found = fitted.predict(frame.assign(padded="perhaps"))
    assert np.isfinite(found["p_1"]).all()
    assert fitted.winner.warnings == [
        "'padded' has 1 category that the fitted rows had not ('perhaps'): 0 in each of its places"
    ]
    fitted.predict(frame)
    assert fitted.winner.warnings == []


def test_missing_numbers_are_the_median(fitted: Comparison) -> None:
    frame = frame_of_every_kind()
    gone, median = frame.assign(size=np.nan), frame.assign(size=np.median(frame["size"]))
    pd.testing.assert_frame_equal(fitted.predict(gone), fitted.predict(median), check_exact=True)


BAD = {
    "words in numbers": ({"size": "x"}, "column 'size' has 'x' in row 1: expected a number"),
    "words in dates": ({"day": "soon"}, "column 'day' has 'soon' in row 1: expected a date"),
    "numbers in dates": ({"day": 3.5}, "column 'day' has numbers: expected dates"),
    "dates in numbers": ({"size": pd.Timestamp("2024-01-01")}, "column 'size' has dates: expected numbers"),
    "infinity": ({"size": np.inf}, "column 'size' has inf in row 1"),
    "months first": ({"day": "01/31/2024"}, "column 'day' has dates with the month first, unlike the rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_column_cannot_hold_is_refused_by_name(fitted: Comparison, case: str) -> None:
    change, words = BAD[case]
    with pytest.raises(InputError) as error:
        fitted.predict(frame_of_every_kind().assign(**change))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_array_is_taken_by_place(tmp_path: Path) -> None:
    comparison = steepest.compare(NUMBERS, LABELS, **ONCE, out=tmp_path, workers=1, quiet=True)
    expected = comparison.predict(NUMBERS)
    named = pd.DataFrame(NUMBERS, columns=["c1", "c2", "c3", "c4"])
    pd.testing.assert_frame_equal(comparison.predict(named), expected, check_exact=True)
    pd.DataFrame(NUMBERS).to_csv(tmp_path / "rows.csv", header=False, index=False)
    pd.testing.assert_frame_equal(comparison.predict(tmp_path / "rows.csv"), expected, check_exact=True)
    with pytest.raises(InputError, match="3 columns: expected 4"):
        comparison.predict(NUMBERS[:, :3])


@pytest.mark.parametrize("kind", ["int32", "float64", "bool", "object", "str", "category", "Int64", "boolean"])
def test_labels_come_back_in_the_dtype_in_which_they_came(kind: str) -> None:
    from steepest.comparison.read import table_from_arrays
    from steepest.comparison.read.task import label_index

    labels = pd.Series(LABELS)
    if kind in ("object", "str", "category"):
        labels = labels.map({0: "no", 1: "yes"})
    labels = labels.astype(kind)
    table = table_from_arrays(NUMBERS, labels)
    back = label_index(table.classes, table.label_dtype).take(table.target)
    expected = pd.Index(labels)
    assert back.dtype == expected.dtype
    assert back.tolist() == expected.tolist()


def test_labels_of_rows_in_another_order_are_refused() -> None:
    frame = pd.DataFrame(NUMBERS, columns=list("abcd"))
    with pytest.raises(InputError, match="same row labels in another order"):
        prepare(Request(frame, pd.Series(LABELS).sample(frac=1, random_state=1), classical=False))
    with pytest.raises(InputError, match="same row labels in another order"):
        prepare(Request(frame, pd.DataFrame({"y": LABELS})[::-1], classical=False))


def test_weights_of_zero_for_a_whole_class_leave_no_task() -> None:
    frame = pd.DataFrame(NUMBERS, columns=list("abcd")).assign(w=np.where(LABELS == 1, 0, 1))
    with pytest.raises(InputError, match="one class only"):
        prepare(Request(frame, LABELS, weight="w", classical=False))


def test_a_keyword_of_another_library_is_refused_by_its_name() -> None:
    with pytest.raises((InputError, TypeError), match="random_state"):
        prepare(Request(NUMBERS, LABELS, random_state=0))


def test_the_metric_decides_between_classes_and_numbers() -> None:
    stars = 1.0 + np.arange(ROWS) % 5
    options = {"repeats": 1, "folds": 2, "trials": 1, "classical": False}
    assert prepare(Request(NUMBERS, stars, **options))[0].table.task == "multiclass"
    assert prepare(Request(NUMBERS, stars, metric="rmse", **options))[0].table.task == "regression"
    halves = np.where(LABELS == 1, 0.9, 0.1)
    assert prepare(Request(NUMBERS, halves, **options))[0].table.task == "binary"
