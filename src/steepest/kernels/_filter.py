"""Gradients of the live part of a vocabulary, and one rank-one term for all the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..core.checks import check_choice, check_number, check_tensor, refuse_type
from ..core.scalars import is_number, plain
from ._engine import Gradients, Head, add_product
from ._memory import computed


def gradient_filter(slope: Tensor, eps: float) -> Tensor:
    """Which classes are live in a chunk of rows: max over rows of |softmax - target| is at least ``eps``.

    Args:
        slope: softmax minus target ``[r, V]``.
        eps: > 0.

    Returns:
        boolean ``[V]``.

    Example:
        >>> gradient_filter(torch.tensor([[0.6, -0.6001, 0.0001], [-0.2, 0.2, 0.0]]), 0.01)
        tensor([ True,  True, False])

    Source: Cut Your Losses in Large-Vocabulary Language Models, arXiv:2411.09009, section 4.3.
    """
    check_tensor("slope", slope, ndim=2, floating=True)
    check_number("eps", eps, low=0.0, open_low=True)
    return slope.abs().amax(0) >= eps


@dataclass
class GradientFilter:
    r"""Leave classes that hardly anybody in a chunk gives probability out of the gradient's two matrix products.

    .. math:: G_{nv} \approx a_n b_v \quad \text{for dropped } v, \qquad a_n = \sum_v G_{nv}, \quad
        b_v = \sum_n G_{nv} \Big/ \sum_n a_n

    With that tail the sum of every row of the gradient stays what it was (0 for plain cross-entropy); without it the
    dropped mass is lost. The loss isn't touched. Useless at the start of training, where every class is live.

    Args:
        eps: a class is live where some row's |softmax - target| reaches it; ``"auto"`` is finfo(dtype).eps / 32 of the
            type of the matrix products.
        tail: whether dropped classes get their rank-one term.
        max_dropped: the most probability, averaged over rows, that a chunk may drop, in (0, 1); the live set grows
            by its most probable classes until it holds. None for no bound.

    Example:
        >>> from steepest.kernels import linear_cross_entropy
        >>> chosen = GradientFilter(1e-3, max_dropped=0.02)
        >>> h, w = torch.randn(64, 8, requires_grad=True), torch.randn(500, 8)
        >>> linear_cross_entropy(h, w, torch.arange(64), filter=chosen).backward()
        >>> bool(chosen.dropped <= 0.02)
        True
    """

    eps: str | float = "auto"
    tail: bool = True
    max_dropped: float | None = None
    rows: float | Tensor = field(default=0, init=False, repr=False)
    lost: Tensor | None = field(default=None, init=False, repr=False)
    live: float = field(default=0, init=False, repr=False)
    chunks: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.eps, str):
            check_choice("eps", self.eps, ("auto",))
        else:
            check_number("eps", self.eps, low=0.0, open_low=True)
        self.eps, self.max_dropped = plain((self.eps, self.max_dropped))
        if self.max_dropped is not None:
            check_number("max_dropped", self.max_dropped, low=0.0, high=1.0, open_low=True, open_high=True)
        self._top: Tensor | None = None
        self._mass: Tensor | None = None
        self._sums: tuple[Tensor, Tensor] | None = None
        self._counted: Tensor | None = None

    @classmethod
    def of(cls, given: str | float | GradientFilter | None) -> GradientFilter | None:
        """A filter from what the user gave; its record starts anew."""
        if given is None:
            return None
        if isinstance(given, cls):
            given.rows = given.live = given.chunks = 0
            given.lost = given._top = given._mass = given._sums = given._counted = None
            return given
        if not (isinstance(given, str) or is_number(given)):
            refuse_type("filter", "None, 'auto', a threshold or a GradientFilter", given)
        return cls(given)

    @property
    def dropped(self) -> Tensor | None:
        """The probability left out of the gradients of the last call, averaged over its rows; None before any."""
        if self.lost is None:
            return None
        rows = self.rows
        return self.lost / (rows.clamp_min(1) if isinstance(rows, Tensor) else max(rows, 1))

    @property
    def kept(self) -> float:
        """The share of classes that were live in the last call, averaged over its chunks."""
        return self.live / max(self.chunks, 1)

    def see(self, slope: Tensor, part: slice) -> None:
        """A piece's slopes in its logits, before weights, softcap and temperature."""
        top, mass = slope.aminmax(dim=0), slope.sum(0)
        highest = torch.maximum(top.max, -top.min)
        first = part.start == 0 or self._top is None
        self._top = highest if first or self._top is None else torch.maximum(self._top, highest)
        self._mass = mass if first or self._mass is None else self._mass.add_(mass)

    def note(self, top: Tensor, mass: Tensor, columns: Tensor, rows: Tensor, counted: Tensor) -> None:
        """What :meth:`see` would find in a chunk, sums of the gradient's columns and rows, how many rows count."""
        self._top, self._mass, self._sums, self._counted = top, mass, (columns, rows), counted

    def __call__(self, head: Head, g: Tensor, rows: slice, found: Gradients, needs: Sequence[bool]) -> None:
        """Add a chunk's part to the gradients: products of the live classes, a rank-one term for the others."""
        assert self._top is not None
        assert self._mass is not None
        counted = len(g) if self._counted is None else self._counted
        alive = self._alive(counted, head.weight.dtype)
        columns = alive.nonzero().squeeze(1)
        self.rows = self.rows + counted
        missing = (self._mass * ~alive).sum()
        self.lost = missing if self.lost is None else self.lost + missing
        self.live += len(columns) / g.shape[1]
        self.chunks += 1
        wide = computed(head.weight)
        live = g.index_select(1, columns)
        if self._sums is not None:
            down, across = self._sums
        elif self.tail or needs[2]:
            down, across = g.sum(0), g.sum(1)
        narrow, h = live.to(head.weight.dtype), head.hidden[rows]
        a, b, total = None, None, None
        if self.tail:
            a = across - live.sum(1, dtype=wide)
            total = a.sum()
            b = (down * ~alive) / torch.where(total == 0, 1.0, total)
        if needs[0] and found.hidden is not None:
            product = torch.mm(narrow, head.weight[columns]).to(wide)
            if a is not None and b is not None:
                product.addr_(a, _times(b, head.weight))
            found.hidden[rows] = product.to(found.hidden.dtype)
        if needs[1]:
            kind = wide if head.wide_sums else head.weight.dtype
            if found.weight is None:
                found.weight = head.weight.new_zeros(head.weight.shape, dtype=kind)
            found.weight.index_add_(0, columns, add_product(None, narrow.t(), h, kind))
            if a is not None and b is not None:
                found.weight.addr_(b.to(kind), (a @ h.to(a.dtype)).to(kind))
        if needs[2]:
            whole = down if self.tail else down * alive
            found.bias = whole if found.bias is None else found.bias.add_(whole)

    def _alive(self, rows: int | Tensor, dtype: torch.dtype) -> Tensor:
        assert self._top is not None
        assert self._mass is not None
        eps = torch.finfo(dtype).eps / 32 if self.eps == "auto" else float(self.eps)
        alive = self._top >= eps
        if self.max_dropped is None:
            return alive
        # the most probable of the others join until what is left is within the bound
        mass = torch.where(alive, 0.0, self._mass.clamp_min(0))
        order = mass.argsort(descending=True)
        left = mass.sum() - mass[order].cumsum(0)
        before = torch.cat([mass.sum().reshape(1), left[:-1]])
        return alive.scatter(0, order, alive[order] | (before > self.max_dropped * rows))


def _times(b: Tensor, weight: Tensor) -> Tensor:
    """``b W`` in the type of ``b``."""
    return (b.to(weight.dtype) @ weight).to(b.dtype)
