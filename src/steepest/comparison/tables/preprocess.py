"""From features to a matrix: imputation, standardisation and one-hot coding, fitted on a training part only."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from ...core.stored import Flag, Listed, Maybe, Number, Record, Text, refuse_stored
from ..errors import InputError, nearest
from .raw import show

STORED = Record(
    {
        "numeric": Listed(
            Record(
                {
                    "column": Text(),
                    "median": Number(),
                    "mean": Number(),
                    "scale": Number(positive=True),
                    "indicator": Flag(),
                }
            )
        ),
        "text": Listed(Record({"column": Text(), "categories": Listed(Maybe(Text()), least=1)})),
    }
)
"""What :meth:`Preprocessor.to_json` gives."""


def sklearn_pipeline(numeric: list[str], text: list[str]) -> ColumnTransformer:
    """The transformer that ``Preprocessor`` fits: medians, standardised numbers, missing indicators, one-hot text."""
    fill = SimpleImputer(strategy="median", keep_empty_features=True)
    return ColumnTransformer(
        [
            ("numbers", Pipeline([("fill", fill), ("scale", StandardScaler())]), numeric),
            ("missing", MissingIndicator(features="missing-only", error_on_new=False), numeric),
            ("text", OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float64), text),
        ],
        sparse_threshold=0.0,
    )


class Preprocessor:
    """Features as float64 ``[rows, width]`` without NaN; the width depends on the fitted part alone.

    Numbers: ``(x - mean) / scale`` with the median of the fitted part for missing ones (0 if all are missing), and an
    indicator for each column that has missing ones there. Text: one-hot; missing is a category if the fitted part has
    it, unknown categories are all zero. Fitted by scikit-learn, kept and applied as plain numbers.

    >>> frame = pd.DataFrame({"size": [1.0, 3.0, np.nan], "kind": ["a", "b", None]})
    >>> Preprocessor().fit(frame).feature_names
    ['size', 'size is missing', 'kind = a', 'kind = b', 'kind is missing']
    >>> Preprocessor().fit(frame).transform(frame)[:, 0].round(3).tolist()
    [-1.225, 1.225, 0.0]
    """

    def __init__(self) -> None:
        self.numeric: list[str] = []
        self.text: list[str] = []
        self.median = self.mean = self.scale = np.zeros(0)
        self.indicated: list[int] = []
        self.categories: list[list[str | None]] = []

    def fit(self, frame: pd.DataFrame) -> Self:
        """Learn medians, means, scales and categories from ``frame [rows, features]``, at least one row."""
        if len(frame) == 0 or frame.shape[1] == 0:
            raise InputError(f"expected at least one row and one feature to fit on, got shape {frame.shape}")
        is_numeric = {c: pd.api.types.is_numeric_dtype(frame[c].dtype) for c in frame.columns}
        self.numeric = [c for c in frame.columns if is_numeric[c]]
        self.text = [c for c in frame.columns if not is_numeric[c]]
        fitted = sklearn_pipeline(self.numeric, self.text).fit(plain(frame, self.numeric, self.text))
        if self.numeric:
            steps = fitted.named_transformers_["numbers"]
            self.median = np.asarray(steps["fill"].statistics_, dtype=np.float64)
            self.median = np.where(np.isnan(self.median), 0.0, self.median)
            self.mean, self.scale = steps["scale"].mean_, steps["scale"].scale_
            self.indicated = [int(i) for i in fitted.named_transformers_["missing"].features_]
        if self.text:
            found = fitted.named_transformers_["text"].categories_
            self.categories = [[None if pd.isna(c) else str(c) for c in some] for some in found]
        return self

    @property
    def feature_names(self) -> list[str]:
        """A name for each column of the matrix."""
        names = [*self.numeric, *(f"{self.numeric[i]} is missing" for i in self.indicated)]
        for column, some in zip(self.text, self.categories):
            names += [f"{column} is missing" if c is None else f"{column} = {c}" for c in some]
        return names

    @property
    def width(self) -> int:
        """The number of columns of the matrix."""
        return len(self.numeric) + len(self.indicated) + sum(map(len, self.categories))

    def transform(self, frame: pd.DataFrame) -> np.ndarray:
        """``frame [rows, features]`` as float64 ``[rows, width]``; columns are found by name.

        Raises:
            InputError: for a column that is absent.
        """
        for column in (*self.numeric, *self.text):
            if column not in frame.columns:
                raise InputError(f"no column {show(column)}{nearest(column, [str(c) for c in frame.columns])}")
        out = np.zeros((len(frame), self.width))
        at = len(self.numeric)
        if self.numeric:
            numbers = frame[self.numeric].to_numpy(dtype=np.float64)
            missing = np.isnan(numbers)
            out[:, :at] = (np.where(missing, self.median, numbers) - self.mean) / self.scale
            out[:, at : at + len(self.indicated)] = missing[:, self.indicated]
            at += len(self.indicated)
        for column, some in zip(self.text, self.categories):
            known = [c for c in some if c is not None]
            codes = pd.Index(known, dtype=object).get_indexer(pd.Index(frame[column], dtype=object))
            if len(known) < len(some):
                codes[frame[column].isna().to_numpy()] = len(known)
            rows = np.flatnonzero(codes >= 0)
            out[rows, at + codes[rows]] = 1.0
            at += len(some)
        return out

    def to_json(self) -> dict[str, Any]:
        """All that was learnt, for ``json.dumps``."""
        return {
            "numeric": [
                {"column": c, "median": float(m), "mean": float(a), "scale": float(s), "indicator": i in self.indicated}
                for i, (c, m, a, s) in enumerate(zip(self.numeric, self.median, self.mean, self.scale))
            ],
            "text": [{"column": c, "categories": list(some)} for c, some in zip(self.text, self.categories)],
        }

    @classmethod
    def from_json(cls, state: dict[str, Any], where: str = "preprocessing") -> Self:
        """What ``to_json`` gave, made whole again.

        Args:
            state: from a file: nothing of it is taken unchecked.
            where: it stood, for errors.

        Raises:
            InputError: it is not what ``to_json`` gives.
        """
        STORED.check(state, where)
        columns = [c["column"] for c in (*state["numeric"], *state["text"])]
        if not columns or len(set(columns)) < len(columns):
            refuse_stored(where, "one or more columns, each once", columns)
        for place, column in enumerate(state["text"]):
            known = column["categories"]
            if len(set(known)) < len(known) or None in known[:-1]:
                refuse_stored(f"{where}.text[{place}].categories", "each category once, a missing one last", known)
        new, numeric, text = cls(), state["numeric"], state["text"]
        new.numeric = [c["column"] for c in numeric]
        new.median, new.mean, new.scale = (
            np.array([c[key] for c in numeric], dtype=np.float64) for key in ("median", "mean", "scale")
        )
        new.indicated = [i for i, c in enumerate(numeric) if c["indicator"]]
        new.text = [c["column"] for c in text]
        new.categories = [list(c["categories"]) for c in text]
        return new


def plain(frame: pd.DataFrame, numeric: list[str], text: list[str]) -> pd.DataFrame:
    """The frame as scikit-learn takes it: float64, and objects with None for missing."""
    columns: dict[str, pd.Series] = {c: frame[c].astype(np.float64) for c in numeric}
    for c in text:
        values = frame[c].astype(object)
        columns[c] = values.where(values.notna(), None)
    return pd.DataFrame(columns, index=frame.index)
