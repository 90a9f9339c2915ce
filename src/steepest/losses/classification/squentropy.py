"""Squentropy: cross-entropy plus the mean squared logit over the wrong classes."""

from __future__ import annotations

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_number, check_tensor, check_weight
from ...core.logpartition import class_mask
from ...core.objective import Objective, Sample
from ...core.reductions import reduce, widen
from ...core.rowwise import rowwise
from ._squentropy import squentropy_rule
from ._targets import class_targets
from .cross_entropy import cross_entropy


def squentropy(
    logits: F[Tensor, "batch classes ..."],
    target: I[Tensor, "batch ..."] | F[Tensor, "batch classes"],
    *,
    square_weight: float = 1.0,
    ignore_index: int | None = -100,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Squentropy; the logit of the true class is not squared and not pulled to any value.

    .. math:: \ell = -f_y + \log \sum_j e^{f_j} + \frac{s}{C - 1} \sum_{j \ne y} f_j^2

    With class probabilities t for a target there is no single set of wrong classes; the square term is then
    s / (C - 1) sum_j (1 - t_j) f_j^2, which is its expectation over labels drawn from t.

    Args:
        logits: ``[N, C]`` or ``[N, C, ...]``, C >= 2.
        target: class indices ``[N]`` or ``[N, ...]`` in 0..C-1 or ``ignore_index``; or probabilities ``[N, C]``.
        square_weight: s >= 0, the factor of the square term; 0 is cross-entropy.
        ignore_index: positions with this index don't count; None for none.
        weight: sample weights ``[N]`` >= 0, shared by all frames of a sample.
        reduction: ``"none"`` (the shape of the indices), ``"mean"`` (over all valid frames) or ``"sum"``.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: a negative ``square_weight``, a class out of range, one class, wrong shapes.

    Example:
        >>> squentropy(torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([0]))
        tensor(1.3490)

    Source: Cut your Losses with Squentropy, arXiv:2302.03952.
    """
    check_number("square_weight", square_weight, low=0.0)
    check_tensor("logits", logits, floating=True)
    check_tensor("target", target)
    shape = None
    if logits.ndim > 2:
        shape = (logits.shape[0], *logits.shape[2:])
        check_tensor("target", target, floating=False, shape=shape)
        check_weight(weight, shape[0])
        if weight is not None:
            weight = weight.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).reshape(-1)
        logits, target = logits.movedim(1, -1).reshape(-1, logits.shape[1]), target.reshape(-1)
    target, valid = class_targets(logits, target, ignore_index)
    classes = logits.shape[1]
    factor = square_weight / (classes - 1)

    def plain(z: Tensor) -> Tensor:
        wrong = 1 - target if target.ndim == 2 else ~class_mask(target, classes)
        entropy = cross_entropy(z, target, ignore_index=None, reduction="none")
        return entropy + factor * (wrong * z.square()).sum(-1)

    z = widen(logits)  # squared only after that: 300^2 overflows in float16
    losses = plain(z) if target.ndim == 2 else rowwise(z, plain, squentropy_rule(target.long(), square_weight))
    loss = reduce(losses, reduction, weight, valid)
    return loss.reshape(shape) if shape is not None and reduction == "none" else loss


class SquentropyLoss(Objective):
    """Squentropy as a module; see :func:`squentropy`.

    Args:
        square_weight: factor of the square term, >= 0 (``weight=`` of the call weighs samples).
        ignore_index: samples with this index don't count.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.

    Example:
        >>> SquentropyLoss()(torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([1]))
        tensor(3.8490)
    """

    name = "squentropy"
    tasks = ("binary", "multiclass")
    targets = ("index", "soft")

    def __init__(self, square_weight: float = 1.0, ignore_index: int = -100, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_number("square_weight", square_weight, low=0.0)
        check_number("ignore_index", ignore_index, integer=True)
        self.square_weight = square_weight
        self.ignore_index = ignore_index

    def forward(
        self, outputs: F[Tensor, "batch classes ..."], target: Tensor, *, weight: Tensor | None = None
    ) -> Tensor:
        """The loss of logits and class indices or probabilities."""
        self.check_call(outputs, target, weight)
        return squentropy(
            outputs,
            target,
            square_weight=self.square_weight,
            ignore_index=self.ignore_index,
            weight=weight,
            reduction=self.reduction,
        )

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax: the minimiser is shrunk towards even probabilities, with the argmax of q."""
        return outputs.softmax(1)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[SquentropyLoss, Sample]]:
        """The default ones, and one with another factor."""
        cases = super().samples(generator, dtype, device)
        return [*cases, (cls(square_weight=0.3).to(device), cases[-1][1])]
