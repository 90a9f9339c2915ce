import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from steepest.comparison.errors import InputError
from steepest.comparison.read import Preprocessor, load_table


def sklearn_pipeline(numeric, text):
    """The same conversion by scikit-learn: medians, standardised numbers, missing indicators, one-hot words."""
    fill = SimpleImputer(strategy="median", keep_empty_features=True)
    return ColumnTransformer(
        [
            ("numbers", Pipeline([("fill", fill), ("scale", StandardScaler())]), numeric),
            ("missing", MissingIndicator(features="missing-only", error_on_new=False), numeric),
            ("text", OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float64), text),
        ],
        sparse_threshold=0.0,
    )


def plain(frame, numeric, text):
    """The frame as scikit-learn takes it: float64, and objects with None for missing."""
    columns = {c: frame[c].astype(np.float64) for c in numeric}
    for c in text:
        values = frame[c].astype(object)
        columns[c] = values.where(values.notna(), None)
    return pd.DataFrame(columns, index=frame.index)


def frame_of(rng, rows, words="abc"):
    numbers = rng.standard_normal((rows, 5)) * [1, 1e6, 1e-6, 1, 1]
    numbers[:, 3] = 4.25
    numbers[rng.random((rows, 5)) < [0, 0.2, 0.2, 0, 0.2]] = np.nan
    frame = pd.DataFrame(numbers, columns=[f"n{i}" for i in range(5)])
    for name, holes in (("t0", 0.0), ("t1", 0.3)):
        text = rng.choice(list(words), rows).astype(object)
        text[rng.random(rows) < holes] = None
        frame[name] = pd.Series(text, dtype=object)
    return frame


def restored(frame):
    return Preprocessor.from_json(json.loads(json.dumps(Preprocessor().fit(frame).to_json(), allow_nan=False)))


def columns(frame):
    numeric = [c for c in frame if frame[c].dtype == np.float64]
    return numeric, [c for c in frame if c not in numeric]


@pytest.mark.parametrize("seed", range(5))
def test_restored_equals_scikit_learn_with_missing_and_unknown(seed):
    rng = np.random.default_rng(seed)
    fit, other = frame_of(rng, 40), frame_of(rng, 70, words="abcdé")
    other.iloc[:, :5] *= 1.5
    numeric, text = columns(fit)
    reference = sklearn_pipeline(numeric, text).fit(plain(fit, numeric, text))
    new = restored(fit)
    for frame in (fit, other, other.iloc[::-1], other[other.columns[::-1]]):
        expected = reference.transform(plain(frame, numeric, text))
        got = new.transform(frame)
        assert got.dtype == np.float64
        assert got.shape == (len(frame), len(new.feature_names)) == expected.shape
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
        assert np.isfinite(got).all()


def test_by_hand():
    fit = pd.DataFrame({"a": [1.0, 2.0, 6.0, np.nan], "b": ["x", "y", "x", None], "c": [5.0] * 4})
    new = restored(fit)
    assert new.feature_names == ["a", "c", "a is missing", "b = x", "b = y", "b is missing"]
    sd = np.sqrt(((np.array([1, 2, 6, 2]) - 2.75) ** 2).mean())
    got = new.transform(pd.DataFrame({"b": ["z", None, "y"], "c": [5.0, 7.0, np.nan], "a": [2.75, np.nan, 2.75 + sd]}))
    expected = [[0, 0, 0, 0, 0, 0], [-0.75 / sd, 2, 1, 0, 0, 1], [1, 0, 0, 0, 1, 0]]
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_a_column_that_is_missing_throughout_is_zero():
    fit = pd.DataFrame({"a": [np.nan] * 3, "b": [1.0, 2.0, 3.0], "t": pd.Series([None] * 3, dtype=object)})
    got = restored(fit).transform(fit)
    np.testing.assert_allclose(got[:, 0], 0.0)
    np.testing.assert_allclose(got[:, 2:], 1.0)


def test_missing_is_unknown_where_the_fitted_part_has_none():
    new = Preprocessor().fit(pd.DataFrame({"t": ["a", "b"], "n": [0.0, 2.0]}))
    got = new.transform(pd.DataFrame({"t": [None, "b"], "n": [np.nan, 2.0]}))
    assert got.tolist() == [[0.0, 0.0, 0.0], [1.0, 0.0, 1.0]]


@pytest.mark.parametrize("dtype", [object, "str", "category"])
def test_all_kinds_of_text_columns(dtype):
    fit = pd.DataFrame({"t": pd.Series(["a", None, "b"]).astype(dtype)})
    assert restored(fit).transform(fit).tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.floats(-1e9, 1e9)), min_size=1, max_size=12),
    st.lists(st.one_of(st.none(), st.text(max_size=3)), min_size=12, max_size=12),
    st.lists(st.one_of(st.none(), st.floats(-1e9, 1e9)), min_size=1, max_size=12),
)
def test_never_nan_and_one_width(numbers, words, later):
    def frame(values):
        return pd.DataFrame(
            {"n": np.array(values, dtype=np.float64), "t": pd.Series(words[: len(values)], dtype=object)}
        )

    learnt = Preprocessor({"t": "category"}).fit(frame(numbers))  # else words may be numbers or dates by chance
    new = Preprocessor.from_json(learnt.to_json())
    for values in (numbers, later):
        got = new.transform(frame(values))
        assert got.shape == (len(values), new.width)
        assert np.isfinite(got).all()


def test_json_is_exact_and_stable():
    frame = load_table("wine").frame
    state = Preprocessor().fit(frame).to_json()
    text = json.dumps(state, allow_nan=False)
    again = Preprocessor.from_json(json.loads(text))
    assert json.dumps(again.to_json(), allow_nan=False) == text
    assert np.array_equal(again.transform(frame), Preprocessor().fit(frame).transform(frame))


def test_no_rows_give_no_rows_and_nothing_to_fit_is_refused():
    frame = pd.DataFrame({"n": [1.0, 2.0], "t": ["a", "b"]})
    assert Preprocessor().fit(frame).transform(frame.iloc[:0]).shape == (0, 3)
    with pytest.raises(InputError, match="at least one row"):
        Preprocessor().fit(frame.iloc[:0])
    with pytest.raises(InputError, match="no column 'n'"):
        Preprocessor().fit(frame).transform(frame[["t"]])


def test_only_text_or_only_numbers():
    frame = pd.DataFrame({"n": [1.0, 3.0], "t": ["a", "b"]})
    assert restored(frame[["n"]]).transform(frame).tolist() == [[-1.0], [1.0]]
    assert restored(frame[["t"]]).transform(frame).tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_dates_are_days_and_the_calendar_parts_that_differ():
    days = pd.Series(["2024-02-28", "2024-02-29", None, "2024-03-01"])
    learnt = Preprocessor(standardise=False).fit(pd.DataFrame({"t": days}))
    assert learnt.feature_names == ["t: days", "t: month", "t: day", "t: weekday", "t is missing"]
    since = 19_781
    assert learnt.transform(pd.DataFrame({"t": days})).tolist() == [
        [since, 2, 28, 2, 0],
        [since + 1, 2, 29, 3, 0],
        [since + 1, 2, 28, 3, 1],  # medians, each by itself
        [since + 2, 3, 1, 4, 0],
    ]
    clock = pd.DataFrame({"t": ["2024-01-01 06:00", "2024-01-01 18:30"]})
    learnt = Preprocessor(standardise=False).fit(clock)
    assert learnt.feature_names == ["t: days", "t: hour"]
    assert learnt.transform(clock).tolist() == [[19_723.25, 6], [19_723 + 18.5 / 24, 18]]


def test_text_of_many_words_is_pieces_of_letters_of_one_width():
    titles = [f"{'senior' if i % 2 else 'junior'} engineer {i}" for i in range(40)]
    frame = pd.DataFrame({"title": [*titles, None], "n": range(41)})
    learnt = Preprocessor({"title": "text"}).fit(frame)
    new = Preprocessor.from_json(json.loads(json.dumps(learnt.to_json())))
    assert new.width == 1 + 64 + 1
    got = new.transform(frame)[:, 1:]
    assert np.array_equal(got, learnt.transform(frame)[:, 1:])
    assert got[40].tolist() == [0.0] * 64 + [1.0]
    np.testing.assert_allclose((got[:40, :64] ** 2).mean(1), 1.0, rtol=1e-12)
    typed = new.transform(pd.DataFrame({"title": ["senior enginer 3", "junior enginer 3"], "n": 0}))[:, 1:65]
    alike = typed @ got[[1, 2], :64].T / 64  # with "senior engineer 1" and "junior engineer 2"
    assert alike[0, 0] > alike[0, 1]
    assert alike[1, 1] > alike[1, 0]


def test_integers_of_a_categorical_column_are_categories_and_a_number_may_be_declared_one():
    frame = pd.DataFrame({"a": pd.Categorical([7, 3, 7]), "b": [1, 2, 10]})
    learnt = Preprocessor({"b": "category"}).fit(frame)
    assert learnt.feature_names == ["a = 3", "a = 7", "b = 1", "b = 10", "b = 2"]
    same = pd.DataFrame({"a": ["7", "3", "7"], "b": [1.0, 2.0, 10.0]})
    assert np.array_equal(learnt.transform(same), learnt.transform(frame))


def test_beyond_256_categories_the_rarer_and_the_new_ones_share_a_place():
    words = [f"w{i}" for i in range(300)] + [f"w{i}" for i in range(250)]
    learnt = Preprocessor({"t": "category"}).fit(pd.DataFrame({"t": words}))
    assert learnt.width == 256
    assert learnt.feature_names[-1] == "t is another"
    got = learnt.transform(pd.DataFrame({"t": ["w0", "w299", "new"]}))
    assert got.sum(1).tolist() == [1, 1, 1]
    assert got[:, -1].tolist() == [0, 1, 1]
    assert learnt.warnings == []


def test_an_unseen_category_is_nowhere_and_said():
    learnt = Preprocessor().fit(pd.DataFrame({"t": ["a", "b"], "n": [0.0, 1.0]}))
    assert learnt.transform(pd.DataFrame({"t": ["c"], "n": [0.5]})).tolist() == [[0.0, 0.0, 0.0]]
    assert learnt.warnings == ["'t' has 1 category that the fitted rows had not ('c'): 0 in each of its places"]


def test_a_file_a_frame_and_an_array_are_one(tmp_path):
    values = np.random.default_rng(0).normal(size=(30, 3))
    frame = pd.DataFrame(values, columns=["c1", "c2", "c3"])
    frame.to_csv(tmp_path / "named.csv", index=False)
    frame[["c3", "c1", "c2"]].to_csv(tmp_path / "other.csv", index=False, sep=";", decimal=",")
    frame.to_csv(tmp_path / "bare.csv", index=False, header=False)
    learnt = Preprocessor().fit(tmp_path / "named.csv")
    expected = learnt.transform(values)
    for rows in (frame, frame[["c2", "c1", "c3"]], *(tmp_path / f"{name}.csv" for name in ("named", "other", "bare"))):
        assert np.array_equal(learnt.transform(rows), expected)
