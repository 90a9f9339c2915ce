"""Projections of rows onto the dual cone of all rows, from their Gramian: small quadratic programs, solved exactly."""

from __future__ import annotations

import ctypes
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
    gram = np.ascontiguousarray(gramian.detach().cpu().numpy(), dtype=np.float64)
    rows = len(gram)
    p = np.full(rows, 1 / rows) if preference is None else preference.detach().double().cpu().contiguous().numpy()
    if not np.isfinite(gram).all():
        return torch.full((rows,), torch.nan, dtype=torch.float64, device=gramian.device)
    library = _library(native.level())
    if library is None:
        lengths = np.sqrt(gram.diagonal())
        inverse = np.divide(1.0, lengths, out=np.zeros(rows), where=lengths > 0)
        cosines = inverse[:, None] * gram * inverse
        projected, finished = np.empty_like(gram), np.zeros(rows, dtype=np.bool_)
    else:
        cosines, lengths, projected = np.empty_like(gram), np.empty(rows), np.empty_like(gram)
        finished, combined = np.empty(rows, dtype=np.bool_), np.empty(rows)
        given = (gram.ctypes.data, p.ctypes.data)
        scratch = (array.ctypes.data for array in (cosines, lengths, projected, finished, combined))
        if not library.dual_cone_weights(
            *map(ctypes.c_void_p, given), ctypes.c_int64(rows), *map(ctypes.c_void_p, scratch)
        ):
            return torch.from_numpy(combined).to(gramian.device)
        inverse = np.divide(1.0, lengths, out=np.zeros(rows), where=lengths > 0)
    projected[~finished] = _by_least_squares(cosines, np.flatnonzero(~finished))
    return torch.from_numpy((p * lengths) @ projected * inverse).to(gramian.device)


def _by_least_squares(gram: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Those rows by SciPy, slower, at any rank: the least of |A (e_k + z)| with z >= 0, A a root of G."""
    from scipy.optimize import nnls  # type: ignore[import-untyped]  # seldom needed, long to import

    values, vectors = np.linalg.eigh(gram)
    root = np.sqrt(values.clip(0.0))[:, None] * vectors.T
    eye = np.eye(len(gram))
    return np.stack([eye[k] + nnls(root, -root[:, k], maxiter=30 * len(gram))[0] for k in rows])


@cache
def _library(level: str) -> ctypes.CDLL | None:
    return native.library(SOURCE)
