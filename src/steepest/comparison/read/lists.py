"""Lists with grades: which rows belong together, what each is worth, and a table of them that is generated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...core.lazy import late
from ..errors import InputError
from ..request import LISTS
from .raw import Column, Text
from .task import Target, check_present, target_numbers
from .types import exact_integers, plain_integers
from .wording import count, show

pd = late("pandas")

RANKING = "ranking"
MOST_GRADE = 30.0
"""The largest grade g: gains are 2^g - 1."""
LIST_COLUMN = "list"
"""The query of the built-in lists."""


def list_column(source: object, task: str, query: str | None) -> str | None:
    """The query that is asked for; that of the built-in lists where none is."""
    return LIST_COLUMN if query is None and task == RANKING and source == LISTS else query


def read_queries(
    column: Column, name: str, comma: str, dayfirst: bool | None, warn: Callable[[str], None]
) -> np.ndarray:
    """``[rows]`` int64 codes, equal where the cells (words, numbers or dates) are.

    Raises:
        InputError: for missing cells.
    """
    check_present(column, f"the query {show(name)}", "every row needs one")
    if isinstance(column, Text) and not column.declared and plain_integers(column):
        column = exact_integers(column)  # 7 and 07 are one list
    codes = pd.factorize(column.codes if isinstance(column, Text) else column)[0]
    return np.asarray(codes, dtype=np.int64)


def read_grades(column: Column, name: str, *, comma: str, missing: tuple[str, ...]) -> Target:
    """The target of a ranking: a number of 0 or above a row.

    Raises:
        InputError: missing cells, words, negative or very large numbers, one number alone.
    """
    what = f"the grade {show(name)}"
    grades, _ = target_numbers(column, what, comma, missing)
    check_present(column if grades is None else grades, what, "drop those rows or choose another target")
    if grades is None:
        raise InputError(f"{what} holds no numbers: task ranking expects numbers in 0..{MOST_GRADE:g}, such as 0, 1, 2")
    wrong = np.flatnonzero(~((grades >= 0) & (grades <= MOST_GRADE)))
    if wrong.size:
        raise InputError(
            f"{what} is {grades[wrong[0]]:g} in row {wrong[0] + 1}: expected numbers in 0..{MOST_GRADE:g} (the gain of "
            "a grade g is 2^g - 1)"
        )
    values, counts = np.unique(grades, return_counts=True)
    if len(values) == 1:
        raise InputError(f"{what} has one value only ({values[0]:g}): expected at least 2")
    shares = ", ".join(f"{value:g}: {rows}" for value, rows in zip(values[:12], counts))
    line = f"task: ranking, grades {values[0]:g} to {values[-1]:g} ({shares}{', ...' if len(values) > 12 else ''})"
    return Target(grades, np.ones(len(grades), dtype=bool), RANKING, (), [line], [])


def check_whole(
    values: Mapping[str, np.ndarray | None], names: Mapping[str, str], grades: np.ndarray, folds: int
) -> None:
    """Refuse groups and times that would cut a list, and fewer lists with different grades than folds.

    Args:
        values: group, time and query of each row, or None.
        names: the columns of those that there are.
        grades: ``[rows]``.
        folds: of the comparison.

    Raises:
        InputError: the first that is wrong.
    """
    queries = values["query"]
    if queries is None:
        raise InputError("task ranking: expected a query, the column that says to which list a row belongs")
    for role in ("group", "time"):
        own = values[role]
        if own is None:
            continue
        several = np.flatnonzero(~constant_in_lists(queries, own)[queries])
        if several.size:
            raise InputError(
                f"{role}: the list of row {several[0] + 1} has rows of several {role}s in {show(names[role])}: "
                f"expected each list of {show(names['query'])} within one {role}"
            )
    ordered = int((~constant_in_lists(queries, grades)).sum())
    if ordered < max(4, folds):
        raise InputError(
            f"query: expected at least {max(4, folds)} lists with two different grades for {folds} folds, got {ordered}"
        )


def constant_in_lists(queries: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Whether values are all equal within each list, by code.

    >>> constant_in_lists(np.array([0, 1, 0]), np.array([2.0, 1.0, 0.0]))
    array([False,  True])
    """
    lists = int(queries.max()) + 1
    low, high = np.full(lists, np.inf), np.full(lists, -np.inf)
    np.minimum.at(low, queries, values)
    np.maximum.at(high, queries, values)
    return low >= high


def list_lines(queries: np.ndarray | None, grades: np.ndarray) -> list[str]:
    """How many lists there are, how long, and how many order nothing."""
    assert queries is not None
    sizes = np.bincount(queries)
    line = f"lists: {len(sizes)}, of {sizes.min()} to {sizes.max()} rows (median {np.median(sizes):g})"
    equal = int(constant_in_lists(queries, grades).sum())
    if equal:
        line += f"; {count(equal, 'list')} of equal grades, not counted by any metric"
    return [line]


def generated_lists(lists: int = 240, seed: int = 0) -> Any:
    r"""A frame of lists whose utilities are known: columns ``list``, ``x1`` .. ``x8`` and ``grade``.

    .. math:: u = x_1 x_2 + 1.5 \tanh(2 x_3) + 0.5 x_4^2 + \epsilon + 1.5 s_{list}

    All are normal, eight to twenty rows a list. The list's own shift s moves all its utilities alike and stands in no
    column: a grade says more beside others of its list than alone. A grade counts the quantiles .5, .75, .9 and .97 of
    all utilities below u.

    >>> frame = generated_lists(lists=3)
    >>> list(frame.columns)[:2], frame["list"].nunique(), int(frame["grade"].min())
    (['list', 'x1'], 3, 0)
    """
    rng = np.random.default_rng(seed)
    sizes = rng.integers(8, 21, lists)
    which = np.repeat(np.arange(lists), sizes)
    x = rng.standard_normal((len(which), 8))
    shift = 1.5 * rng.standard_normal(lists)[which]
    utility = x[:, 0] * x[:, 1] + 1.5 * np.tanh(2 * x[:, 2]) + 0.5 * x[:, 3] ** 2 + shift
    utility += rng.standard_normal(len(which))
    grades = np.searchsorted(np.quantile(utility, [0.5, 0.75, 0.9, 0.97]), utility)
    columns = {f"x{i + 1}": x[:, i].round(4) for i in range(8)}
    return pd.DataFrame({LIST_COLUMN: [f"q{code:03d}" for code in which], **columns, "grade": grades})
