"""The contrastive loss of two views of each item, with the other items of the batch as negatives."""

from __future__ import annotations

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_number, check_tensor
from ...core.cosine import unit_rows
from ...core.pair_loss import PairLoss, mean_of_counted
from ...core.search import Float
from ...kernels.pair_log_partition import pair_log_partition


def nt_xent_loss(
    views: F[Tensor, "2 batch width"], *, temperature: float = 0.5, ids: I[Tensor, " batch"] | None = None
) -> F[Tensor, ""]:
    r"""Normalised, temperature-scaled cross-entropy over the 2B views of B items.

    .. math:: L = -\frac{1}{2B} \sum_{i} \log \frac{e^{s_{i p(i)} / \tau}}{e^{s_{i p(i)} / \tau} +
        \sum_{j \in N(i)} e^{s_{ij} / \tau}}

    with cosines s, p(i) the other view of the same item, and N(i) the views of all other items.

    Args:
        views: ``[2, B, d]``, of any length.
        temperature: tau > 0.
        ids: ``[B]``; items of one id are no negatives of each other.

    Returns:
        The loss in float32 or wider; 0 where there is no item.

    Raises:
        ValueError: another shape, a temperature that is not positive.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> nt_xent_loss(torch.stack([z, z]), temperature=1.0)
        tensor(1.1802)

    Source: A Simple Framework for Contrastive Learning of Visual Representations, arXiv:2002.05709.
    """
    check_tensor("views", views, floating=True, shape=(2, None, None))
    check_number("temperature", temperature, low=0.0, open_low=True)
    items = views.shape[1]
    rows = unit_rows(views).flatten(0, 1)
    places = torch.arange(items, device=rows.device)
    pairs = pair_log_partition(
        rows,
        rows,
        scale=1 / temperature,
        positive=torch.cat([places + items, places]),
        ids=(places if ids is None else ids).repeat(2),
    )
    assert pairs.log_p is not None
    return mean_of_counted(-pairs.log_p, pairs.count > 0)


class NTXentLoss(PairLoss):
    """The loss of SimCLR; see :func:`nt_xent_loss`. Labels are not read.

    Args:
        temperature: tau > 0.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> NTXentLoss(temperature=1.0)(torch.stack([z, z]), torch.tensor([0, 1]))
        tensor(0.5514)
    """

    name = "nt_xent"
    form = "views"
    views = 2
    needs = ("ids",)
    search = {"temperature": Float(0.05, 1.0, log=True)}
    alternatives = {"temperature": 0.1}

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        check_number("temperature", temperature, low=0.0, open_low=True)
        self.temperature = temperature

    def batch_loss(self, outputs: Tensor, target: Tensor, *, ids: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The loss of two views."""
        return nt_xent_loss(outputs, temperature=self.temperature, ids=ids)
