"""Label-distributionally robust losses: the worst re-weighting of the classes within a divergence from uniform."""

from __future__ import annotations

import math
from typing import Any, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_choice, check_index, check_logits, check_number, check_tensor, refuse, values_visible
from ...core.logpartition import class_mask
from ...core.memory import SampleMemory
from ...core.objective import Objective, Sample, TaskInfo
from ...core.reductions import reduce, widen
from ...core.search import Choice, Float
from ._robust import NORMALIZERS, gaps, largest_gap, normalized, worst_mean

_LOWEST = 1e-6
"""Floor of an adaptive temperature as a share of its start; only alpha near 1 meets it."""


def _checked(logits: Tensor, target: Tensor, margin: float) -> None:
    check_number("margin", margin, low=0.0)
    check_logits(logits)
    check_index(target, logits)


def ldr_kl_loss(
    logits: F[Tensor, "batch classes"],
    target: I[Tensor, " batch"],
    *,
    lam: float | F[Tensor, " batch"] = 1.0,
    margin: float = 0.0,
    normalize: str | None = None,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""The worst mean of margins over class weights p, with a price on their divergence from uniform.

    .. math:: L = \max_{p \in \Delta} \sum_k p_k d_k - \lambda\, KL(p \,\|\, 1/K)
        = \lambda \log \frac{1}{K} \sum_k e^{d_k / \lambda}, \qquad d_k = f_k - f_y + m\, 1[k \ne y]

    lam -> 0 is the multi-class hinge of Crammer and Singer, lam = 1 with margin 0, the default, is cross-entropy minus
    log K, lam -> infinity is the mean margin. The maximiser is p = softmax(d / lam).

    Args:
        logits: f ``[N, K]``, K >= 2.
        target: class indices ``[N]`` in 0..K-1.
        lam: temperature > 0, a number or one for each sample ``[N]``; no gradient flows into it.
        margin: m >= 0, in units of the (normalised) logits.
        normalize: None; ``"l1"`` divides the logits of a sample by the mean of their absolute values, ``"softplus"``
            takes softplus of them over its mean.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider. It is negative where the target leads by enough.

    Raises:
        ValueError: lam <= 0, a negative margin, a class outside the range, wrong shapes.

    Example:
        >>> ldr_kl_loss(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([1]), margin=1.0)
        tensor(1.1409)

    Source: Label Distributionally Robust Losses for Multi-class Classification, arXiv:2112.14869.
    """
    _checked(logits, target, margin)
    if isinstance(lam, Tensor):
        check_tensor("lam", lam, floating=True, shape=(logits.shape[0],))
        lam = lam.detach()
        if lam.numel() and values_visible(lam) and not bool((lam > 0).all()):
            refuse("lam", "values > 0", float(lam.min()))
    else:
        check_number("lam", lam, low=0.0, open_low=True)
    return reduce(worst_mean(normalized(logits, normalize), target.long(), lam, margin), reduction, weight)


@torch.no_grad()
def adaptive_lambda(
    logits: F[Tensor, "batch classes"], lam: F[Tensor, " batch"], *, lam0: float, alpha: float
) -> F[Tensor, " batch"]:
    r"""The best temperature of each sample for the class weights that its last temperature gives.

    .. math:: \lambda' = \lambda_0 \Bigl(1 - \frac{KL(p \,\|\, 1/K)}{\alpha \log K}\Bigr), \qquad
        p = \mathrm{softmax}(f / \lambda)

    A sample with a confident prediction gets a small temperature. The result lies in
    :math:`[\lambda_0 (1 - 1/\alpha), \lambda_0]`, and at 1e-6 lam0 or above.

    Args:
        logits: (normalised) f ``[N, K]``, without margins.
        lam: last temperatures ``[N]`` > 0.
        lam0: > 0.
        alpha: >= 1.

    Example:
        >>> adaptive_lambda(torch.tensor([[2.0, 1.0, 0.0]]), torch.ones(1), lam0=1.0, alpha=1.0)
        tensor([0.7577])
    """
    f = widen(logits)
    f = f - f.amax(-1, keepdim=True)
    log_p = (f / lam.to(f.dtype).unsqueeze(-1)).log_softmax(-1)
    p = log_p.exp()
    log_k = math.log(f.shape[-1])
    # p log p is 0 where p has vanished
    divergence = (torch.where(p > 0, p * log_p, 0.0).sum(-1) + log_k).clamp(0.0, log_k)
    return (lam0 * (1.0 - divergence / (alpha * log_k))).clamp_min(_LOWEST * lam0)


def crammer_singer_loss(
    logits: F[Tensor, "batch classes"],
    target: I[Tensor, " batch"],
    *,
    margin: float = 1.0,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""The multi-class hinge :math:`\max_k f_k - f_y + m\, 1[k \ne y]`, >= 0.

    Args:
        logits: f ``[N, K]``, K >= 2.
        target: class indices ``[N]`` in 0..K-1.
        margin: m >= 0.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: a negative margin, a class outside the range, wrong shapes.

    Example:
        >>> crammer_singer_loss(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([1]))
        tensor(2.)

    Source: Crammer and Singer, On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines (2001).
    """
    _checked(logits, target, margin)
    return reduce(largest_gap(widen(logits), target.long(), margin), reduction, weight)


class LDRLoss(Objective):
    """The label-distributionally robust loss with one temperature; see :func:`ldr_kl_loss`.

    The defaults, ``lam = 1`` and ``margin = 0``, are cross-entropy minus log K: it trains as cross-entropy does.

    Args:
        lam: temperature > 0.
        margin: >= 0.
        normalize: None, ``"l1"`` or ``"softplus"``.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> LDRLoss(lam=2.0)(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([1]))
        tensor(0.1633)
    """

    name = "ldr"
    tasks = ("binary", "multiclass")
    search = {"lam": Float(0.1, 10.0, log=True), "margin": Choice((0.0, 0.1, 1.0, 10.0))}

    def __init__(
        self, lam: float = 1.0, margin: float = 0.0, normalize: str | None = None, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        check_number("lam", lam, low=0.0, open_low=True)
        check_number("margin", margin, low=0.0)
        check_choice("normalize", normalize, NORMALIZERS)
        self.lam, self.margin, self.normalize = lam, margin, normalize

    def forward(
        self, outputs: F[Tensor, "batch classes"], target: I[Tensor, " batch"], *, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of logits and class indices."""
        self.check_call(outputs, target, weight)
        return ldr_kl_loss(
            outputs,
            target,
            lam=self.lam,
            margin=self.margin,
            normalize=self.normalize,
            weight=weight,
            reduction=self.reduction,
        )

    def probabilities(self, outputs: Tensor) -> Tensor:
        """softmax(f / lam), which with margin 0 and no normalisation is the conditional distribution at the minimum."""
        return (normalized(outputs, self.normalize) / self.lam).softmax(-1)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """The default cases, and one for each normalisation, small and large temperature."""
        cases = super().samples(generator, dtype, device)
        options = ((0.1, 1.0, "softplus"), (1.0, 0.1, "l1"), (1e3, 1.0, None))
        return cases + [(cls(lam, margin, how), cases[-1][1]) for lam, margin, how in options]


class ALDRLoss(Objective):
    r"""The robust loss with a temperature for each training sample.

    .. math:: L_i = \lambda_i \log \frac{1}{K} \sum_k e^{d_k / \lambda_i}
        - \frac{\alpha \log K}{2 \lambda_0} (\lambda_i - \lambda_0)^2

    Each training pass first moves :math:`\lambda_i` (see :func:`adaptive_lambda`), without a gradient, and keeps it;
    temperatures are in ``state_dict``, as ``memory.values``. In eval mode the loss is that of the kept temperatures.
    One temperature serves all views of an augmented sample.

    Args:
        num_samples: rows of the training split.
        lam0: temperature at the start, > 0.
        alpha: >= 1; the smaller, the lower a temperature may fall.
        margin: >= 0.
        normalize: None, ``"l1"`` or ``"softplus"``; see :func:`ldr_kl_loss`.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> loss = ALDRLoss(num_samples=4, alpha=1.0, margin=0.0)
        >>> loss(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([1]), index=torch.tensor([2]))
        tensor(0.3563)
        >>> loss.memory.values
        tensor([1.0000, 1.0000, 0.7577, 1.0000])

    Source: Label Distributionally Robust Losses for Multi-class Classification, arXiv:2112.14869.
    """

    name = "aldr"
    tasks = ("binary", "multiclass")
    gradient = "surrogate"
    needs = ("index",)
    stateful = True
    search = {
        "lam0": Float(0.1, 10.0, log=True),
        "alpha": Float(1.1, 8.0, log=True),
        "margin": Choice((0.1, 1.0, 10.0)),
    }

    def __init__(
        self,
        num_samples: int,
        lam0: float = 1.0,
        alpha: float = 2.0,
        margin: float = 1.0,
        normalize: str | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        check_number("lam0", lam0, low=0.0, open_low=True)
        check_number("alpha", alpha, low=1.0)
        check_number("margin", margin, low=0.0)
        check_choice("normalize", normalize, NORMALIZERS)
        self.lam0, self.alpha, self.margin, self.normalize = lam0, alpha, margin, normalize
        self.memory = SampleMemory(num_samples, initial=lam0)

    @classmethod
    def from_task(cls, info: TaskInfo, **hyper: Any) -> Self:
        """With the size of the training split."""
        return cls(info.num_samples, **hyper)

    def _lambda(self, f: Tensor, index: Tensor) -> Tensor:
        last = self.memory.read(index).to(f.dtype)
        return adaptive_lambda(f, last, lam0=self.lam0, alpha=self.alpha) if self.training else last

    def forward(
        self,
        outputs: F[Tensor, "batch classes"],
        target: I[Tensor, " batch"],
        *,
        index: I[Tensor, " batch"],
        weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of logits, class indices and positions in the training split."""
        self.check_call(outputs, target, weight)
        _checked(outputs, target, self.margin)
        self.memory.check(index, outputs.shape[0])
        f = normalized(outputs, self.normalize)
        lam = self._lambda(f, index)
        if self.training:
            self.memory.write(index, lam)
        price = self.alpha * math.log(f.shape[1]) / (2.0 * self.lam0) * (lam - self.lam0) ** 2
        return reduce(worst_mean(f, target.long(), lam, self.margin) - price, self.reduction, weight)

    def reference_gradient(self, outputs: Tensor, target: Tensor, *, index: Tensor) -> Tensor:
        """The slope of the mean loss at fixed temperatures: (softmax(d / lam) - onehot) / N, through the scaling."""
        leaf = outputs.detach().requires_grad_()
        f = normalized(leaf, self.normalize)
        lam = self._lambda(f, index).unsqueeze(-1)
        d = gaps(f.detach(), target, self.margin)
        slope = (d / lam).softmax(-1) - class_mask(target, f.shape[1]).to(f.dtype)
        (gradient,) = torch.autograd.grad(f, leaf, slope / f.shape[0])
        return gradient

    def probabilities(self, outputs: Tensor) -> Tensor:
        """softmax(f / lam) with the temperature that a sample gets when it is first seen."""
        f = normalized(outputs, self.normalize)
        start = torch.full_like(f[:, 0], self.lam0)
        lam = adaptive_lambda(f, start, lam0=self.lam0, alpha=self.alpha)
        return (f / lam.unsqueeze(-1)).softmax(-1)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """The default cases, and others in mid-training with either normalisation."""
        cases = super().samples(generator, dtype, device)
        args, kwargs = sample = cases[-1][1]
        earlier = torch.randn(args[0].shape, generator=generator, dtype=torch.float64).to(device, torch.float32)
        for how, alpha in ((None, 1.0), ("l1", 1.5), ("softplus", 3.0)):
            objective = cls(21, lam0=0.5, alpha=alpha, normalize=how).to(device)
            objective(earlier, args[1], **kwargs)
            cases.append((objective, sample))
        return cases


class CrammerSingerLoss(Objective):
    """The multi-class hinge; see :func:`crammer_singer_loss`.

    Args:
        margin: >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> CrammerSingerLoss()(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        tensor(0.)
    """

    name = "crammer_singer"
    tasks = ("binary", "multiclass")
    search = {"margin": Float(0.1, 10.0, log=True)}

    def __init__(self, margin: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_number("margin", margin, low=0.0)
        self.margin = margin

    def forward(
        self, outputs: F[Tensor, "batch classes"], target: I[Tensor, " batch"], *, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of logits and class indices."""
        self.check_call(outputs, target, weight)
        return crammer_singer_loss(outputs, target, margin=self.margin, weight=weight, reduction=self.reduction)
