"""numpy arrays as arguments: their shape, type and values are checked here, and what comes back is safe to use.

Lists, tuples, data frames and tensors are taken where numpy takes them. A shape is a tuple of lengths, ``None`` for any
length of at least 1, and may end in ``...``. A column ``[N, 1]`` is never taken for ``[N]``: beside an ``[N]`` it would
be spread to ``[N, N]``, and every count and mean of that is another number.
"""

from __future__ import annotations

from types import EllipsisType
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import refuse, refuse_type

Shape = tuple[int | EllipsisType | None, ...]


def array(
    argument: str, value: ArrayLike, shape: Shape, *, kinds: str = "", what: str = "an array", empty: bool = False
) -> NDArray[Any]:
    """``value`` as an array of a shape and of some kinds of type (letters of ``numpy.dtype.kind``; none for any).

    With ``empty`` a length that may be any may be 0 too.

    >>> array("y", [[1], [2]], (None,))
    Traceback (most recent call last):
    ValueError: y: expected an array of shape (*,), got an array (int64) of shape (2, 1)
    """
    try:
        values = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # lists of unequal lengths, tensors with a graph or on a device
        refuse(argument, what, value)
    if values.dtype.kind == "O" and values.size and all(isinstance(entry, str) for entry in values.flat):
        values = values.astype(np.str_)  # columns of pandas
    if kinds and values.dtype.kind not in kinds and values.size:
        refuse_type(argument, what, values)
    if not _fits(values.shape, shape, empty):
        refuse(argument, f"{what} of shape {_text(shape)}", values)
    return values


def numbers(
    argument: str,
    value: ArrayLike,
    shape: Shape = (None,),
    *,
    low: float = -np.inf,
    high: float = np.inf,
    finite: bool = True,
    empty: bool = False,
) -> NDArray[np.float64]:
    """Real numbers in float64, finite unless told otherwise, within ``low..high``.

    >>> numbers("p", [0.5, 2], low=0, high=1)
    Traceback (most recent call last):
    ValueError: p: expected numbers in 0..1, got 2.0
    """
    values = array(argument, value, shape, kinds="biuf", what="numbers", empty=empty).astype(np.float64, copy=False)
    if finite and not np.isfinite(values).all():
        refuse(argument, "finite numbers", values[~np.isfinite(values)].item(0))
    if values.size and (low > -np.inf or high < np.inf):
        outside = (values < low) | (values > high)
        if outside.any():
            refuse(argument, f"numbers in {low:g}..{high:g}", values[outside].item(0))
    return values


def labels(
    argument: str, value: ArrayLike, shape: Shape = (None,), *, like: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Integers, booleans, strings or finite numbers; ``like``: of the shape of others, and text where they are text.

    >>> labels("predicted", ["a", "b"], like=labels("y", [0, 1]))
    Traceback (most recent call last):
    TypeError: predicted: expected numbers, as what it is compared with, got an array (<U1) of shape (2,) (ndarray)
    """
    shape = shape if like is None else like.shape
    values = array(argument, value, shape, kinds="biufUS", what="labels or numbers")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        refuse(argument, "labels or finite numbers", values[~np.isfinite(values)].item(0))
    if like is not None and (values.dtype.kind in "US") != (like.dtype.kind in "US"):
        refuse_type(
            argument, ("text" if like.dtype.kind in "US" else "numbers") + ", as what it is compared with", values
        )
    return values


def codes(
    argument: str, value: ArrayLike, shape: Shape = (None,), *, classes: int | None = None, empty: bool = False
) -> NDArray[np.integer[Any]]:
    """Class codes: integers of at least 0, below ``classes`` where it is given.

    >>> codes("y", [0, 3], classes=3)
    Traceback (most recent call last):
    ValueError: y: expected class codes in 0..2, got 3
    """
    values = array(argument, value, shape, kinds="biu", what="class codes (integers)", empty=empty)
    values = values.astype(np.int64, copy=False)
    if values.size and (values.min() < 0 or (classes is not None and values.max() >= classes)):
        limit = ">= 0" if classes is None else f"in 0..{classes - 1}"
        refuse(argument, f"class codes {limit}", int(values.min() if values.min() < 0 else values.max()))
    return cast("NDArray[np.integer[Any]]", values)


def row_weights(value: ArrayLike | None, rows: int, argument: str = "weights") -> NDArray[np.float64] | None:
    """A weight of at least 0 for each row, or None.

    >>> row_weights([1, -1], 2)
    Traceback (most recent call last):
    ValueError: weights: expected numbers in 0..inf, got -1.0
    """
    return None if value is None else numbers(argument, value, (rows,), low=0.0)


def outcome_part(argument: str, value: ArrayLike, rows: int | None) -> NDArray[Any]:
    """Numbers ``[N]`` or ``[N, K]`` with K at least 2, finite or not; ``rows``: N, where it is known.

    >>> outcome_part("decision", [[0.5], [1.0]], 2)
    Traceback (most recent call last):
    ValueError: decision: expected shape (2,) or (2, K), K >= 2, got an array (float64) of shape (2, 1)
    """
    values = array(argument, value, (...,), kinds="biuf", what="numbers")
    length = rows if rows is not None or not values.ndim else len(values)
    if values.ndim not in (1, 2) or len(values) != length or values.shape[1:] in ((0,), (1,)):
        refuse(argument, f"shape ({length or '*'},) or ({length or '*'}, K), K >= 2", values)
    return values


def _fits(shape: tuple[int, ...], wanted: Shape, empty: bool) -> bool:
    if wanted and wanted[-1] is ...:
        wanted = wanted[:-1]
        shape = shape[: len(wanted)]
    return len(shape) == len(wanted) and all(f == w or (w is None and (empty or f > 0)) for f, w in zip(shape, wanted))


def _text(shape: Shape) -> str:
    parts = ["..." if size is ... else "*" if size is None else str(size) for size in shape]
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
