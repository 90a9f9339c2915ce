"""Delta L normalisation: how token losses of answers of different lengths are averaged with the least variance."""

from __future__ import annotations

from typing import Self

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ...core.checks import check_choice, check_interval, check_number, check_tensor, refuse, values_visible
from ...core.group_policy import clipped_surrogate
from ...core.policy_loss import Mask, PolicyLoss, count_items, policy_inputs, spread
from ...core.reductions import widen
from ...core.token_reductions import aggregate_tokens, masked, sequence_sums

MODES = {
    "delta_l": "constant",
    "grpo": "sequence_mean_token_mean",
    "dapo": "token_mean",
    "dr_grpo": "constant",
}
"""The aggregation under each name; "delta_l" weighs the answers first."""
ALPHA = 0.75


def delta_l_weights(lengths: Tensor, alpha: float = 1.0, max_length: float = 1.0) -> F[Tensor, " answers"]:
    r"""Weights of the summed token losses of answers, from their lengths.

    .. math:: x_i = \frac1M \frac{L_i^{-\alpha}}{\sum_j L_j^{-\alpha}}

    Where the sums have a common mean and variances proportional to the lengths, every weighting with this total is
    unbiased up to a constant, and alpha = 1 has the least variance.

    Args:
        lengths: numbers of tokens L >= 0 ``[G]``, of all answers of a step.
        alpha: in [0, 1].
        max_length: M > 0, a constant such as the longest answer that is allowed.

    Returns:
        ``[G]`` in float32 or wider, with the sum 1 / M and without a gradient; 0 for answers without a token.

    Raises:
        ValueError: a length < 0, none above 0, a number out of range.

    Example:
        >>> delta_l_weights(torch.tensor([2, 4, 8]))
        tensor([0.5714, 0.2857, 0.1429])

    Source: Delta L Normalization: Rethink Loss Aggregation in RLVR; code zerolllin/Delta-L-Normalization.
    """
    check_tensor("lengths", lengths, ndim=1)
    _check_alpha(alpha)
    check_number("max_length", max_length, low=0.0, open_low=True)
    sizes = widen(lengths.detach()) if lengths.is_floating_point() else lengths.float()
    check_interval("lengths", sizes, 0.0, rounding=0.0)
    if values_visible(sizes) and not bool((sizes != 0).any()):
        refuse("lengths", "an answer with a token", lengths)
    powers = _powers(sizes, alpha)
    return powers / (powers.sum() * max_length)


def aggregate_policy_loss(
    token_loss: F[Tensor, "batch time"],
    mask: Mask,
    mode: str = "delta_l",
    alpha: float | None = None,
    max_length: float | None = None,
    *,
    num_items: float | Tensor | None = None,
    segments: I[Tensor, "batch time"] | None = None,
) -> Tensor:
    r"""One number of the token losses of answers, :math:`\sum_i x_i \sum_t \ell_{it}` over G answers of lengths L.

    ========  =============================  =======================================================
    mode      x_i                            what the weights do
    ========  =============================  =======================================================
    delta_l   see :func:`delta_l_weights`    unbiased, of low variance
    dr_grpo   1 / (G M)                      unbiased, alpha = 0 of the above
    grpo      1 / (G L_i)                    their sum depends on the lengths
    dapo      1 / sum_j L_j                  their sum depends on the lengths
    ========  =============================  =======================================================

    Args:
        token_loss: ``[B, T]``; NaN and inf do no harm where the mask is false.
        mask: tokens that count ``[B, T]``; a length is their number.
        mode: one of the names.
        alpha: of "delta_l" alone, in [0, 1]; None is .75.
        max_length: M > 0, of "delta_l" and "dr_grpo", which need it, and of no other; never the padded width.
        num_items: the count of a whole step where this batch is a part of it: of "delta_l" the sum of L^-alpha over its
            answers, of "dapo" its tokens, of the others its answers.
        segments: which sequence of its row a token is of, in packed rows.

    Returns:
        A scalar in float32 or wider; 0 with a graph where nothing is valid. Weights carry no gradient.

    Raises:
        ValueError: another mode, shapes that differ, a length or an alpha that the mode lacks or does not have.

    Example:
        >>> losses, mask = torch.ones(2, 3), torch.tensor([[True, True, True], [True, False, False]])
        >>> aggregate_policy_loss(losses, mask, "delta_l", alpha=1.0, max_length=3.0)
        tensor(0.5000)

    Source: Delta L Normalization: Rethink Loss Aggregation in RLVR; code zerolllin/Delta-L-Normalization.
    """
    _check_mode(mode, alpha, max_length)
    check_tensor("token_loss", token_loss, ndim=2, floating=True)
    check_tensor("mask", mask, floating=False, shape=tuple(token_loss.shape))
    losses, valid = masked(widen(token_loss), mask.bool()), mask.bool()
    if mode == "delta_l":
        powers = _length_powers(valid, ALPHA if alpha is None else alpha, segments, losses)
        losses = losses * spread(powers, valid, segments)
        if num_items is None:
            total = powers.sum()
            num_items = torch.where(total > 0, total, 1.0)
    return aggregate_tokens(losses, valid, MODES[mode], num_items=num_items, length=max_length, segments=segments)


class DeltaLNormalization(PolicyLoss):
    """The clipped surrogate of a policy gradient, averaged by lengths; see :func:`aggregate_policy_loss`.

    Advantages are rewards less the mean of their group, without a deviation. The parts of a step are given, as
    ``num_items``, the sum of :meth:`count_items` over all of it.

    Args:
        max_length: M > 0 of "delta_l" and "dr_grpo", such as the longest answer that is allowed.
        mode: "delta_l", "grpo", "dapo" or "dr_grpo".
        alpha: of "delta_l", in [0, 1]; None is .75, which keeps more of the long answers than 1.
        epsilon, epsilon_high: bounds 1 - epsilon and 1 + epsilon_high of the ratio; None is ``epsilon``.

    Example:
        >>> loss = DeltaLNormalization(max_length=4.0, alpha=1.0)
        >>> logp, mask = torch.zeros(2, 3), torch.tensor([[True, True, True], [True, False, False]])
        >>> loss(logp, logp, torch.tensor([1.0, -1.0]), mask)
        tensor(0.)
        >>> loss.count_items(mask)
        tensor(1.3333)
    """

    name = "delta_l"
    alternatives = {"max_length": 7.0, "mode": "dr_grpo", "alpha": 0.5, "epsilon": 0.05, "epsilon_high": 0.03}

    def __init__(
        self,
        max_length: float | None = None,
        mode: str = "delta_l",
        alpha: float | None = None,
        epsilon: float = 0.2,
        epsilon_high: float | None = None,
    ) -> None:
        super().__init__()
        _check_mode(mode, alpha, max_length)
        check_number("epsilon", epsilon, low=0.0, high=1.0)
        if epsilon_high is not None:
            check_number("epsilon_high", epsilon_high, low=0.0)
        self.max_length, self.mode, self.alpha = max_length, mode, alpha
        self.epsilon, self.epsilon_high = epsilon, epsilon_high

    def count_items(self, mask: Mask, segments: I[Tensor, "batch time"] | None = None) -> Tensor:
        """What a batch counts for: the sum of L^-alpha over its answers, or their number, or that of tokens."""
        if self.mode == "delta_l":
            like = torch.zeros((), device=mask.device)
            return _length_powers(mask, ALPHA if self.alpha is None else self.alpha, segments, like).sum()
        return count_items(mask, MODES[self.mode], segments)

    def forward(
        self,
        logp: F[Tensor, "batch time"],
        old_logp: F[Tensor, "batch time"],
        advantages: Tensor,
        mask: Mask,
        *,
        num_items: float | Tensor | None = None,
        segments: I[Tensor, "batch time"] | None = None,
    ) -> Tensor:
        """The loss of log-probabilities, advantages and a mask."""
        batch = policy_inputs(logp, old_logp, advantages, mask)
        losses = clipped_surrogate(
            batch.logp - batch.old_logp,
            batch.logp,
            batch.advantages,
            epsilon=self.epsilon,
            epsilon_high=self.epsilon_high,
        )
        return aggregate_policy_loss(
            losses, batch.mask, self.mode, self.alpha, self.max_length, num_items=num_items, segments=segments
        )

    @classmethod
    def instances(cls) -> list[Self]:
        """Each aggregation, and the power with the least variance."""
        return [cls(6.0), cls(6.0, alpha=1.0), cls(mode="grpo"), cls(mode="dapo"), cls(6.0, "dr_grpo")]


def _check_alpha(alpha: float) -> None:
    check_number("alpha", alpha, low=0.0, high=1.0)


def _check_mode(mode: str, alpha: float | None, max_length: float | None) -> None:
    check_choice("mode", mode, MODES)
    if alpha is not None:
        if mode != "delta_l":
            refuse("alpha", f'None with mode="{mode}"', alpha)
        _check_alpha(alpha)
    if (max_length is None) == (MODES[mode] == "constant"):
        refuse("max_length", 'a number with mode="delta_l" or "dr_grpo" and with no other', max_length)
    if max_length is not None:
        check_number("max_length", max_length, low=0.0, open_low=True)


def _powers(lengths: Tensor, alpha: float) -> Tensor:
    """L^-alpha; 0 of what is empty."""
    return torch.where(lengths == 0, 0.0, lengths.masked_fill(lengths == 0, 1.0) ** -alpha)


def _length_powers(mask: Tensor, alpha: float, segments: Tensor | None, like: Tensor) -> Tensor:
    """L^-alpha of each sequence, in the type of a tensor."""
    _, counts = sequence_sums(torch.zeros(mask.shape, dtype=like.dtype, device=mask.device), mask, segments)
    return _powers(counts, alpha)
