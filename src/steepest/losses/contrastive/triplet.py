"""The triplet loss: a positive is to be nearer to its anchor than a negative, by a margin."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_flag
from ...core.cosine import unit_rows
from ...core.pair_loss import PairLoss
from ...core.search import Choice, Float
from ...core.terms import kept_terms
from ...core.triplets import TripletMean, check_rows, check_triplets, triplet_mean


def triplet_loss(
    embeddings: F[Tensor, "batch width"],
    labels: I[Tensor, " batch"],
    *,
    margin: float | None = None,
    mining: str = "semi_hard",
    normalize: bool = True,
    squared: bool = False,
    soft: bool = False,
    average: str | None = None,
) -> F[Tensor, ""]:
    r"""Mean hinge of distances to a row of the anchor's label and to one of another, over mined triplets.

    .. math:: L_{apn} = \max(0, \|z_a - z_p\| - \|z_a - z_n\| + m)

    =================  ==========================================================================================
    mining             triplets
    =================  ==========================================================================================
    ``hard``           of each anchor the farthest positive and the nearest negative
    ``semi_hard``      of each pair of one label the nearest negative farther than the positive, else the farthest
    ``easy_positive``  of each anchor the nearest positive and the nearest negative that is farther, if there is one
    ``all``            every triplet
    =================  ==========================================================================================

    Time and memory are those of the matrix of distances, with a sort of its rows; no cube of triplets is formed.

    Args:
        embeddings: ``[B, d]``, of any length.
        labels: ``[B]``.
        margin: m >= 0; None for 0.2, or 0 with ``soft``.
        mining: a word of the table.
        normalize: whether rows are brought to length 1 first.
        squared: squared distances.
        soft: :math:`\log(1 + e^{d_{ap} - d_{an} + m})` in place of the hinge; not with ``"all"``.
        average: the mean over ``"all"`` triplets of the table, or over those whose hinge is above 0
            (``"violating"``). None: violating, or all with ``soft``.

    Returns:
        The loss in float32 or wider; 0 where there is no triplet.

    Raises:
        ValueError: another shape, a negative margin, options that don't go together.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> triplet_loss(z, torch.tensor([0, 0, 1]), mining="hard")
        tensor(0.2000)

    Source: FaceNet: A Unified Embedding for Face Recognition and Clustering, arXiv:1503.03832 (``semi_hard``); In
    Defense of the Triplet Loss for Person Re-Identification, arXiv:1703.07737 (``hard``, ``all``, ``soft``); Improved
    Embeddings with Easy Positive Triplet Mining, arXiv:1904.08626 (``easy_positive``).
    """
    return _mean(embeddings, labels, margin, mining, normalize, squared, soft, average)[0].loss


def _mean(
    embeddings: Tensor,
    labels: Tensor,
    margin: float | None,
    mining: str,
    normalize: bool,
    squared: bool,
    soft: bool,
    average: str | None,
) -> tuple[TripletMean, float]:
    """What the triplets give, and the margin."""
    check_rows(embeddings, labels)
    check_flag("normalize", normalize)
    average = _average(average, soft)
    m = check_triplets(margin, mining, squared, soft, average)
    rows = unit_rows(embeddings) if normalize else embeddings
    options: dict[str, Any] = {"mining": mining, "squared": squared, "soft": soft, "average": average}
    return triplet_mean(rows, labels, margin=m, **options), m


def _average(average: str | None, soft: bool) -> str:
    return average if average is not None else "all" if soft else "violating"


class TripletLoss(PairLoss):
    """See :func:`triplet_loss`.

    ``terms`` has the share of triplets whose hinge is above 0 and, where the margin is, ``collapse_score``: the mean
    distance of two rows over the margin. Near 0 all rows are one point, and the loss stays at the margin.

    Args:
        margin: m >= 0; None for 0.2, or 0 with ``soft``.
        mining: ``"hard"``, ``"semi_hard"``, ``"easy_positive"`` or ``"all"``.
        normalize: whether rows are brought to length 1 first.
        squared: squared distances.
        soft: log(1 + e^gap) in place of the hinge; not with ``"all"``.
        average: ``"all"`` or ``"violating"``; None: violating, or all with ``soft``.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> TripletLoss(mining="hard")(z, torch.tensor([0, 0, 1]))
        tensor(0.2000)
    """

    name = "triplet"
    search = {
        "margin": Float(0.05, 1.0, log=True),
        "mining": Choice(("semi_hard", "hard", "easy_positive", "all")),
        "squared": Choice((False, True)),
    }
    alternatives = {
        "margin": 0.7, "mining": "hard", "normalize": False, "squared": True, "soft": True, "average": "all",
    }  # fmt: skip

    def __init__(
        self,
        margin: float | None = None,
        mining: str = "semi_hard",
        normalize: bool = True,
        squared: bool = False,
        soft: bool = False,
        average: str | None = None,
    ) -> None:
        super().__init__()
        check_flag("normalize", normalize)
        check_triplets(margin, mining, squared, soft, _average(average, soft))
        self.margin, self.mining, self.normalize = margin, mining, normalize
        self.squared, self.soft, self.average = squared, soft, average

    def batch_loss(self, outputs: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        """The loss of embeddings and labels."""
        mean, margin = _mean(
            outputs, target, self.margin, self.mining, self.normalize, self.squared, self.soft, self.average
        )
        terms = {"violating": mean.violating}
        self.terms = kept_terms(terms | ({"collapse_score": mean.mean_distance / margin} if margin else {}))
        return mean.loss

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[Any]:
        """The defaults, and each other way to mine."""
        ((loss, sample),) = super().samples(generator, dtype, device)
        more = (cls(mining="hard"), cls(0.5, "easy_positive", average="all"), cls(mining="all", normalize=False))
        return [(loss, sample), *((one.to(device), sample) for one in more)]
