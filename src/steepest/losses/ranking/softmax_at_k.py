"""The softmax loss at K: positives weighed by how far they stand above what enters a user's top K."""

from __future__ import annotations

from typing import Self

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_flag, check_number, check_range, check_tensor, refuse, values_visible
from ...core.loss import Loss, Sample
from ...core.reductions import reduce, widen
from ...core.search import Float, Space


def softmax_loss_at_k(
    pos: F[Tensor, " batch"],
    neg: F[Tensor, "batch negatives"],
    beta: F[Tensor, " batch"],
    *,
    tau: float = 1.0,
    tau_beta: float = 1.0,
    detach_weight: bool = False,
    reduction: str = "mean",
) -> Tensor:
    r"""The softmax loss of each positive, weighed by a sigmoid at the user's threshold.

    .. math:: \ell_i = \frac{1}{1 + e^{-(s_i - \beta_i) / \tau_\beta}} \log \sum_j e^{(s_{ij} - s_i) / \tau}

    The positive is not in the sum, so values may be negative; a weight then lowers the loss the more, the larger it is,
    and where the logarithm is positive the gradient through the weight pushes positives down.

    Args:
        pos: scores s of positives ``[B]``, cosines in the publication.
        neg: scores of the N negatives of each ``[B, N]``.
        beta: the threshold of each positive's user ``[B]``; no gradient flows into it.
        tau: temperature > 0.
        tau_beta: temperature of the weight > 0; weights tend to 1/2 as it grows.
        detach_weight: keep the gradient out of the weight.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over positives.

    Returns:
        The loss in float32 or wider; 0 with a graph where there is no pair.

    Raises:
        ValueError: wrong shapes, a temperature not above 0.

    Example:
        >>> pos, neg, beta = torch.tensor([0.6]), torch.tensor([[0.5, 0.1, -0.2]]), torch.tensor([0.4])
        >>> softmax_loss_at_k(pos, neg, beta, tau=0.2, tau_beta=0.25)
        tensor(-0.2393)

    Source: Breaking the Top-K Barrier: Advancing Top-K Ranking Metrics Optimization in Recommender Systems,
    arXiv:2508.05673.
    """
    _check(tau, tau_beta, detach_weight)
    check_tensor("pos", pos, ndim=1, floating=True)
    check_tensor("neg", neg, ndim=2, floating=True)
    check_tensor("neg", neg, shape=(pos.shape[0], None))
    check_tensor("beta", beta, shape=tuple(pos.shape), floating=True)
    high, low = widen(pos), widen(neg)
    if not low.numel():
        nothing = high * low.sum(1)
        return reduce(nothing, "none" if reduction == "none" else "sum")
    weight = torch.sigmoid((high - widen(beta).detach()) / tau_beta)
    weight = weight.detach() if detach_weight else weight
    return reduce(weight * ((low - high.unsqueeze(1)) / tau).logsumexp(1), reduction)


def _check(tau: float, tau_beta: float, detach_weight: bool) -> None:
    check_number("tau", tau, low=0.0, open_low=True, open_high=True)
    check_number("tau_beta", tau_beta, low=0.0, open_low=True)
    check_flag("detach_weight", detach_weight)


@torch.no_grad()
def topk_quantile(
    pos: F[Tensor, "users positives"],
    pos_mask: Bool[Tensor, "users positives"],
    neg: F[Tensor, "users negatives"],
    k: int,
) -> F[Tensor, " users"]:
    """The K-th largest score among a user's training positives and sampled negatives.

    Args:
        pos: scores of positives ``[B, P]``, padded.
        pos_mask: boolean ``[B, P]``, True where there is one.
        neg: scores of sampled negatives ``[B, N]``; being a sample they give a threshold that is too low.
        k: K >= 1, at most the candidates of each user.

    Returns:
        ``[B]``, without a graph.

    Raises:
        ValueError: wrong shapes, more than a user's candidates.

    Example:
        >>> pos, mask = torch.tensor([[0.6, 0.3, 9.0]]), torch.tensor([[True, True, False]])
        >>> topk_quantile(pos, mask, torch.tensor([[0.5, 0.1, -0.2]]), k=2)
        tensor([0.5000])

    Source: as of :func:`softmax_loss_at_k`.
    """
    check_number("k", k, low=1, integer=True)
    check_tensor("pos", pos, ndim=2, floating=True)
    check_tensor("pos_mask", pos_mask, shape=tuple(pos.shape))
    check_tensor("neg", neg, ndim=2, floating=True)
    check_tensor("neg", neg, shape=(pos.shape[0], None))
    count = pos.shape[1] + neg.shape[1]
    if values_visible(pos_mask) and pos_mask.shape[0]:
        count = neg.shape[1] + int(pos_mask.sum(1).min())
    if k > count:
        refuse("k", f"at most the {count} candidates of a user", k)
    scores = torch.cat([torch.where(pos_mask, widen(pos), -torch.inf), widen(neg)], 1)
    return scores.topk(k, 1).values[:, -1]


class SoftmaxLossAtK(Loss):
    """The softmax loss at K with a threshold for each user; see :func:`softmax_loss_at_k`.

    Thresholds start at 0. What :meth:`update_quantile` finds waits until the next ``start_epoch``, so that all batches
    of an epoch see the same; both are in ``state_dict``.

    Args:
        num_users: >= 1.
        k: K >= 1.
        tau, tau_beta: temperatures > 0.
        detach_weight: keep the gradient out of the weight.

    Example:
        >>> loss = SoftmaxLossAtK(3, k=2, tau=0.2, tau_beta=0.25)
        >>> user, negatives = torch.tensor([1]), torch.tensor([[0.5, 0.1, -0.2]])
        >>> loss.update_quantile(user, torch.tensor([[0.6, 0.3]]), torch.tensor([[True, True]]), negatives)
        >>> loss.start_epoch(1, 10)
        >>> loss(torch.tensor([0.6]), negatives, user)
        tensor(-0.2076)
    """

    name = "softmax_at_k"
    differentiable = (0, 1)
    search: dict[str, Space] = {"tau": Float(0.05, 1.0, log=True), "tau_beta": Float(0.5, 3.0, log=True)}
    beta: Tensor
    waiting: Tensor

    def __init__(
        self, num_users: int, k: int = 20, tau: float = 1.0, tau_beta: float = 1.0, detach_weight: bool = False
    ) -> None:
        super().__init__()
        check_number("num_users", num_users, low=1, integer=True)
        check_number("k", k, low=1, integer=True)
        _check(tau, tau_beta, detach_weight)
        self.num_users, self.k, self.tau, self.tau_beta = num_users, k, tau, tau_beta
        self.detach_weight = detach_weight
        self.register_buffer("beta", torch.zeros(num_users))
        self.register_buffer("waiting", torch.zeros(num_users))

    def start_epoch(self, epoch: int, epochs: int) -> None:
        """Take the thresholds that wait."""
        self.beta.copy_(self.waiting)

    @torch.no_grad()
    def update_quantile(
        self,
        user_ids: I[Tensor, " batch"],
        pos: F[Tensor, "batch positives"],
        pos_mask: Bool[Tensor, "batch positives"],
        neg: F[Tensor, "batch negatives"],
    ) -> None:
        """Find thresholds of some users, for the next epoch; of a user that comes twice the mean of its values.

        Args:
            user_ids: ``[B]``.
            pos, pos_mask, neg: as :func:`topk_quantile` takes them.
        """
        self._check_users(user_ids, pos)
        values = topk_quantile(pos, pos_mask, neg, self.k).to(self.waiting)
        users = user_ids.long()
        number = torch.zeros_like(self.waiting).index_add_(0, users, torch.ones_like(values))
        total = torch.zeros_like(self.waiting).index_add_(0, users, values)
        self.waiting.copy_(torch.where(number > 0, total / number.clamp_min(1), self.waiting))

    def _check_users(self, user_ids: Tensor, rows: Tensor) -> None:
        check_tensor("user_ids", user_ids, shape=tuple(rows.shape[:1]), floating=False)
        check_range("user_ids", user_ids, 0, self.num_users - 1)

    def forward(
        self, pos: F[Tensor, " batch"], neg: F[Tensor, "batch negatives"], user_ids: I[Tensor, " batch"]
    ) -> Tensor:
        """The loss of scores of positives ``[B]`` and of their negatives ``[B, N]`` of users ``[B]``."""
        check_tensor("pos", pos, ndim=1, floating=True)
        self._check_users(user_ids, pos)
        return softmax_loss_at_k(
            pos,
            neg,
            self.beta[user_ids.long()],
            tau=self.tau,
            tau_beta=self.tau_beta,
            detach_weight=self.detach_weight,
        )

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """With and without thresholds, and with a weight that is a constant."""

        def cosines(*shape: int) -> Tensor:
            return torch.tanh(torch.randn(shape, generator=generator, dtype=torch.float64)).to(device, dtype)

        users = torch.tensor([2, 0, 2, 4], device=device)
        sample: Sample = (cosines(4), cosines(4, 6), users), {}
        cases = [cls(5, 2), cls(5, 3, tau=0.2, tau_beta=0.5)]
        for loss in (case.to(device) for case in cases[1:]):
            loss.update_quantile(users, cosines(4, 2), torch.ones(4, 2, dtype=torch.bool, device=device), cosines(4, 6))
            loss.start_epoch(1, 2)
        return [(case.to(device), sample) for case in cases]
