"""Measures of calibration: how far predicted probabilities lie from what happens.

All take probabilities ``[N, C]`` and class indices ``[N]`` and give one number >= 0, 0 for a calibrated predictor. The
top-label ones look at the confidence p, the largest probability of a row, and at c, 1 where the most probable class is
the true one. Where samples share a probability, the order among them says nothing: their outcomes count as the mean of
the group wherever a measure sorts.
"""

from __future__ import annotations

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ....core.checks import check_index, check_logits, check_number, refuse

BINS = (5, 10, 15, 20, 25, 50, 100, 200, 500)
BANDWIDTH = 0.4
_SUM_TOLERANCE = 1e-3
_CHUNK = 1 << 22

Probabilities = F[Tensor, "samples classes"]
Labels = I[Tensor, " samples"]


def checked(probabilities: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 and int64 after their checks.

    Raises:
        ValueError: no rows, wrong shapes, labels out of range, rows that are not probabilities.
        TypeError: not tensors, or of the wrong kind.
    """
    check_logits(probabilities, argument="probabilities")
    check_index(target, probabilities)
    if not len(probabilities):
        refuse("probabilities", "at least one row", probabilities)
    p = probabilities.detach().double()
    if not bool(torch.isfinite(p).all()) or not bool(((p >= 0) & (p <= 1 + _SUM_TOLERANCE)).all()):
        refuse("probabilities", "values in 0..1", [float(p.min()), float(p.max())])
    sums = p.sum(1)
    worst = (sums - 1).abs().argmax()
    # the rounding of half types is the widest that a row of probabilities can have
    if abs(float(sums[worst]) - 1) > max(_SUM_TOLERANCE, p.shape[1] * torch.finfo(probabilities.dtype).eps):
        refuse("probabilities", "rows that sum to 1", float(sums[worst]))
    return p.clamp_max(1.0), target.long()


def top_label(probabilities: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence and correctness of the most probable class, float64 ``[N]`` each."""
    p, y = checked(probabilities, target)
    best, chosen = p.max(1)
    return best, (chosen == y).double()


def _gaps(p: Tensor, c: Tensor, bins: int, equal_mass: bool) -> tuple[Tensor, Tensor]:
    """``|mean c - mean p|`` and share of the samples in each bin, ``[columns, bins]``; p and c are ``[columns, N]``."""
    columns, n = p.shape
    if equal_mass:
        p, order = p.sort(dim=1, stable=True)
        c = _tied_mean(p, c.gather(1, order))
        place = (torch.arange(n, device=p.device) * bins // n).expand(columns, n)
    else:
        # bin j holds ((j - 1) / bins, j / bins], and the first one 0
        edges = torch.arange(1, bins, device=p.device, dtype=p.dtype) / bins
        place = torch.bucketize(p, edges)
    sums = p.new_zeros(columns, bins).scatter_add_(1, place, c - p)
    counts = p.new_zeros(columns, bins).scatter_add_(1, place, torch.ones_like(p))
    return sums.abs() / counts.clamp_min(1), counts / n


def _tied_mean(p: Tensor, c: Tensor) -> Tensor:
    """``c`` with each run of equal ``p`` (sorted along dimension 1) at its mean."""
    fresh = torch.ones_like(p, dtype=torch.long)
    fresh[:, 1:] = (p[:, 1:] != p[:, :-1]).long()
    run = fresh.cumsum(1) - 1
    sums = torch.zeros_like(p).scatter_add_(1, run, c)
    counts = torch.zeros_like(p).scatter_add_(1, run, torch.ones_like(p))
    return (sums / counts.clamp_min(1)).gather(1, run)


def ece(probabilities: Probabilities, target: Labels, *, bins: int = 15) -> float:
    r"""Expected calibration error over bins of equal width ((j - 1) / B, j / B].

    .. math:: \sum_b \frac{n_b}{N} \, |\bar c_b - \bar p_b|

    Args:
        probabilities: ``[N, C]``, rows that sum to 1.
        target: class indices ``[N]``.
        bins: B >= 1.

    Returns:
        In 0..1.

    Raises:
        ValueError: no rows, rows that are not probabilities, labels out of range, ``bins`` below 1.

    Example:
        >>> p = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
        >>> round(ece(p, torch.tensor([0, 0])), 4)
        0.35

    Source: A Benchmark Study on Calibration, arXiv:2308.11838.
    """
    gap, share = _top_bins(probabilities, target, bins, False)
    return float((gap * share).sum())


def ece_equal_mass(probabilities: Probabilities, target: Labels, *, bins: int = 15) -> float:
    """:func:`ece` over bins of equally many samples, as sorted by confidence; with ``bins`` >= N every sample is one.

    Example:
        >>> p = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
        >>> round(ece_equal_mass(p, torch.tensor([0, 0]), bins=1), 4)
        0.25
    """
    gap, share = _top_bins(probabilities, target, bins, True)
    return float((gap * share).sum())


def mce(probabilities: Probabilities, target: Labels, *, bins: int = 15) -> float:
    """Maximum calibration error: the largest gap of a bin of equal width that holds samples; see :func:`ece`.

    Example:
        >>> p = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
        >>> round(mce(p, torch.tensor([0, 0])), 4)
        0.6
    """
    gap, _ = _top_bins(probabilities, target, bins, False)
    return float(gap.max())


def _top_bins(probabilities: Tensor, target: Tensor, bins: int, equal_mass: bool) -> tuple[Tensor, Tensor]:
    check_number("bins", bins, low=1, integer=True)
    p, c = top_label(probabilities, target)
    return _gaps(p[None], c[None], bins, equal_mass)


def classwise_ece(probabilities: Probabilities, target: Labels, *, bins: int = 15, equal_mass: bool = False) -> float:
    r"""The mean over classes of the calibration error of each class's own probability.

    .. math:: \frac1C \sum_k \sum_b \frac{n_{bk}}{N} \,
        \bigl| \overline{1[y = k]}_{bk} - \bar p_{bk} \bigr|

    Args:
        probabilities: ``[N, C]``, rows that sum to 1.
        target: class indices ``[N]``.
        bins: >= 1.
        equal_mass: bins of equally many samples rather than of equal width.

    Raises:
        ValueError: as :func:`ece`.

    Example:
        >>> p = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.2, 0.2, 0.6]])
        >>> round(classwise_ece(p, torch.tensor([0, 0, 2]), bins=1), 4)
        0.2222
    """
    check_number("bins", bins, low=1, integer=True)
    p, y = checked(probabilities, target)
    hot = torch.nn.functional.one_hot(y, p.shape[1]).to(p)
    gap, share = _gaps(p.T.contiguous(), hot.T.contiguous(), bins, equal_mass)
    return float((gap * share).sum(1).mean())


def ks_calibration_error(probabilities: Probabilities, target: Labels) -> float:
    r"""The largest distance between the cumulative sums of correctness and of confidence, without bins.

    .. math:: \max_t \Bigl| \frac1N \sum_{i:\, p_i \le t} (c_i - p_i) \Bigr|

    Example:
        >>> p = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
        >>> round(ks_calibration_error(p, torch.tensor([0, 0])), 4)
        0.3
    """
    p, c = top_label(probabilities, target)
    p, order = p.sort(stable=True)
    sums = (c[order] - p).cumsum(0)
    # between samples of one confidence there is no t
    ends = torch.cat([p[1:] != p[:-1], p.new_ones(1, dtype=torch.bool)])
    return float(sums[ends].abs().max()) / len(p)


def kde_calibration_error(probabilities: Probabilities, target: Labels, *, width: float | None = None) -> float:
    r"""The mean distance between a confidence and the kernel regression of correctness at that confidence.

    .. math:: \frac1N \sum_i |p_i - r(p_i)|, \qquad
        r(p) = \frac{\sum_j c_j \kappa(p, p_j)}{\sum_j \kappa(p, p_j)}

    :math:`\kappa` is a Gaussian kernel with its mirror images at 0 and 1, so that the borders draw nothing inwards.

    Args:
        probabilities: ``[N, C]``, rows that sum to 1.
        target: class indices ``[N]``.
        width: of the kernel, > 0; None for Silverman's 0.9 min(deviation, interquartile range / 1.34) N^(-1/5).
            Where all confidences are equal, r is the mean.

    Raises:
        ValueError: as :func:`ece`, or ``width`` <= 0.

    Example:
        >>> p = torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.8, 0.2], [0.8, 0.2]])
        >>> round(kde_calibration_error(p, torch.tensor([0, 0, 0, 0, 1])), 6)
        0.0
    """
    p, c = top_label(probabilities, target)
    if width is None:
        width = _silverman(p)
        if width < 1e-12:
            return float((p - c.mean()).abs().mean())
    check_number("width", width, low=0.0, open_low=True)
    total = 0.0
    for rows in p.split(max(1, _CHUNK // len(p))):
        kernel = torch.zeros(len(rows), len(p), dtype=p.dtype, device=p.device)
        for image in (p, -p, 2 - p):
            kernel += torch.exp(-0.5 * ((rows[:, None] - image) / width) ** 2)
        total += float((rows - kernel @ c / kernel.sum(1)).abs().sum())
    return total / len(p)


def _silverman(p: Tensor) -> float:
    deviation = float(p.std(correction=0))
    low, high = torch.quantile(p, p.new_tensor([0.25, 0.75])).tolist()
    # saturated confidences can have no interquartile range and yet spread
    spread = min(deviation, (high - low) / 1.34) or deviation
    return float(0.9 * spread * len(p) ** -0.2)


def mmce(probabilities: Probabilities, target: Labels, *, bandwidth: float = BANDWIDTH) -> float:
    r"""Maximum mean calibration error with a Laplacian kernel.

    .. math:: \sqrt{\frac1{N^2} \sum_{ij} (c_i - p_i)(c_j - p_j)\, e^{-|p_i - p_j| / h}}

    Sorted by confidence the kernel factors, so that prefix sums give the double sum exactly in O(N log N).

    Args:
        probabilities: ``[N, C]``, rows that sum to 1.
        target: class indices ``[N]``.
        bandwidth: h >= 0.01.

    Raises:
        ValueError: as :func:`ece`, or ``bandwidth`` out of range.

    Example:
        >>> p = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
        >>> round(mmce(p, torch.tensor([0, 0])), 4)
        0.2799
    """
    check_number("bandwidth", bandwidth, low=0.01)
    p, c = top_label(probabilities, target)
    p, order = p.sort(stable=True)
    residual = c[order] - p
    up = torch.exp((p - 1) / bandwidth)
    below = (residual * up).cumsum(0) / up
    square = float((residual * (2 * below - residual)).sum())
    return max(square, 0.0) ** 0.5 / len(p)
