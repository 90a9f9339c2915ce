"""When steps of SGD around a minimum grow: bounds by sharpness, batch and the coherence of the samples' Hessians."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_flag, check_number, check_tensor, refuse, values_visible
from ...core.lanczos import eigenpairs
from ...core.reductions import widen
from ...core.symmetric import MatrixOperator, Preconditioned, SymmetricOperator

NEGATIVE = 1e-8
"""How far below 0, as a share of the largest, an eigenvalue of a sample's Hessian may lie."""
PRODUCTS = 500
"""Products in a search for an eigenvalue at most."""


class StabilityBounds(NamedTuple):
    """What steps of SGD stand, beside the curvature that is there; see :func:`sgd_stability_bounds`.

    Attributes:
        gd: the sharpness above which steps on all samples grow.
        noise: the sharpness above which those on batches do; inf for a batch of all samples.
        per_example: the largest eigenvalue of one sample's Hessian above which they do; inf likewise.
        optimal: the sharpness below which there are Hessians of this coherence with which they do not grow.
        sharpness: the largest eigenvalue of the mean Hessian.
        largest: the largest eigenvalue of one sample's Hessian.
        sigma: the coherence.
        unstable: True where ``sharpness`` lies above ``gd`` or ``largest`` above ``per_example``, which it does where
            ``sharpness`` lies above ``noise``; False for a batch of all samples otherwise; None where bounds leave it
            open.
    """

    gd: float
    noise: float
    per_example: float
    optimal: float
    sharpness: float
    largest: float
    sigma: float
    unstable: bool | None


def hessian_coherence(
    hessians: F[Tensor, "samples d d"] | F[Tensor, "samples k d"] | F[Tensor, "samples d"], *, factors: bool = False
) -> tuple[F[Tensor, ""], F[Tensor, "samples samples"]]:
    r"""How much the Hessians of samples are aligned: 1 where they are orthogonal and of one norm, n where equal.

    .. math:: \sigma = \frac{\lambda_1(S)}{\max_i \lambda_1(H_i)}, \qquad
        S_{ij} = \| H_i^{1/2} H_j^{1/2} \|_F = \sqrt{\operatorname{tr}(H_i H_j)}

    Of squared error, and of binary cross-entropy without the curvature of the model, a Hessian has rank one,
    :math:`v_i v_i^\top`, and :math:`S_{ij} = |v_i^\top v_j|`.

    Args:
        hessians: :math:`H_i`, symmetric and positive semi-definite ``[n, d, d]``; those of a network's loss at its
            minimum, or the Gauss-Newton part, which is never negative.
        factors: whether they are factors instead, ``[n, k, d]`` with :math:`H_i = F_i^\top F_i`, or ``[n, d]`` of rank
            one: the same at a cost of n k vectors instead of n matrices.

    Returns:
        :math:`\sigma`, and S ``[n, n]``. NaN where an entry is not finite, or all are 0.

    Raises:
        ValueError: another shape, a matrix that is not symmetric, an eigenvalue below 0 by more than rounding.

    Example:
        >>> v = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> sigma, s = hessian_coherence(v, factors=True)
        >>> round(float(sigma), 4)
        2.0
        >>> s
        tensor([[1., 1., 0.],
                [1., 1., 0.],
                [0., 0., 1.]])

    Source: A Precise Characterization of SGD Stability Using Loss Surface Geometry, arXiv:2401.12332.
    """
    curvature = _curvature(hessians, factors)
    kind = widen(hessians).dtype
    return curvature.sigma.to(kind), curvature.overlaps.to(kind)


def sgd_stability_bounds(
    hessians: F[Tensor, "samples d d"] | F[Tensor, "samples k d"] | F[Tensor, "samples d"],
    lr: float,
    batch: float,
    *,
    factors: bool = False,
) -> StabilityBounds:
    r"""Bounds on the curvature at a minimum of all samples' losses, beyond which mini-batch SGD leaves it.

    Around the minimum a step is :math:`w \leftarrow J w`, :math:`J = I - \frac{\eta}{B} \sum_i x_i H_i`, where each
    sample is drawn with probability B/n. The mean square of w grows without bound if one of these holds:

    .. math:: \lambda_1(H) > \frac{2}{\eta}, \qquad
        \lambda_1(H) > \frac{\sigma}{\eta} \left(\frac{n}{B} - 1\right)^{-1/2}, \qquad
        \max_i \lambda_1(H_i) > \frac{n}{\eta} \left(\frac{n}{B} - 1\right)^{-1/2}

    with :math:`H = \frac{1}{n} \sum_i H_i`; the second follows from the third. And for each :math:`\sigma` in 1..n
    there are Hessians with which it does not, as soon as
    :math:`\lambda_1(H) < \frac{2 \sigma}{\eta} / (\sigma + \frac{n}{B} - 1)`.

    The mean square can grow while nearly all runs shrink. Between the bounds :func:`linearized_sgd_radius` decides.

    Args:
        hessians, factors: of the samples, as of :func:`hessian_coherence`.
        lr: :math:`\eta` > 0.
        batch: B, the expected size of a batch, in (0, n].

    Raises:
        TypeError, ValueError: as of :func:`hessian_coherence`; numbers outside their ranges.

    Example:
        >>> bounds = sgd_stability_bounds(torch.ones(4, 1), lr=0.1, batch=1, factors=True)
        >>> round(bounds.gd, 4), round(bounds.noise, 4), round(bounds.optimal, 4), bounds.unstable
        (20.0, 23.094, 11.4286, None)

    Source: A Precise Characterization of SGD Stability Using Loss Surface Geometry, arXiv:2401.12332.
    """
    curvature = _curvature(hessians, factors)
    n = curvature.count
    check_number("lr", lr, low=0.0, open_low=True)
    check_number("batch", batch, low=0.0, high=n, open_low=True)
    sigma, sharpness, largest = float(curvature.sigma), float(curvature.sharpness), float(curvature.largest.max())
    spread = n / batch - 1
    root = math.sqrt(spread) if spread > 0 else 0.0
    gd = 2 / lr
    noise, per_example = (sigma / lr / root, n / lr / root) if root else (math.inf, math.inf)
    optimal = 2 * sigma / lr / (sigma + spread)
    beyond = sharpness > gd or largest > per_example
    decided = root == 0.0 and math.isfinite(sharpness)
    unstable = True if beyond else False if decided else None
    return StabilityBounds(gd, noise, per_example, optimal, sharpness, largest, sigma, unstable)


def linearized_sgd_radius(
    hessians: F[Tensor, "samples d d"] | F[Tensor, "samples k d"] | F[Tensor, "samples d"],
    lr: float,
    batch: float,
    *,
    factors: bool = False,
) -> float:
    r"""The factor by which the mean square of the distance from a minimum grows at each step of SGD, in the long run.

    It is the spectral radius of the map of second moments,

    .. math:: M(X) = (I - \eta H) X (I - \eta H)
        + \frac{\eta^2}{B^2} \frac{B}{n} \left(1 - \frac{B}{n}\right) \sum_i H_i X H_i

    over directions in which a sample has curvature; in the others nothing moves. Above 1 steps are unstable, below 1
    they are not. A positive map has its radius as an eigenvalue, with a positive semi-definite matrix, so Lanczos's
    method from the identity finds it, at r^2 numbers and n products of r x r matrices a step, r the dimension of the
    directions (at most n k of factors).

    Args:
        hessians, factors: of the samples, as of :func:`hessian_coherence`.
        lr: :math:`\eta` > 0.
        batch: B, the expected size of a batch, in (0, n].

    Returns:
        the factor; 1 without any curvature, NaN where an entry is not finite.

    Raises:
        TypeError, ValueError: as of :func:`sgd_stability_bounds`.

    Example:
        >>> ones = torch.ones(4, 1, dtype=torch.float64)
        >>> [round(linearized_sgd_radius(ones, lr, 1, factors=True), 6) for lr in (1.0, 8 / 7, 1.2)]
        [0.75, 1.0, 1.12]

    Source: A Precise Characterization of SGD Stability Using Loss Surface Geometry, arXiv:2401.12332.
    """
    curvature = _curvature(hessians, factors)
    check_number("lr", lr, low=0.0, open_low=True)
    check_number("batch", batch, low=0.0, high=curvature.count, open_low=True)
    if not curvature.finite:
        return math.nan
    spans = _spans(curvature)
    r = len(spans.eigenvalues)
    if not r:
        return 1.0
    share = _noise_share(curvature.count, batch)
    shrink = 1 - lr * spans.eigenvalues
    factor = shrink[:, None] * shrink

    def product(vector: Tensor) -> Tensor:
        x = vector.view(r, r)
        return (factor * x + lr**2 * share * spans.squared(x)).flatten()

    return _largest(MatrixOperator(product, r * r, torch.float64, factor.device), torch.eye(r).flatten())


def critical_rate(
    hessians: F[Tensor, "samples d d"] | F[Tensor, "samples k d"] | F[Tensor, "samples d"],
    batch: float,
    *,
    factors: bool = False,
) -> float:
    r"""The learning rate above which the mean square of SGD's distance from a minimum grows: where the radius is 1.

    .. math:: \eta^* = 1 / \lambda_{max}(A^{-1} C), \qquad A(X) = H X + X H, \qquad
        C(X) = H X H + \frac{1}{n B} \left(1 - \frac{B}{n}\right) \sum_i H_i X H_i

    Args:
        hessians, factors: of the samples, as of :func:`hessian_coherence`.
        batch: B, the expected size of a batch, in (0, n].

    Returns:
        the rate; inf without any curvature, NaN where an entry is not finite.

    Raises:
        TypeError, ValueError: as of :func:`sgd_stability_bounds`.

    Example:
        >>> ones = torch.ones(4, 1, dtype=torch.float64)
        >>> round(critical_rate(ones, 1, factors=True), 6), round(critical_rate(ones, 4, factors=True), 6)
        (1.142857, 2.0)

    Source: Exact Mean Square Linear Stability Analysis for SGD, arXiv:2306.07850, for the sampling of
    arXiv:2401.12332.
    """
    curvature = _curvature(hessians, factors)
    check_number("batch", batch, low=0.0, high=curvature.count, open_low=True)
    if not curvature.finite:
        return math.nan
    spans = _spans(curvature)
    h = spans.eigenvalues
    if not len(h):
        return math.inf
    share, sums, squares = _noise_share(curvature.count, batch), h[:, None] + h, h[:, None] * h

    def product(vector: Tensor) -> Tensor:
        x = vector.view(len(h), len(h))
        return (squares * x + share * spans.squared(x)).flatten()

    operator = MatrixOperator(product, len(h) ** 2, torch.float64, h.device)
    return 1 / _largest(Preconditioned(operator, sums.flatten()), torch.diag((2 * h).sqrt()).flatten())


def simulate_linear_sgd(
    hessians: F[Tensor, "samples d d"] | F[Tensor, "samples k d"] | F[Tensor, "samples d"],
    lr: float | F[Tensor, " runs"],
    batch: float | F[Tensor, " runs"],
    *,
    steps: int = 1000,
    runs: int = 100,
    resample: int = 1,
    factors: bool = False,
    generator: torch.Generator | None = None,
) -> F[Tensor, "steps+1 runs"]:
    r"""Steps of SGD on the quadratic model of a loss at its minimum, from random points at a distance of 1.

    .. math:: w \leftarrow w - \frac{\eta}{B} \sum_i x_i H_i w, \qquad x_i \sim \text{Bernoulli}(B/n)

    Points lie in the directions in which a sample has curvature. The mean of squares over runs is carried by rare large
    ones, so that it grows where nearly all runs shrink, and few runs see less of it than is there. With ``resample``
    they do: after each step the runs of a population go on from points that are drawn from all of its points in
    proportion to their squares, and the mean of squares is the product of those of single steps.

    Args:
        hessians, factors: of the samples, as of :func:`hessian_coherence`.
        lr: :math:`\eta` > 0, one for all runs or one a run.
        batch: B in (0, n], the expected size of a batch, likewise.
        steps: >= 0.
        runs: >= 1.
        resample: how many consecutive runs are a population, a divisor of ``runs``; they share rate and batch. 1: each
            goes its own way.
        generator: of points and batches.

    Returns:
        the logarithm of the distance before the first step and after each ``[steps + 1, runs]``, of populations so that
        the mean of squares over one is that of the process; without any curvature zeros, where an entry is not finite
        NaN.

    Raises:
        TypeError, ValueError: as of :func:`sgd_stability_bounds`; rates or batches of another number than runs,
            populations that do not divide them.

    Example:
        >>> distance = simulate_linear_sgd(torch.ones(4, 1), 0.5, 4, steps=2, runs=1, factors=True)
        >>> distance.exp()
        tensor([[1.0000],
                [0.5000],
                [0.2500]])

    Source: A Precise Characterization of SGD Stability Using Loss Surface Geometry, arXiv:2401.12332.
    """
    curvature = _curvature(hessians, factors)
    n = curvature.count
    check_number("steps", steps, low=0, integer=True)
    check_number("runs", runs, low=1, integer=True)
    check_number("resample", resample, low=1, integer=True)
    if runs % resample:
        refuse("resample", f"a divisor of {runs} runs", resample)
    kind = widen(hessians).dtype
    rates = _per_run("lr", lr, runs, math.inf).to(hessians.device, kind)
    sizes = _per_run("batch", batch, runs, n).to(hessians.device, kind)
    distances = hessians.new_zeros(steps + 1, runs, dtype=kind)
    if not curvature.finite:
        return distances.fill_(math.nan)
    spans = _spans(curvature)
    r = len(spans.eigenvalues)
    if not r:
        return distances
    source = hessians.device if generator is None else generator.device
    w = torch.randn(runs, r, generator=generator, device=source, dtype=torch.float64).to(hessians.device, kind)
    w = w / torch.linalg.vector_norm(w, dim=1, keepdim=True)
    move = spans.mover(kind)
    step, share = (rates / sizes)[:, None], (sizes / n)[:, None]
    for place in range(1, steps + 1):
        drawn = torch.rand(runs, n, generator=generator, device=source, dtype=kind).to(hessians.device) < share
        w = w - step * move(w, drawn.to(kind))
        size = torch.linalg.vector_norm(w, dim=1)
        distances[place] = distances[place - 1] + size.log()
        w = w / torch.where(size > 0, size, 1.0)[:, None]
        if resample > 1:
            squares = size.double().square().view(-1, resample)
            alive = squares.sum(1, keepdim=True) > 0
            chosen = torch.where(alive, squares, 1.0).to(source).multinomial(resample, True, generator=generator)
            first = torch.arange(0, runs, resample, device=source)[:, None]
            w = w[(first + chosen).flatten().to(w.device)]
            common = (2 * distances[place - 1].double()).view(-1, resample).logsumexp(1) - math.log(resample)
            distances[place] = (common / 2).repeat_interleave(resample).to(kind) + size.log()
    return distances


@dataclass(frozen=True)
class _Curvature:
    """Hessians of samples, or their factors, in float64, and what bounds need of them."""

    whole: Tensor | None
    rows: Tensor | None
    count: int
    finite: bool
    rounding: float
    overlaps: Tensor
    largest: Tensor
    sharpness: Tensor
    sigma: Tensor


def _curvature(hessians: Tensor, factors: bool) -> _Curvature:
    check_flag("factors", factors)
    check_tensor("hessians", hessians, ndim=(2, 3) if factors else 3, floating=True)
    if not hessians.numel():
        refuse("hessians", "one sample and one parameter or more", hessians)
    if not factors and hessians.shape[1] != hessians.shape[2]:
        refuse("hessians", "square matrices [n, d, d], or factors=True", hessians)
    values = hessians.detach().double()
    n = len(values)
    rounding = max(values.shape[-1], n) * torch.finfo(hessians.dtype).eps
    if not bool(values.isfinite().all()):
        nothing = values.new_full((n, n), math.nan)
        return _Curvature(None, None, n, False, rounding, nothing, nothing[0], nothing[0, 0], nothing[0, 0])
    if factors:
        rows = values[:, None] if values.ndim == 2 else values
        k, flat = rows.shape[1], rows.flatten(0, 1)
        overlaps = (flat @ flat.T).square().view(n, k, n, k).sum((1, 3)).sqrt()
        largest = torch.linalg.matrix_norm(rows, 2).square()
        sharpness = torch.linalg.matrix_norm(flat, 2).square() / n
        whole = None
    else:
        whole, rows = _symmetric(values, hessians), None
        spectra = torch.linalg.eigvalsh(whole)
        largest = spectra[:, -1]
        if values_visible(hessians):
            share = spectra[:, 0] / spectra.abs().amax(1).clamp_min(torch.finfo(torch.float64).tiny)
            if bool((share < -max(NEGATIVE, rounding)).any()):
                refuse("hessians", "eigenvalues >= 0 (of a network's loss the Gauss-Newton part)", float(spectra.min()))
        flat = whole.flatten(1)
        overlaps = (flat @ flat.T).clamp_min(0).sqrt()
        sharpness = torch.linalg.eigvalsh(whole.mean(0))[-1]
    sigma = torch.linalg.eigvalsh(overlaps)[-1] / largest.max()
    return _Curvature(whole, rows, n, True, rounding, overlaps, largest, sharpness, sigma)


def _symmetric(values: Tensor, hessians: Tensor) -> Tensor:
    if values_visible(hessians):
        apart = (values - values.mT).abs().amax()
        if float(apart) > math.sqrt(torch.finfo(hessians.dtype).eps) * float(values.abs().amax()):
            refuse("hessians", "symmetric matrices", f"entries that differ from their mirror by {float(apart):.3g}")
    return (values + values.mT) / 2


@dataclass(frozen=True)
class _Spans:
    """Curvature in the eigenvectors of the mean Hessian whose eigenvalues are not 0."""

    eigenvalues: Tensor
    squared: Callable[[Tensor], Tensor]
    mover: Callable[[torch.dtype], Callable[[Tensor, Tensor], Tensor]]


def _spans(curvature: _Curvature) -> _Spans:
    rows, whole, n = curvature.rows, curvature.whole, curvature.count
    if rows is not None:
        k, flat = rows.shape[1], rows.flatten(0, 1)
        if flat.shape[0] < flat.shape[1]:  # coordinates in the space of the rows: inner products stay
            flat = torch.linalg.qr(flat.T, mode="r")[1].T
        values, vectors = torch.linalg.eigh(flat.T @ flat / n)
        there = values > curvature.rounding * values[-1].clamp_min(0)
        flat = flat @ vectors[:, there]
        own = flat.view(n, k, -1)

        def squared(x: Tensor) -> Tensor:
            inner = own @ x @ own.mT
            total: Tensor = flat.T @ (inner @ own).flatten(0, 1)
            return total

        def mover(kind: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
            down, up = flat.T.to(kind), flat.to(kind)
            return lambda w, drawn: ((w @ down) * drawn.repeat_interleave(k, 1)) @ up

        return _Spans(values[there], squared, mover)
    assert whole is not None
    values, vectors = torch.linalg.eigh(whole.mean(0))
    there = values > curvature.rounding * values[-1].clamp_min(0)
    basis = vectors[:, there]
    reduced = basis.T @ whole @ basis
    r = basis.shape[1]
    beside = reduced.transpose(0, 1).reshape(r, n * r)

    def squared_whole(x: Tensor) -> Tensor:
        total: Tensor = beside @ (x @ reduced).flatten(0, 1)
        return total

    def mover_whole(kind: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
        wide = beside.to(kind)
        return lambda w, drawn: ((w @ wide).view(len(w), n, r) * drawn[:, :, None]).sum(1)

    return _Spans(values[there], squared_whole, mover_whole)


def _noise_share(n: int, batch: float) -> float:
    r"""What :math:`\sum_i H_i X H_i` counts for: :math:`\frac{1}{B^2} \frac{B}{n} (1 - \frac{B}{n})`."""
    return (1 - batch / n) / (batch * n)


def _largest(operator: SymmetricOperator, start: Tensor) -> float:
    """The largest eigenvalue; a start that has a share in its vector."""
    pairs = eigenpairs(operator, 1, "LA", tol=1e-8, steps=min(PRODUCTS, operator.size), start=start)
    if not pairs.converged:
        residual = float(pairs.residuals[0])
        warnings.warn(f"not converged after {pairs.iterations} products; residual {residual:.2g}", stacklevel=3)
    return float(pairs.eigenvalues[0])


def _per_run(name: str, value: float | Tensor, runs: int, high: float) -> Tensor:
    if not isinstance(value, Tensor):
        check_number(name, value, low=0.0, high=high, open_low=True, open_high=math.isinf(high))
        return torch.full((runs,), float(value), dtype=torch.float64)
    check_tensor(name, value, floating=True, shape=(runs,))
    if values_visible(value) and not bool(((value > 0) & (value <= high) & value.isfinite()).all()):
        refuse(name, "finite numbers > 0" if math.isinf(high) else f"numbers > 0 and <= {high:g}", value.tolist())
    return value
