"""Binary cross-entropy of several labels a sample, each on its own."""

from __future__ import annotations

import torch.nn.functional as nnf
from jaxtyping import Float as F
from torch import Tensor

from ...core.reductions import reduce, widen
from ._cells import MultilabelObjective, check_multi_hot, reduce_cells


def binary_cross_entropy(
    logits: F[Tensor, "batch labels"],
    target: Tensor,
    *,
    weight: F[Tensor, " batch"] | None = None,
    reduction: str = "mean",
) -> Tensor:
    r"""Binary cross-entropy of each label with the sigmoid of its logit.

    .. math:: \ell = -y \log \sigma(x) - (1 - y) \log \sigma(-x)

    Args:
        logits: ``[N, L]``.
        target: ``[N, L]`` in {0, 1}, floating, integer or boolean.
        weight: sample weights ``[N]`` >= 0.
        reduction: ``"none"`` for ``[N, L]``, ``"mean"`` or ``"sum"`` over samples and labels.

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: wrong shapes, a target outside {0, 1}.

    Example:
        >>> import torch
        >>> binary_cross_entropy(torch.tensor([[2.0, -1.0]]), torch.tensor([[1, 0]]))
        tensor(0.2201)

    Source: Cox, The Regression Analysis of Binary Sequences (1958).
    """
    check_multi_hot(logits, target)
    logits = widen(logits)
    cells = nnf.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    return reduce_cells(cells, reduction, weight)


class BinaryCrossEntropyLoss(MultilabelObjective):
    """Binary cross-entropy of several labels; see :func:`binary_cross_entropy`.

    A sample's loss is the mean over its labels; ``reduction`` is over samples.

    Args:
        reduction: ``"none"`` for ``[N]``, ``"mean"`` or ``"sum"``.

    Example:
        >>> import torch
        >>> loss = BinaryCrossEntropyLoss(reduction="none")
        >>> loss(torch.tensor([[2.0, -1.0], [0.0, 0.0]]), torch.tensor([[1, 0], [0, 0]]))
        tensor([0.2201, 0.6931])
    """

    name = "binary_cross_entropy"

    def forward(self, outputs: F[Tensor, "batch labels"], target: Tensor, *, weight: Tensor | None = None) -> Tensor:
        """The loss of logits and labels."""
        self.check_call(outputs, target, weight)
        return reduce(binary_cross_entropy(outputs, target, reduction="none").mean(-1), self.reduction, weight)
