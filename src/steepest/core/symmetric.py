"""Symmetric maps that are known by their products: of one vector or many at once, flat or shaped as parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import check_number, refuse, refuse_type

Pieces = list[Tensor]
"""A vector in the shapes of parameters, or a stack of k vectors: each ``[k, *shape]``."""


SEGMENT = 2**15


def inner(a: Tensor, b: Tensor) -> float:
    """The inner product of two vectors, in float64; of long ones in float32 over segments whose sum is float64.

    >>> inner(torch.ones(100_000), torch.full((100_000,), 0.5))
    50000.0
    """
    if a.dtype == torch.float64 or a.numel() <= SEGMENT:
        return float(torch.dot(a.double(), b.double()))
    sums = [torch.dot(own, beside) for own, beside in zip(a.split(SEGMENT), b.split(SEGMENT))]
    return float(torch.stack(sums).sum(dtype=torch.float64))


class SymmetricOperator:
    """A symmetric matrix ``[n, n]`` by its products.

    ``operator @ v`` takes a vector ``[n]``, a matrix ``[n, k]``, a list of tensors in the shapes of the parameters, or
    a list of stacks ``[k, *shape]``, and gives the same form; so does a call.

    Subclasses give ``_apply(pieces, count)``: pieces in the shapes of ``shapes``, or stacks of ``count`` of them.

    Args:
        shapes: of the parameters.
        dtype, device: of products with flat vectors.
        chunk: how many vectors go through at once; None for all.
    """

    def __init__(
        self, shapes: Sequence[Sequence[int]], dtype: torch.dtype, device: torch.device, chunk: int | None = None
    ) -> None:
        if chunk is not None:
            check_number("chunk", chunk, low=1, integer=True)
        self.shapes = [torch.Size(shape) for shape in shapes]
        self.sizes = [shape.numel() for shape in self.shapes]
        self.size = sum(self.sizes)
        self.dtype, self.device, self.chunk = dtype, device, chunk

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, n)``."""
        return self.size, self.size

    def _apply(self, pieces: Pieces, count: int | None) -> Pieces:
        raise NotImplementedError

    def __matmul__(self, vector: Any) -> Any:
        if isinstance(vector, Tensor):
            return self._of_flat(vector)
        if isinstance(vector, list | tuple):
            return self._of_pieces(list(vector))
        if isinstance(vector, np.ndarray):
            return self._of_flat(torch.as_tensor(vector).to(self.device, self.dtype)).cpu().numpy()
        return NotImplemented

    __call__ = __matmul__

    def _of_flat(self, vector: Tensor) -> Tensor:
        if vector.ndim not in (1, 2) or vector.shape[0] != self.size:
            refuse("vector", f"shape [{self.size}] or [{self.size}, k]", list(vector.shape))
        if vector.ndim == 1:
            rows = self._apply([v.view(s) for v, s in zip(vector.split(self.sizes), self.shapes)], None)
            return torch.cat([row.reshape(-1) for row in rows]).to(vector)
        return self.rows(vector.T).T

    def rows(self, vectors: Tensor) -> Tensor:
        """Products with each row of ``[k, n]``."""
        images = vectors.new_empty(vectors.shape)
        for begin, end in self._chunks(len(vectors)):
            pieces = vectors[begin:end].split(self.sizes, 1)
            if end - begin == 1:
                rows = self._apply([v.reshape(s) for v, s in zip(pieces, self.shapes)], None)
                torch.cat([row.reshape(-1).to(images.dtype) for row in rows], out=images[begin])
            else:
                rows = self._apply([v.reshape(end - begin, *s) for v, s in zip(pieces, self.shapes)], end - begin)
                torch.cat([row.reshape(end - begin, -1).to(images.dtype) for row in rows], 1, out=images[begin:end])
        return images

    def _of_pieces(self, pieces: Pieces) -> Pieces:
        if len(pieces) != len(self.shapes):
            refuse("vector", f"{len(self.shapes)} tensors, one a parameter", len(pieces))
        if all(v.shape == s for v, s in zip(pieces, self.shapes)):
            return self._apply(pieces, None)
        count = pieces[0].shape[0] if pieces[0].ndim else 0
        if not all(v.shape == (count, *s) for v, s in zip(pieces, self.shapes)):
            refuse("vector", "the shapes of the parameters, or stacks of them", [list(v.shape) for v in pieces])
        parts = [self._apply([v[begin:end] for v in pieces], end - begin) for begin, end in self._chunks(count)]
        return [torch.cat(rows) for rows in zip(*parts)] if parts else pieces

    def quadratics(self, vectors: Tensor, among: int | None = None) -> Tensor:
        """Of each row v of ``[k, n]``, the product v'Av, float64.

        Args:
            vectors: rows.
            among: how many are asked for in all, where these are some of them.
        """
        images = self.rows(vectors)
        return torch.tensor([inner(image, v) for image, v in zip(images, vectors)], dtype=torch.float64)

    def _chunks(self, count: int) -> list[tuple[int, int]]:
        size = self._chunk_size() or max(count, 1)
        return [(begin, min(begin + size, count)) for begin in range(0, count, size)]

    def _chunk_size(self) -> int | None:
        return self.chunk

    def together(self) -> int:
        """How many vectors should come at once, where they needn't all be there."""
        return self._chunk_size() or 64

    def matrix(self) -> Tensor:
        """All of it ``[n, n]``; for small n."""
        return self._of_flat(torch.eye(self.size, dtype=self.dtype, device=self.device))

    def to_scipy(self) -> Any:
        """A ``scipy.sparse.linalg.LinearOperator``, for ``eigsh``, ``minres`` and the like."""
        from scipy.sparse.linalg import LinearOperator  # type: ignore[import-untyped]  # long to import

        kind = np.dtype(np.float64 if self.dtype == torch.float64 else np.float32)

        def product(vector: np.ndarray) -> np.ndarray:
            flat = torch.from_numpy(np.ascontiguousarray(vector)).to(self.device, self.dtype)
            own = self._of_flat(flat.reshape(-1) if vector.ndim == 1 or vector.shape[1] == 1 else flat)
            return own.to("cpu", torch.float64 if kind == np.float64 else torch.float32).numpy().reshape(vector.shape)

        return LinearOperator(self.shape, matvec=product, rmatvec=product, matmat=product, rmatmat=product, dtype=kind)


class MatrixOperator(SymmetricOperator):
    """A symmetric matrix that is there, or any linear function of vectors ``[n]``.

    Args:
        product: a matrix ``[n, n]``, or a function of a vector ``[n]``.
        size: n, for a function.
        dtype, device: of vectors, for a function.

    >>> MatrixOperator(torch.tensor([[2.0, 1.0], [1.0, 0.0]])) @ torch.tensor([1.0, 1.0])
    tensor([3., 1.])
    """

    def __init__(
        self,
        product: Tensor | Callable[[Tensor], Tensor],
        size: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if isinstance(product, Tensor):
            if product.ndim != 2 or product.shape[0] != product.shape[1]:
                refuse("product", "a square matrix", list(product.shape))
            size, dtype, device = product.shape[0], product.dtype, product.device
        elif not callable(product):
            refuse_type("product", "a matrix or a function", product)
        if size is None:
            refuse("size", "the length of vectors, for a function", size)
        super().__init__([(size,)], dtype, torch.device(device))
        self._product = product

    def _apply(self, pieces: Pieces, count: int | None) -> Pieces:
        (vectors,) = pieces
        product = self._product
        if isinstance(product, Tensor):
            return [vectors @ product.T]
        return [product(vectors) if count is None else torch.stack([product(v) for v in vectors])]


class Preconditioned(SymmetricOperator):
    r"""A symmetric operator in scaled coordinates, :math:`D^{-1/2} H D^{-1/2}`, with the eigenvalues of D^-1 H.

    Args:
        operator: H.
        diagonal: D, > 0: a number, a vector ``[n]``, or a list of tensors in the shapes of the parameters, such as
            :func:`adam_diagonal` gives.

    Raises:
        ValueError: entries that are not above 0, another length.

    >>> Preconditioned(MatrixOperator(torch.diag(torch.tensor([8.0, 16.0]))), torch.tensor([4.0, 16.0])).matrix()
    tensor([[2., 0.],
            [0., 1.]])
    """

    def __init__(self, operator: SymmetricOperator, diagonal: float | Tensor | Sequence[Tensor]) -> None:
        super().__init__(operator.shapes, operator.dtype, operator.device, operator.chunk)
        if isinstance(diagonal, int | float):
            check_number("diagonal", diagonal, low=0.0, open_low=True)
            pieces = [torch.full(s, float(diagonal), device=self.device) for s in self.shapes]
        elif isinstance(diagonal, Tensor):
            if diagonal.shape != (self.size,):
                refuse("diagonal", f"shape [{self.size}]", list(diagonal.shape))
            pieces = [v.view(s) for v, s in zip(diagonal.split(self.sizes), self.shapes)]
        else:
            pieces = list(diagonal)
            if [v.shape for v in pieces] != self.shapes:
                refuse("diagonal", "the shapes of the parameters", [list(v.shape) for v in pieces])
        if not all(bool((v > 0).all()) for v in pieces):
            refuse("diagonal", "entries > 0", min(float(v.min()) for v in pieces if v.numel()))
        self.operator = operator
        self._roots = [v.detach().double().rsqrt().to(self.device, self.dtype) for v in pieces]

    def _apply(self, pieces: Pieces, count: int | None) -> Pieces:
        images = self.operator._apply([root * v for root, v in zip(self._roots, pieces)], count)
        return [root * v for root, v in zip(self._roots, images)]

    def _chunk_size(self) -> int | None:
        return self.operator._chunk_size()


def adam_diagonal(optimizer: torch.optim.Optimizer, params: Sequence[Tensor]) -> Pieces:
    r"""The diagonal by which Adam divides: :math:`\sqrt{\hat v} + \epsilon`, in the shapes of parameters.

    Args:
        optimizer: Adam, AdamW, or one that keeps ``exp_avg_sq`` and ``step`` and has ``betas`` and ``eps``.
        params: some of its parameters.

    Raises:
        ValueError: a parameter that is not the optimizer's, or that it hasn't moved yet.

    >>> w = torch.nn.Parameter(torch.ones(2)); w.grad = torch.tensor([3.0, 4.0])
    >>> optimizer = torch.optim.Adam([w], eps=0.5); optimizer.step()
    >>> adam_diagonal(optimizer, [w])
    [tensor([3.5000, 4.5000])]
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    pieces: Pieces = []
    for number, p in enumerate(params):
        state, group = optimizer.state.get(p, {}), groups.get(id(p))
        if group is None or "exp_avg_sq" not in state or "betas" not in group:
            refuse("optimizer", "second moments (exp_avg_sq) of each parameter", f"none of parameter {number}")
        square = state.get("max_exp_avg_sq", state["exp_avg_sq"])
        corrected = square.double() / (1 - math.pow(group["betas"][1], float(state["step"])))
        pieces.append((corrected.sqrt() + group["eps"]).to(p.device, torch.promote_types(p.dtype, torch.float32)))
    return pieces
