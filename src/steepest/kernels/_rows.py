"""Which tokens count: shifts, ignored targets and weights, resolved before the matrix products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.checks import check_number, check_range, check_tensor, refuse, refuse_type, values_visible
from ..core.transforms import concrete


@dataclass(frozen=True)
class Rows:
    """The tokens that count.

    Args:
        hidden: their hidden states ``[n, D]``.
        target: their classes ``[n]``, probabilities ``[n, V]`` or top-k classes ``[n, k]``.
        share: probabilities ``[n, k]`` of top-k classes, or None.
        factor: their weights ``[n]``, or None for ones.
        index: their positions among all targets, or None for all in order.
        shape: of the targets.
    """

    hidden: Tensor
    target: Tensor
    share: Tensor | None
    factor: Tensor | None
    index: Tensor | None
    shape: torch.Size

    def __len__(self) -> int:
        return len(self.hidden)

    def total(self, like: Tensor) -> Tensor:
        """The sum of their weights, what a mean divides by; 1 where none counts."""
        sum_of_factors = like.new_full((), len(self)) if self.factor is None else self.factor.to(like.dtype).sum()
        return torch.where(sum_of_factors > 0, sum_of_factors, 1.0)

    def spread(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Values ``[n]`` in the shape of the targets."""
        if self.index is None:
            return values.reshape(self.shape)
        full = values.new_full((self.shape.numel(),), fill)
        return full.index_put((self.index,), values).reshape(self.shape)


def select(
    hidden: Tensor,
    target: Tensor | tuple[Tensor, Tensor],
    *,
    classes: int,
    ignore_index: int = -100,
    shift: int = 0,
    weight: Tensor | None = None,
    valid_rows: int | None = None,
) -> Rows:
    """Check targets and leave out the tokens without one, or with weight 0."""
    check_number("shift", shift, low=0, integer=True)
    check_number("ignore_index", ignore_index, integer=True)
    share = None
    if isinstance(target, tuple):
        target, share = target
        check_tensor("target[1]", share, floating=True)
        check_tensor("target[0]", target, floating=False, shape=tuple(share.shape))
    check_tensor("target", target)
    for tensor in (target, share, weight):
        if tensor is not None and tensor.requires_grad and torch.is_grad_enabled():
            refuse("target and token_weight", "tensors without a gradient, which they would not get", tensor)
    lead = hidden.shape[:-1]
    soft = target.is_floating_point()
    if (target.shape[:-1] if soft or share is not None else target.shape) != lead:
        refuse("target", f"the leading shape {tuple(lead)} of hidden", target)
    if soft and target.shape[-1] != classes:
        refuse("target", f"{classes} probabilities in the last dimension", target)
    if target.dtype == torch.bool:
        refuse_type("target", "class indices or probabilities", target)
    if weight is not None:
        check_tensor("token_weight", weight, shape=tuple(lead))
        if weight.numel() and values_visible(weight) and bool((weight < 0).any()):
            refuse("token_weight", "values >= 0", float(weight.min()))
    last = target.shape[len(lead) :]
    where: Tensor | None = None
    if shift:
        if not lead or lead[-1] <= shift:
            refuse("shift", f"less than the {lead[-1] if lead else 0} positions of hidden", shift)
        steps = lead[-1]
        where = torch.arange(lead.numel(), device=hidden.device).reshape(lead)[..., :-shift].reshape(-1)
        cut = (..., slice(shift, None), *[slice(None)] * len(last))
        target = target[cut]
        share = None if share is None else share[cut]
        weight = None if weight is None else weight[..., shift:]
        lead = torch.Size((*lead[:-1], steps - shift))
    target = target.reshape(-1, *last)
    share = None if share is None else share.reshape(-1, *last)
    factor = None if weight is None else weight.detach().reshape(-1)
    flat = hidden.reshape(-1, hidden.shape[-1])
    valid = None if last else target != ignore_index
    if not soft:
        check_range("target", target, 0, classes - 1, ignore_index=None if last else ignore_index)
    if factor is not None:
        valid = factor > 0 if valid is None else valid & (factor > 0)
    index = None
    if valid is not None:
        free = concrete(valid, hidden)
        if free and valid.device.type == "cpu":
            index = None if bool(valid.all()) else valid.nonzero().squeeze(1)
        else:
            if free and valid_rows is not None:
                check_number("valid_rows", valid_rows, low=0, integer=True)
                index = torch.argsort((~valid).to(torch.uint8), stable=True)[:valid_rows]
            counted = valid if factor is None else factor * valid
            factor = counted.to(torch.promote_types(counted.dtype, torch.float32))
            target = target if last else target.masked_fill(~valid, 0)
    if index is not None:
        target, where = target[index], index if where is None else where[index]
        share = None if share is None else share[index]
        factor = None if factor is None else factor[index]
    taken = flat if where is None else flat.index_select(0, where)
    return Rows(taken, target if soft else target.long(), share, factor, index, lead)
