"""The contract of losses of sampled tokens under two policies, and what all of them do to their inputs first."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, NamedTuple, Self

import torch
from jaxtyping import Bool
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from .checks import check_tensor
from .loss import Loss, Sample
from .reductions import widen
from .token_reductions import count_items as count_items
from .token_reductions import masked


class PolicyInputs(NamedTuple):
    """What counts of a batch, in float32 or wider; 0 where the mask is false.

    Attributes:
        logp: of the policy ``[B, T]``, the only one that has a gradient.
        old_logp: of the policy that drew the tokens.
        advantages: one a token.
        mask: boolean.
        ref_logp: of the reference, or None.
    """

    logp: Tensor
    old_logp: Tensor
    advantages: Tensor
    mask: Tensor
    ref_logp: Tensor | None


def policy_inputs(
    logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, ref_logp: Tensor | None = None
) -> PolicyInputs:
    """Checked inputs, widened, with whatever the mask excludes set to 0 before any exponential sees it.

    Args:
        logp, old_logp, ref_logp: log-probabilities of the sampled tokens ``[B, T]``.
        advantages: ``[B]``, one a row, or ``[B, T]``.
        mask: valid tokens ``[B, T]``, boolean or integer.

    Raises:
        ValueError: shapes that differ.
        TypeError: what is not floating, or a floating mask.

    >>> row = torch.tensor([[-1.0, float("nan")]])
    >>> policy_inputs(row, row, torch.tensor([2.0]), torch.tensor([[True, False]])).advantages
    tensor([[2., 0.]])
    """
    check_tensor("logp", logp, ndim=2, floating=True)
    shape = tuple(logp.shape)
    check_tensor("old_logp", old_logp, floating=True, shape=shape)
    check_tensor("mask", mask, floating=False, shape=shape)
    check_tensor("advantages", advantages, floating=True, ndim=(1, 2))
    check_tensor("advantages", advantages, shape=shape[: advantages.ndim])
    if ref_logp is not None:
        check_tensor("ref_logp", ref_logp, floating=True, shape=shape)
    valid, policy = mask.bool(), widen(logp)

    def constant(values: Tensor) -> Tensor:
        values = values.detach().to(policy)
        return masked(values[:, None] if values.ndim == 1 else values, valid)

    return PolicyInputs(
        masked(policy, valid),
        constant(old_logp),
        constant(advantages),
        valid,
        None if ref_logp is None else constant(ref_logp),
    )


def spread(values: Tensor, mask: Tensor, segments: Tensor | None = None) -> Tensor:
    """What :func:`~steepest.core.token_reductions.sequence_sums` gave, for each token that of its sequence ``[B, T]``.

    >>> spread(torch.tensor([1.0, 2.0]), torch.ones(2, 2, dtype=torch.bool))
    tensor([[1., 1.],
            [2., 2.]])
    """
    if segments is None:
        return values[:, None].expand(mask.shape)
    rows, steps = mask.shape
    first = steps * torch.arange(rows, device=mask.device)[:, None]
    return values[torch.where(mask.bool(), segments, 0).long() + first]


class PolicyLoss(Loss):
    """A loss of log-probabilities of sampled tokens, of the policy and of the one that drew them.

    ``loss(logp, old_logp, advantages, mask, *, ref_logp=None, num_items=None, segments=None)``: tensors ``[B, T]``,
    advantages ``[B]`` or ``[B, T]``; a loss without a reference takes no ``ref_logp``, one of groups no ``segments``.
    Old and reference log-probabilities and advantages get no gradient. What the mask excludes may be anything. Nothing
    valid: 0 that carries a graph. The parts of a step, each with ``num_items`` the sum of :meth:`count_items` over
    all of them, add up to the loss of the whole.

    Class attributes:
        alternatives: for each argument of the constructor another value; each must change the value or the gradient of
            some sample, or be refused.
        grouped: whether rows belong to groups (``group_ids=``) that a step may not be split within; then the third
            argument is one reward a row.
    """

    alternatives: ClassVar[dict[str, Any]] = {}
    grouped: ClassVar[bool] = False
    mode = "token_mean"

    def count_items(self, mask: Tensor, segments: Tensor | None = None) -> Tensor:
        """What this batch counts for: the sum over all batches of a step is its ``num_items``."""
        return count_items(mask, self.mode, segments)

    @classmethod
    def instances(cls) -> list[Self]:
        """What the suite runs on."""
        return [cls()]

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        args, kwargs = policy_batch(generator, dtype, device)
        taken = inspect.signature(cls.forward).parameters
        named = {name: value for name, value in kwargs.items() if name in taken}
        return [(loss, (args, named)) for loss in cls.instances()]


def policy_batch(generator: torch.Generator, dtype: torch.dtype, device: str | torch.device) -> Sample:
    """A small valid batch with a reference: advantages of both signs, ratios inside and outside of usual bounds."""

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    logp = -0.2 - drawn(5, 6).abs()
    old, ref = (logp + 0.4 * drawn(5, 6) for _ in range(2))
    old[:2, :2] = logp[:2, :2] + torch.tensor([-0.35, 0.35])
    advantages = torch.cat([torch.tensor([0.8, -0.9], dtype=torch.float64), drawn(3)])
    lengths = torch.tensor([6, 3, 1, 0, 4])
    mask = torch.arange(6) < lengths[:, None]
    mask[0, 2] = False
    tensors: tuple[F[Tensor, "b t"], F[Tensor, "b t"], Tensor, F[Tensor, "b t"]] = (logp, old, advantages, ref)
    logp, old, advantages, ref = (t.to(device, dtype) for t in tensors)
    return (logp, old, advantages, mask.to(device)), {"ref_logp": ref}


Mask = Bool[Tensor, "batch time"] | I[Tensor, "batch time"]
"""Valid tokens."""
