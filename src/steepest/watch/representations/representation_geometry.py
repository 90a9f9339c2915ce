"""Effective rank and power-law decay of a layer's features, and the phases of a training run that they show."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ...core.checks import check_choice, check_flag, check_number, check_tensor, check_weight, refuse
from ...core.probe import Array, Moment, Probe, Reading, inner_module
from ...core.reductions import widen
from ._layer_inputs import layer_inputs, layer_name

VARIANTS = ("singular", "covariance")
TOKENS = ("last", "all")
FLOOR = 1e-10
"""Eigenvalues below this share of the largest are rounding and enter no fit."""
FIRST, POINTS = 5, 10
WARM_UP, ENTROPY, COMPRESSION = "warm-up", "entropy-seeking", "compression-seeking"


def rankme(
    features: F[Tensor, "batch width"],
    on: str = "singular",
    center: bool = True,
    *,
    weight: F[Tensor, " batch"] | None = None,
) -> F[Tensor, ""]:
    r"""RankMe, the effective rank of features: the exponential of the entropy of their normalised spectrum.

    .. math:: \exp\Bigl(-\sum_i p_i \ln p_i\Bigr), \qquad p_i = \frac{s_i}{\sum_j s_j}
        \quad\text{or}\quad p_i = \frac{\lambda_i}{\sum_j \lambda_j} = \frac{s_i^2}{\sum_j s_j^2}

    with the singular values :math:`s_i` of the centred features (``"singular"``), or the eigenvalues of their
    covariance (``"covariance"``), which weighs large ones more and is never above the first. Both lie in [1, min(N,
    d)]; publications differ in the two and in centring, so the choice goes with the number. No constant is added
    inside the logarithm: 0 ln 0 is 0.

    Args:
        features: a sample a row, ``[N, d]``, N >= 2; fewer than d + 1 rows truncate the spectrum, which warns.
        on: ``"singular"`` or ``"covariance"``.
        center: whether the mean is taken off.
        weight: how much each sample counts, ``[N]``, >= 0, as in a mean and a covariance under these frequencies.

    Returns:
        a scalar of float32 or wider; NaN where all rows are equal, or where a value is not finite.

    Raises:
        ValueError: fewer than two rows, wrong shapes, an unknown variant.

    Example:
        >>> features = torch.diag(torch.tensor([4.0, 2.0, 1.0, 1.0]))
        >>> with warnings.catch_warnings(action="ignore"):
        ...     print(rankme(features, center=False), rankme(features, "covariance", center=False))
        tensor(3.3636) tensor(2.2763)

    Source: Tracing the Representation Geometry of Language Models from Pretraining to Post-training, arXiv:2509.23024.
    """
    check_choice("on", on, VARIANTS)
    check_flag("center", center)
    _check_features(features)
    check_weight(weight, len(features))
    return _effective_rank(_singular_values(features, center, weight), on)


def alpha_req(
    features: F[Tensor, "batch width"] | F[Tensor, " eigenvalues"], lo: int | None = None, hi: int | None = None
) -> tuple[F[Tensor, ""], F[Tensor, ""]]:
    r"""The exponent of the power law of a spectrum: :math:`\lambda_i \approx C i^{-\alpha}`, by least squares in logs.

    :math:`\alpha` is minus the slope of :math:`\ln \lambda_i` on :math:`\ln i` for ranks i from ``lo`` to ``hi``. A
    large one says that few directions dominate; about 1 is the edge of smooth codes. It moves by tenths with the range,
    which should be the same for all that is compared. Eigenvalues below 1e-10 of the largest are rounding and left out.

    Args:
        features: samples ``[N, d]``, N >= 2, whose covariance is taken; or its eigenvalues ``[d]``, >= 0, in any order.
        lo, hi: first and last rank, from 1; by default from 5 to d / 2, at least ten ranks where there are as many.

    Returns:
        alpha and the share of variance that the line explains, R^2; NaN with fewer than two eigenvalues in the range.

    Raises:
        ValueError: wrong shapes, one row, a range that is none.

    Example:
        >>> alpha, r2 = alpha_req(torch.arange(1, 101.0) ** -1.3)
        >>> round(float(alpha), 4), round(float(r2), 4)
        (1.3, 1.0)

    Source: Tracing the Representation Geometry of Language Models from Pretraining to Post-training, arXiv:2509.23024.
    """
    check_tensor("features", features, ndim=(1, 2), floating=True)
    if features.ndim == 2:
        _check_features(features)
        eigenvalues = _relative(_singular_values(features, True, None)).square()
    else:
        eigenvalues = widen(features.detach()).sort(descending=True).values
    return _power_law(eigenvalues, *_fit_range(len(eigenvalues), lo, hi))


def _check_features(features: Tensor) -> None:
    check_tensor("features", features, ndim=2, floating=True)
    if len(features) < 2:
        refuse("features", "at least 2 samples", features)
    if len(features) < features.shape[1] + 1:
        warnings.warn(
            f"{len(features)} samples of width {features.shape[1]} truncate the spectrum: at least "
            f"{features.shape[1] + 1} are needed",
            stacklevel=3,
        )


def _singular_values(features: Tensor, center: bool, weight: Tensor | None) -> Tensor:
    """Of the centred and weighted features; all NaN where a value is not finite."""
    f = widen(features.detach())
    share = None if weight is None else weight.to(f.dtype) / weight.sum()
    if center:
        constant = (f == f[:1]).all(0) & f[0].isfinite()  # a mean there is rounded
        f = torch.where(constant, 0.0, f - (f.mean(0) if share is None else share @ f))
    if share is not None:
        f = f * (share * len(f)).sqrt()[:, None]
    finite = f.isfinite().all()
    values = torch.linalg.svdvals(torch.where(finite, f, 0.0))
    return torch.where(finite, values, torch.nan)


def _relative(singular: Tensor) -> Tensor:
    """Beside the largest, so that no square leaves the type."""
    return singular / singular.amax() if len(singular) else singular


def _effective_rank(singular: Tensor, on: str) -> Tensor:
    weights = singular if on == "singular" else _relative(singular).square()
    p = weights / weights.sum()
    return torch.exp(-torch.special.xlogy(p, p).sum())


def _fit_range(count: int, lo: int | None, hi: int | None) -> tuple[int, int]:
    first = min(FIRST, max(1, count - POINTS + 1)) if lo is None else lo
    last = min(count, max(count // 2, first + POINTS - 1)) if hi is None else hi
    check_number("lo", first, low=1, integer=True)
    check_number("hi", last, low=first, integer=True)
    return first, last


def _power_law(eigenvalues: Tensor, lo: int, hi: int) -> tuple[Tensor, Tensor]:
    own = eigenvalues[lo - 1 : hi]
    usable = (own > FLOOR * eigenvalues.amax()).to(own.dtype) if len(own) else own
    x = torch.arange(lo, lo + len(own), dtype=own.dtype, device=own.device).log()
    y = torch.where(usable > 0, own, 1.0).log()
    points = usable.sum()
    x, y = ((v - (usable * v).sum() / points) * usable for v in (x, y))
    slope = (x * y).sum() / x.square().sum()
    explained = slope * (x * y).sum() / y.square().sum()
    enough = (points > 1) & eigenvalues.isfinite().all()
    return torch.where(enough, -slope, torch.nan), torch.where(enough, explained, torch.nan)


def geometry_phases(
    series: Mapping[str, Sequence[float]], *, tolerance: float = 0.01
) -> list[tuple[str, float, float]]:
    """The phases of a run by its effective rank: falling at first, rising, and falling again.

    A phase ends at the extreme from which the rank turns by more than ``tolerance`` of itself. The first one is the
    *warm-up* where the rank falls; while it rises the run is *entropy-seeking*; where it falls afterwards,
    *compression-seeking*, unless ``alpha`` is there and has fallen too: then the spectrum did not come to be dominated
    by fewer directions, and the phase has no name (``""``).

    Args:
        series: ``"step"`` in rising order, ``"rankme"`` at these, and ``"alpha"`` if at hand; without NaN.
        tolerance: how far the rank must turn, relative, > 0.

    Returns:
        name, first and last step of each phase, in order; none where the rank does not move by ``tolerance``.

    Raises:
        ValueError: series without these columns, of different lengths, steps that do not rise.

    Example:
        >>> geometry_phases({"step": [1, 9, 300, 12000], "rankme": [3.6, 1.27, 3.67, 3.58]})
        [('warm-up', 1, 9), ('entropy-seeking', 9, 300), ('compression-seeking', 300, 12000)]

    Source: Tracing the Representation Geometry of Language Models from Pretraining to Post-training, arXiv:2509.23024.
    """
    check_number("tolerance", tolerance, low=0.0, open_low=True)
    missing = [name for name in ("step", "rankme") if name not in series]
    if missing:
        refuse("series", f"a column {missing[0]!r}", sorted(series))
    steps, ranks = list(series["step"]), [float(value) for value in series["rankme"]]
    alphas = [float(value) for value in series["alpha"]] if "alpha" in series else None
    if len(ranks) != len(steps) or (alphas is not None and len(alphas) != len(steps)):
        refuse("series", "columns of one length", {name: len(column) for name, column in series.items()})
    if any(later <= sooner for sooner, later in pairwise(steps)):
        refuse("series", "steps that rise", steps)
    if any(math.isnan(value) for value in ranks):
        refuse("series", "ranks without NaN", ranks)
    turns = _turning_points(ranks, tolerance)
    phases, risen = [], False
    for begin, end in pairwise(turns):
        rises = ranks[end] > ranks[begin]
        compressed = alphas is None or alphas[end] >= alphas[begin]
        name = ENTROPY if rises else WARM_UP if not risen else COMPRESSION if compressed else ""
        phases.append((name, steps[begin], steps[end]))
        risen = risen or rises
    return phases


def _turning_points(values: Sequence[float], tolerance: float) -> list[int]:
    """The beginning, the extremes between moves of more than the tolerance, and the last extreme."""
    turns, top, bottom, direction = [0], 0, 0, 0
    for place, value in enumerate(values):
        top = place if value > values[top] else top
        bottom = place if value < values[bottom] else bottom
        if direction <= 0 and value > values[bottom] * (1 + tolerance):
            turns += [bottom] if direction else []
            direction, top = 1, place
        elif direction >= 0 and value < values[top] * (1 - tolerance):
            turns += [top] if direction else []
            direction, bottom = -1, place
    return turns + ([top if direction > 0 else bottom] if direction else [])


class RepresentationGeometry(Probe):
    """A probe of :func:`rankme` and :func:`alpha_req`, on what a layer reads.

    By default that is the last linear layer: the unembedding of a language model, the classifier of another. Where a
    batch has fewer samples than features the spectrum is truncated and the numbers are lower bounds: ``data`` gives
    fixed samples, best several times as many as the layer is wide.

    Args:
        layer: name of the module whose input is measured, as ``model.named_modules()`` has it.
        data: inputs to measure on, instead of the batch.
        tokens: of sequences ``[B, T, d]``, the ``"last"`` token or ``"all"``.
        center: whether the mean is taken off.
        lo, hi: range of ranks of the power law.
        every: steps between measurements.

    Numbers of its reading: ``rankme`` (on singular values), ``rankme_covariance``, ``alpha``, ``r2`` and ``samples``;
    its array: ``eigenvalues`` by rank. Column by column, readings are the series of :func:`geometry_phases`.

    Example:
        >>> moment = Moment(1, "forward", nn.Linear(2, 1), inputs=torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]))
        >>> round(float(RepresentationGeometry().measure(moment).numbers["rankme"]), 4)
        2.0

    Source: Tracing the Representation Geometry of Language Models from Pretraining to Post-training, arXiv:2509.23024.
    """

    name = "representation_geometry"
    phases = ("gradients",)
    needs = ("batch",)
    cost = "a forward pass without gradient, the singular values of a matrix [samples, width]"

    def __init__(
        self,
        layer: str | None = None,
        *,
        data: Any = None,
        tokens: str = "last",
        center: bool = True,
        lo: int | None = None,
        hi: int | None = None,
        every: int = 50,
    ) -> None:
        check_choice("tokens", tokens, TOKENS)
        check_flag("center", center)
        check_number("every", every, low=1, integer=True)
        if lo is not None:
            check_number("lo", lo, low=1, integer=True)
        if hi is not None:
            check_number("hi", hi, low=lo or 1, integer=True)
        self.layer, self.data, self.tokens, self.center = layer, data, tokens, center
        self.lo, self.hi, self.every = lo, hi, every

    def check(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        """Refuse a model without such a layer."""
        layer_name(inner_module(model), self.layer)

    def measure(self, moment: Moment) -> Reading:
        """Rank and exponent of the features of this batch, or of the fixed samples."""
        features = layer_inputs(moment, self.layer, self.data, self.tokens)
        singular = features.new_full((0,), math.nan, dtype=torch.float32)
        numbers: dict[str, float | Tensor] = dict.fromkeys(("rankme", "rankme_covariance", "alpha", "r2"), math.nan)
        if len(features) > 1:
            singular = _singular_values(features, self.center, None)
            lo, hi = _fit_range(len(singular), self.lo, self.hi)
            alpha, r2 = _power_law(_relative(singular).square(), lo, hi)
            ranks = (_effective_rank(singular, on) for on in VARIANTS)
            numbers = dict(zip(numbers, (*ranks, alpha, r2)))
        eigenvalues = singular.square() / max(1, len(features))
        ticks = [float(rank) for rank in range(1, len(eigenvalues) + 1)]
        return Reading(
            {**numbers, "samples": float(len(features))}, {"eigenvalues": Array(eigenvalues, {"rank": ticks})}
        )
