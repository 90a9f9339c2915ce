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


def projections(gramian: Tensor) -> Tensor:
    r"""For each k the v that is least in :math:`v^\top G v` with :math:`v \ge e_k`: ``[m, m]`` in float64, row k for k.

    With G = J J', row k of the result times J is the projection of row k of J onto the cone of all x with J x >= 0.
    Where rows are linearly dependent v is not unique; v J is.

    Args:
        gramian: ``[m, m]``, symmetric, positive semi-definite, with 1 (0 for a row of zeros) on its diagonal. Solved on
            the host.

    >>> projections(torch.tensor([[1.0, -(0.5**0.5)], [-(0.5**0.5), 1.0]]))
    tensor([[1.0000, 0.7071],
            [0.7071, 1.0000]], dtype=torch.float64)
    """
    gram = np.ascontiguousarray(gramian.detach().cpu().numpy(), dtype=np.float64)
    if not np.isfinite(gram).all():
        return torch.full(gramian.shape, torch.nan, dtype=torch.float64, device=gramian.device)
    projected, finished = np.zeros_like(gram), np.zeros(len(gram), dtype=np.bool_)
    if (library := _library(native.level())) is not None:
        pointers = (ctypes.c_void_p(array.ctypes.data) for array in (gram, projected, finished))
        library.project_dual_cone(*pointers, ctypes.c_int64(len(gram)))
    if not finished.all():
        projected[~finished] = _by_least_squares(gram, np.flatnonzero(~finished))
    return torch.from_numpy(projected).to(gramian.device)


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
