"""Linear cross-entropy as one opaque operation under ``torch.compile``: what goes by bytes is not for a compiler.

The operation of a scalar forms the gradients with the loss; that of single losses has a second operation for them.
"""

from __future__ import annotations

import ast
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ..core.transforms import autocast_dtype
from ._call import HeadStatistics, Options, prepare
from ._engine import narrowed
from ._memory import computed

_FIELDS = tuple(option.name for option in fields(Options))


def compiled(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | tuple[Tensor, Tensor],
    class_weight: Tensor | None,
    token_weight: Tensor | None,
    num_items: float | Tensor | None,
    options: Options,
    statistics: bool,
) -> Tensor | tuple[Tensor, HeadStatistics]:
    """The same as in eager mode."""
    given, share = target if isinstance(target, tuple) else (target, None)
    if num_items is not None and not isinstance(num_items, Tensor):
        num_items = torch.full((), float(num_items), device=hidden.device)
    kind = options.compute_dtype or autocast_dtype(hidden)
    name = None if kind is None else str(kind).removeprefix("torch.")
    told = [name if field == "compute_dtype" else getattr(options, field) for field in _FIELDS]
    needs = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in (hidden, weight, bias)]
    loss, _, _, _, lse, entropy, argmax, correct, valid = torch.ops.steepest.linear_cross_entropy(
        hidden,
        weight,
        bias,
        given,
        share,
        class_weight,
        token_weight,
        num_items,
        ";".join([f"{value!r}" for value in told]),
        needs,
        statistics,
    )
    return (loss, HeadStatistics(lse, entropy, argmax, correct, valid)) if statistics else loss


def _options(text: str) -> Options:
    known = dict(zip(_FIELDS, map(ast.literal_eval, text.split(";"))))
    kind = known["compute_dtype"]
    known["compute_dtype"] = None if kind is None else getattr(torch, kind)
    return Options(**known)


def _of_positions(call: Any, gradient: Tensor | None, hidden: Tensor, options: Options) -> Tensor:
    """The gradient of the rows in the places of all hidden states."""
    rows = call.job.rows
    full = torch.zeros_like(hidden, memory_format=torch.contiguous_format)
    if gradient is None:
        return full
    if rows.index is None and not options.shift:
        return gradient.reshape(hidden.shape).to(hidden.dtype)
    lead = hidden.shape[:-1]
    where = torch.arange(lead.numel(), device=hidden.device).reshape(lead)
    where = where[..., : lead[-1] - options.shift].reshape(-1) if options.shift else where.reshape(-1)
    where = where if rows.index is None else where[rows.index]
    full.view(-1, hidden.shape[-1]).index_copy_(0, where, gradient.to(hidden.dtype))
    return full


@torch.library.custom_op("steepest::linear_cross_entropy", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    share: Tensor | None,
    class_weight: Tensor | None,
    token_weight: Tensor | None,
    num_items: Tensor | None,
    options: str,
    needs: list[bool],
    statistics: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    known = _options(options)
    wanted = target if share is None else (target, share)
    call = prepare(hidden, weight, bias, wanted, class_weight, token_weight, num_items, known, statistics=statistics)
    scalar = known.reduction != "none"
    losses, gradients_of = call.job.gradients(needs if scalar else (False, False, False))
    loss = call.loss(losses.sum() if scalar else losses)
    gradients = [hidden.new_empty(0), weight.new_empty(0), weight.new_empty(0)]
    if scalar:
        for gradient in (gradients_of.hidden, gradients_of.weight, gradients_of.bias):
            if gradient is not None and known.reduction == "mean":
                gradient.div_(call.above)
        _, dw, db = narrowed(gradients_of, hidden, weight, bias)
        computed = (_of_positions(call, gradients_of.hidden, hidden, known) if needs[0] else None, dw, db)
        gradients = [empty if tensor is None else tensor for empty, tensor in zip(gradients, computed)]
    noted = [hidden.new_empty(0)] * 5
    if statistics:
        s = call.statistics()
        noted = [s.lse, s.entropy, s.argmax, s.correct, s.valid]
    return (loss, *gradients, *(tensor.clone() for tensor in noted))  # type: ignore[return-value]


@_forward.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    share: Tensor | None,
    class_weight: Tensor | None,
    token_weight: Tensor | None,
    num_items: Tensor | None,
    options: str,
    needs: list[bool],
    statistics: bool,
) -> tuple[Tensor, ...]:
    known, wide = _options(options), computed(weight)
    lead = hidden.shape[:-1]
    lead = (*lead[:-1], lead[-1] - known.shift) if known.shift else lead
    scalar = known.reduction != "none"
    loss = hidden.new_empty(() if scalar else lead, dtype=wide)
    gradients = [
        of.new_empty(of.shape if scalar and need and of is not None else 0)
        for of, need in zip((hidden, weight, weight if bias is None else bias), needs)
    ]
    shape = lead if statistics else (0,)
    kinds = (wide, wide, torch.int64, torch.bool, torch.bool) if statistics else (hidden.dtype,) * 5
    return (loss, *gradients, *(hidden.new_empty(shape, dtype=kind) for kind in kinds))


@torch.library.custom_op("steepest::linear_cross_entropy_backward", mutates_args=())
def _backward(
    upstream: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    share: Tensor | None,
    class_weight: Tensor | None,
    token_weight: Tensor | None,
    options: str,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    known = _options(options)
    call = prepare(
        hidden,
        weight,
        bias,
        target if share is None else (target, share),
        class_weight,
        token_weight,
        None,
        known,
    )
    flat = upstream.reshape(-1)
    rows = flat if call.job.rows.index is None else flat[call.job.rows.index]
    _, gradients = call.job.gradients(needs, rows)
    _, dw, db = narrowed(gradients, hidden, weight, bias)
    dh = _of_positions(call, gradients.hidden, hidden, known) if needs[0] else hidden.new_empty(0)
    return dh, weight.new_empty(0) if dw is None else dw, weight.new_empty(0) if db is None else db


@_backward.register_fake
def _(
    upstream: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    share: Tensor | None,
    class_weight: Tensor | None,
    token_weight: Tensor | None,
    options: str,
    needs: list[bool],
) -> tuple[Tensor, ...]:
    tensors = (hidden, weight, weight if bias is None else bias)
    return tuple(of.new_empty(of.shape if need else 0) for of, need in zip(tensors, needs))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, options, needs, _ = inputs
    ctx.options, ctx.needs = options, list(needs)
    ctx.scalar = _options(options).reduction != "none"
    # num_items does not reach single losses
    ctx.save_for_backward(*(output[1:4] if ctx.scalar else tensors[:7]))
    ctx.mark_non_differentiable(*output[1:])


def _differentiate(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    if ctx.scalar:
        # multiplied before it is narrowed: 1/3 is no half number
        wide = [slope.to(torch.promote_types(slope.dtype, upstream.dtype)) * upstream for slope in ctx.saved_tensors]
        gradients = [
            slope.to(of.dtype) if need else None for slope, of, need in zip(wide, ctx.saved_tensors, ctx.needs)
        ]
    else:
        slopes = torch.ops.steepest.linear_cross_entropy_backward(upstream, *ctx.saved_tensors, ctx.options, ctx.needs)
        gradients = [slope if need else None for slope, need in zip(slopes, ctx.needs)]
    return (*gradients, *[None] * 8)


_forward.register_autograd(_differentiate, setup_context=_keep)
