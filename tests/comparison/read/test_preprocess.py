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

    new = restored(frame(numbers))
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
