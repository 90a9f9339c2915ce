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
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # lists of unequal lengths, tensors with a graph or on a device
        refuse(argument, what, value)
    if found.dtype.kind == "O" and found.size and all(isinstance(entry, str) for entry in found.flat):
        found = found.astype(np.str_)  # columns of pandas
    if kinds and found.dtype.kind not in kinds and found.size:
        refuse_type(argument, what, found)
    if not _fits(found.shape, shape, empty):
        refuse(argument, f"{what} of shape {_text(shape)}", found)
    return found


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
    found = array(argument, value, shape, kinds="biuf", what="numbers", empty=empty).astype(np.float64, copy=False)
    if finite and not np.isfinite(found).all():
        refuse(argument, "finite numbers", found[~np.isfinite(found)].item(0))
    if found.size and (low > -np.inf or high < np.inf):
        outside = (found < low) | (found > high)
        if outside.any():
            refuse(argument, f"numbers in {low:g}..{high:g}", found[outside].item(0))
    return found


def labels(
    argument: str, value: ArrayLike, shape: Shape = (None,), *, like: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Integers, booleans, strings or finite numbers; ``like``: of the shape of others, and text where they are text.

    >>> labels("predicted", ["a", "b"], like=labels("y", [0, 1]))
    Traceback (most recent call last):
    TypeError: predicted: expected numbers, as what it is compared with, got an array (<U1) of shape (2,) (ndarray)
    """
    shape = shape if like is None else like.shape
    found = array(argument, value, shape, kinds="biufUS", what="labels or numbers")
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        refuse(argument, "labels or finite numbers", found[~np.isfinite(found)].item(0))
    if like is not None and (found.dtype.kind in "US") != (like.dtype.kind in "US"):
        refuse_type(
            argument, ("text" if like.dtype.kind in "US" else "numbers") + ", as what it is compared with", found
        )
    return found


def codes(
    argument: str, value: ArrayLike, shape: Shape = (None,), *, classes: int | None = None, empty: bool = False
) -> NDArray[np.integer[Any]]:
    """Class codes: integers of at least 0, below ``classes`` where it is given.

    >>> codes("y", [0, 3], classes=3)
    Traceback (most recent call last):
    ValueError: y: expected class codes in 0..2, got 3
    """
    found = array(argument, value, shape, kinds="biu", what="class codes (integers)", empty=empty)
    found = found.astype(np.int64, copy=False)
    if found.size and (found.min() < 0 or (classes is not None and found.max() >= classes)):
        limit = ">= 0" if classes is None else f"in 0..{classes - 1}"
        refuse(argument, f"class codes {limit}", int(found.min() if found.min() < 0 else found.max()))
    return cast("NDArray[np.integer[Any]]", found)


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
    found = array(argument, value, (...,), kinds="biuf", what="numbers")
    length = rows if rows is not None or not found.ndim else len(found)
    if found.ndim not in (1, 2) or len(found) != length or found.shape[1:] in ((0,), (1,)):
        refuse(argument, f"shape ({length or '*'},) or ({length or '*'}, K), K >= 2", found)
    return found


def _fits(found: tuple[int, ...], wanted: Shape, empty: bool) -> bool:
    if wanted and wanted[-1] is ...:
        wanted = wanted[:-1]
        found = found[: len(wanted)]
    return len(found) == len(wanted) and all(f == w or (w is None and (empty or f > 0)) for f, w in zip(found, wanted))


def _text(shape: Shape) -> str:
    parts = ["..." if part is ... else "*" if part is None else str(part) for part in shape]
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
