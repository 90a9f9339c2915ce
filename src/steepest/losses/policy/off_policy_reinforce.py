"""Group-relative REINFORCE as an off-policy algorithm: clipping, regularisers and data weighting in one family."""

from __future__ import annotations

import warnings
from typing import NamedTuple, Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_choice, check_flag, check_number, check_tensor, refuse
from ...core.group_advantages import check_groups, group_advantages, group_totals
from ...core.loss import Sample
from ...core.policy_loss import Mask, PolicyLoss, policy_batch, policy_inputs
from ...core.ratios import saturating_exp
from ...core.reductions import widen
from ...core.token_reductions import aggregate_tokens

CLIPS = ("none", "one-side", "two-side", "ring")
REGULARIZERS = (None, "opmd", "asymre")
SHAPES = (None, "advantage", "drop")
Items = float | Tensor | None
Ids = I[Tensor, " batch"] | None
LogP = F[Tensor, "batch time"]
Rewards = F[Tensor, " batch"]


class _Group(NamedTuple):
    """What every member starts from; 0 where the mask is false."""

    logp: Tensor
    old_logp: Tensor
    mask: Tensor
    rewards: Tensor
    ids: Tensor
    counts: Tensor
    advantages: Tensor


def rec_loss(
    logp: LogP,
    old_logp: LogP,
    rewards: Rewards,
    mask: Mask,
    *,
    group_ids: Ids = None,
    clip: str = "one-side",
    importance: bool = False,
    epsilon: float = 0.2,
    epsilon_high: float = 0.2,
    outer: float = 0.6,
    outer_high: float = 2.0,
    std_normalize: bool = False,
    num_items: Items = None,
) -> Tensor:
    r"""REINFORCE with the group's mean as baseline, where clipping leaves out tokens.

    .. math:: L = -\frac1K \sum_i \sum_t M_{it} A_i \log \pi_{it}, \qquad A_i = r_i - \bar r, \qquad
        \rho_{it} = \pi_{it} / \pi^{old}_{it}

    with M = 1 where

    - "none": always, which is REINFORCE;
    - "one-side": A > 0 and rho <= 1 + epsilon_high, or A < 0 and rho >= 1 - epsilon;
    - "two-side": 1 - epsilon <= rho <= 1 + epsilon_high;
    - "ring": as "two-side", or A > 0 and rho <= 1 - outer, or A < 0 and rho >= 1 + outer_high.

    Tokens are summed, answers averaged: there is no length in the divisor. Answers without a token are left out, their
    rewards too. "one-side" with ``importance`` and ``std_normalize`` is GRPO without its mean over tokens.

    Args:
        logp: log-probabilities of the sampled tokens ``[B, T]``.
        old_logp: under whatever drew them.
        rewards: one an answer ``[B]``.
        mask: tokens that count ``[B, T]``.
        group_ids: which prompt an answer is of, numbers 0..B-1 ``[B]``; None: all of one.
        clip: one of the names.
        importance: whether a token's term is -M A rho, with the gradient of rho, instead of -M A log pi.
        epsilon, epsilon_high: inner bounds, epsilon in [0, 1].
        outer, outer_high: outer bounds of "ring", epsilon <= outer <= 1 and outer_high >= epsilon_high.
        std_normalize: divide advantages by the deviation of the group + 1e-6.
        num_items: the number of answers of a whole step; None is that of this batch.

    Returns:
        A scalar in float32 or wider; 0 with a graph where nothing is valid. A group of one has A = 0; one warning.

    Raises:
        ValueError: shapes that differ, another name, a bound out of range.

    Example:
        >>> logp, old = torch.tensor([[-2.0], [-1.0], [-3.0], [-1.5]]), torch.tensor([[-2.2], [-1.1], [-2.5], [-1.7]])
        >>> rewards, mask = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.ones(4, 1, dtype=torch.bool)
        >>> rec_loss(logp, old, rewards, mask, clip="none")
        tensor(0.3125)

    Source: Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm, arXiv:2509.24203.
    """
    _check_clip(clip, importance, epsilon, epsilon_high, outer, outer_high)
    group = _group(logp, old_logp, rewards, mask, group_ids, std_normalize)
    losses = _clipped_terms(group, clip, importance, (epsilon, epsilon_high, outer, outer_high))
    return aggregate_tokens(losses, group.mask, "sequence_sum", num_items=num_items)


def opmd_loss(
    logp: LogP,
    old_logp: LogP,
    rewards: Rewards,
    mask: Mask,
    tau: float = 0.1,
    *,
    group_ids: Ids = None,
    num_items: Items = None,
) -> Tensor:
    r"""REINFORCE with a quadratic regulariser of each answer's log-ratio (online policy mirror descent).

    .. math:: L = -\frac1K \sum_i A_i \log \pi_i + \frac{\tau}{2K} \sum_i (\log \pi_i - \log \pi^{old}_i)^2

    Args:
        logp, old_logp, rewards, mask, group_ids, num_items: as of :func:`rec_loss`.
        tau: weight of the regulariser, >= 0.

    Returns:
        A scalar in float32 or wider.

    Raises:
        ValueError: shapes that differ, a negative weight.

    Example:
        >>> logp, old = torch.tensor([[-2.0], [-1.0], [-3.0], [-1.5]]), torch.tensor([[-2.2], [-1.1], [-2.5], [-1.7]])
        >>> rewards, mask = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.ones(4, 1, dtype=torch.bool)
        >>> opmd_loss(logp, old, rewards, mask, tau=0.5)
        tensor(0.3338)

    Source: Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm, arXiv:2509.24203.
    """
    return _regularized(logp, old_logp, rewards, mask, "opmd", tau, "tau", group_ids, num_items)


def asymre_loss(
    logp: LogP,
    old_logp: LogP,
    rewards: Rewards,
    mask: Mask,
    b: float = 0.1,
    *,
    group_ids: Ids = None,
    num_items: Items = None,
) -> Tensor:
    r"""REINFORCE with a baseline below the group's mean (asymmetric REINFORCE).

    .. math:: L = -\frac1K \sum_i (r_i - \bar r) \log \pi_i + \frac bK \sum_i (\log \pi^{old}_i - \log \pi_i)

    Its gradient is that of the baseline mean - b.

    Args:
        logp, old_logp, rewards, mask, group_ids, num_items: as of :func:`rec_loss`.
        b: how far below, >= 0.

    Returns:
        A scalar in float32 or wider.

    Raises:
        ValueError: shapes that differ, a negative shift.

    Example:
        >>> logp = torch.tensor([[-2.0], [-1.0]])
        >>> asymre_loss(logp, logp, torch.tensor([1.0, 0.0]), torch.ones(2, 1, dtype=torch.bool))
        tensor(0.2500)

    Source: Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm, arXiv:2509.24203.
    """
    return _regularized(logp, old_logp, rewards, mask, "asymre", b, "b", group_ids, num_items)


def red_loss(
    logp: LogP,
    old_logp: LogP,
    rewards: Rewards,
    mask: Mask,
    kind: str = "advantage",
    temperature: float = 1.0,
    *,
    group_ids: Ids = None,
    num_items: Items = None,
) -> Tensor:
    r"""REINFORCE on a distribution of answers that is shaped on purpose.

    - "advantage": each term is weighed with exp(A_i / temperature);
    - "drop": of the answers below the mean of their group only as many stay as lie above it, the first ones (all stay
      where none lies above); the mean that advantages are taken from is then that of the answers that stay.

    Args:
        logp, old_logp, rewards, mask, group_ids, num_items: as of :func:`rec_loss`; with "drop" ``num_items`` is the
            number of answers that stay in the whole step.
        kind: "advantage" or "drop".
        temperature: > 0, of "advantage".

    Returns:
        A scalar in float32 or wider.

    Raises:
        ValueError: shapes that differ, another kind, a temperature out of range.

    Example:
        >>> logp, mask = torch.tensor([[-2.0], [-1.0], [-3.0]]), torch.ones(3, 1, dtype=torch.bool)
        >>> red_loss(logp, logp, torch.tensor([1.0, 0.0, 0.0]), mask, "drop")
        tensor(0.2500)

    Source: Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm, arXiv:2509.24203.
    """
    check_choice("kind", kind, SHAPES[1:])
    check_number("temperature", temperature, low=0.0, open_low=True)
    group = _shaped(_group(logp, old_logp, rewards, mask, group_ids, False), kind)
    losses = _weighted(group, -group.advantages[:, None] * group.logp, kind, temperature)
    return aggregate_tokens(losses, group.mask, "sequence_sum", num_items=num_items)


def pairwise_consistency_loss(
    logp: LogP,
    old_logp: LogP,
    rewards: Rewards,
    mask: Mask,
    tau: float = 0.1,
    *,
    group_ids: Ids = None,
    num_items: Items = None,
) -> Tensor:
    r"""Squared differences, within a group, of what is constant at the optimum of a KL-regularised reward.

    .. math:: L = \frac{1}{2 \tau K^2} \sum_{i < j} (a_i - a_j)^2, \qquad
        a_i = r_i - \tau (\log \pi_i - \log \pi^{old}_i)

    Its gradient where the policies agree is that of REINFORCE, for every tau. It is computed as the mean square of a
    less its group's mean over 2 tau; groups count by their answers.

    Args:
        logp, old_logp, rewards, mask, group_ids, num_items: as of :func:`rec_loss`.
        tau: weight of the divergence, > 0.

    Returns:
        A scalar in float32 or wider; groups of one add 0.

    Raises:
        ValueError: shapes that differ, tau <= 0.

    Example:
        >>> logp = torch.tensor([[-2.0], [-1.0]])
        >>> pairwise_consistency_loss(logp, logp, torch.tensor([1.0, 0.0]), torch.ones(2, 1, dtype=torch.bool), 0.5)
        tensor(0.2500)

    Source: Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm, arXiv:2509.24203.
    """
    check_number("tau", tau, low=0.0, open_low=True)
    group = _group(logp, old_logp, rewards, mask, group_ids, False)
    shift = (group.logp - group.old_logp).sum(1)
    sizes = group_totals(group.counts.to(shift.dtype), group.ids).clamp_min(1.0)
    deviation = shift - group_totals(torch.where(group.counts, shift, 0.0), group.ids) / sizes
    squares = (group.advantages - tau * deviation).square() / (2 * tau)
    return _of_answers(squares, group, num_items)


class GroupREINFORCE(PolicyLoss):
    """The family as a module: :func:`rec_loss` with a regulariser and a shape of the data.

    Args:
        clip: "none", "one-side", "two-side" or "ring".
        importance: whether terms carry the ratio.
        epsilon, epsilon_high, outer, outer_high: bounds of the ratio.
        regularizer: None, "opmd" (see :func:`opmd_loss`) or "asymre" (see :func:`asymre_loss`).
        coef: weight of the regulariser, >= 0.
        reweight: None, "advantage" or "drop" (see :func:`red_loss`).
        temperature: of "advantage", > 0.
        std_normalize: divide advantages by the deviation of the group + 1e-6.

    Example:
        >>> loss = GroupREINFORCE("two-side", regularizer="opmd", coef=0.5)
        >>> logp = torch.tensor([[-2.0], [-1.0]])
        >>> loss(logp, logp, torch.tensor([1.0, 0.0]), torch.ones(2, 1, dtype=torch.bool))
        tensor(0.2500)
    """

    name = "group_reinforce"
    gradient = "surrogate"
    grouped = True
    mode = "sequence_sum"
    alternatives = {
        "clip": "two-side",
        "importance": True,
        "epsilon": 0.01,
        "epsilon_high": 0.01,
        "outer": 0.25,
        "outer_high": 0.3,
        "regularizer": "opmd",
        "coef": 0.7,
        "reweight": "advantage",
        "temperature": 0.3,
        "std_normalize": True,
    }

    def __init__(
        self,
        clip: str = "none",
        importance: bool = False,
        epsilon: float = 0.2,
        epsilon_high: float = 0.2,
        outer: float = 0.6,
        outer_high: float = 2.0,
        regularizer: str | None = None,
        coef: float = 0.1,
        reweight: str | None = None,
        temperature: float = 1.0,
        std_normalize: bool = False,
    ) -> None:
        super().__init__()
        _check_clip(clip, importance, epsilon, epsilon_high, outer, outer_high)
        check_choice("regularizer", regularizer, REGULARIZERS)
        check_number("coef", coef, low=0.0)
        check_choice("reweight", reweight, SHAPES)
        check_number("temperature", temperature, low=0.0, open_low=True)
        check_flag("std_normalize", std_normalize)
        if reweight == "drop" and std_normalize:
            refuse("std_normalize", 'False with reweight="drop"', std_normalize)
        self.clip, self.importance = clip, importance
        self.epsilon, self.epsilon_high, self.outer, self.outer_high = epsilon, epsilon_high, outer, outer_high
        self.regularizer, self.coef, self.reweight, self.temperature = regularizer, coef, reweight, temperature
        self.std_normalize = std_normalize

    def forward(
        self,
        logp: LogP,
        old_logp: LogP,
        rewards: Rewards,
        mask: Mask,
        *,
        group_ids: Ids = None,
        num_items: Items = None,
    ) -> Tensor:
        """The loss of log-probabilities, rewards, a mask and the prompts of answers."""
        if self.reweight == "drop" and num_items is not None:
            refuse("num_items", 'None with reweight="drop", whose count is that of the answers that stay', num_items)
        group = _group(logp, old_logp, rewards, mask, group_ids, self.std_normalize)
        group = _shaped(group, self.reweight)
        bounds = (self.epsilon, self.epsilon_high, self.outer, self.outer_high)
        losses = _clipped_terms(group, self.clip, self.importance, bounds)
        losses = _weighted(group, losses, self.reweight, self.temperature)
        loss = aggregate_tokens(losses, group.mask, "sequence_sum", num_items=num_items)
        if self.regularizer is None:
            return loss
        return loss + self.coef * _of_answers(_penalties(group, self.regularizer), group, num_items)

    @classmethod
    def instances(cls) -> list[Self]:
        """Each way to clip with and without the ratio, each regulariser, each shape of the data."""
        clipped = [cls(clip, importance) for clip in CLIPS for importance in (False, True)]
        regular = [cls(regularizer=name, coef=0.3) for name in REGULARIZERS[1:]]
        return [*clipped, *regular, cls(reweight="advantage"), cls("one-side", True, std_normalize=True)]

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """Two prompts, one of whose answers is empty."""
        (logp, old, _, mask), _ = policy_batch(generator, dtype, device)
        rewards = torch.tensor([1.0, -0.25, 0.5, 2.0, 0.0], dtype=dtype, device=device)
        named = {"group_ids": torch.tensor([0, 0, 1, 1, 1], device=device)}
        return [(loss, ((logp, old, rewards, mask), named)) for loss in cls.instances()]


def _check_clip(
    clip: str, importance: bool, epsilon: float, epsilon_high: float, outer: float, outer_high: float
) -> None:
    check_choice("clip", clip, CLIPS)
    check_flag("importance", importance)
    check_number("epsilon", epsilon, low=0.0, high=1.0)
    check_number("epsilon_high", epsilon_high, low=0.0)
    check_number("outer", outer, low=epsilon, high=1.0)
    check_number("outer_high", outer_high, low=epsilon_high)


def _group(
    logp: Tensor, old_logp: Tensor, rewards: Tensor, mask: Tensor, group_ids: Tensor | None, std_normalize: bool
) -> _Group:
    check_tensor("rewards", rewards, ndim=1, floating=True)
    check_flag("std_normalize", std_normalize)
    if group_ids is None:
        group_ids = torch.zeros(len(rewards), dtype=torch.int64, device=rewards.device)
    check_groups(rewards, group_ids)
    batch = policy_inputs(logp, old_logp, rewards, mask)
    counts, own = batch.mask.any(1), widen(rewards.detach()).to(batch.logp)
    scale = "group" if std_normalize else "none"
    advantages = group_advantages(own, group_ids, scale, eps=1e-6, valid=counts)
    return _Group(batch.logp, batch.old_logp, batch.mask, own, group_ids.long(), counts, advantages)


def _clipped_terms(group: _Group, clip: str, importance: bool, bounds: tuple[float, float, float, float]) -> Tensor:
    """-M A rho or -M A log pi, one a token; what is not a number stays so."""
    log_ratio, advantages = group.logp - group.old_logp, group.advantages[:, None]
    terms = -advantages * (saturating_exp(log_ratio) if importance else group.logp)
    if clip == "none":
        return terms
    low, high, outer, outer_high = bounds
    ratio = log_ratio.detach().exp()
    above, below = ratio > 1 + high, ratio < 1 - low
    if clip == "one-side":
        outside = ((advantages > 0) & above) | ((advantages < 0) & below)
    else:
        outside = above | below
        if clip == "ring":
            far = ((advantages > 0) & (ratio <= 1 - outer)) | ((advantages < 0) & (ratio >= 1 + outer_high))
            outside = outside & ~far
    return torch.where(outside, 0.0, terms)


def _shaped(group: _Group, reweight: str | None) -> _Group:
    """With "drop" without the surplus of answers below their group's mean."""
    if reweight != "drop":
        return group
    rewards = torch.where(group.counts, group.rewards.abs(), 0.0)
    largest = rewards.new_zeros(len(rewards)).scatter_reduce(0, group.ids, rewards, "amax")[group.ids]
    rounding = 8 * torch.finfo(rewards.dtype).eps * largest  # of a mean: equal rewards lie at it
    above, below = group.advantages > rounding, group.advantages < -rounding
    order = torch.argsort(group.ids, stable=True)
    running = below[order].long().cumsum(0)
    rank = torch.empty_like(running).scatter(0, order, running)
    first = torch.full_like(rank, len(rank)).scatter_reduce(0, group.ids, rank - below.long(), "amin")
    winners = group_totals(above.long(), group.ids)
    stays = group.counts & (~below | (rank - first[group.ids] <= winners) | (winners == 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of single answers was warned before
        advantages = group_advantages(group.rewards, group.ids, valid=stays)
    return group._replace(counts=stays, mask=group.mask & stays[:, None], advantages=advantages)


def _weighted(group: _Group, losses: Tensor, reweight: str | None, temperature: float) -> Tensor:
    return losses * (group.advantages[:, None] / temperature).exp() if reweight == "advantage" else losses


def _penalties(group: _Group, regularizer: str) -> Tensor:
    """Of each answer, from its whole log-ratio."""
    shift = (group.logp - group.old_logp).sum(1)
    return 0.5 * shift.square() if regularizer == "opmd" else -shift


def _of_answers(values: Tensor, group: _Group, num_items: Items) -> Tensor:
    """The mean of what each answer adds."""
    return aggregate_tokens(values[:, None], group.counts[:, None], "sequence_sum", num_items=num_items)


def _regularized(
    logp: Tensor,
    old_logp: Tensor,
    rewards: Tensor,
    mask: Tensor,
    regularizer: str,
    coef: float,
    name: str,
    group_ids: Tensor | None,
    num_items: Items,
) -> Tensor:
    check_number(name, coef, low=0.0)
    group = _group(logp, old_logp, rewards, mask, group_ids, False)
    losses = -group.advantages[:, None] * group.logp
    loss = aggregate_tokens(losses, group.mask, "sequence_sum", num_items=num_items)
    return loss + coef * _of_answers(_penalties(group, regularizer), group, num_items)
