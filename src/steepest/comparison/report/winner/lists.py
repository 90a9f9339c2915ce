"""What the winner of a ranking says of new rows: a score, and the rank within its list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ....core.lazy import late
from ...read.options import ReadOptions
from ...read.raw import Text
from ...read.table import read_source
from ...read.wording import show

pd = late("pandas")

COLUMNS = ("score", "rank")


def list_column_of(rows: Any, name: str, options: ReadOptions) -> np.ndarray | None:
    """The lists of new rows: a column of a frame or file, by name; None where there is none of this name."""
    if isinstance(rows, (str, Path)):

        def exact(names: list[str]) -> set[int]:
            return {names.index(name)} if name in names else set()

        raw = read_source(rows, options, exact)
        if name not in raw.names:
            return None
        column = raw.columns[raw.names.index(name)]
        return np.asarray(column.cells.to_pylist(), dtype=object) if isinstance(column, Text) else column
    if isinstance(rows, pd.DataFrame) and name in rows.columns:
        return np.asarray(rows[name].array, dtype=object)
    return None


def ranked(scores: np.ndarray, queries: np.ndarray | None, name: str) -> pd.DataFrame:
    """A frame of list (where rows name theirs), score and rank; rank 1 has the highest score.

    Of rows of equal score the first one has the better rank. Rows without a list are a list of their own.

    >>> ranked(np.array([0.1, 0.9, 0.5]), np.array(["a", "b", "a"]), "query").values.tolist()
    [['a', 0.1, 2], ['b', 0.9, 1], ['a', 0.5, 1]]
    """
    if queries is None:
        codes = np.zeros(len(scores), dtype=np.int64)
    else:
        codes = pd.factorize(queries, use_na_sentinel=False)[0]
    order = np.lexsort((-scores, codes))
    sizes = np.bincount(codes)
    ranks = np.empty(len(scores), dtype=np.int64)
    ranks[order] = np.arange(len(scores)) - np.repeat(np.cumsum(sizes) - sizes, sizes) + 1
    own = {} if queries is None else {f"{name}_" if name in COLUMNS else name: queries}
    return pd.DataFrame({**own, "score": scores, "rank": ranks})


def no_lists(name: str) -> str:
    """What to beware of where rows name no list."""
    return f"no column {show(name)}: all rows are ranked as one list"
