"""Soft InfoNCE: in-batch negatives weighted by an outside estimate of how relevant they are."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from torch import Tensor

from ...core.checks import check_choice, check_flag, check_number, check_tensor, refuse
from ...core.cosine import unit_rows
from ...core.log_complement import log1mexp
from ...core.loss import Sample
from ...core.pair_loss import PairLoss, mean_of_counted
from ...core.reductions import widen
from ...core.search import Float
from ...kernels.pair_log_partition import pair_log_partition

FORMS = ("soft", "weighted", "bce", "kl")


def negative_weights(
    estimates: F[Tensor, "batch batch"],
    alpha: float = 1.0,
    beta: float = 1.0,
    estimate_temperature: float = 1.0,
    floor: float = 0.1,
) -> F[Tensor, "batch batch"]:
    r"""Weights of negatives that fall with their estimated relevance; 1 on the diagonal.

    .. math:: w_{ij} = \max\left(f, \frac{\beta - \alpha r_{ij}}{\beta - \alpha / n}\right), \qquad
        r_{ij} = \operatorname{softmax}_{j \ne i} R_{ij} / t, \qquad n = B - 1

    Before the floor acts, the mean over the negatives of a row is 1.

    Args:
        estimates: R ``[B, B]``, relevance of item j to query i; no gradient flows into them.
        alpha, beta: >= 0 and > 0; beta > alpha / n.
        estimate_temperature: t > 0. With a small one a single negative has all of r, and its weight alone changes.
        floor: f, the least weight, >= 0.

    Returns:
        ``[B, B]`` in float32 or wider.

    Raises:
        ValueError: fewer than two rows, beta <= alpha / n, an option out of range.

    Example:
        >>> r = torch.tensor([[0.0, 0.9, 0.3, 0.1], [0.0] * 4, [0.0] * 4, [0.0] * 4])
        >>> negative_weights(r, estimate_temperature=0.5)[0]
        tensor([1.0000, 0.5021, 1.1994, 1.2985])

    Source: Rethinking Negative Pairs in Code Search, arXiv:2310.08069.
    """
    _check_estimates(estimates, alpha, beta, estimate_temperature, floor, weights=True)
    own = torch.eye(len(estimates), dtype=torch.bool, device=estimates.device)
    return _weights(_relevance(estimates, ~own, estimate_temperature), ~own, alpha, beta, floor)


def _check_options(alpha: float, beta: float, estimate_temperature: float, floor: float) -> None:
    check_number("alpha", alpha, low=0.0)
    check_number("beta", beta, low=0.0, open_low=True)
    check_number("estimate_temperature", estimate_temperature, low=0.0, open_low=True)
    check_number("floor", floor, low=0.0)


def _check_estimates(
    estimates: Tensor, alpha: float, beta: float, estimate_temperature: float, floor: float, *, weights: bool
) -> None:
    _check_options(alpha, beta, estimate_temperature, floor)
    check_tensor("estimates", estimates, ndim=2, floating=True)
    check_tensor("estimates", estimates, shape=(estimates.shape[0], estimates.shape[0]))
    negatives = estimates.shape[0] - 1
    if negatives < 1:
        refuse("estimates", "two rows and more", estimates)
    if weights and beta - alpha / negatives <= 0:
        refuse("beta", f"more than alpha / {negatives}, which is {alpha / negatives:g}", beta)


def _relevance(estimates: Tensor, negative: Bool[Tensor, "rows batch"], temperature: float) -> Tensor:
    """r of each row's negatives, 0 elsewhere; 0 in a row that has none."""
    logits = (widen(estimates.detach()) / temperature).masked_fill(~negative, -torch.inf)
    logits = torch.where(negative.any(1, keepdim=True), logits, 0.0)
    return logits.softmax(1).masked_fill(~negative, 0.0)


def _weights(r: Tensor, negative: Bool[Tensor, "rows batch"], alpha: float, beta: float, floor: float) -> Tensor:
    """w of each row's negatives, 1 elsewhere and in rows whose negatives are so few that the mean could not be 1."""
    below = beta - alpha / negative.sum(1, keepdim=True).clamp_min(1).to(r.dtype)
    weights = ((beta - alpha * r) / below.masked_fill(below <= 0, 1.0)).clamp_min(floor)
    return torch.where(negative & (below > 0), weights, 1.0)


def _check_form(argument: str, form: str, floor: float) -> None:
    """A form without weights has no floor: it keeps its default."""
    check_choice(argument, form, FORMS)
    if form != "soft" and abs(floor - 0.1) > 1e-6:
        refuse("floor", f"0.1 with {argument}={form!r}, which has no weights", floor)


def soft_infonce_loss(
    scores: F[Tensor, "batch batch"],
    estimates: F[Tensor, "batch batch"],
    alpha: float = 1.0,
    beta: float = 1.0,
    estimate_temperature: float = 1.0,
    floor: float = 0.1,
    form: str = "soft",
) -> F[Tensor, ""]:
    r"""InfoNCE whose negatives are weighted, and the forms that it was compared with.

    .. math:: L = -\frac{1}{B} \sum_i \log \frac{e^{S_{ii}}}{e^{S_{ii}} + \sum_{j \ne i} w_{ij} e^{S_{ij}}}

    with w of :func:`negative_weights`. With p the softmax of a row of S, q that over its negatives, and r its
    relevance, the others have the factor beta at the positive and alpha at the negatives (1 and 1 in the publication,
    but for the last): "weighted" :math:`-\beta \log p_{ii} - \alpha \sum_{j \ne i} r_{ij} \log p_{ij}`; "bce" the
    binary cross-entropy of p against 1 at i and r elsewhere, mean over entries; "kl"
    :math:`-\beta \log p_{ii} + \alpha \mathrm{KL}(r \,\|\, q)`.

    Args:
        scores: S ``[B, B]``, of query i and item j, item i being its own.
        estimates, alpha, beta, estimate_temperature, floor: as of :func:`negative_weights`; the floor is of the first
            form alone.
        form: "soft", "weighted", "bce" or "kl".

    Returns:
        The loss in float32 or wider.

    Raises:
        ValueError: fewer than two rows, beta <= alpha / n in the first form, an option out of range or of another form.

    Example:
        >>> s = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).expand(4, 4)
        >>> soft_infonce_loss(s, torch.zeros(4, 4))
        tensor(1.9402)

    Source: Rethinking Negative Pairs in Code Search, arXiv:2310.08069.
    """
    _check_form("form", form, floor)
    _check_estimates(estimates, alpha, beta, estimate_temperature, floor, weights=form == "soft")
    check_tensor("scores", scores, floating=True, shape=tuple(estimates.shape))
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    r = _relevance(estimates, ~own, estimate_temperature).to(widen(scores).dtype)
    return _of_scores(widen(scores), r, ~own, alpha, beta, floor, form).mean()


def _of_scores(s: Tensor, r: Tensor, negative: Tensor, alpha: float, beta: float, floor: float, form: str) -> Tensor:
    """The loss of each row ``[B]``; a pair that is neither a row's own nor a negative is left out."""
    own = torch.eye(len(s), dtype=torch.bool, device=s.device)
    if form == "soft":
        weights = _weights(r, negative, alpha, beta, floor)
        log_w = weights.masked_fill(weights == 0, 1.0).log().masked_fill((weights == 0) | ~(own | negative), -torch.inf)
        return -(s + log_w).log_softmax(1).diagonal()
    s = s.masked_fill(~(own | negative), -torch.inf)
    log_p = s.log_softmax(1)
    if form == "weighted":
        return -beta * log_p.diagonal() - alpha * (r * log_p.masked_fill(r == 0, 0.0)).sum(1)
    if form == "bce":
        yes = r * log_p.masked_fill(r == 0, 0.0)
        no = (1 - r) * torch.where(negative, _log_of_others(s, log_p, own), 0.0)
        return (-beta * log_p.diagonal() - alpha * (yes + no).sum(1)) / (own | negative).sum(1)
    some = negative.any(1, keepdim=True)
    log_q = torch.where(some, s.masked_fill(~negative, -torch.inf), 0.0).log_softmax(1)
    gap = torch.where(r > 0, r.masked_fill(r == 0, 1.0).log() - log_q.masked_fill(r == 0, 0.0), 0.0)
    return -beta * log_p.diagonal() + alpha * (r * gap).sum(1)


def _log_of_others(s: Tensor, log_p: Tensor, own: Tensor) -> Tensor:
    """log(1 - p) of each column but a row's own, finite also where p rounds to 1 because it is the largest."""
    if not s.shape[1]:
        return s
    largest = torch.zeros_like(own).scatter(1, s.detach().argmax(1, keepdim=True), True)
    rest = s.masked_fill(largest, -torch.inf).logsumexp(1, keepdim=True) - s.logsumexp(1, keepdim=True)
    safe = largest | own | (log_p == -torch.inf)
    return torch.where(largest & ~own, rest, log1mexp(log_p.masked_fill(safe, -1.0)).masked_fill(safe, 0.0))


class SoftInfoNCELoss(PairLoss):
    """Queries against the items of the batch, weighted as negatives by a teacher; see :func:`soft_infonce_loss`.

    Outputs are the queries and the items, ``[2, B, d]``; ``teacher`` ``[B, 2, e]`` has what another model (or a bag of
    words) makes of each query and item, and the estimate of a pair is the product of its two rows. Labels are not read.
    ``ids`` marks items that occur twice: they are no negatives, and get no share of the relevance. A row whose
    negatives are so few that beta <= alpha / n has the weight 1 for each.

    Args:
        alpha, beta, estimate_temperature, floor: as of :func:`negative_weights`.
        temperature: > 0, what similarities are divided by.
        cosine: whether they are cosines, or products of the embeddings as they come.
        term: the form of the loss, "soft", "weighted", "bce" or "kl".

    Example:
        >>> z, t = torch.eye(3).expand(2, 3, 3), torch.eye(3).unsqueeze(1).expand(3, 2, 3)
        >>> SoftInfoNCELoss()(z, torch.arange(3), teacher=t)
        tensor(0.5514)
    """

    name = "soft_infonce"
    form = "views"
    views = 2
    needs = ("teacher", "ids")
    search = {
        "alpha": Float(0.25, 2.0),
        "estimate_temperature": Float(0.05, 2.0, log=True),
        "temperature": Float(0.05, 1.0, log=True),
    }
    alternatives = {
        "alpha": 0.5, "beta": 2.0, "estimate_temperature": 0.3, "floor": 0.99, "temperature": 0.5, "cosine": True,
        "term": "kl",
    }  # fmt: skip

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        estimate_temperature: float = 1.0,
        floor: float = 0.1,
        temperature: float = 1.0,
        cosine: bool = False,
        term: str = "soft",
    ) -> None:
        super().__init__()
        _check_options(alpha, beta, estimate_temperature, floor)
        _check_form("term", term, floor)
        check_number("temperature", temperature, low=0.0, open_low=True)
        check_flag("cosine", cosine)
        self.alpha, self.beta, self.estimate_temperature, self.floor = alpha, beta, estimate_temperature, floor
        self.temperature, self.cosine, self.term = temperature, cosine, term

    def batch_loss(  # type: ignore[override]
        self, outputs: Tensor, target: Tensor, *, teacher: Tensor, ids: Tensor | None = None
    ) -> Tensor:
        """The loss of queries and items."""
        check_tensor("teacher", teacher, floating=True, shape=(len(target), 2, None))
        queries, items = widen(outputs)
        if self.cosine:
            queries, items = unit_rows(queries), unit_rows(items)
        theirs = widen(teacher.detach())
        names = torch.arange(len(target), device=outputs.device) if ids is None else ids
        weigh = self.alpha, self.beta, self.floor

        def relevance(rows: slice) -> tuple[Tensor, Tensor]:
            negative = names[rows].unsqueeze(1) != names
            return _relevance(theirs[rows, 0] @ theirs[:, 1].t(), negative, self.estimate_temperature), negative

        if self.term == "soft":
            pairs = pair_log_partition(
                queries,
                items,
                scale=1 / self.temperature,
                weight=lambda rows: _weights(*relevance(rows), *weigh).to(queries.dtype),
                ids=names,
            )
            assert pairs.log_p is not None
            return mean_of_counted(-pairs.log_p, pairs.count > 0)
        r, negative = relevance(slice(0, len(target)))
        scores = queries @ items.t() / self.temperature
        losses = _of_scores(scores, r.to(scores.dtype), negative, *weigh, self.term)
        return mean_of_counted(losses, torch.ones_like(target, dtype=torch.bool))

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[SoftInfoNCELoss, Sample]]:
        """Each form, over one batch in which an item occurs twice."""
        outputs = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64).to(device, dtype)
        teacher = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64).to(device, dtype)
        ids = torch.tensor([0, 1, 2, 3, 0], device=device)
        sample: Sample = ((outputs, torch.arange(5, device=device)), {"teacher": teacher, "ids": ids})
        return [(cls(term=form).to(device), sample) for form in FORMS]
