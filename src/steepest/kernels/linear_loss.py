"""Any loss of single rows on a linear head whose logits never exist as a whole."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from ..core.checks import check_choice, check_number, refuse_type
from ..core.closed_form import with_gradient
from ._head import Job, check_cap, check_head
from ._rows import select
from .cut_cross_entropy import linear_cross_entropy

FusedRow = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``(logits [r, V], target [r]) -> (loss [r], its gradient in the logits [r, V])``."""


def linear_loss(
    hidden: F[Tensor, "*batch width"],
    weight: F[Tensor, "classes width"],
    target: I[Tensor, "*batch"],
    fused_row: FusedRow,
    *,
    bias: F[Tensor, " classes"] | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    softcap: float | None = None,
    temperature: float = 1.0,
    token_weight: F[Tensor, "*batch"] | None = None,
    shift: int = 0,
    num_items: float | Tensor | None = None,
    memory: str | int | float = "auto",
    valid_rows: int | None = None,
) -> Tensor:
    r"""The weighted mean over tokens of a loss of softcap(h W' + b) / temperature, a chunk of rows at a time.

    The contract of ``fused_row``: it gets the logits ``[r, V]`` of some tokens in float32 or wider and their classes
    ``[r]``, and gives their losses ``[r]`` and the gradient ``[r, V]`` of each loss in its own logits. It sees every
    token that counts once (twice where the logits must be formed again), ignored ones never. Every
    :class:`~steepest.core.objective.Objective` of unit "sample" has one.

    Args:
        hidden: h ``[..., D]``.
        weight: W ``[V, D]`` of the same type.
        target: class indices ``[...]`` in 0..V-1 or ``ignore_index``.
        fused_row: the loss and its gradient.
        bias, ignore_index, softcap, temperature, token_weight, shift, num_items, memory, valid_rows: as of
            :func:`~steepest.kernels.linear_cross_entropy`.
        reduction: ``"none"``, ``"mean"`` (over the weights of tokens, or ``num_items``) or ``"sum"``.

    Returns:
        The loss in float32 or wider; 0 where no token counts.

    Raises:
        ValueError: shapes that don't belong together, a class out of range, an option out of range.

    Example:
        >>> import torch
        >>> from steepest.losses import FocalLoss
        >>> h, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> linear_loss(h, w, torch.tensor([2]), FocalLoss(gamma=2.0).fused_row)
        tensor(0.0457)
    """
    check_head(hidden, weight, bias)
    check_cap(softcap, temperature)
    check_choice("reduction", reduction, ("none", "mean", "sum"))
    if not callable(fused_row):
        refuse_type("fused_row", "a function of logits and target", fused_row)
    rows = select(
        hidden,
        target,
        classes=weight.shape[0],
        ignore_index=ignore_index,
        shift=shift,
        weight=token_weight,
        valid_rows=valid_rows,
    )

    def rule(z: Tensor, g: Tensor, part: slice) -> Tensor:
        losses, slope = fused_row(z, rows.target[part])
        g.copy_(slope)
        return losses.detach()

    def dense(z: Tensor) -> Tensor:
        losses, slope = fused_row(z.detach(), rows.target)
        return with_gradient(losses.detach(), (z,), lambda: (slope.detach(),), "a loss given with its gradient")

    job = Job(
        rows,
        weight,
        bias,
        rule,
        dense,
        reduction != "none",
        softcap=softcap,
        temperature=temperature,
        memory=memory,
        pieces=4,
    )
    losses = job.losses()
    if reduction != "mean":
        return rows.spread(losses) if reduction == "none" else losses
    if num_items is None:
        return losses / rows.total(losses)
    if not isinstance(num_items, Tensor):
        check_number("num_items", num_items, low=0.0, open_low=True)
    return losses / num_items


def linear_log_probability(
    hidden: F[Tensor, "*batch width"],
    weight: F[Tensor, "classes width"],
    target: I[Tensor, "*batch"],
    *,
    bias: F[Tensor, " classes"] | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    temperature: float = 1.0,
    shift: int = 0,
    memory: str | int | float = "auto",
) -> F[Tensor, "*batch"]:
    """log p of each token's target, differentiable; 0 where a token is ignored.

    Args:
        hidden: h ``[..., D]``.
        weight: W ``[V, D]`` of the same type.
        target: class indices ``[...]`` in 0..V-1 or ``ignore_index``.
        bias, ignore_index, softcap, temperature, shift, memory: as of :func:`~steepest.kernels.linear_cross_entropy`.

    Example:
        >>> import torch
        >>> h, w = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> linear_log_probability(h, w, torch.tensor([2])).exp()
        tensor([0.6652])
    """
    losses = linear_cross_entropy(
        hidden,
        weight,
        target,
        bias=bias,
        ignore_index=ignore_index,
        softcap=softcap,
        temperature=temperature,
        shift=shift,
        memory=memory,
        reduction="none",
    )
    assert isinstance(losses, Tensor)
    return -losses
