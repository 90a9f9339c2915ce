"""Advantages of answers to the same question: rewards less the mean of their group."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from .checks import check_choice, check_flag, check_number, check_range, check_tensor, refuse, values_visible
from .reductions import widen

SCALES = ("none", "group", "batch")


def check_groups(rewards: object, group_ids: object) -> None:
    """Check rewards ``[B]`` and the numbers 0..B-1 of their groups."""
    check_tensor("rewards", rewards, ndim=1, floating=True)
    assert isinstance(rewards, Tensor)
    check_tensor("group_ids", group_ids, shape=tuple(rewards.shape), floating=False)
    assert isinstance(group_ids, Tensor)
    check_range("group_ids", group_ids, 0, len(rewards) - 1)


def group_totals(values: Tensor, group_ids: Tensor) -> Tensor:
    """For each row the sum over its group ``[B]``."""
    ids = group_ids.long()
    return torch.zeros_like(values).index_add(0, ids, values)[ids]


def warn_of_singles(group_ids: Tensor, valid: Tensor) -> None:
    """One warning if some groups have one answer, where that may be looked at."""
    if group_ids.numel() and values_visible(group_ids, valid):
        alone = int(((group_totals(valid.long(), group_ids) == 1) & valid).sum())
        if alone:
            warnings.warn(
                f"{alone} groups have a single answer: their advantage is 0 and they teach nothing", stacklevel=3
            )


def group_advantages(
    rewards: F[Tensor, " batch"],
    group_ids: I[Tensor, " batch"],
    scale_rewards: str = "none",
    *,
    leave_one_out: bool = False,
    eps: float = 1e-4,
    valid: Bool[Tensor, " batch"] | None = None,
) -> F[Tensor, " batch"]:
    r"""Rewards less the mean of their group, as they are or in standard deviations.

    .. math:: A_i = r_i - \bar r_{g(i)}, \qquad A_i = \frac{r_i - \bar r_{g(i)}}{s + \epsilon}

    Rewards are centred before anything is squared, and the mean is corrected once: equal rewards give exactly 0.

    Args:
        rewards: ``[B]``, one an answer.
        group_ids: numbers 0..B-1 of the groups ``[B]``, in any order.
        scale_rewards: "none"; "group": by the deviation of the group (unbiased); "batch": by that of all rewards.
        leave_one_out: the mean is that of the other answers, A_i = K / (K - 1) (r_i - mean) in a group of K; with
            "group" it is refused: the deviation of the others may be 0 where the answer differs from them.
        eps: added to a deviation, > 0.
        valid: answers that count, boolean ``[B]``, or None for all; others have 0, whatever their reward is.

    Returns:
        ``[B]`` in float32 or wider, without a gradient. A group of one has 0; one warning says so.

    Raises:
        ValueError: another scale, shapes that differ, a number of a group out of range.

    >>> group_advantages(torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0, 0, 0, 0]))
    tensor([ 0.5000, -0.5000,  0.5000, -0.5000])
    """
    check_groups(rewards, group_ids)
    check_choice("scale_rewards", scale_rewards, SCALES)
    check_flag("leave_one_out", leave_one_out)
    check_number("eps", eps, low=0.0, open_low=True)
    if leave_one_out and scale_rewards == "group":
        refuse("scale_rewards", '"none" or "batch" with leave_one_out', scale_rewards)
    if valid is None:
        valid = torch.ones_like(group_ids, dtype=torch.bool)
    check_tensor("valid", valid, shape=tuple(rewards.shape), floating=False)
    valid = valid.bool()
    warn_of_singles(group_ids, valid)
    ids, values = group_ids.long(), widen(rewards.detach())
    sizes = group_totals(valid.to(values.dtype), ids)
    centred = _centred(values, ids, valid, sizes)
    if leave_one_out:
        centred = centred * (sizes / (sizes - 1).clamp_min(1.0))
    if scale_rewards == "none":
        return centred
    if scale_rewards == "batch":
        deviation = _deviation(values, valid)
    else:
        deviation = (group_totals(centred.square(), ids) / (sizes - 1).clamp_min(1.0)).sqrt()
    return centred / (deviation + eps)


def _centred(values: Tensor, ids: Tensor, valid: Tensor, sizes: Tensor) -> Tensor:
    """Values less the mean of their group, that mean corrected once; exactly 0 where all of a group are equal."""
    centred = torch.where(valid, values, 0.0)
    for _ in range(2):
        centred = torch.where(valid, centred - group_totals(centred, ids) / sizes.clamp_min(1.0), 0.0)
    infinite = torch.full_like(values, torch.inf)
    least = infinite.scatter_reduce(0, ids, torch.where(valid, values, torch.inf), "amin")
    greatest = (-infinite).scatter_reduce(0, ids, torch.where(valid, values, -torch.inf), "amax")
    return torch.where((least == greatest)[ids], 0.0, centred)


def _deviation(values: Tensor, valid: Tensor) -> Tensor:
    """Of all that count, unbiased; 0 for one value."""
    one = torch.zeros_like(values, dtype=torch.int64)
    count = valid.to(values.dtype).sum()
    centred = _centred(values, one, valid, count.expand(values.shape))
    return (centred.square().sum() / (count - 1).clamp_min(1.0)).sqrt()
