"""Focal loss: cross-entropy scaled down where the model is already right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_index, check_logits, check_number, check_tensor, refuse
from ...core.logpartition import class_mask, pick
from ...core.objective import Objective, Sample
from ...core.reductions import reduce, widen
from ...core.rowwise import Rule, add_at, at, rowwise, softmax_into
from ...core.search import Float


def focal_loss(
    logits: F[Tensor, "batch classes"],
    target: I[Tensor, " batch"],
    *,
    gamma: float = 2.0,
    alpha: F[Tensor, " classes"] | None = None,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""The focal loss of softmax probabilities.

    .. math:: \ell = -\alpha_y (1 - p_y)^\gamma \log p_y

    Both factors come from the margin m = f_y - log sum_{k != y} exp(f_k): log p_y = log sigmoid(m) and
    log(1 - p_y) = log sigmoid(-m). So the slope is finite everywhere, also for gamma < 1 as p_y goes to 1.

    Args:
        logits: ``[N, C]``, C >= 2.
        target: class indices ``[N]`` in 0..C-1.
        gamma: focusing exponent, >= 0; 0 is cross-entropy.
        alpha: factor of each class ``[C]`` >= 0, or None for ones. The mean stays the plain one over samples.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: a negative ``gamma``, a class out of range, wrong shapes.

    Example:
        >>> focal_loss(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]), gamma=2.0)
        tensor(0.0457)

    Source: Focal Loss for Dense Object Detection, arXiv:1708.02002.
    """
    check_number("gamma", gamma, low=0.0)
    check_logits(logits)
    check_index(target, logits)

    def plain(z: Tensor) -> Tensor:
        others = z.masked_fill(class_mask(target, z.shape[1]), -torch.inf)
        margin = pick(z, target) - torch.logsumexp(others, dim=-1)
        return -torch.exp(gamma * nnf.logsigmoid(-margin)) * nnf.logsigmoid(margin)

    loss = rowwise(widen(logits), plain, focal_rule(target.long(), gamma))
    if alpha is not None:
        check_tensor("alpha", alpha, floating=True, shape=(logits.shape[1],))
        loss = alpha.to(loss.dtype)[target.long()] * loss
    return reduce(loss, reduction, weight)


def focal_rule(target: I[Tensor, " batch"], gamma: float) -> Rule:
    r"""Value and gradient of the focal loss of each row, with r = 1 - p_y summed over the other classes.

    .. math:: \frac{\partial \ell}{\partial \log p_y} = \gamma\, p_y\, r^{\gamma} \frac{\log p_y}{r} - r^{\gamma}
    """

    def rule(z: Tensor, g: Tensor, rows: slice) -> Tensor:
        y = target[rows]
        partition = softmax_into(z, g)
        p = at(g, y)
        g.scatter_(1, y.unsqueeze(1), 0.0)
        rest = g.sum(1, keepdim=True)
        log_p = torch.where(p > 0.5, -torch.log1p(rest / p), at(z, y) - partition)
        power = rest.pow(gamma)
        # log p / r tends to -1 as the rest vanishes
        slope = gamma * p * power * torch.where(rest > 0, log_p / rest, -1.0) - power
        g.mul_(-slope)
        add_at(g, y, slope * rest)
        return (-power * log_p).squeeze(1)

    return rule


class FocalLoss(Objective):
    """The focal loss as a module; see :func:`focal_loss`.

    Args:
        gamma: focusing exponent, >= 0.
        alpha: factor of each class, C numbers >= 0, or None.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> FocalLoss(gamma=2.0)(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0]))
        tensor(0.0457)
    """

    name = "focal"
    tasks = ("binary", "multiclass")
    search = {"gamma": Float(0.25, 5.0, log=True)}
    alpha: Tensor | None

    def __init__(self, gamma: float = 2.0, alpha: Sequence[float] | None = None, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_number("gamma", gamma, low=0.0)
        self.gamma = gamma
        factors = None if alpha is None else torch.as_tensor(alpha, dtype=torch.float64)
        if factors is not None and (factors.ndim != 1 or bool((factors < 0).any())):
            refuse("alpha", "one number >= 0 for each class", alpha)
        self.register_buffer("alpha", factors)

    def forward(
        self, outputs: F[Tensor, "batch classes"], target: I[Tensor, " batch"], *, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of logits and class indices."""
        self.check_call(outputs, target, weight)
        return focal_loss(outputs, target, gamma=self.gamma, alpha=self.alpha, weight=weight, reduction=self.reduction)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax: for gamma > 0 the minimiser is flatter than q, with the same argmax (where alpha is even)."""
        return outputs.softmax(-1)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[FocalLoss, Sample]]:
        """The default ones, and one with gamma < 1 and class factors."""
        found = super().samples(generator, dtype, device)
        (_, sample) = found[-1]
        classes = sample[0][0].shape[1]
        extra = cls(gamma=0.5, alpha=[0.25 + k for k in range(classes)]).to(device)
        return [*found, (extra, sample)]
