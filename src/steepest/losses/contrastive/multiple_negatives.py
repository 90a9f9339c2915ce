"""In-batch ranking: each query is to find its item among the items and hard negatives of all queries."""

from __future__ import annotations

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_flag, check_number, check_scalar, check_tensor, refuse
from ...core.cosine import unit_rows
from ...core.loss import Sample
from ...core.pair_loss import PairLoss, mean_of_counted
from ...core.search import Float
from ...kernels.pair_log_partition import pair_log_partition


def multiple_negatives_loss(
    queries: F[Tensor, "batch width"],
    items: F[Tensor, "candidates width"],
    *,
    scale: float | F[Tensor, ""] = 20.0,
    ids: I[Tensor, " batch"] | None = None,
) -> F[Tensor, ""]:
    r"""Cross-entropy of each query's item among all candidates, by scaled cosines.

    .. math:: L = -\frac{1}{B} \sum_i \log \frac{e^{\kappa s_{ii}}}{\sum_{j=1}^{M} e^{\kappa s_{ij}}}

    Args:
        queries: ``[B, d]``, of any length.
        items: ``[M, d]``, M a multiple of B: first the item of each query, then its first hard negative, and so on.
        scale: kappa, one over the temperature; a tensor gets a gradient.
        ids: ``[B]``; items of one id, and their hard negatives with them, are no negatives of each other but for a
            query's own hard negatives.

    Returns:
        The loss in float32 or wider; 0 where there is no query.

    Raises:
        ValueError: other shapes.

    Example:
        >>> z = torch.eye(2)
        >>> multiple_negatives_loss(z, z, scale=1.0)
        tensor(0.3133)

    Source: Efficient Natural Language Response Suggestion for Smart Reply, arXiv:1705.00652.
    """
    check_tensor("queries", queries, ndim=2, floating=True)
    check_tensor("items", items, floating=True, shape=(None, queries.shape[1]))
    batch = queries.shape[0]
    sets = items.shape[0] // batch if batch else 1
    if items.shape[0] != sets * batch or not sets:
        refuse("items", f"a multiple of {batch} rows", items)
    names = None
    if ids is not None:
        check_tensor("ids", ids, floating=False, shape=(batch,))
        names = ids
    mask = None
    if names is not None and sets > 1:  # a query's own hard negatives count, whatever its id is
        places = torch.arange(batch, device=queries.device)
        apart = names.unsqueeze(1) != names
        own = places.unsqueeze(1) == places
        mask = torch.cat([apart | own] * sets, 1)
        names = None
    check_scalar("scale", scale)
    pairs = pair_log_partition(unit_rows(queries), unit_rows(items), scale=scale, ids=names, mask=mask)
    assert pairs.log_p is not None
    return mean_of_counted(-pairs.log_p, pairs.count > 0)


class MultipleNegativesLoss(PairLoss):
    """See :func:`multiple_negatives_loss`. Outputs are queries, items and further sets of hard negatives.

    Shape ``[2 + hard_negatives, B, d]``; labels are not read.

    Args:
        scale: kappa > 0.
        hard_negatives: sets of hard negatives, one a query each, >= 0.
        symmetric: whether items are to find their queries, too, half each.

    Example:
        >>> z = torch.eye(2)
        >>> MultipleNegativesLoss(scale=1.0)(torch.stack([z, z]), torch.tensor([0, 1]))
        tensor(0.3133)
    """

    name = "multiple_negatives"
    form = "views"
    views = 2
    needs = ("ids",)
    search = {"scale": Float(1.0, 100.0, log=True)}
    alternatives = {"scale": 5.0, "hard_negatives": 2, "symmetric": True}

    def __init__(self, scale: float = 20.0, hard_negatives: int = 0, symmetric: bool = False) -> None:
        super().__init__()
        check_number("scale", scale, low=0.0, open_low=True)
        check_number("hard_negatives", hard_negatives, low=0, integer=True)
        check_flag("symmetric", symmetric)
        self.scale, self.hard_negatives, self.symmetric = scale, hard_negatives, symmetric
        self.views = 2 + hard_negatives

    def batch_loss(self, outputs: Tensor, target: Tensor, *, ids: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """The loss of queries, items and hard negatives."""
        loss = multiple_negatives_loss(outputs[0], outputs[1:].flatten(0, 1), scale=self.scale, ids=ids)
        if not self.symmetric:
            return loss
        return 0.5 * (loss + multiple_negatives_loss(outputs[1], outputs[0], scale=self.scale, ids=ids))

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[MultipleNegativesLoss, Sample]]:
        """The defaults, and two sets of hard negatives."""
        cases = super().samples(generator, dtype, device)
        more = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64).to(device, dtype)
        (_, target), kwargs = cases[0][1]
        return [*cases, (cls(hard_negatives=2).to(device), ((more, target), kwargs))]
