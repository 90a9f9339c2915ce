"""Score distributions over rating levels: soft labels from the mean and spread of ratings, and a fidelity of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_choice, check_logits, check_number, check_tensor, refuse, values_visible
from ...core.loss import Loss, Sample
from ...core.reductions import REDUCTIONS, reduce, widen
from ...core.terms import kept_terms
from ._score_levels import LEVELS, gaussian_soft_label, level_score, spacing_of


def score_distribution_loss(
    logits: F[Tensor, "batch vocabulary"],
    soft: F[Tensor, "batch levels"],
    *,
    level_tokens: Sequence[int] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Divergence of the predicted levels from soft labels.

    .. math:: \ell_i = \sum_j q_{ij}\, (\log q_{ij} - \log P_{ij})

    P is the softmax over the whole vocabulary (or all classes), so mass on words that are no level is paid for.

    Args:
        logits: at the position of the level, ``[N, V]``.
        soft: soft labels q >= 0, ``[N, K]``.
        level_tokens: the K columns of the levels; None: the first K.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider, >= 0 for labels that sum to 1.

    Raises:
        ValueError: fewer columns than levels, tokens outside the vocabulary, negative labels, wrong shapes.

    Example:
        >>> score_distribution_loss(torch.zeros(1, 4), torch.tensor([[0.5, 0.5]]))
        tensor(0.6931)

    Source: arXiv:2501.11561.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_logits(logits, argument="logits")
    check_tensor("soft", soft, floating=True, shape=(logits.shape[0], None))
    tokens = list(range(soft.shape[1])) if level_tokens is None else list(level_tokens)
    if len(tokens) != soft.shape[1] or len(set(tokens)) != len(tokens):
        refuse("level_tokens", f"{soft.shape[1]} different columns, as soft labels have", tokens)
    if any(not 0 <= token < logits.shape[1] for token in tokens):
        refuse("level_tokens", f"columns in 0..{logits.shape[1] - 1}", tokens)
    if soft.numel() and values_visible(soft) and bool((soft < 0).any()):
        refuse("soft", "values >= 0", float(soft.min()))
    log_p = torch.log_softmax(widen(logits), dim=1)[:, tokens]
    q = soft.to(log_p.dtype)
    return reduce((torch.special.xlogy(q, q) - q * log_p).sum(1), reduction)


def thurstone_fidelity(
    score_a: F[Tensor, " batch"],
    score_b: F[Tensor, " batch"],
    mu_a: F[Tensor, " batch"],
    mu_b: F[Tensor, " batch"],
    sd_a: F[Tensor, " batch"],
    sd_b: F[Tensor, " batch"],
    *,
    std_a: F[Tensor, " batch"] | None = None,
    std_b: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Fidelity of the predicted to the rated probability that a is better than b, for pairs of one data set.

    .. math:: \ell = 1 - \sqrt{g h + \epsilon} - \sqrt{(1 - g)(1 - h) + \epsilon}, \qquad
        g = \Phi\Bigl(\tfrac{\mu_a - \mu_b}{\sqrt{\sigma_a^2 + \sigma_b^2}}\Bigr), \qquad
        h = \Phi\Bigl(\tfrac{s_a - s_b}{\sqrt{\hat\sigma_a^2 + \hat\sigma_b^2}}\Bigr)

    with :math:`\epsilon = 10^{-8}`; no gradient flows into g.

    Args:
        score_a, score_b: predicted scores s, ``[N]``.
        mu_a, mu_b: mean ratings, ``[N]``; only their difference within the data set counts.
        sd_a, sd_b: standard deviations of the ratings, ``[N]``.
        std_a, std_b: predicted standard deviations, ``[N]``, or None for 1.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider, in [0, 1] to within 1e-4, the root of epsilon.

    Raises:
        ValueError: tensors of different lengths, one predicted deviation without the other.

    Example:
        >>> a, b, c, d, e, f = torch.tensor([[3.2], [3.1], [3.6], [3.0], [0.7], [0.5]])
        >>> thurstone_fidelity(a, b, c, d, e, f)
        tensor(0.0291)

    Source: arXiv:2501.11561.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_tensor("score_a", score_a, ndim=1, floating=True)
    named = {"score_b": score_b, "mu_a": mu_a, "mu_b": mu_b, "sd_a": sd_a, "sd_b": sd_b}
    if (std_a is None) != (std_b is None):
        refuse("std_a, std_b", "both or neither", (std_a is not None, std_b is not None))
    if std_a is not None and std_b is not None:
        named |= {"std_a": std_a, "std_b": std_b}
    for name, tensor in named.items():
        check_tensor(name, tensor, floating=True, shape=tuple(score_a.shape))
    rated = _difference(mu_a, mu_b, sd_a, sd_b).detach()
    ones = torch.ones_like(score_a)
    seen = _difference(score_a, score_b, ones if std_a is None else std_a, ones if std_b is None else std_b)
    phi = torch.special.ndtr
    better, worse = phi(rated) * phi(seen), phi(-rated) * phi(-seen)
    return reduce(1.0 - (better + 1e-8).sqrt() - (worse + 1e-8).sqrt(), reduction)


def _difference(a: Tensor, b: Tensor, sd_a: Tensor, sd_b: Tensor) -> Tensor:
    """The difference in units of its deviation; without any, a large multiple that keeps its sign."""
    return (widen(a) - widen(b)) / torch.hypot(widen(sd_a), widen(sd_b)).clamp_min(1e-6)


def _ratings(
    generator: torch.Generator, dtype: torch.dtype, device: str | torch.device, columns: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Two sets of logits, and the means and deviations of two sets of ratings."""
    logits = torch.randn(2, 6, columns, generator=generator, dtype=torch.float64)
    mu = 1.5 + 3.0 * torch.rand(2, 6, generator=generator, dtype=torch.float64)
    sd = 0.4 + 0.5 * torch.rand(2, 6, generator=generator, dtype=torch.float64)
    return list(logits.to(device, dtype)), [t.to(device, dtype) for t in (*mu, *sd)]


class ScoreDistributionLoss(Loss):
    """Divergence from soft labels over rating levels as a module; see :func:`score_distribution_loss`.

    Args:
        level_tokens: the columns of the levels in a vocabulary, or None: the first ones.

    Raises:
        ValueError: see :func:`score_distribution_loss`.

    Example:
        >>> ScoreDistributionLoss()(torch.zeros(1, 5), gaussian_soft_label(torch.tensor([5.0]), torch.tensor([0.0])))
        tensor(1.6094)
    """

    name = "score_distribution"

    def __init__(self, level_tokens: Sequence[int] | None = None) -> None:
        super().__init__()
        self.level_tokens = None if level_tokens is None else tuple(level_tokens)

    def forward(self, logits: F[Tensor, "batch vocabulary"], soft: F[Tensor, "batch levels"]) -> Tensor:
        """The mean over logits ``[N, V]`` and soft labels ``[N, K]``."""
        return score_distribution_loss(logits, soft, level_tokens=self.level_tokens)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Plain classes, and levels within a vocabulary."""
        (a, _), (mu, _, sd, _) = _ratings(generator, dtype, device, 9)
        soft = gaussian_soft_label(mu, sd).to(dtype)
        return [(cls(), ((a[:, :5], soft), {})), (cls((7, 2, 0, 8, 4)), ((a, soft), {}))]


class ThurstoneFidelityLoss(Loss):
    """The fidelity of pairs as a module; see :func:`thurstone_fidelity`.

    Args:
        fixed_std: take predicted deviations as 1 (the published run); else they are arguments of the call.

    Raises:
        ValueError: predicted deviations missing, or given though they are fixed.

    Example:
        >>> a, b, c, d, e, f = torch.tensor([[3.2], [3.1], [3.6], [3.0], [0.7], [0.5]])
        >>> ThurstoneFidelityLoss()(a, b, c, d, e, f)
        tensor(0.0291)
    """

    name = "thurstone_fidelity"
    differentiable = (0, 1, 6, 7)

    def __init__(self, fixed_std: bool = True) -> None:
        super().__init__()
        check_choice("fixed_std", fixed_std, (True, False))
        self.fixed_std = bool(fixed_std)

    def forward(
        self,
        score_a: F[Tensor, " batch"],
        score_b: F[Tensor, " batch"],
        mu_a: F[Tensor, " batch"],
        mu_b: F[Tensor, " batch"],
        sd_a: F[Tensor, " batch"],
        sd_b: F[Tensor, " batch"],
        std_a: F[Tensor, " batch"] | None = None,
        std_b: F[Tensor, " batch"] | None = None,
    ) -> Tensor:
        """The mean over pairs; ``std_a`` and ``std_b`` are wanted without ``fixed_std`` only."""
        if (std_a is None and std_b is None) != self.fixed_std:
            refuse("std_a, std_b", "None" if self.fixed_std else "predicted deviations", std_a)
        return thurstone_fidelity(score_a, score_b, mu_a, mu_b, sd_a, sd_b, std_a=std_a, std_b=std_b)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Six pairs, with fixed and with predicted deviations."""
        logits, rated = _ratings(generator, dtype, device, 5)
        (score_a, std_a), (score_b, std_b) = (tuple(t.to(dtype) for t in level_score(of_image)) for of_image in logits)
        return [
            (cls(), ((score_a, score_b, *rated), {})),
            (cls(fixed_std=False), ((score_a, score_b, *rated, std_a, std_b), {})),
        ]


class DeQALoss(Loss):
    r"""Soft labels for every sample, fidelity for every pair of one data set, and the next-token loss beside them.

    .. math:: L = w_r\, L_{fidelity} + w_k\, L_{KL} + w_n\, L_{token}

    Args:
        levels: K evenly spaced values.
        level_tokens: their columns in the vocabulary, or None: the first K. Scores come from the softmax over these
            alone, the divergence from that over all columns.
        mode: of :func:`gaussian_soft_label`.
        fixed_std: take predicted deviations as 1 in the fidelity.
        weight_rank, weight_kl, weight_next: >= 0.

    Raises:
        ValueError: a negative weight, levels that are not even, wrong shapes, means outside the levels.

    Example:
        >>> mu, sd = torch.tensor([4.0, 2.0]), torch.tensor([0.5, 0.5])
        >>> DeQALoss()(torch.zeros(2, 5), torch.zeros(2, 5), mu, mu.flip(0), sd, sd)
        tensor(1.2024)

    Source: arXiv:2501.11561.
    """

    name = "deqa"
    differentiable = (0, 1, "next_token")

    def __init__(
        self,
        levels: Sequence[float] = LEVELS,
        level_tokens: Sequence[int] | None = None,
        *,
        mode: str = "pdf",
        fixed_std: bool = True,
        weight_rank: float = 1.0,
        weight_kl: float = 1.0,
        weight_next: float = 0.05,
    ) -> None:
        super().__init__()
        spacing_of(levels)
        check_choice("mode", mode, ("pdf", "cdf"))
        for name, weight in {"weight_rank": weight_rank, "weight_kl": weight_kl, "weight_next": weight_next}.items():
            check_number(name, weight, low=0.0)
        self.levels, self.mode = tuple(levels), mode
        self.tokens = tuple(range(len(self.levels))) if level_tokens is None else tuple(level_tokens)
        self.fidelity = ThurstoneFidelityLoss(fixed_std)
        self.weight_rank, self.weight_kl, self.weight_next = weight_rank, weight_kl, weight_next

    def forward(
        self,
        logits_a: F[Tensor, "batch vocabulary"],
        logits_b: F[Tensor, "batch vocabulary"],
        mu_a: F[Tensor, " batch"],
        mu_b: F[Tensor, " batch"],
        sd_a: F[Tensor, " batch"],
        sd_b: F[Tensor, " batch"],
        *,
        next_token: F[Tensor, ""] | None = None,
    ) -> Tensor:
        """The loss of N pairs: logits at the position of the level, ratings, and the mean next-token loss if any."""
        divergence, scores = [], []
        for name, logits, mu, sd in (("logits_a", logits_a, mu_a, sd_a), ("logits_b", logits_b, mu_b, sd_b)):
            check_logits(logits, argument=name)
            soft = gaussian_soft_label(mu, sd, self.levels, mode=self.mode)
            divergence.append(score_distribution_loss(logits, soft, level_tokens=self.tokens))
            scores.append(level_score(logits[:, list(self.tokens)], self.levels))
        (score_a, std_a), (score_b, std_b) = scores
        std = () if self.fidelity.fixed_std else (std_a, std_b)
        rank = self.fidelity(score_a, score_b, mu_a, mu_b, sd_a, sd_b, *std)
        kl = 0.5 * (divergence[0] + divergence[1])
        terms = {"fidelity": rank, "kl": kl}
        total: Tensor = self.weight_rank * rank + self.weight_kl * kl
        if next_token is not None:
            check_tensor("next_token", next_token, ndim=0, floating=True)
            terms["next_token"] = widen(next_token)
            total = total + self.weight_next * terms["next_token"]
        self.terms = kept_terms(terms)
        return total

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Six pairs of plain classes, and of a vocabulary with a next-token loss."""
        (a, b), rated = _ratings(generator, dtype, device, 9)
        word = torch.tensor(2.5, dtype=dtype, device=device)
        return [
            (cls(), ((a[:, :5], b[:, :5], *rated), {})),
            (cls(level_tokens=(7, 2, 0, 8, 4), mode="cdf", fixed_std=False), ((a, b, *rated), {"next_token": word})),
        ]
