"""RankMixup: a raw sample should be more confident than its mixtures, a purer mixture more than a more even one."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as nnf
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import (
    check_choice,
    check_index,
    check_logits,
    check_number,
    check_tensor,
    check_weight,
    refuse,
    values_visible,
)
from ...core.loss import Loss, Sample
from ...core.method import Method
from ...core.objective import Batch, Objective
from ...core.random import RandomStream
from ...core.reductions import reduce, widen
from ...core.terms import kept_terms
from ._mixtures import convex, draw_mixture, scored

KINDS = ("mndcg", "mrl")


def mixup_ranking_term(
    logits: F[Tensor, "batch classes"],
    mix_logits: F[Tensor, "batch classes"],
    mix_target: F[Tensor, "batch classes"],
    *,
    margin: float = 2.0,
    weight: F[Tensor, " batch"] | None = None,
) -> Tensor:
    r"""The margin by which the largest raw logit fails to exceed that of the mixture.

    .. math:: \frac1B \sum_i m_i \max\bigl(0, \max_k o'_{ik} - \max_k o_{ik} + \mathrm{margin}\bigr)

    with :math:`m_i = 0` where the mixed label is one-hot (both samples were of one class), else 1.

    Args:
        logits: of the raw samples, ``[B, K]``.
        mix_logits: of one mixture of each, ``[B, K]``.
        mix_target: mixed labels ``[B, K]``, rows of probabilities.
        margin: >= 0, in units of the logits.
        weight: sample weights ``[B]`` >= 0.

    Returns:
        A scalar in float32 or wider.

    Raises:
        ValueError: wrong shapes, a negative ``margin``, rows of ``mix_target`` that are no probabilities.

    Example:
        >>> raw, mixed = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[1.0, 0.5, 0.0]])
        >>> mixup_ranking_term(raw, mixed, torch.tensor([[0.7, 0.3, 0.0]]))
        tensor(1.)

    Source: RankMixup: Ranking-Based Mixup Training for Network Calibration, arXiv:2308.11990.
    """
    check_number("margin", margin, low=0.0)
    check_logits(logits, argument="logits")
    _check_mixtures(logits, mix_logits, mix_target, 2)
    check_weight(weight, logits.shape[0])
    short = widen(mix_logits).amax(-1) - widen(logits).amax(-1) + margin
    pure = (mix_target > 0).sum(-1) <= 1
    return reduce(torch.where(pure, 0.0, short.clamp_min(0)), "mean", weight)


def mndcg_term(
    logits: F[Tensor, "batch classes"],
    mix_logits: F[Tensor, "mixtures batch classes"],
    mix_target: F[Tensor, "mixtures batch classes"],
    *,
    weight: F[Tensor, " batch"] | None = None,
) -> Tensor:
    r"""The distance from 1 of the normalised discounted gain of a sample's confidences, its mixtures sorted by purity.

    .. math:: \frac1B \sum_i 1 - \frac{\min(D_i, I_i)}{\max(D_i, I_i)}, \qquad
        D = p_0 + \sum_{r=1}^{Q} \frac{p_{(r)}}{\log_2(r + 2)}, \qquad
        I = 1 + \sum_{r=1}^{Q} \frac{c_{(r)}}{\log_2(r + 2)}

    with confidences :math:`p = \max_k \mathrm{softmax}(o)_k`, purities :math:`c_q = \max_k y_{qk}` (at least 1/2) and
    (r) the r-th mixture by falling c; of equal c the more confident comes first. It compares two sums: misorderings
    can cancel, and it is 0 where they are equal, a kink at which the gradient is 0.

    Args:
        logits: of the raw samples, ``[B, K]``.
        mix_logits: of Q >= 1 mixtures of each, ``[Q, B, K]``.
        mix_target: mixed labels ``[Q, B, K]``, rows of probabilities.
        weight: sample weights ``[B]`` >= 0.

    Returns:
        A scalar in [0, 1), in float32 or wider.

    Raises:
        ValueError: wrong shapes, no mixture, rows of ``mix_target`` that are no probabilities.

    Example:
        >>> raw, mixed = torch.tensor([[2.0, 0.0]]), torch.tensor([[[1.0, 0.0]], [[0.5, 0.0]]])
        >>> mndcg_term(raw, mixed, torch.tensor([[[0.6, 0.4]], [[0.9, 0.1]]]))
        tensor(0.1225)

    Source: RankMixup: Ranking-Based Mixup Training for Network Calibration, arXiv:2308.11990.
    """
    check_logits(logits, argument="logits")
    _check_mixtures(logits, mix_logits, mix_target, 3)
    check_weight(weight, logits.shape[0])
    raw = widen(logits).softmax(-1).amax(-1)
    confidence = widen(mix_logits).softmax(-1).amax(-1)
    purity = widen(mix_target).amax(-1).to(confidence.dtype)
    # the later, stable sort decides; the earlier one leaves ties in order of confidence
    confidence, order = confidence.sort(dim=0, descending=True)
    purity, order = purity.gather(0, order).sort(dim=0, descending=True, stable=True)
    confidence = confidence.gather(0, order)
    ranks = torch.arange(3, 3 + len(confidence), dtype=confidence.dtype, device=confidence.device)
    discount = ranks.log2().reciprocal()[:, None]
    gain = raw + (confidence * discount).sum(0)
    ideal = 1 + (purity * discount).sum(0)
    return reduce(1 - torch.minimum(gain, ideal) / torch.maximum(gain, ideal), "mean", weight)


class _Ranked(Loss):
    """Cross-entropy of the raw samples and ``weight`` times a ranking term of samples and mixtures."""

    differentiable = (0, 2)

    def __init__(self, weight: float) -> None:
        super().__init__()
        check_number("weight", weight, low=0.0)
        self.weight = weight

    def term(self, logits: Tensor, mix_logits: Tensor, mix_target: Tensor, weight: Tensor | None = None) -> Tensor:
        """The ranking term; ``weight`` is of the samples."""
        raise NotImplementedError

    def joined(self, own: Tensor, term: Tensor) -> Tensor:
        """``own + weight * term``, both kept as terms."""
        self.terms = kept_terms({"own": own, "ranking": term})
        return own + self.weight * term

    def forward(
        self,
        logits: F[Tensor, "batch classes"],
        target: I[Tensor, " batch"],
        mix_logits: F[Tensor, "*mixtures batch classes"],
        mix_target: F[Tensor, "*mixtures batch classes"],
    ) -> Tensor:
        """The loss of raw logits and labels, and of the mixtures' logits and mixed labels."""
        return self.joined(_cross_entropy(logits, target), self.term(logits, mix_logits, mix_target))


class MixupRankingLoss(_Ranked):
    r"""Cross-entropy of the raw samples and the mixup ranking loss (MRL) of one mixture each.

    .. math:: \mathrm{CE}(o, y) + w \cdot \mathrm{MRL}(o, o', y')

    See :func:`mixup_ranking_term`. The mixtures get no cross-entropy; the gradient reaches both outputs.

    Args:
        margin: >= 0, in units of the logits: 2 in the paper for CIFAR, 1 for Tiny ImageNet.
        weight: w >= 0.

    Example:
        >>> loss = MixupRankingLoss()
        >>> raw, mixed = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[1.0, 0.5, 0.0]])
        >>> loss(raw, torch.tensor([0]), mixed, torch.tensor([[0.7, 0.3, 0.0]]))
        tensor(0.2698)

    Source: RankMixup: Ranking-Based Mixup Training for Network Calibration, arXiv:2308.11990.
    """

    name = "mixup_ranking"

    def __init__(self, margin: float = 2.0, weight: float = 0.1) -> None:
        super().__init__(weight)
        check_number("margin", margin, low=0.0)
        self.margin = margin

    def term(self, logits: Tensor, mix_logits: Tensor, mix_target: Tensor, weight: Tensor | None = None) -> Tensor:
        return mixup_ranking_term(logits, mix_logits, mix_target, margin=self.margin, weight=weight)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[MixupRankingLoss, Sample]]:
        logits, target, mixed, labels = _samples(generator, dtype, device)
        return [(cls(m), ((logits, target, mixed[0], labels[0]), {})) for m in (2.0, 0.1)]


class MNDCGLoss(_Ranked):
    r"""Cross-entropy of the raw samples and the mixup-based NDCG loss (M-NDCG) of several mixtures each.

    .. math:: \mathrm{CE}(o, y) + w \cdot \mathrm{MNDCG}(o, o', y')

    See :func:`mndcg_term`. The mixtures get no cross-entropy; the gradient reaches all outputs.

    Args:
        weight: w >= 0.

    Example:
        >>> loss = MNDCGLoss()
        >>> raw, mixed = torch.tensor([[2.0, 0.0]]), torch.tensor([[[1.0, 0.0]], [[0.5, 0.0]]])
        >>> loss(raw, torch.tensor([0]), mixed, torch.tensor([[[0.6, 0.4]], [[0.9, 0.1]]]))
        tensor(0.1392)

    Source: RankMixup: Ranking-Based Mixup Training for Network Calibration, arXiv:2308.11990.
    """

    name = "mndcg"

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__(weight)

    def term(self, logits: Tensor, mix_logits: Tensor, mix_target: Tensor, weight: Tensor | None = None) -> Tensor:
        return mndcg_term(logits, mix_logits, mix_target, weight=weight)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[MNDCGLoss, Sample]]:
        logits, target, mixed, labels = _samples(generator, dtype, device)
        return [(cls(), ((logits, target, mixed[:q], labels[:q]), {})) for q in (1, 3)]


class RankMixup(Method):
    r"""Train on raw samples, and rank the confidences of their mixtures.

    .. math:: L(f(x), y) + w \cdot \mathrm{term}\bigl(f(x), f(x_1), \dots, f(x_Q)\bigr), \qquad
        x_q = \lambda_q x + (1 - \lambda_q) x_{\pi_q}, \quad \lambda_q \sim \mathrm{Beta}(\alpha, \alpha)

    L is the objective of the loop, :math:`\pi_q` a permutation of the batch. The model runs twice: over the raw
    batch, and over all mixtures as one batch of Q B rows; batch normalisation sees the two apart.

    Args:
        alpha: > 0; 2 in the paper for CIFAR, 1 for Tiny ImageNet.
        num_mix: Q >= 1; None is 3 for ``"mndcg"``. ``"mrl"`` takes 1.
        kind: ``"mndcg"`` or ``"mrl"``.
        margin: of ``"mrl"``, >= 0.
        weight: w >= 0.
        per_sample: a coefficient for each row of a mixture; else one for the whole mixture, as in the authors' code.
        seed: of permutations and coefficients; None takes one from torch's generator.

    Example:
        >>> method = RankMixup(seed=0)
        >>> method(torch.nn.Linear(3, 4), torch.zeros(2, 3), torch.tensor([0, 3])).shape
        torch.Size([])

    Source: RankMixup: Ranking-Based Mixup Training for Network Calibration, arXiv:2308.11990.
    """

    name = "rankmixup"

    def __init__(
        self,
        alpha: float = 2.0,
        num_mix: int | None = None,
        kind: str = "mndcg",
        *,
        margin: float = 2.0,
        weight: float = 0.1,
        per_sample: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_number("alpha", alpha, low=0.0, open_low=True)
        check_choice("kind", kind, KINDS)
        num_mix = (3 if kind == "mndcg" else 1) if num_mix is None else num_mix
        check_number("num_mix", num_mix, low=1, integer=True)
        if kind == "mrl" and num_mix != 1:
            refuse("num_mix", "1 for kind 'mrl'", num_mix)
        self.alpha, self.num_mix, self.kind, self.per_sample = alpha, num_mix, kind, per_sample
        self.ranking: _Ranked = MixupRankingLoss(margin, weight) if kind == "mrl" else MNDCGLoss(weight)
        self.stream = RandomStream(seed)

    @property
    def terms(self) -> dict[str, Tensor]:
        """The two parts of the last loss, detached: ``own`` and ``ranking``."""
        return self.ranking.terms

    @classmethod
    def instances(cls) -> list[RankMixup]:
        return [cls(seed=0), cls(kind="mrl", seed=0), cls(1.0, 2, per_sample=True)]

    def forward(self, model: nn.Module, inputs: F[Tensor, "batch ..."], target: I[Tensor, " batch"]) -> Tensor:
        """The loss of ``model`` (inputs ``[B, ...]`` to logits ``[B, K]``), with cross-entropy of the raw samples."""
        logits = model(inputs)
        return self._total(_cross_entropy(logits, target), logits, model, Batch(inputs, target))

    def loss(self, model: nn.Module, batch: Batch, objective: Objective) -> Tensor:
        """One step's loss: the objective's of the raw samples, and the ranking of their mixtures."""
        own, logits = scored(model, batch, objective)
        return self._total(own, logits, model, batch)

    def _total(self, own: Tensor, logits: Tensor, model: nn.Module, batch: Batch) -> Tensor:
        if self.ranking.weight == 0.0:
            return self.ranking.joined(own, torch.zeros_like(own))
        check_logits(logits, argument="logits")
        stream = self.stream if self.training else copy.deepcopy(self.stream)
        drawn = [
            draw_mixture(batch.inputs, self.alpha, stream.generator, per_sample=self.per_sample)
            for _ in range(self.num_mix)
        ]
        outputs = model(torch.cat([mixed for mixed, _, _ in drawn])).unflatten(0, (self.num_mix, -1))
        labels = batch.target
        if not labels.is_floating_point():
            labels = nnf.one_hot(labels.long(), logits.shape[-1]).to(widen(logits).dtype)
        targets = torch.stack([convex(lam, labels, labels[partner]) for _, partner, lam in drawn])
        if self.kind == "mrl":
            outputs, targets = outputs[0], targets[0]
        return self.ranking.joined(own, self.ranking.term(logits, outputs, targets, batch.weight))


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    check_logits(logits, argument="logits")
    check_index(target, logits)
    return nnf.cross_entropy(widen(logits), target.long())


def _check_mixtures(logits: Tensor, mix_logits: Tensor, mix_target: Tensor, ndim: int) -> None:
    leading = (None,) if ndim == 3 else ()
    for argument, value in (("mix_logits", mix_logits), ("mix_target", mix_target)):
        check_tensor(argument, value, floating=True, shape=(*leading, *logits.shape))
    if mix_logits.shape != mix_target.shape or (ndim == 3 and not len(mix_logits)):
        refuse("mix_logits", "at least one mixture, as many as in mix_target", mix_logits)
    if mix_target.numel() and values_visible(mix_target):
        sums = mix_target.double().sum(-1)
        if bool((mix_target < 0).any()) or bool(((sums - 1).abs() > 1e-2).any()):
            refuse("mix_target", "rows of probabilities that sum to 1", mix_target)


def _samples(
    generator: torch.Generator, dtype: torch.dtype, device: str | torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, classes, mixtures = 5, 4, 3
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    mixed = torch.randn(mixtures, rows, classes, generator=generator, dtype=torch.float64)
    target = torch.arange(rows) % classes
    labels = nnf.one_hot(target, classes).double()
    lam = torch.tensor([[0.75], [0.375], [0.5625]], dtype=torch.float64).expand(mixtures, rows)
    targets = torch.stack([convex(lam[q], labels, labels.roll(q + 1, 0)) for q in range(mixtures)])
    return logits.to(device, dtype), target.to(device), mixed.to(device, dtype), targets.to(device, dtype)
