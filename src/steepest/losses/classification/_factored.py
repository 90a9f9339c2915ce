"""A weight matrix kept as factors, whose structured updates cost the same for any number of rows."""

from __future__ import annotations

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import check_number

_WORST = 1e3
"""Condition of U (over its least possible value) beyond which the factors are multiplied out."""
_ROWS = 65536
"""Rows multiplied out at a time."""


class FactoredMatrix(nn.Module):
    r"""A matrix W of D rows and d columns as :math:`W = V U + 1 \omega^\top`, with its Gram matrix and column sums.

    .. math:: Q = W^\top W, \qquad w = W^\top 1

    :meth:`update` changes all D rows exactly, by touching only U, omega and the rows of V that it names: O(m d^2) for
    m samples. Every ``rebuild_every`` updates, and whenever U comes near to being singular, the factors are multiplied
    out, O(D d^2). V has torch's default type; U, omega, Q and w are float64, so that their rounding stays below V's.

    Args:
        rows: D >= 1.
        columns: d >= 1.
        rebuild_every: updates between two rebuilds, >= 1, or None for only when U asks for it.
    """

    v: Tensor
    u: Tensor
    u_inverse: Tensor
    omega: Tensor
    gram: Tensor
    sums: Tensor
    updates: Tensor

    def __init__(self, rows: int, columns: int, rebuild_every: int | None = 10_000) -> None:
        super().__init__()
        check_number("rows", rows, low=1, integer=True)
        check_number("columns", columns, low=1, integer=True)
        if rebuild_every is not None:
            check_number("rebuild_every", rebuild_every, low=1, integer=True)
        self.rebuild_every = rebuild_every
        self.register_buffer("v", torch.empty(rows, columns).uniform_(-(columns**-0.5), columns**-0.5))
        for name in ("u", "u_inverse", "gram"):
            self.register_buffer(name, torch.eye(columns, dtype=torch.float64))
        for name in ("omega", "sums"):
            self.register_buffer(name, torch.zeros(columns, dtype=torch.float64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))
        self.rebuild()

    def dense(self) -> F[Tensor, "rows columns"]:
        """W itself, O(D d^2)."""
        return torch.cat([self._chunk(start) for start in range(0, len(self.v), _ROWS)]).to(self.v.dtype)

    def _chunk(self, start: int) -> Tensor:
        return self.v[start : start + _ROWS].to(self.u.dtype) @ self.u + self.omega

    def pick(self, index: I[Tensor, " batch"]) -> F[Tensor, "batch columns"]:
        """Rows of W in the type of U."""
        return self.v[index].to(self.u.dtype) @ self.u + self.omega

    @torch.no_grad()
    def assign(self, weight: F[Tensor, "rows columns"]) -> None:
        """Become a given matrix."""
        self.v.copy_(weight)
        self.u, self.u_inverse = torch.eye(len(self.u)).to(self.u), torch.eye(len(self.u)).to(self.u)
        self.omega = torch.zeros_like(self.omega)
        self.rebuild()

    @torch.no_grad()
    def rebuild(self) -> None:
        """Multiply the factors out, and take Q and w from the rows afresh."""
        gram, sums = torch.zeros_like(self.gram), torch.zeros_like(self.sums)
        for start in range(0, len(self.v), _ROWS):
            self.v[start : start + _ROWS] = self._chunk(start).to(self.v.dtype)
            rows = self.v[start : start + _ROWS].to(self.u.dtype)
            gram += rows.mT @ rows
            sums += rows.sum(0)
        eye = torch.eye(len(self.u), dtype=self.u.dtype, device=self.u.device)
        self.u, self.u_inverse, self.omega = eye, eye.clone(), torch.zeros_like(self.omega)
        self.gram, self.sums = gram, sums

    @torch.no_grad()
    def update(
        self,
        h: F[Tensor, "batch columns"],
        curved: F[Tensor, " batch"],
        flat: F[Tensor, " batch"],
        index: I[Tensor, " batch"],
        single: F[Tensor, " batch"],
    ) -> None:
        r"""The update of all rows.

        .. math:: W \leftarrow W - \sum_i (c_i W h_i + f_i 1 + s_i e_{k_i}) h_i^\top

        Args:
            h: vectors h_i ``[m, d]``.
            curved, flat, single: c, f and s, ``[m]`` each.
            index: rows k ``[m]`` in 0..D-1; they may repeat.
        """
        h, curved, flat, single = (t.to(self.u.dtype) for t in (h, curved, flat, single))
        scaled = curved.unsqueeze(1) * h
        shift = h.mT @ flat
        # W (I - H' diag(c) H) - 1 shift'
        omega = self.omega - h.mT @ (scaled @ self.omega) - shift
        u = self.u - (self.u @ h.mT) @ scaled
        moved = self.gram - (self.gram @ h.mT) @ scaled
        gram = moved - scaled.mT @ (h @ moved)
        sums = self.sums - scaled.mT @ (h @ self.sums)
        cross = torch.outer(sums, shift)
        gram = gram - cross - cross.mT + len(self.v) * torch.outer(shift, shift)
        sums = sums - len(self.v) * shift
        # the rows that are named
        named, place = index.unique(return_inverse=True)
        change = torch.zeros(len(named), h.shape[1], dtype=h.dtype, device=h.device)
        change.index_add_(0, place, -single.unsqueeze(1) * h)
        inverse = self._inverse(h, scaled)
        self.updates = self.updates + 1
        if inverse is None or float(torch.linalg.norm(u) * torch.linalg.norm(inverse)) > _WORST * len(u):
            self._update_rows(u, omega, named, change)
            return
        old = self.v[named].to(u.dtype) @ u + omega
        cross = change.mT @ old
        self.gram = gram + cross + cross.mT + change.mT @ change
        self.sums = sums + change.sum(0)
        self.u, self.u_inverse, self.omega = u, inverse, omega
        self.v.index_add_(0, named, (change @ inverse).to(self.v.dtype))
        if self.rebuild_every is not None and int(self.updates) % self.rebuild_every == 0:
            self.rebuild()

    def _inverse(self, h: Tensor, scaled: Tensor) -> Tensor | None:
        """The inverse of U (I - H' diag(c) H) from that of U, solved on the smaller side; None where there is none."""
        rows, columns = h.shape
        if rows >= columns:
            step = torch.eye(columns, dtype=h.dtype, device=h.device) - h.mT @ scaled
            inverse, info = torch.linalg.solve_ex(step, self.u_inverse)
        else:
            small = torch.eye(rows, dtype=h.dtype, device=h.device) - scaled @ h.mT
            correction, info = torch.linalg.solve_ex(small, scaled @ self.u_inverse)
            inverse = self.u_inverse + h.mT @ correction
        return inverse if int(info) == 0 and bool(torch.isfinite(inverse).all()) else None

    def _update_rows(self, u: Tensor, omega: Tensor, named: Tensor, change: Tensor) -> None:
        """The same where U has no usable inverse: multiply out, then add to the rows."""
        self.u, self.omega = u, omega
        self.rebuild()
        old = self.v[named].to(u.dtype)
        self.v[named] = (old + change).to(self.v.dtype)
        moved = self.v[named].to(u.dtype) - old  # as it was rounded
        cross = moved.mT @ old
        self.gram = self.gram + cross + cross.mT + moved.mT @ moved
        self.sums = self.sums + moved.sum(0)
