"""Asymmetric loss: separate focusing of positive and negative labels, and easy negatives thrown away."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as nnf
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_index, check_logits, check_number
from ...core.logpartition import class_mask, log_softmax, pick
from ...core.objective import Objective, Sample
from ...core.reductions import reduce, widen
from ...core.rows import RowFunctions
from ...core.rowwise import Softmax, at, mix, rowwise, target_softmax
from ...core.search import Float
from ...core.terms import kept_terms
from ._cells import MultilabelObjective, check_multi_hot, reduce_cells

_native = RowFunctions(Path(__file__).with_suffix(".cpp"), {"asymmetric_rows": 7})


def asymmetric_loss(
    logits: F[Tensor, "batch labels"],
    target: Tensor,
    *,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
    detach_focus: bool = False,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "sum",
) -> Tensor:
    r"""The asymmetric loss of several labels a sample, with :math:`p = \sigma(x)`.

    .. math:: \ell = -y\, (1 - p)^{\gamma_+} \log p - (1 - y)\, p_m^{\gamma_-} \log(1 - p_m), \qquad
        p_m = \max(p - m, 0)

    Negatives with p <= m cost nothing and have no gradient; the slope of a negative falls again as p goes to 1, which
    damps labels that were probably missed. Logarithms are of the stable forms, so none is clamped: a positive with a
    very low logit keeps its gradient.

    Args:
        logits: x ``[N, L]``.
        target: y ``[N, L]`` in {0, 1}, floating, integer or boolean.
        gamma_neg: focusing exponent of negatives, >= 0.
        gamma_pos: focusing exponent of positives, >= 0.
        clip: m in [0, 1).
        detach_focus: whether the focusing factor is a constant for the gradient.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"sum"`` or ``"mean"`` over samples and labels, ``"none"`` for ``[N, L]``. With the sum the step
            size depends on the batch and the number of labels.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: an exponent below 0, a clip outside [0, 1), wrong shapes, a target outside {0, 1}.

    Example:
        >>> x, y = torch.tensor([[2.0, -1.0, 0.0, -4.0]]), torch.tensor([[1, 0, 0, 0]])
        >>> asymmetric_loss(x, y)
        tensor(0.0402)

    Source: Asymmetric Loss For Multi-Label Classification, arXiv:2009.14119.
    """
    _check_hyper(gamma_neg, gamma_pos, clip)
    check_multi_hot(logits, target)
    return reduce_cells(_cells(logits, target, gamma_neg, gamma_pos, clip, detach_focus), reduction, weight)


def _check_hyper(gamma_neg: float, gamma_pos: float, clip: float = 0.0) -> None:
    check_number("gamma_neg", gamma_neg, low=0.0)
    check_number("gamma_pos", gamma_pos, low=0.0)
    check_number("clip", clip, low=0.0, high=1.0, open_high=True)


def _cells(
    logits: Tensor, target: Tensor, gamma_neg: float | Tensor, gamma_pos: float, clip: float, detach_focus: bool
) -> Tensor:
    x = widen(logits)
    focus_pos, log_pos = torch.exp(gamma_pos * nnf.logsigmoid(-x)), nnf.logsigmoid(x)
    if clip == 0.0:
        dropped = None
        focus_neg, log_neg = torch.exp(gamma_neg * nnf.logsigmoid(x)), nnf.logsigmoid(-x)
    else:
        rest = torch.sigmoid(-x) + clip  # 1 - p_m where p > m
        dropped = rest >= 1
        # the other branch must have a finite slope too: p_m^gamma has none at 0 for gamma < 1
        rest = torch.where(dropped, 0.5, rest)
        focus_neg, log_neg = torch.pow(1 - rest, gamma_neg), torch.log(rest)
    if detach_focus:
        focus_pos, focus_neg = focus_pos.detach(), focus_neg.detach()
    negative = -focus_neg * log_neg
    if dropped is not None:
        negative = torch.where(dropped, 0.0, negative)
    return torch.where(target != 0, -focus_pos * log_pos, negative)


class AsymmetricLoss(MultilabelObjective):
    """The asymmetric loss as a module; see :func:`asymmetric_loss`.

    A sample's loss is the *mean* over its labels and ``reduction`` is over samples, so that step sizes carry over from
    binary cross-entropy. The sum over labels and samples of the published code is that of the function.

    Args:
        gamma_neg: focusing exponent of negatives, >= 0.
        gamma_pos: focusing exponent of positives, >= 0; the paper's main setting is 0, its code's default 1.
        clip: probability up to which a negative costs nothing, in [0, 1).
        detach_focus: whether the focusing factor is a constant for the gradient.
        reduction: ``"none"`` for ``[N]``, ``"mean"`` or ``"sum"``.

    Example:
        >>> x, y = torch.tensor([[2.0, -1.0, 0.0, -4.0]]), torch.tensor([[1, 0, 0, 0]])
        >>> AsymmetricLoss()(x, y) * 4
        tensor(0.0402)
    """

    name = "asymmetric"
    search = {"gamma_neg": Float(0.0, 6.0), "gamma_pos": Float(0.0, 2.0), "clip": Float(0.0, 0.2)}

    def __init__(
        self,
        gamma_neg: float = 4.0,
        gamma_pos: float = 1.0,
        clip: float = 0.05,
        detach_focus: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        _check_hyper(gamma_neg, gamma_pos, clip)
        self.gamma_neg, self.gamma_pos, self.clip, self.detach_focus = gamma_neg, gamma_pos, clip, detach_focus

    def forward(self, outputs: F[Tensor, "batch labels"], target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """The loss of logits and labels."""
        self.check_call(outputs, target, weight)
        cells = asymmetric_loss(
            outputs,
            target,
            gamma_neg=self.gamma_neg,
            gamma_pos=self.gamma_pos,
            clip=self.clip,
            detach_focus=self.detach_focus,
            reduction="none",
        )
        return reduce(cells.mean(-1), self.reduction, weight)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """The sigmoid ``[N, L]``: shifted by the focusing, so refit calibration and thresholds before use."""
        return torch.sigmoid(outputs)

    @classmethod
    def variants(cls) -> list[dict[str, Any]]:
        return [{"clip": 0.0, "gamma_pos": 0.0}, {"gamma_neg": 0.5, "gamma_pos": 0.5, "clip": 0.2}]


class AdaptiveAsymmetry(MultilabelObjective):
    r"""The asymmetric loss whose negative exponent follows a target for the gap between positives and negatives.

    .. math:: \gamma_- \leftarrow \max(0,\; \gamma_- + \eta\, (\Delta^* - \Delta)), \qquad
        \Delta = \mathrm{mean}(p \mid y = 1) - \mathrm{mean}(1 - p \mid y = 0)

    A larger exponent raises the gap. It moves in ``after_step``, by the last batch seen in training mode, over all its
    labels and with its sample weights; a batch without positives or without negatives moves nothing. A sample's loss is
    the mean over its labels.

    Args:
        target_gap: the target of the gap, in [-1, 1].
        rate: eta >= 0.
        gamma_neg: where the exponent of negatives starts, >= 0.
        gamma_pos: focusing exponent of positives, >= 0.
        clip: probability up to which a negative costs nothing, in [0, 1).
        reduction: ``"none"`` for ``[N]``, ``"mean"`` or ``"sum"``.

    Example:
        >>> loss = AdaptiveAsymmetry(target_gap=0.2, rate=1.0)
        >>> _ = loss(torch.zeros(1, 2), torch.tensor([[1, 0]]))
        >>> loss.after_step()
        >>> float(loss.gamma_neg)
        4.2

    Source: Asymmetric Loss For Multi-Label Classification, arXiv:2009.14119, section 2.5.
    """

    name = "asymmetric_adaptive"
    stateful = True
    search = {"target_gap": Float(0.0, 0.4), "clip": Float(0.0, 0.2)}
    gamma_neg: Tensor
    pending: Tensor

    def __init__(
        self,
        target_gap: float = 0.1,
        rate: float = 0.01,
        gamma_neg: float = 4.0,
        gamma_pos: float = 0.0,
        clip: float = 0.05,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        _check_hyper(gamma_neg, gamma_pos, clip)
        check_number("target_gap", target_gap, low=-1.0, high=1.0)
        check_number("rate", rate, low=0.0)
        self.target_gap, self.rate, self.gamma_pos, self.clip = target_gap, rate, gamma_pos, clip
        self.register_buffer("gamma_neg", torch.tensor(float(gamma_neg), dtype=torch.float64))
        self.register_buffer("pending", torch.tensor(0.0, dtype=torch.float64))

    def forward(self, outputs: F[Tensor, "batch labels"], target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """The loss of logits and labels with the present exponent."""
        self.check_call(outputs, target, weight)
        check_multi_hot(outputs, target)
        if self.training:
            self._measure(outputs.detach(), target, weight)
        cells = _cells(outputs, target, self.gamma_neg.clone(), self.gamma_pos, self.clip, detach_focus=False)
        return reduce(cells.mean(-1), self.reduction, weight)

    def _measure(self, outputs: Tensor, target: Tensor, weight: Tensor | None) -> None:
        p = torch.sigmoid(widen(outputs)).double()
        positive = (target != 0).to(p)
        share = torch.ones_like(p) if weight is None else weight.to(p).unsqueeze(-1).expand_as(p)
        positives, negatives = (share * positive).sum(), (share * (1 - positive)).sum()
        gap = (share * positive * p).sum() / positives - (share * (1 - positive) * (1 - p)).sum() / negatives
        # an absent side, or a model that diverged, must not reach the exponent
        self.pending.copy_(torch.where(gap.isfinite(), self.rate * (self.target_gap - gap), 0.0))
        self.terms = kept_terms({"gap": gap, "gamma_neg": self.gamma_neg.clone()})

    def after_step(self) -> None:
        """Move the exponent by what the last batch asked for."""
        self.gamma_neg.add_(self.pending).clamp_(min=0.0)
        self.pending.zero_()


def _others(
    x: Tensor, g: Tensor, target: Tensor, softmax: Softmax, slope: Tensor, gamma: float, share: float
) -> Tensor:
    """The sum of p^gamma log p over the other classes ``[r, 1]``; probabilities ``g`` become the gradient.

    That of -share times the sum, and of what has the given slope in log p_y.
    """
    own = softmax.log_p
    if _native.runs(x, g, own, slope, softmax.away, gain=256) and target.is_contiguous():
        costs = torch.empty_like(own)
        _native.call("asymmetric_rows", (x, g, target, own, slope, softmax.away, costs), gamma, share)
        return costs
    column = target.unsqueeze(1)
    log_p = x - (at(x, target) - own)
    # what log p_k is weighed with; slopes in log p_k
    weights = _power(g, log_p, gamma).scatter_(1, column, 0.0)
    costs = (weights * log_p).sum(1, keepdim=True)
    slopes = weights.mul_(log_p.mul_(gamma).add_(1.0)).mul_(-share)
    others = slopes.sum(1, keepdim=True)
    value = slope * softmax.away - others * at(g, target)
    mix(g, factor=-(others + slope), z=slopes, target=target, value=value)
    return costs


def _power(p: Tensor, log_p: Tensor, gamma: float) -> Tensor:
    """A new tensor of p^gamma; by squaring for the usual exponents, which is cheaper than another exponential."""
    if gamma in (1.0, 2.0, 4.0):
        return p.clone() if gamma == 1.0 else p.square() if gamma == 2.0 else p.square().square_()
    return torch.exp(gamma * log_p) if gamma else torch.ones_like(p)


class AsymmetricLossSingleLabel(Objective):
    r"""The asymmetric loss of one label a sample, on softmax probabilities and smoothed labels.

    .. math:: \ell = -\sum_k t_k w_k \log p_k, \qquad w_y = (1 - p_y)^{\gamma_+}, \quad w_k = p_k^{\gamma_-}, \quad
        t = (1 - \alpha)\, e_y + \alpha / C

    Without smoothing negatives play no part: it is then the focal loss with exponent gamma_pos.

    Args:
        gamma_neg: focusing exponent of the other classes, >= 0.
        gamma_pos: focusing exponent of the true class, >= 0.
        label_smoothing: alpha in [0, 1].
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Raises:
        ValueError: an exponent below 0, a smoothing outside [0, 1], a class out of range.

    Example:
        >>> AsymmetricLossSingleLabel()(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        tensor(0.3806)

    Source: Asymmetric Loss For Multi-Label Classification, arXiv:2009.14119; this form is of its published code.
    """

    name = "asymmetric_single_label"
    tasks = ("binary", "multiclass")
    search = {"gamma_neg": Float(0.0, 6.0), "gamma_pos": Float(0.0, 2.0), "label_smoothing": Float(0.0, 0.2)}

    def __init__(
        self,
        gamma_neg: float = 4.0,
        gamma_pos: float = 0.0,
        label_smoothing: float = 0.1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        _check_hyper(gamma_neg, gamma_pos)
        check_number("label_smoothing", label_smoothing, low=0.0, high=1.0)
        self.gamma_neg, self.gamma_pos, self.label_smoothing = gamma_neg, gamma_pos, label_smoothing

    def forward(
        self, outputs: F[Tensor, "batch classes"], target: I[Tensor, " batch"], *, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of logits and class indices."""
        self.check_call(outputs, target, weight)
        check_logits(outputs)
        check_index(target, outputs)
        y, share = target.long(), self.label_smoothing / outputs.shape[1]
        whole = 1 - self.label_smoothing + share

        def plain(x: Tensor) -> Tensor:
            own = class_mask(y, x.shape[1])
            log_p = log_softmax(x)
            # log(1 - p_y) from the margin over the others, which does not round to -inf where p_y rounds to 1
            margin = pick(x, y) - torch.logsumexp(x.masked_fill(own, -torch.inf), dim=-1)
            true = torch.exp(self.gamma_pos * nnf.logsigmoid(-margin)) * pick(log_p, y)
            others = torch.where(own, 0.0, torch.exp(self.gamma_neg * log_p) * log_p).sum(-1)
            return -whole * true - share * others

        def rule(x: Tensor, g: Tensor, rows: slice) -> Tensor:
            softmax = target_softmax(x, g, y[rows])
            p, own, rest = at(g, y[rows]), softmax.log_p, softmax.away
            power = rest.pow(self.gamma_pos)
            slope = self.gamma_pos * p * power * torch.where(rest > 0, own / rest, -1.0)
            slope = -whole * (power - slope)
            loss = -whole * power * own
            if share:
                loss -= share * _others(x, g, y[rows], softmax, slope, self.gamma_neg, share)
            else:
                mix(g, factor=-slope, target=y[rows], value=slope * rest)
            return loss.squeeze(1)

        return reduce(rowwise(widen(outputs), plain, rule), self.reduction, weight)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax; focusing leaves it flatter than the conditional distribution."""
        return outputs.softmax(-1)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """The default ones, one with both exponents below 1 and one without smoothing."""
        cases = super().samples(generator, dtype, device)
        variants = ({"gamma_neg": 0.5, "gamma_pos": 0.5}, {"gamma_pos": 2.0, "label_smoothing": 0.0})
        return [*cases, *((cls(**hyper), cases[-1][1]) for hyper in variants)]
