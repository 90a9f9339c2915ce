"""Projections of rows onto the dual cone of all rows, from their Gramian: small quadratic programs, solved exactly."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import native

SOURCE = Path(__file__).with_name("dual_cone.cpp")


def weights(gramian: Tensor, preference: Tensor | None = None) -> Tensor:
    r"""Weights ``[m]`` of the rows in the preferred sum of their projections onto their dual cone, in float64.

    .. math:: J^\top w = \sum_k p_k \, \mathrm{proj}_C(J_k), \qquad C = \{x : J x \ge 0\}

    The projection of row k is J'v with the v that is least in v'Gv with v >= e_k. Rows are brought to length 1 before.
    Where they are linearly dependent w is not unique; J'w is. Solved on the host.

    Args:
        gramian: J J' ``[m, m]``, of rows whose squares neither overflow nor vanish in float64.
        preference: p ``[m]`` >= 0; None is 1/m each.

    >>> weights(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]))
    tensor([1.0000, 0.7500], dtype=torch.float64)
    """
    gram = gramian.detach().to("cpu", torch.float64).contiguous()
    p = None if preference is None else preference.detach().to("cpu", torch.float64).contiguous()
    rows = len(gram)
    weigh = _weigh(native.level())
    if weigh is None:
        return _without_library(gram, p).to(gramian.device)
    # one piece of memory, as calls of small ones are many: cosines, lengths, projections, and what is finished
    scratch, combined = torch.empty(rows * (2 * rows + 2), dtype=torch.float64), torch.empty(rows, dtype=torch.float64)
    start = scratch.data_ptr()
    unfinished = weigh(
        gram.data_ptr(), None if p is None else p.data_ptr(), rows, start, start + 8 * rows * rows,
        start + 8 * rows * (rows + 1), start + 8 * rows * (2 * rows + 1), combined.data_ptr(),
    )  # fmt: skip
    if unfinished:
        numbers = scratch.numpy()
        cosines = numbers[: rows * rows].reshape(rows, rows)
        lengths = numbers[rows * rows : rows * (rows + 1)]
        projected = numbers[rows * (rows + 1) : rows * (2 * rows + 1)].reshape(rows, rows)
        finished = numbers[rows * (2 * rows + 1) :].view(np.bool_)[:rows]
        combined = torch.from_numpy(_finished(cosines, lengths, projected, finished, _shares(rows, p)))
    return combined.to(gramian.device)


def _shares(rows: int, preference: Tensor | None) -> np.ndarray:
    return np.full(rows, 1 / rows) if preference is None else preference.numpy()


def _without_library(gramian: Tensor, preference: Tensor | None) -> Tensor:
    gram, rows = gramian.numpy(), len(gramian)
    if not np.isfinite(gram).all():
        return torch.full((rows,), torch.nan, dtype=torch.float64)
    lengths = np.sqrt(gram.diagonal())
    inverse = np.divide(1.0, lengths, out=np.zeros(rows), where=lengths > 0)
    cosines = inverse[:, None] * gram * inverse
    finished = np.zeros(rows, dtype=np.bool_)
    return torch.from_numpy(_finished(cosines, lengths, np.empty_like(gram), finished, _shares(rows, preference)))


def _finished(
    cosines: np.ndarray, lengths: np.ndarray, projected: np.ndarray, finished: np.ndarray, p: np.ndarray
) -> np.ndarray:
    """The weights, with those projections that are not finished."""
    inverse = np.divide(1.0, lengths, out=np.zeros(len(lengths)), where=lengths > 0)
    if not finished.all():
        projected[~finished] = _by_least_squares(cosines, np.flatnonzero(~finished))
    combined: np.ndarray = (p * lengths) @ projected * inverse
    return combined


def _by_least_squares(gram: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Those rows by SciPy, slower, at any rank: the least of |A (e_k + z)| with z >= 0, A a root of G."""
    from scipy.optimize import nnls  # type: ignore[import-untyped]  # seldom needed, long to import

    values, vectors = np.linalg.eigh(gram)
    root = np.sqrt(values.clip(0.0))[:, None] * vectors.T
    eye = np.eye(len(gram))
    return np.stack([eye[k] + nnls(root, -root[:, k], maxiter=30 * len(gram))[0] for k in rows])


@cache
def _weigh(level: str) -> Callable[..., int] | None:
    library = native.library(SOURCE)
    if library is None:
        return None
    weigh = library.dual_cone_weights
    weigh.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 5]
    weigh.restype = ctypes.c_int64
    return weigh
