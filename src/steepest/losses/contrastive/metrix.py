"""Mixup for metric learning: items mixed from two, with a soft label for each anchor, in losses of pairs."""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Bool as B
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor, nn

from ...core.checks import check_choice, check_interval, check_number, check_tensor, refuse
from ...core.cosine import unit_rows
from ...core.distances import distances
from ...core.log_one_plus import log_one_plus_sum
from ...core.objective import TaskInfo
from ...core.pair_loss import PairLoss, mean_of_counted
from ...core.reductions import widen
from ...core.search import Choice, Float
from ...core.terms import kept_terms
from ...core.triplets import pair_masks

FORMS: dict[str, dict[str, float]] = {
    "contrastive": {"margin": 0.5},
    "multi_similarity": {"margin": 0.5, "beta": 2.0, "gamma": 50.0},
    "proxy_anchor": {"margin": 0.1, "gamma": 32.0},
}
"""The losses, with the numbers that each takes."""
KINDS = ("positive_negative", "anchor_negative", "positives")


class MixedItems(NamedTuple):
    """Items mixed of two, and what they are to each anchor.

    Attributes:
        rows: ``[M, ...]``.
        soft_labels: ``[A, M]``, the share of an item that belongs to the anchor.
        mask: boolean ``[A, M]``, which items an anchor meets.
    """

    rows: Tensor
    soft_labels: Tensor
    mask: Tensor


def metrix_loss(
    sim: F[Tensor, "anchors items"],
    soft_labels: F[Tensor, "anchors items"],
    mask: B[Tensor, "anchors items"] | None = None,
    *,
    form: str = "contrastive",
    margin: float | None = None,
    beta: float | None = None,
    gamma: float | None = None,
    pairs: str = "sum",
) -> F[Tensor, ""]:
    r"""A loss of pairs in which an item is a positive of its anchor to the share y and a negative to the share 1 - y.

    .. math::
        \text{contrastive} &: \sum_v -y_v s_v + \sum_v (1 - y_v) \max(0, s_v - m) \\
        \text{multi-similarity} &: \tfrac{1}{\beta} \log\left(1 + \sum_v y_v e^{-\beta (s_v - m)}\right)
            + \tfrac{1}{\gamma} \log\left(1 + \sum_v (1 - y_v) e^{\gamma (s_v - m)}\right) \\
        \text{proxy anchor} &: \log\left(1 + \sum_v y_v e^{-\gamma (s_v - m)}\right)
            + \log\left(1 + \sum_v (1 - y_v) e^{\gamma (s_v + m)}\right)

    averaged over anchors that meet an item; of proxy anchors the first term is averaged over proxies that have a
    positive, the second over all. With labels 0 and 1 these are the losses without mixing.

    Args:
        sim: s ``[A, M]``, usually cosines.
        soft_labels: y in [0, 1] ``[A, M]``.
        mask: which items an anchor meets, None for all.
        form: ``"contrastive"``, ``"multi_similarity"`` or ``"proxy_anchor"``, whose anchors are proxies.
        margin: m; None for 0.5, of proxies 0.1.
        beta: > 0, of multi-similarity; None for 2.
        gamma: > 0, of the last two; None for 50, of proxies 32.
        pairs: of the contrastive form, ``"sum"`` over items, or ``"mean"``: of the positive part with weights y, of the
            negative part over items beyond the margin with weights 1 - y.

    Returns:
        The loss in float32 or wider; 0 where no anchor meets an item.

    Raises:
        ValueError: another shape, labels outside [0, 1], numbers that the form does not take.

    Example:
        >>> metrix_loss(torch.tensor([[0.8, 0.6, 0.3]]), torch.tensor([[1.0, 0.0, 0.0]]))
        tensor(-0.7000)

    Source: It Takes Two to Tango: Mixup for Deep Metric Learning, arXiv:2106.04990.
    """
    check_tensor("sim", sim, ndim=2, floating=True)
    check_tensor("soft_labels", soft_labels, floating=True, shape=tuple(sim.shape))
    check_interval("soft_labels", soft_labels, 0.0, 1.0, what="shares")
    if mask is not None:
        check_tensor("mask", mask, floating=False, shape=tuple(sim.shape))
        if mask.dtype != torch.bool:
            refuse("mask", "a boolean tensor", mask)
    numbers = _numbers(form, margin, beta, gamma, pairs)
    m = numbers["margin"]
    s = widen(sim)
    y = soft_labels.to(s.dtype)
    counts = torch.ones_like(s, dtype=torch.bool) if mask is None else mask
    s = torch.where(counts, s, 0.0)
    y = y.clamp(0.0, 1.0)
    near, far = counts & (y > 0), counts & (y < 1)
    if form == "contrastive":
        share_own, share_other = torch.where(near, y, 0.0), torch.where(far, 1 - y, 0.0)
        above = (s - m).relu()
        low, high = -(share_own * s).sum(1), (share_other * above).sum(1)
        if pairs == "mean":
            low = low / _or_one(share_own.sum(1))
            high = high / _or_one(torch.where(above.detach() > 0, share_other, 0.0).sum(1))
        return mean_of_counted(low + high, counts.any(1))
    gamma = numbers["gamma"]
    log_own, log_other = (torch.where(share > 0, share, 1.0).log() for share in (y, 1 - y))
    if form == "multi_similarity":
        beta = numbers["beta"]
        low = log_one_plus_sum(log_own - beta * (s - m), near) / beta
        high = log_one_plus_sum(log_other + gamma * (s - m), far) / gamma
        return mean_of_counted(low + high, counts.any(1))
    low = log_one_plus_sum(log_own - gamma * (s - m), near)
    high = log_one_plus_sum(log_other + gamma * (s + m), far)
    return mean_of_counted(low, near.any(1)) + high.sum() / max(len(s), 1)


def _or_one(total: Tensor) -> Tensor:
    """A denominator whose numerator is 0 where it is."""
    return torch.where(total > 0, total, 1.0)


def _numbers(form: str, margin: float | None, beta: float | None, gamma: float | None, pairs: str) -> dict[str, float]:
    """The numbers of a form, checked."""
    check_choice("form", form, FORMS)
    check_choice("pairs", pairs, ("sum", "mean"))
    if pairs == "mean" and form != "contrastive":
        refuse("pairs", f"'sum' with {form!r}, whose sums are inside a logarithm", pairs)
    numbers = dict(FORMS[form])
    for name, value in (("margin", margin), ("beta", beta), ("gamma", gamma)):
        if value is None:
            continue
        if name not in numbers:
            refuse(name, f"None with {form!r}", value)
        check_number(name, value, low=-np.inf if name == "margin" else 0.0, open_low=name != "margin")
        numbers[name] = float(value)
    return numbers


def mix_pairs(
    embeddings: F[Tensor, "batch width"],
    labels: I[Tensor, " batch"],
    kind: str,
    *,
    alpha: float = 2.0,
    lam: float | Tensor | None = None,
    per_pair: bool = False,
    hardest: int | None = None,
    anchors: I[Tensor, " anchors"] | None = None,
    inputs: F[Tensor, "batch ..."] | None = None,
    generator: torch.Generator | None = None,
) -> MixedItems:
    r"""Mix each row of a batch with rows of the same: :math:`\lambda x_i + (1 - \lambda) x_j`.

    ================== ================================================== =======================================
    kind               x_i, x_j                                           anchors that meet it, and its label
    ================== ================================================== =======================================
    positive_negative  rows of two labels                                 other rows of the label of x_i: lambda
    anchor_negative    rows of two labels                                 x_i itself: lambda
    positives          two rows of one label                              the third rows of this label: 1
    ================== ================================================== =======================================

    Mixed embeddings are no longer of length 1; cosines bring them back.

    Args:
        embeddings: ``[B, d]``, by whose cosines partners are found.
        labels: ``[B]``.
        kind: a word of the table.
        alpha: lambda ~ Beta(alpha, alpha), > 0.
        lam: lambda in [0, 1], a number, or ``[M]``; None to draw it.
        per_pair: a draw for each item in place of one for the batch.
        hardest: how many partners a row is mixed with, of another label the most similar, of the same the least;
            None for all.
        anchors: labels of anchors that are not the rows ``[A]``, such as proxies; not with ``"anchor_negative"``.
        inputs: what is mixed ``[B, ...]``, inputs or features of a layer; None for the embeddings.
        generator: draws lambda, on the CPU; None for torch's own.

    Returns:
        Items ``[B * k, ...]`` with k partners a row, their labels and which anchors meet them; a row that has fewer
        partners has items that no anchor meets.

    Raises:
        ValueError: other shapes, an unknown kind, a number out of range.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> mixed = mix_pairs(z, torch.tensor([0, 0, 1]), "positive_negative", lam=0.7, hardest=1)
        >>> mixed.rows[1], mixed.soft_labels[0, 1], mixed.mask[0]
        (tensor([0.5600, 0.7200]), tensor(0.7000), tensor([False,  True, False]))
    """
    check_tensor("embeddings", embeddings, ndim=2, floating=True)
    rows = embeddings.shape[0]
    check_tensor("labels", labels, floating=False, shape=(rows,))
    check_choice("kind", kind, KINDS)
    check_number("alpha", alpha, low=0.0, open_low=True)
    if hardest is not None:
        check_number("hardest", hardest, low=1, integer=True)
    mixed = embeddings if inputs is None else inputs
    check_tensor("inputs", mixed, floating=True)
    if mixed.shape[0] != rows:
        refuse("inputs", f"{rows} rows, as embeddings", mixed)
    if anchors is not None:
        check_tensor("anchors", anchors, ndim=1, floating=False)
        if kind == "anchor_negative":
            refuse("anchors", "None with 'anchor_negative', which mixes the anchors", anchors)
    mixed = widen(mixed)
    same, apart = pair_masks(labels)
    with torch.no_grad():
        unit = unit_rows(embeddings)
        cosines = unit @ unit.mT
        candidates = same if kind == "positives" else apart
        order = (-cosines if kind == "positives" else cosines).masked_fill(~candidates, -torch.inf)
        partner = order.topk(min(hardest or rows, rows), 1).indices
        valid = candidates.gather(1, partner).flatten()
    number = partner.shape[1]
    if lam is None:
        seed = int(torch.randint(2**62, (), generator=generator))
        lam = _drawn(np.random.default_rng(seed), alpha, rows * number if per_pair else None)
    lam = _shares(lam, rows * number, mixed)
    own = torch.arange(rows, device=labels.device).repeat_interleave(number)
    share = lam.reshape(-1, *[1] * (mixed.ndim - 1))
    items = share * mixed[own] + (1 - share) * mixed[partner.flatten()]
    of_anchors = labels if anchors is None else anchors
    place = torch.arange(len(of_anchors), device=labels.device).unsqueeze(1)
    if kind == "anchor_negative":
        mask = place == own
    else:
        mask = of_anchors.unsqueeze(1) == labels[own]
        if anchors is None:
            mask = mask & (place != own)
            mask = mask & (place != partner.flatten()) if kind == "positives" else mask
    soft = torch.ones_like(lam) if kind == "positives" else lam
    return MixedItems(items, soft.expand(len(of_anchors), -1), mask & valid)


def _drawn(rng: np.random.Generator, alpha: float, number: int | None) -> float | Tensor:
    """lambda ~ Beta(alpha, alpha), one, or ``[number]``."""
    return float(rng.beta(alpha, alpha)) if number is None else torch.tensor(rng.beta(alpha, alpha, number).tolist())


def _shares(lam: float | Tensor, number: int, like: Tensor) -> Tensor:
    """lambda of each item ``[M]``."""
    if isinstance(lam, Tensor):
        check_tensor("lam", lam, floating=True, shape=(number,))
        check_interval("lam", lam, 0.0, 1.0, what="shares")
        return lam.to(like)
    check_number("lam", lam, low=0.0, high=1.0)
    return like.new_full((number,), float(lam))


class _Draws(nn.Module):
    """A generator for each draw, made of a seed and of how many came before, which are its state."""

    def __init__(self, seed: int | None) -> None:
        super().__init__()
        self.seed = int(torch.randint(2**62, ())) if seed is None else seed
        self.count = 0

    def another(self) -> np.random.Generator:
        """The next."""
        self.count += 1
        return np.random.default_rng([self.seed, self.count])

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.seed, self.count])

    def set_extra_state(self, state: Tensor) -> None:
        self.seed, self.count = state.tolist()


def utilization(queries: F[Tensor, "queries width"], data: F[Tensor, "rows width"]) -> F[Tensor, ""]:
    r"""How well data cover a space of embeddings: the mean squared distance of a query to the nearest of them.

    .. math:: \frac{1}{|Q|} \sum_{q} \min_x \|f(q) - f(x)\|^2

    Args:
        queries: embeddings ``[Q, d]``.
        data: embeddings ``[N, d]`` of training rows, or of mixed ones, N >= 1.

    Returns:
        In float32 or wider. Lower is better explored.

    Raises:
        ValueError: other shapes, no rows.

    Example:
        >>> utilization(torch.tensor([[0.6, 0.8], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor(1.2000)
    """
    check_tensor("queries", queries, ndim=2, floating=True)
    check_tensor("data", data, floating=True, shape=(None, queries.shape[1]))
    if not len(queries) or not len(data):
        refuse("data", "at least one row of data and of queries", data)
    return distances(queries, data).amin(1).square().mean()


class MetrixLoss(PairLoss):
    r"""A loss of pairs of the batch as it is, and w times the same of mixed items; see :func:`metrix_loss`.

    .. math:: \frac{1}{A} \sum_a \left[ \ell(a; U) + w\, \ell(a; V) \right]

    with cosines, all other rows U and the items V that :func:`mix_pairs` makes of the embeddings, of one kind and one
    lambda a batch. Out of training the first term alone. Proxies that a head owns are anchors of :func:`metrix_loss`.

    Args:
        base: ``"contrastive"`` or ``"multi_similarity"``.
        w: weight of the mixed items, >= 0.
        kind: of :func:`mix_pairs`, or ``"any"``: one is drawn a batch.
        alpha: lambda ~ Beta(alpha, alpha), > 0.
        per_pair: a lambda for each item in place of one for the batch.
        hardest: partners of a row, None for all (mixed items are B^2 then, their similarities B^3).
        margin, beta, gamma, pairs: of :func:`metrix_loss`.
        seed: of the draws, the same on all ranks; None to take one from torch's generator.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
        >>> MetrixLoss().eval()(z, torch.tensor([0, 0, 1]))
        tensor(-0.4667)
    """

    name = "metrix"
    stateful = True
    search = {
        "w": Float(0.1, 1.0, log=True), "alpha": Float(0.5, 4.0, log=True),
        "base": Choice(("contrastive", "multi_similarity")),
    }  # fmt: skip
    alternatives = {
        "base": "multi_similarity", "w": 1.0, "kind": "positives", "alpha": 0.7, "per_pair": True, "hardest": 1,
        "margin": 0.1, "beta": 5.0, "gamma": 9.0, "pairs": "mean", "seed": 7,
    }  # fmt: skip

    def __init__(
        self,
        base: str = "contrastive",
        w: float = 0.4,
        kind: str = "any",
        alpha: float = 2.0,
        per_pair: bool = False,
        hardest: int | None = 16,
        margin: float | None = None,
        beta: float | None = None,
        gamma: float | None = None,
        pairs: str = "sum",
        seed: int | None = None,
    ) -> None:
        super().__init__()
        check_choice("base", base, ("contrastive", "multi_similarity"))
        check_number("w", w, low=0.0)
        check_choice("kind", kind, ("any", *KINDS))
        check_number("alpha", alpha, low=0.0, open_low=True)
        if hardest is not None:
            check_number("hardest", hardest, low=1, integer=True)
        _numbers(base, margin, beta, gamma, pairs)
        self.base, self.w, self.kind, self.alpha, self.hardest = base, w, kind, alpha, hardest
        self.margin, self.beta, self.gamma, self.pairs = margin, beta, gamma, pairs
        self.per_pair = bool(per_pair)
        if seed is not None:
            check_number("seed", seed, low=0, integer=True)
        self.draws = _Draws(seed)

    @classmethod
    def from_task(cls, info: TaskInfo, **hyper: Any) -> Self:
        """With the seed of the task."""
        return cls(**{"seed": info.seed, **hyper})

    def _loss(self, rows: Tensor, items: Tensor, soft_labels: Tensor, mask: Tensor) -> Tensor:
        options: dict[str, Any] = {"margin": self.margin, "beta": self.beta, "gamma": self.gamma, "pairs": self.pairs}
        return metrix_loss(rows @ items.mT, soft_labels, mask, form=self.base, **options)

    def batch_loss(self, outputs: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        """The loss of embeddings and labels."""
        rows = unit_rows(outputs)
        same, apart = pair_masks(target)
        clean = self._loss(rows, rows, same.to(rows.dtype), same | apart)
        if not self.training:
            return clean
        rng = self.draws.another()
        kind = KINDS[int(rng.integers(len(KINDS)))] if self.kind == "any" else self.kind
        number = len(target) * min(self.hardest or len(target), len(target))
        lam = _drawn(rng, self.alpha, number if self.per_pair else None)
        items, soft_labels, mask = mix_pairs(rows, target, kind, lam=lam, hardest=self.hardest)
        mixed = self._loss(rows, unit_rows(items), soft_labels, mask)
        self.terms = kept_terms({"clean": clean, "mixed": mixed})
        return clean + self.w * mixed

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[Any]:
        """Each kind of mixing, and the other form."""
        ((loss, sample),) = super().samples(generator, dtype, device)
        losses = [loss, *(cls(kind=kind, seed=1) for kind in KINDS), cls("multi_similarity", seed=2)]
        return [(loss.to(device), sample) for loss in losses]
