"""Rating levels: soft labels from the mean and spread of ratings, and the score that logits of the levels give."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_choice, check_number, check_tensor, refuse, values_visible
from ...core.reductions import widen

LEVELS = (5.0, 4.0, 3.0, 2.0, 1.0)
"""Excellent, good, fair, poor, bad."""


def spacing_of(levels: Sequence[float]) -> float:
    """The distance between evenly spaced levels."""
    steps = [b - a for a, b in itertools.pairwise(levels)]
    if not steps or steps[0] == 0 or any(abs(s - steps[0]) > 1e-9 * abs(steps[0]) for s in steps):
        refuse("levels", "at least two evenly spaced values, rising or falling", tuple(levels))
    return abs(steps[0])


def gaussian_soft_label(
    mu: F[Tensor, " batch"],
    sd: F[Tensor, " batch"],
    levels: Sequence[float] = LEVELS,
    *,
    mode: str = "pdf",
    renormalize: bool = False,
    least_sd: float = 0.2,
    largest_gap: float = 0.1,
) -> F[Tensor, "batch levels"]:
    r"""Soft labels over K rating levels whose mean is that of the ratings.

    .. math:: q_j = \max(\alpha p_j + \beta, 0), \qquad \alpha = \frac{\mu - m}{B - m A}, \qquad
        \beta = \frac{1 - \alpha A}{K}, \qquad A = \sum_j p_j, \quad B = \sum_j v_j p_j

    with p the normal density at the levels v (``"pdf"``) or its mass in the cell around each (``"cdf"``), and m the
    mean of the levels; before the maximum q sums to 1 and has mean mu. At mu = m, where alpha is 0/0, alpha = 1/A and
    beta = 0. Where ``sd`` is below ``least_sd`` or the maximum moves the mean by more than ``largest_gap``, the two
    levels around mu share the label linearly.

    Args:
        mu: mean ratings, within the levels; ratings of a data set are first mapped linearly onto the levels.
        sd: standard deviations >= 0 of the ratings, in the unit of the levels.
        levels: K >= 2 evenly spaced values v.
        mode: ``"pdf"`` (suits large spreads) or ``"cdf"`` (small ones).
        renormalize: divide by the sum, which the maximum moves away from 1 (to 1.07 at mu = 4.5, sd = 1).
        least_sd: >= 0, in the unit of the levels.
        largest_gap: >= 0, in the unit of the levels.

    Returns:
        ``[N, K]``, computed in float64, in the type of ``mu`` (float32 for half types), without a gradient.

    Raises:
        ValueError: means outside the levels, negative deviations, an unknown mode, levels that are not even.

    Example:
        >>> gaussian_soft_label(torch.tensor([3.6]), torch.tensor([0.7]))
        tensor([[0.0765, 0.4866, 0.3966, 0.0409, 0.0000]])

    Source: Teaching Large Language Models to Regress Accurate Image Quality Scores using Score Distribution,
    arXiv:2501.11561.
    """
    spacing = spacing_of(levels)
    check_choice("mode", mode, ("pdf", "cdf"))
    check_number("least_sd", least_sd, low=0.0)
    check_number("largest_gap", largest_gap, low=0.0)
    check_tensor("mu", mu, ndim=1, floating=True)
    check_tensor("sd", sd, floating=True, shape=tuple(mu.shape))
    if mu.numel() and values_visible(mu, sd):
        if bool((mu < min(levels)).any()) or bool((mu > max(levels)).any()):
            refuse("mu", f"means in [{min(levels):g}, {max(levels):g}]", [float(mu.min()), float(mu.max())])
        if bool((sd < 0).any()):
            refuse("sd", "values >= 0", float(sd.min()))
    mean, spread = mu.detach().double()[:, None], sd.detach().double()[:, None]
    v = torch.tensor(tuple(levels), dtype=torch.float64, device=mu.device)
    # a spread of 0 ends in the interpolation below unless least_sd is 0 too, where it is a limit
    safe = spread.clamp_min(1e-3 * spacing)
    if mode == "pdf":
        p = torch.exp(-0.5 * ((v - mean) / safe) ** 2) / (safe * math.sqrt(2.0 * math.pi))
    else:
        half = 0.5 * spacing
        p = torch.special.ndtr((v + half - mean) / safe) - torch.special.ndtr((v - half - mean) / safe)
    total, first = p.sum(1, keepdim=True).clamp_min(1e-300), (p * v).sum(1, keepdim=True)
    centre = v.mean()
    middle = (mean - centre).abs() < 1e-6 * spacing
    lean = first - centre * total
    alpha = torch.where(middle, 1.0 / total, (mean - centre) / torch.where(lean.abs() > 0, lean, 1e-300))
    beta = torch.where(middle, 0.0, (1.0 - alpha * total) / len(v))
    q = (alpha * p + beta).clamp_min(0.0)
    between = (1.0 - (v - mean).abs() / spacing).clamp_min(0.0)
    gap = ((q * v).sum(1, keepdim=True) - mean).abs()
    q = torch.where((spread < least_sd) | ~(gap <= largest_gap), between, q)
    if renormalize:
        q = q / q.sum(1, keepdim=True)
    return q.to(widen(mu).dtype)


def level_score(
    logits: F[Tensor, "batch levels"], levels: Sequence[float] = LEVELS
) -> tuple[F[Tensor, " batch"], F[Tensor, " batch"]]:
    r"""Score and standard deviation of the softmax over the level logits.

    .. math:: s = \sum_j v_j P_j, \qquad \sqrt{\textstyle\sum_j P_j (v_j - s)^2}

    Args:
        logits: of the K levels alone, ``[N, K]``.
        levels: the K values v.

    Returns:
        ``(score, std)``, both ``[N]``, in float32 or wider.

    Raises:
        ValueError: other than K columns, levels that are not even.

    Example:
        >>> level_score(torch.zeros(1, 5))
        (tensor([3.]), tensor([1.4142]))
    """
    spacing_of(levels)
    check_tensor("logits", logits, floating=True, shape=(None, len(levels)))
    p = torch.softmax(widen(logits), dim=1)
    v = torch.tensor(tuple(levels), dtype=p.dtype, device=p.device)
    score = (p * v).sum(1)
    variance = (p * (v - score[:, None]) ** 2).sum(1)
    spread = variance > 0
    return score, torch.where(spread, torch.where(spread, variance, 1.0).sqrt(), 0.0)
