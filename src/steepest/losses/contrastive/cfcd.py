"""Retrieval from coarse to fine: a cosine softmax that hardens by itself, and triplets of matched local descriptors."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.arguments import Arguments
from ...core.checks import check_index, check_logits, check_number, check_tensor, refuse
from ...core.cosine import unit_rows
from ...core.cosine_softmax import SoftmaxOfCosines
from ...core.gather import Shares
from ...core.logpartition import class_mask, pick, target_log_probability
from ...core.loss import Loss, Sample
from ...core.objective import TaskInfo
from ...core.reductions import reduce, widen
from ...core.search import Float
from ...core.terms import kept_terms
from ...core.transforms import transformed

NEAREST = 1e-3
"""The least of 1 less the median cosine, by which a scale is divided."""


class AdaptiveLogits(NamedTuple):
    """Logits ``[N, C]`` of a batch, and the scale and margin that made them, constants of no dimensions."""

    logits: Tensor
    scale: Tensor
    margin: Tensor


def adaptive_margin_logits(
    cosines: F[Tensor, "batch classes"],
    labels: I[Tensor, " batch"],
    *,
    alpha: float = 0.02,
    min_scale: float = 32.0,
    with_margin: bool = True,
    ranks: Any = None,
) -> AdaptiveLogits:
    r"""Scaled cosines whose scale and margin follow the batch's median sample.

    With c the cosines, med the lower median of those of the targets and i* its sample,

    .. math:: s = \max\left(s_{\min}, \frac{\log(9999999\,(1 - \alpha) / \alpha)}{1 - \mathrm{med}}\right), \quad
        m = \max\left(0, \mathrm{med} - \frac1s \log \frac{\alpha \sum_{k \ne y} e^{s c_{i^* k}}}{1 - \alpha}\right)

    and the logits are s (c - m) of a target, s c of any other class. A positive margin leaves the median sample a
    probability of alpha. Scale and margin are constants: the gradient is s times that in the logits. Of several samples
    at the median the hardest counts. 1 - med is at least .001, so that the scale stays below some 20,000.

    Args:
        cosines: c ``[N, C]``, as :class:`~steepest.core.heads.NormedLinear` gives them, N >= 1.
        labels: class indices ``[N]``.
        alpha: in (0, 1).
        min_scale: least s, > 0.
        with_margin: whether there is a margin; else it is 0, as in evaluation.
        ranks: a process group whose ranks each have some rows of the batch, or None.

    Raises:
        ValueError: wrong shapes, a class out of range, a number out of range.

    Example:
        >>> cosines = torch.tensor([[0.7, 0.1, -0.2, 0.0], [0.2, 0.5, 0.1, 0.3], [0.0, 0.3, 0.4, -0.1]])
        >>> _, scale, margin = adaptive_margin_logits(cosines, torch.tensor([0, 1, 2]))
        >>> scale, margin
        (tensor(40.0198), tensor(0.2968))

    Source: Coarse-to-Fine: Learning Compact Discriminative Representation for Single-Stage Image Retrieval,
    arXiv:2308.04008.
    """
    check_logits(cosines, argument="cosines")
    check_index(labels, cosines, argument="labels")
    check_number("alpha", alpha, low=0.0, high=1.0, open_low=True, open_high=True)
    check_number("min_scale", min_scale, low=0.0, open_low=True)
    c = widen(cosines)
    target = class_mask(labels.long(), c.shape[1])
    scale, margin = _scale_and_margin(c.detach(), labels, target, alpha, min_scale, ranks)
    if not with_margin:
        margin = torch.zeros_like(margin)
    return AdaptiveLogits(scale * torch.where(target, c - margin, c), scale, margin)


def _scale_and_margin(
    c: Tensor, labels: Tensor, target: Tensor, alpha: float, min_scale: float, ranks: Any
) -> tuple[Tensor, Tensor]:
    """Both of cosines without a gradient."""
    own = pick(c, labels)
    shares = None if ranks is None else Shares.of(len(own), ranks)
    of_all = own if shares is None else shares.joined(own)
    if not len(of_all):
        refuse("cosines", "one row and more", c)
    middle = of_all.sort().values[(len(of_all) - 1) // 2]
    odds = math.log((1 - alpha) / alpha)
    scale = ((math.log(9999999) + odds) / (1 - middle).clamp_min(NEAREST)).clamp_min(min_scale)
    others = torch.where(target, -torch.inf, scale * c).logsumexp(1)
    if shares is not None:
        others = shares.joined(others)
    hardest = torch.where(of_all == middle, others, -torch.inf).amax()
    hardest = torch.where(middle.isnan(), middle, hardest)
    return scale, (middle - (hardest - odds) / scale).clamp_min(0.0)


class MadaCos(Arguments, nn.Module):
    """Logits of a cosine softmax that hardens by itself: see :func:`adaptive_margin_logits`. No margin in eval mode.

    Args:
        alpha: in (0, 1), what a positive margin leaves the median sample as its probability.
        min_scale: least scale, > 0.

    Attributes:
        last_scale, last_margin: of the last batch, tensors of no dimensions; None before.

    Example:
        >>> layer = MadaCos()
        >>> logits = layer(torch.tensor([[0.7, 0.1, -0.2], [0.2, 0.5, 0.1]]), torch.tensor([0, 1]))
        >>> layer.last_scale
        tensor(40.0198)
    """

    last_scale: Tensor | None
    last_margin: Tensor | None

    def __init__(self, alpha: float = 0.02, min_scale: float = 32.0) -> None:
        super().__init__()
        check_number("alpha", alpha, low=0.0, high=1.0, open_low=True, open_high=True)
        check_number("min_scale", min_scale, low=0.0, open_low=True)
        self.alpha, self.min_scale = alpha, min_scale
        self.last_scale = self.last_margin = None

    def forward(
        self, cosines: F[Tensor, "batch classes"], labels: I[Tensor, " batch"], *, ranks: Any = None
    ) -> F[Tensor, "batch classes"]:
        """Logits of cosines and class indices; ``ranks`` is a group of processes that share the batch."""
        logits, scale, margin = adaptive_margin_logits(
            cosines, labels, alpha=self.alpha, min_scale=self.min_scale, with_margin=self.training, ranks=ranks
        )
        if not transformed():
            self.last_scale, self.last_margin = scale, margin
        return logits


class AdaptiveMarginCosineLoss(SoftmaxOfCosines):
    """Cross-entropy of :class:`MadaCos`, whose scale and margin follow the batch. It wants the head of cosines.

    With few classes the least scale of 32 is hard: search ``min_scale``. ``terms`` has the scale and the margin.

    Args:
        alpha: in (0, 1), what a positive margin leaves the median sample as its probability.
        min_scale: least scale, > 0.
        reduction: ``"mean"`` only.

    Example:
        >>> cosines = torch.tensor([[0.7, 0.1, -0.2, 0.0], [0.2, 0.5, 0.1, 0.3], [0.0, 0.3, 0.4, -0.1]])
        >>> AdaptiveMarginCosineLoss()(cosines, torch.tensor([0, 1, 2]))
        tensor(3.9293)

    Source: Coarse-to-Fine: Learning Compact Discriminative Representation for Single-Stage Image Retrieval,
    arXiv:2308.04008.
    """

    name = "mada_cos"
    unit = "batch"
    gradient = "surrogate"
    ranks: ClassVar[str] = "gather"
    search = {"alpha": Float(0.005, 0.2, log=True), "min_scale": Float(4.0, 64.0, log=True)}

    def __init__(self, alpha: float = 0.02, min_scale: float = 32.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.alpha, self.min_scale = alpha, min_scale
        self.layer = MadaCos(alpha, min_scale)

    def multiplier(self) -> float | Tensor:
        """The least scale: that of training follows the batch, and changes no order."""
        return self.min_scale

    def forward(
        self,
        outputs: F[Tensor, "batch classes"],
        target: I[Tensor, " batch"],
        *,
        weight: None = None,
        ranks: Any = None,
    ) -> Tensor:
        """The loss of cosines and class indices; 0 with a graph of no rows.

        ``ranks`` is a group of processes that share the batch: the value is then that of all, and the average over
        ranks of the gradients, which ``DistributedDataParallel`` takes, is its gradient.
        """
        self.check_call(outputs, target, weight)
        check_logits(outputs)
        check_index(target, outputs)
        if not len(target) and ranks is None:
            return widen(outputs).sum()
        logits = self.layer(outputs, target, ranks=ranks)
        if self.layer.last_scale is not None and self.layer.last_margin is not None:
            self.terms = kept_terms({"scale": self.layer.last_scale, "margin": self.layer.last_margin})
        losses = -target_log_probability(logits, target)
        if ranks is not None:
            return Shares.of(len(target), ranks).mean(losses, torch.ones_like(losses))
        return reduce(losses, empty="zero")

    def reference_gradient(self, outputs: Tensor, target: Tensor) -> Tensor:
        """s (softmax - onehot) / N, by torch's own softmax."""
        logits, scale, _ = adaptive_margin_logits(
            outputs, target, alpha=self.alpha, min_scale=self.min_scale, with_margin=self.training
        )
        onehot = torch.nn.functional.one_hot(target.long(), outputs.shape[1])
        return scale * (logits.softmax(1) - onehot) / len(target)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Cosines with which the margin is 0, and others with which it is not, in training and in eval mode."""
        info = TaskInfo("multiclass", 21, 5, (5, 4, 4, 4, 4), feature_dim=6)
        target = torch.tensor([0, 1, 2, 3, 4, 0, 1])
        outputs = 0.6 * torch.randn(7, 5, generator=generator, dtype=torch.float64).tanh()
        good = outputs.clone()
        good[torch.arange(7), target] = 0.85 + 0.1 * torch.rand(7, generator=generator, dtype=torch.float64)
        cases = []  # type: ignore[var-annotated]
        for cosines, training in ((outputs, True), (good, True), (good, False)):
            loss = cls.from_task(info, min_scale=4.0).to(device).train(training)
            cases.append((loss, ((cosines.to(device, dtype), target.to(device)), {})))
        return cases


def local_triplet_loss(
    maps: F[Tensor, "images locations width"],
    attention: F[Tensor, "images locations"],
    margin: float = 0.1,
    ratio: float = 0.9,
) -> F[Tensor, ""]:
    r"""Triplets of matched local descriptors of a query, a positive and some negative images.

    .. math:: \sum_{(q, p)} \sum_{\text{negatives}} \max(0, \|q - p\|^2 - \|q - n\|^2 + m)

    over pairs of rows of query and positive that are each other's nearest, of which p is within ``ratio`` of the
    distance of its second nearest row of the query, and in the half of the positive's rows with most attention; n is
    the row of a negative image nearest to q. Rows are on the unit sphere. What is matched is a constant.

    Args:
        maps: descriptors ``[T, N, D]``: query, positive, T - 2 >= 1 negatives.
        attention: of each location ``[T, N]``; that of the positive counts.
        margin: m >= 0.
        ratio: in (0, 1].

    Returns:
        The sum in float32 or wider; 0 with a graph where nothing matches.

    Raises:
        ValueError: wrong shapes, a number out of range.

    Example:
        >>> maps = torch.stack([torch.eye(4), torch.eye(4), torch.eye(4).roll(1, 0)])
        >>> local_triplet_loss(maps, torch.tensor([4.0, 3, 2, 1]).expand(3, 4))
        tensor(0.2000)

    Source: Coarse-to-Fine: Learning Compact Discriminative Representation for Single-Stage Image Retrieval,
    arXiv:2308.04008.
    """
    check_tensor("maps", maps, ndim=3, floating=True)
    if maps.shape[0] < 3:
        refuse("maps", "query, positive and one negative and more in dimension 0", maps)
    check_tensor("attention", attention, floating=True, shape=tuple(maps.shape[:2]))
    check_number("margin", margin, low=0.0)
    check_number("ratio", ratio, low=0.0, high=1.0, open_low=True)
    rows = unit_rows(maps)
    query, positive, negatives = rows[0], rows[1], rows[2:]
    graph = 0.0 * rows.sum()
    if not maps.shape[1]:
        return graph
    with torch.no_grad():
        counts, of_query = _matches(_squares(query, positive), attention[1], ratio)
        nearest = _squares(query[of_query], negatives).argmin(2)
    matched = query[of_query]
    worst = negatives.gather(1, nearest.unsqueeze(2).expand(-1, -1, rows.shape[2]))
    close = (matched - positive).square().sum(1)
    far = (matched - worst).square().sum(2)
    hinge = torch.where(counts, (close - far + margin).relu(), 0.0)
    return hinge.sum() + graph


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances of rows ``[..., n, m]``."""
    return (a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2) - 2 * a @ b.mT).clamp_min(0.0)


def _matches(squares: Tensor, attention: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """Which rows of the positive are matched, and the row of the query that is nearest to each."""
    count = squares.shape[1]
    places = torch.arange(count, device=squares.device)
    of_query = squares.argmin(0)
    first = squares.gather(0, of_query.unsqueeze(0)).squeeze(0)
    second = torch.where(places.unsqueeze(1) == of_query, torch.inf, squares).amin(0)
    mutual = squares.argmin(1)[of_query] == places
    rank = torch.zeros_like(places).scatter(0, attention.argsort(descending=True, stable=True), places)
    distinct = (first <= ratio * ratio * second) & (second > 0)
    return mutual & distinct & (rank < count // 2), of_query


class LocalTripletLoss(Loss):
    """The second stage beside a softmax over classes: see :func:`local_triplet_loss`.

    Args:
        margin: m >= 0.
        ratio: in (0, 1].
        weight: factor of the sum, >= 0.

    Example:
        >>> maps = torch.stack([torch.eye(4), torch.eye(4), torch.eye(4).roll(1, 0)])
        >>> LocalTripletLoss(weight=1.0)(maps, torch.tensor([4.0, 3, 2, 1]).expand(3, 4))
        tensor(0.2000)
    """

    name = "local_triplet"

    def __init__(self, margin: float = 0.1, ratio: float = 0.9, weight: float = 0.05) -> None:
        super().__init__()
        check_number("margin", margin, low=0.0)
        check_number("ratio", ratio, low=0.0, high=1.0, open_low=True)
        check_number("weight", weight, low=0.0)
        self.margin, self.ratio, self.weight = margin, ratio, weight

    def forward(
        self, maps: F[Tensor, "images locations width"], attention: F[Tensor, "images locations"]
    ) -> F[Tensor, ""]:
        """The weighted sum of a tuple of images."""
        return self.weight * local_triplet_loss(maps, attention, self.margin, self.ratio)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """A positive that is the query moved a little, in another order; and one that matches nothing."""
        maps = torch.randn(4, 6, 5, generator=generator, dtype=torch.float64)
        near = maps.clone()
        near[1] = maps[0].roll(2, 0) + 0.1 * maps[1]
        attention = near.abs().sum(2)
        apart = maps.clone()
        apart[1] = maps[1, :1]
        cases = []
        for rows, loss in ((near, cls(margin=3.0, weight=0.5)), (apart, cls(ratio=0.5))):
            named: dict[str, Any] = {}
            cases.append((loss.to(device), ((rows.to(device, dtype), attention.to(device, dtype)), named)))
        return cases
