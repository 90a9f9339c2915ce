"""Pairwise distances between rows and centres, without a tensor of all differences."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float as F
from torch import Tensor

from .checks import check_choice, check_number, check_tensor, refuse
from .cosine import unit_rows
from .reductions import widen
from .transforms import forward_mode

VARIANTS: dict[str, tuple[str, ...]] = {
    "euclidean": ("",),
    "manhattan": ("",),
    "minkowski": ("",),
    "chebyshev": ("max", "smooth"),
    "cosine": ("",),
    "canberra": ("standard", "robust", "weighted"),
    "bray_curtis": ("abs", "standard", "normalized"),
    "mahalanobis": ("diagonal", "lower", "full"),
    "hamming": ("",),
}
"""The distances, each with its variants; the first is the default."""

CHUNK = 2**24
"""Numbers in the largest tensor of differences that is built at once."""

_MANY = 256
"""Centres from which Euclidean distances go through a matrix product, faster and less exact near 0."""

_Pair = Callable[[Tensor, Tensor], Tensor]


def distances(
    x: F[Tensor, "batch features"],
    centres: F[Tensor, "classes features"],
    *,
    distance: str = "euclidean",
    variant: str | None = None,
    p: float = 1.5,
    sharpness: float = 10.0,
    temperature: float = 1.0,
    floor: float = 1e-3,
    factor: Tensor | None = None,
    chunk: int = CHUNK,
) -> F[Tensor, "batch classes"]:
    r"""Distances of each row to each centre.

    With u = x - w:

    =============  ============  =======================================================================
    distance       variant
    =============  ============  =======================================================================
    euclidean                    :math:`\|u\|_2`
    manhattan                    :math:`\|u\|_1`
    minkowski                    :math:`\|u\|_p`
    chebyshev      max, smooth   :math:`\max_j |u_j|`, or :math:`\log(\sum_j e^{a |u_j|}) / a`
    cosine                       :math:`1 - \cos(x, w)`; 1 where a vector is 0
    canberra       standard      :math:`\sum_j |u_j| / (|x_j| + |w_j|)`, a term 0/0 counts 0
    canberra       robust        the same with denominators held at ``floor`` or above
    canberra       weighted      the mean of the terms weighted by their denominators, which is ``bray_curtis``
    bray_curtis    abs           :math:`\sum_j |u_j| / \sum_j (|x_j| + |w_j|)`
    bray_curtis    standard      :math:`\sum_j |u_j| / |\sum_j (x_j + w_j)|`, for features >= 0
    bray_curtis    normalized    abs, of :math:`|x| / \|x\|_1` and :math:`|w| / \|w\|_1`
    mahalanobis    any           :math:`\|u A\|_2` with the ``factor`` A of the metric :math:`M = A A^\top`
    hamming                      :math:`\sum_j |\sigma(x_j / T) - \sigma(w_j / T)|`
    =============  ============  =======================================================================

    Canberra and the smooth Chebyshev distance need all differences; beyond ``chunk`` numbers they are built in parts of
    the rows, and again in the backward pass. Where two vectors coincide the gradient is 0.

    Args:
        x: rows ``[B, D]``.
        centres: w ``[K, D]``.
        distance: a key of the table.
        variant: a variant of it, or None for the first.
        p: exponent of ``minkowski``, >= 1.
        sharpness: a > 0 of the smooth Chebyshev distance; it exceeds the maximum by at most log(D) / a.
        temperature: T > 0 of ``hamming``.
        floor: > 0.
        factor: A for ``mahalanobis``: ``[D]`` for a diagonal, or ``[D, E]``.
        chunk: numbers of differences held at once, >= 1.

    Returns:
        ``[B, K]`` in float32 or wider, >= 0 (up to rounding where smooth).

    Raises:
        ValueError: an unknown distance or variant, shapes that don't match, a number out of range.

    Example:
        >>> x, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
        >>> distances(x, w)
        tensor([[2.0000, 1.0000, 2.2361]])
        >>> distances(x, w, distance="bray_curtis")
        tensor([[0.5000, 0.2000, 0.3333]])
    """
    variant = check_distance(distance, variant)
    check_number("p", p, low=1.0)
    check_number("sharpness", sharpness, low=0.0, open_low=True)
    check_number("temperature", temperature, low=0.0, open_low=True)
    check_number("floor", floor, low=0.0, open_low=True)
    check_number("chunk", chunk, low=1, integer=True)
    check_tensor("x", x, ndim=2, floating=True)
    check_tensor("centres", centres, floating=True, shape=(None, x.shape[1]))
    if (factor is None) == (distance == "mahalanobis"):
        refuse("factor", "a tensor for 'mahalanobis', None for other distances", factor)
    x, w = widen(x), widen(centres)
    if distance == "mahalanobis":
        check_tensor("factor", factor, ndim=(1, 2), floating=True)
        assert factor is not None
        if factor.shape[0] != x.shape[1]:
            refuse("factor", f"{x.shape[1]} rows, as features", factor)
        a = factor.to(x.dtype)
        return _euclidean(x * a, w * a) if a.ndim == 1 else _euclidean(x @ a, w @ a)
    if distance == "euclidean":
        return _euclidean(x, w)
    if distance == "cosine":
        return (1.0 - unit_rows(x) @ unit_rows(w).mT).clamp_min(0.0)
    if distance == "hamming":
        return cdist(torch.sigmoid(x / temperature), torch.sigmoid(w / temperature), p=1.0)
    if distance in ("manhattan", "minkowski") or variant == "max":
        return cdist(x, w, p={"manhattan": 1.0, "minkowski": float(p)}.get(distance, torch.inf))
    if distance == "bray_curtis" or variant == "weighted":
        return _bray_curtis(x, w, variant)
    return _pairwise(_smooth_chebyshev(sharpness) if variant == "smooth" else _canberra(variant, floor), x, w, chunk)


def check_distance(distance: str, variant: str | None) -> str:
    """Check a distance and its variant; gives the variant, ``""`` where there is only one form.

    >>> check_distance("canberra", None)
    'standard'
    """
    check_choice("distance", distance, VARIANTS)
    if variant is None:
        return VARIANTS[distance][0]
    check_choice(f"variant of {distance!r}", variant, VARIANTS[distance])
    return variant


def cdist(
    x: F[Tensor, "*batch rows width"], w: F[Tensor, "*batch others width"], p: float = 2.0, *, matrices: bool = False
) -> F[Tensor, "*batch rows others"]:
    """``torch.cdist``, with tangents too: under ``jvp`` from the tensor of all differences.

    Args:
        x, w: rows.
        p: of the norm, >= 1 or infinite.
        matrices: Euclidean distances through a matrix product, faster and less exact near 0.

    >>> cdist(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]))
    tensor([[5.]])
    """
    if forward_mode():
        apart = x.unsqueeze(-2) - w.unsqueeze(-3)
        distances: Tensor = torch.linalg.vector_norm(apart, ord=p, dim=-1)
        return distances
    way = "use_mm_for_euclid_dist" if matrices else "donot_use_mm_for_euclid_dist"
    return torch.cdist(x, w, p=p, compute_mode=way)


def _euclidean(x: Tensor, w: Tensor) -> Tensor:
    if w.shape[0] < _MANY:
        return cdist(x, w)
    # |x|^2 - 2 x.w + |w|^2 cancels where norms are large against distances: measure from the middle of the centres
    middle = w.detach().mean(0)
    return cdist(x - middle, w - middle, matrices=True)


def _nonzero(value: Tensor) -> Tensor:
    """``value`` >= 0 with 0 replaced by 1: a denominator whose numerator is 0 there too."""
    return torch.where(value > 0, value, torch.ones_like(value))


def _bray_curtis(x: Tensor, w: Tensor, variant: str) -> Tensor:
    if variant == "normalized":
        x, w = (v.abs() / _nonzero(v.abs().sum(-1, keepdim=True)) for v in (x, w))
    apart = cdist(x, w, p=1.0)
    if variant == "standard":
        return apart / _nonzero((x.sum(-1).unsqueeze(-1) + w.sum(-1)).abs())
    return apart / _nonzero(x.abs().sum(-1).unsqueeze(-1) + w.abs().sum(-1))


def _canberra(variant: str, floor: float) -> _Pair:
    def pair(x: Tensor, w: Tensor) -> Tensor:
        total = x.abs() + w.abs()
        total = total.clamp_min(floor) if variant == "robust" else _nonzero(total)
        return ((x - w).abs() / total).sum(-1)

    return pair


def _smooth_chebyshev(sharpness: float) -> _Pair:
    return lambda x, w: torch.logsumexp(sharpness * (x - w).abs(), dim=-1) / sharpness


def _pairwise(pair: _Pair, x: Tensor, w: Tensor, chunk: int) -> Tensor:
    """``pair`` of ``[b, 1, D]`` and ``[1, K, D]`` for all rows: at once where that is small, in parts where not."""
    rows = max(1, chunk // max(1, w.numel()))
    if rows >= x.shape[0]:
        return pair(x.unsqueeze(1), w.unsqueeze(0))
    if forward_mode():
        return _parts(x, w, pair, rows)
    distances: Tensor = _InParts.apply(x, w, pair, rows)
    return distances


def _parts(x: Tensor, w: Tensor, pair: _Pair, rows: int) -> Tensor:
    return torch.cat([pair(chunk.unsqueeze(1), w.unsqueeze(0)) for chunk in x.split(rows)])


class _InParts(torch.autograd.Function):
    """Distances by parts of the rows. Nothing of the size of all differences is kept for the backward pass."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, w: Tensor, pair: _Pair, rows: int) -> Tensor:
        return _parts(x, w, pair, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, w, ctx.pair, ctx.rows = inputs
        ctx.save_for_backward(x, w)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, w = ctx.saved_tensors
        to_x, to_w = [], torch.zeros_like(w)
        for chunk, part_slope in zip(x.split(ctx.rows), slope.split(ctx.rows)):
            _, pull = torch.func.vjp(lambda a, b: ctx.pair(a.unsqueeze(1), b.unsqueeze(0)), chunk, w)
            part_to_x, part_to_w = pull(part_slope)
            to_x.append(part_to_x)
            to_w = to_w + part_to_w
        return torch.cat(to_x), to_w, None, None
