"""The fused linear cross-entropy under the signatures of other libraries: change an import, keep the call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..core.checks import check_choice, check_tensor, refuse
from ..core.reductions import widen
from ._filter import GradientFilter
from ._ranks import GroupTotal, VocabularyShard
from ._rows import Rows, select
from .cut_cross_entropy import linear_cross_entropy, linear_logsumexp


def torch_linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    memory: str | int | float = "auto",
) -> Tensor:
    """``torch.nn.functional.linear_cross_entropy`` by :func:`~steepest.kernels.linear_cross_entropy`.

    Every option of class indices and of probabilities goes without a matrix of logits; losses over further dimensions
    (a weight of three dimensions or more), and those of probabilities that want a gradient, are torch's. Nothing valid
    gives NaN, as there. The result has the type of ``input``, as there.

    Args:
        input: ``[N, D]`` or ``[D]``.
        linear_weight: ``[C, D]``.
        target: class indices ``[N]`` or ``[]``, or probabilities ``[N, C]`` or ``[C]``.
        linear_bias: ``[C]``.
        weight: of classes ``[C]``.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        ignore_index: None is -100; of class indices only.
        label_smoothing: in [0, 1].
        options: how torch would go about it; not needed.
        memory: as of :func:`~steepest.kernels.linear_cross_entropy`.

    Example:
        >>> torch_linear_cross_entropy(torch.tensor([[1.0, 2.0]]), torch.eye(2), torch.tensor([1]))
        tensor(0.3133)
    """
    check_tensor("input", input, floating=True)
    check_tensor("linear_weight", linear_weight, floating=True)
    check_tensor("target", target)
    if target.is_floating_point() and ignore_index is not None:
        refuse("ignore_index", "None with probabilities", ignore_index)
    if linear_weight.ndim != 2 or input.ndim > 2 or target.requires_grad:
        theirs = getattr(functional, "linear_cross_entropy", None)
        if theirs is None and target.requires_grad:
            refuse("target", "no probabilities that want a gradient, with this version of torch", target)
        if theirs is None:
            refuse("linear_weight", "two dimensions, with this version of torch", linear_weight)
        more: dict[str, Any] = {} if ignore_index is None else {"ignore_index": ignore_index}
        their_loss: Tensor = theirs(
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            reduction=reduction,
            label_smoothing=label_smoothing,
            options=options,
            **more,
        )
        return their_loss
    one = input.ndim == 1
    loss = linear_cross_entropy(
        input.unsqueeze(0) if one else input,
        linear_weight,
        target.unsqueeze(0) if one else target,
        bias=linear_bias,
        ignore_index=-100 if ignore_index is None else ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        class_weight=weight,
        memory=memory,
        empty="nan",
    )
    assert isinstance(loss, Tensor)
    loss = loss.squeeze(0) if one and reduction == "none" else loss
    return loss.to(input.dtype)


def cce_linear_cross_entropy(
    e: Tensor,
    c: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    reduction: str = "mean",
    shift: bool | int = 0,
    return_lse: bool = False,
    filter_eps: float | str | None = "auto",
    accum_e_fp32: bool = False,
    accum_c_fp32: bool = False,
    filter_e_grad: bool = True,
    filter_c_grad: bool = True,
    impl: object = None,
    vocab_parallel_options: Any = None,
    *,
    memory: str | int | float = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """``cut_cross_entropy.linear_cross_entropy`` by :func:`~steepest.kernels.linear_cross_entropy`.

    Sums are in float32 whatever ``accum_*`` says, and gradients are exact unless both are filtered in a half type: in
    float32 the threshold 2^-28 saves nothing. What the filter drops gets its rank-one tail. ``return_lse`` gives the
    log-partition with its gradient, as there. Half inputs give a float32 loss.

    Args:
        e: hidden states ``[..., D]``.
        c: classifier ``[V, D]``; this rank's part with ``vocab_parallel_options``.
        targets: ``[...]``.
        bias, ignore_index, softcap, reduction: as of :func:`~steepest.kernels.linear_cross_entropy`.
        shift: as there; True is 1.
        return_lse: whether log Z comes as well, shaped as the losses.
        filter_eps: ``"auto"``, ``"high"``, a threshold, or None.
        filter_e_grad, filter_c_grad: whether the gradient of either may be filtered; one alone is exact here.
        accum_e_fp32, accum_c_fp32, impl: accepted; there is one way.
        vocab_parallel_options: an object with ``start``, ``stop`` and ``group``.
        memory: as of :func:`~steepest.kernels.linear_cross_entropy`.

    Example:
        >>> loss, lse = cce_linear_cross_entropy(torch.eye(2), torch.eye(2), torch.tensor([0, 1]), return_lse=True)
        >>> loss, lse
        (tensor(0.3133), tensor([1.3133, 1.3133]))
    """
    check_choice("reduction", reduction, ("none", "mean", "sum"))
    half = e.dtype in (torch.bfloat16, torch.float16)
    chosen = None
    if half and filter_e_grad and filter_c_grad and filter_eps is not None and impl != "cce_exact":
        eps = torch.finfo(e.dtype).eps if filter_eps == "high" else filter_eps
        chosen = GradientFilter(eps)
    options: dict[str, Any] = {
        "bias": bias,
        "ignore_index": ignore_index,
        "softcap": softcap,
        "shift": int(shift),
        "memory": memory,
    }
    shard = None
    if vocab_parallel_options is not None:
        group = vocab_parallel_options.group
        total = torch.tensor([int(vocab_parallel_options.stop)], device=e.device)
        torch.distributed.all_reduce(total, torch.distributed.ReduceOp.MAX, group=group)
        shard = VocabularyShard(group, int(vocab_parallel_options.start), int(total))
        options["process_group"], chosen = shard, None
    if not return_lse:
        result = linear_cross_entropy(e, c, targets, reduction=reduction, filter=chosen, **options)
        assert isinstance(result, Tensor)
        return result
    classes = c.shape[0] if shard is None else shard.total
    rows = select(e, targets, classes=classes, ignore_index=ignore_index, shift=int(shift))
    lse, own = _log_partition(rows, c, bias, softcap, memory, shard)
    losses = lse - own
    if rows.factor is not None:  # tokens that don't count, where leaving them out would wait for the device
        lse, losses = (torch.where(rows.factor > 0, of_rows, 0.0) for of_rows in (lse, losses))
    loss = rows.spread(losses) if reduction == "none" else losses.sum()
    return loss / rows.total(losses) if reduction == "mean" else loss, rows.spread(lse)


def _log_partition(
    rows: Rows, c: Tensor, bias: Tensor | None, softcap: float | None, memory: Any, shard: VocabularyShard | None
) -> tuple[Tensor, Tensor]:
    """log Z of each row and the logit of its target, both with gradients; of the parts of all ranks with a shard."""
    hidden, target, here = rows.hidden, rows.target, None
    if shard is not None:
        target = target - shard.start
        here = (target >= 0) & (target < c.shape[0])
        target = target.where(here, 0)
        if hidden.requires_grad:
            # each rank's gradient is that of its own part: all are summed, once
            hidden = hidden.view_as(hidden)
            hidden.register_hook(lambda g: shard.join(widen(g).clone()).to(g.dtype))
    lse = linear_logsumexp(hidden, c, bias=bias, softcap=softcap, memory=memory)
    own = torch.linalg.vecdot(hidden.to(lse.dtype), c[target].to(lse.dtype))
    own = own if bias is None else own + bias[target]
    own = own if softcap is None else softcap * torch.tanh(own / softcap)
    if shard is None or here is None:
        return lse, own
    most = lse.detach().clone()
    torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, group=shard.group)
    groups = (shard.group,)
    lse = most + GroupTotal.apply((lse - most).exp(), groups).log()
    return lse, GroupTotal.apply(own.where(here, 0.0), groups)
