"""The supervised contrastive loss: all rows of a label are positives of each other."""

from __future__ import annotations

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_number, check_tensor
from ...core.cosine import unit_rows
from ...core.label_groups import group_numbers, group_sums
from ...core.pair_loss import PairLoss, mean_of_counted
from ...core.search import Float
from ...kernels.pair_log_partition import pair_log_partition


def sup_con_loss(
    embeddings: F[Tensor, "batch width"], labels: I[Tensor, " batch"], *, temperature: float = 0.1
) -> F[Tensor, ""]:
    r"""Mean over rows that have a positive of the mean over its positives of the cross-entropy among all other rows.

    .. math:: L_i = -\frac{1}{|P(i)|} \sum_{p \in P(i)} \log \frac{e^{s_{ip} / \tau}}{\sum_{a \ne i} e^{s_{ia} / \tau}}

    with cosines s and P(i) the other rows of i's label.

    Args:
        embeddings: ``[B, d]``, of any length.
        labels: ``[B]``.
        temperature: tau > 0.

    Returns:
        The loss in float32 or wider; 0 where no row has a positive.

    Raises:
        ValueError: another shape, a temperature that is not positive.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> sup_con_loss(z, torch.tensor([0, 0, 1]), temperature=1.0)
        tensor(0.3133)

    Source: Supervised Contrastive Learning, arXiv:2004.11362.
    """
    check_tensor("embeddings", embeddings, ndim=2, floating=True)
    check_tensor("labels", labels, floating=False, shape=tuple(embeddings.shape[:1]))
    check_number("temperature", temperature, low=0.0, open_low=True)
    rows = unit_rows(embeddings)
    groups = group_numbers(labels)
    others = group_sums(groups, torch.ones_like(groups)) - 1
    pairs = pair_log_partition(
        rows, rows, scale=1 / temperature, positive="none", ids=torch.arange(len(rows), device=rows.device)
    )
    own = (rows * (group_sums(groups, rows) - rows)).sum(-1) / temperature / others.clamp_min(1)
    return mean_of_counted(pairs.log_z - own, others > 0)


class SupConLoss(PairLoss):
    """See :func:`sup_con_loss`. Several views of an item are rows of one label.

    Args:
        temperature: tau > 0.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> SupConLoss(temperature=1.0)(z, torch.tensor([0, 0, 1]))
        tensor(0.3133)
    """

    name = "sup_con"
    search = {"temperature": Float(0.02, 1.0, log=True)}
    alternatives = {"temperature": 0.3}

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        check_number("temperature", temperature, low=0.0, open_low=True)
        self.temperature = temperature

    def batch_loss(self, outputs: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        """The loss of embeddings and labels."""
        return sup_con_loss(outputs, target, temperature=self.temperature)
