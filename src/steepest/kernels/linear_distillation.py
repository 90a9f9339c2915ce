"""Divergence between the softmax outputs of two linear heads, neither's logits kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float as F
from torch import Tensor

from ..core.checks import check_choice, check_flag, check_number, check_tensor, refuse
from ..core.kl_estimators import at_least_zero
from ..core.transforms import forward_mode, transformed
from ._engine import Head, RowRule
from ._head import Job, check_cap, check_head
from ._rows import Rows, select

DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon")
_MIRRORED = {"forward_kl": "reverse_kl", "reverse_kl": "forward_kl", "jensen_shannon": "jensen_shannon"}
"""Each divergence with student and teacher exchanged; beta becomes 1 - beta."""


def linear_distillation(
    hidden: F[Tensor, "*batch width"],
    weight: F[Tensor, "classes width"],
    teacher_hidden: F[Tensor, "*batch teacher"],
    teacher_weight: F[Tensor, "classes teacher"],
    *,
    divergence: str = "forward_kl",
    beta: float | None = None,
    bias: F[Tensor, " classes"] | None = None,
    teacher_bias: F[Tensor, " classes"] | None = None,
    softcap: float | None = None,
    teacher_softcap: float | None = None,
    temperature: float = 1.0,
    token_weight: F[Tensor, "*batch"] | None = None,
    reduction: str = "mean",
    memory: str | int | float = "auto",
    stop_teacher: bool = True,
) -> Tensor:
    r"""Mean divergence of a student's head from a teacher's, a chunk of rows at a time.

    .. math:: \mathrm{KL}(t \,\|\, s), \quad \mathrm{KL}(s \,\|\, t), \quad\text{or}\quad
        \beta\, \mathrm{KL}(t \,\|\, m) + (1 - \beta)\, \mathrm{KL}(s \,\|\, m), \qquad m = \beta t + (1 - \beta) s

    with both softmaxes at the same temperature. It isn't multiplied by the squared temperature; multiply the loss where
    that is wanted. The gradient reaches the student alone, or with ``stop_teacher=False`` both sides: the logits of
    both heads are then formed a second time, for the gradient in the teacher's.

    Args:
        hidden: of the student ``[..., D]``.
        weight: of the student ``[V, D]``, of the type of ``hidden``.
        teacher_hidden: ``[..., E]``.
        teacher_weight: ``[V, E]``, of the type of ``teacher_hidden``.
        divergence: ``"forward_kl"``, ``"reverse_kl"`` or ``"jensen_shannon"``.
        beta: of the last alone, in (0, 1), .5 where None; the teacher's share of the mixture.
        bias, softcap: of the student, or None.
        teacher_bias, teacher_softcap: of the teacher, or None.
        temperature: > 0.
        token_weight: ``[...]`` >= 0; tokens of weight 0 are dropped before the matrix products.
        reduction: ``"none"``, ``"mean"`` (over the weights of tokens) or ``"sum"``.
        memory: for the logits of both heads; as of :func:`~steepest.kernels.linear_cross_entropy`.
        stop_teacher: whether the teacher gets no gradient.

    Returns:
        The loss in float32 or wider; 0 where no token counts.

    Raises:
        ValueError: shapes that don't belong together, an option out of range.

    Example:
        >>> h, s, t = torch.eye(2), torch.zeros(2, 2), torch.eye(2)
        >>> linear_distillation(h, s, h, t)
        tensor(0.1109)

    Source: On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes, arXiv:2306.13649.
    """
    check_head(hidden, weight, bias)
    check_head(teacher_hidden, teacher_weight, teacher_bias)
    check_cap(softcap, temperature)
    check_cap(teacher_softcap, temperature)
    check_choice("divergence", divergence, DIVERGENCES)
    check_choice("reduction", reduction, ("none", "mean", "sum"))
    if beta is not None and divergence != "jensen_shannon":
        refuse("beta", f"None with divergence={divergence!r}, which has no mixture", beta)
    beta = 0.5 if beta is None else beta
    check_number("beta", beta, low=0.0, high=1.0, open_low=True, open_high=True)
    check_tensor("teacher_weight", teacher_weight, shape=(weight.shape[0], None))
    if teacher_hidden.shape[:-1] != hidden.shape[:-1]:
        refuse("teacher_hidden", f"the leading shape {tuple(hidden.shape[:-1])} of hidden", teacher_hidden)
    check_flag("stop_teacher", stop_teacher)
    everyone = torch.zeros(hidden.shape[:-1], dtype=torch.int64, device=hidden.device)
    rows = select(hidden, everyone, classes=weight.shape[0], weight=token_weight)
    flat = teacher_hidden.reshape(-1, teacher_hidden.shape[-1])
    student = Head(rows.hidden, weight, bias, softcap, temperature)
    teacher = Head(
        flat if rows.index is None else flat.index_select(0, rows.index),
        teacher_weight,
        teacher_bias,
        teacher_softcap,
        temperature,
    )
    scalar = reduction != "none"
    losses = _side(rows, student, teacher, *_rules(divergence, beta), scalar, memory)
    if not stop_teacher and _moves(teacher):
        # the teacher's gradient is that of the divergence with the sides exchanged
        mirrored = _side(rows, teacher, student, *_rules(_MIRRORED[divergence], 1 - beta), scalar, memory)
        losses = losses + (mirrored - mirrored.detach()).to(losses.dtype)
    if reduction != "mean":
        return losses if scalar else rows.spread(losses)
    return losses / rows.total(losses)


def _moves(head: Head) -> bool:
    """Whether a gradient, or a tangent, may come to a head."""
    asked = any(t is not None and t.requires_grad for t in (head.hidden, head.weight, head.bias))
    return (asked and torch.is_grad_enabled()) or transformed() or forward_mode()


def _side(
    rows: Rows, own: Head, beside: Head, rule: RowRule, dense: Callable[..., Tensor], scalar: bool, memory: Any
) -> Tensor:
    """Weighted losses ``[n]`` or their sum, differentiable in one head; the one beside it is constant."""
    constant = replace(
        beside,
        hidden=beside.hidden.detach(),
        weight=beside.weight.detach(),
        bias=None if beside.bias is None else beside.bias.detach(),
    )
    return Job(
        replace(rows, hidden=own.hidden),
        own.weight,
        own.bias,
        rule,
        dense,
        scalar,
        softcap=own.softcap,
        temperature=own.temperature,
        memory=memory,
        others=(constant,),
        pieces=10,
    ).losses()


def _rules(divergence: str, beta: float) -> tuple[RowRule, Callable[[Tensor, Tensor], Tensor]]:
    """The divergence of rows with the gradient in the first logits, and the same as torch differentiates it."""
    if divergence == "forward_kl":
        return _forward, _dense_forward
    if divergence == "reverse_kl":
        return _reverse, _dense_reverse
    return _mixture(beta), _dense_mixture(beta)


def _forward(z: Tensor, g: Tensor, rows: slice, teacher: Tensor) -> Tensor:
    torch.log_softmax(z, 1, out=g)
    log_t = teacher.log_softmax(1).to(g.dtype)
    t = log_t.exp()
    loss = torch.linalg.vecdot(t, log_t.sub_(g).masked_fill_(t == 0, 0.0))  # 0 log 0 is 0
    g.exp_().sub_(t)
    return at_least_zero(loss)


def _reverse(z: Tensor, g: Tensor, rows: slice, teacher: Tensor) -> Tensor:
    torch.log_softmax(z, 1, out=g)
    gap = g - teacher.log_softmax(1).to(g.dtype)
    g.exp_()
    gap.masked_fill_(g == 0, 0.0)
    loss = torch.linalg.vecdot(g, gap)
    g.mul_(gap.sub_(loss.unsqueeze(1)))
    return at_least_zero(loss)


def _mixture(beta: float) -> RowRule:
    def rule(z: Tensor, g: Tensor, rows: slice, teacher: Tensor) -> Tensor:
        log_s, log_t = z.log_softmax(1), teacher.log_softmax(1).to(g.dtype)
        s = log_s.exp()
        above, own = _parts_of_mixture(log_s, log_t, beta)
        inner = torch.linalg.vecdot(s, own)
        torch.mul(s, own.sub_(inner.unsqueeze(1)), out=g)
        g.mul_(1 - beta)
        return at_least_zero(above + (1 - beta) * inner)

    return rule


def _parts_of_mixture(log_s: Tensor, log_t: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The teacher's term of each row, and log s - log m of each class."""
    s, t = log_s.exp(), log_t.exp()
    neither = (s == 0) & (t == 0)
    log_m = torch.log(torch.where(neither, 1.0, beta * t + (1 - beta) * s))
    own = torch.where(s > 0, torch.where(s > 0, log_s, 0.0) - log_m, 0.0)
    return beta * torch.linalg.vecdot(t, torch.where(t > 0, torch.where(t > 0, log_t, 0.0) - log_m, 0.0)), own


def _dense_forward(z: Tensor, teacher: Tensor) -> Tensor:
    log_t = teacher.log_softmax(1).to(z.dtype)
    t, log_s = log_t.exp(), z.log_softmax(1)
    gap = torch.where(t == 0, 0.0, log_t) - torch.where(t == 0, 0.0, log_s)
    return at_least_zero(torch.linalg.vecdot(t, gap))


def _dense_reverse(z: Tensor, teacher: Tensor) -> Tensor:
    log_s, log_t = z.log_softmax(1), teacher.log_softmax(1).to(z.dtype)
    s = log_s.exp()
    gap = torch.where(s == 0, 0.0, log_s) - torch.where(s == 0, 0.0, log_t)
    return at_least_zero(torch.linalg.vecdot(s, gap))


def _dense_mixture(beta: float) -> Callable[[Tensor, Tensor], Tensor]:
    def dense(z: Tensor, teacher: Tensor) -> Tensor:
        log_s = z.log_softmax(1)
        above, own = _parts_of_mixture(log_s, teacher.log_softmax(1).to(z.dtype), beta)
        return at_least_zero(above + (1 - beta) * torch.linalg.vecdot(log_s.exp(), own))

    return dense
