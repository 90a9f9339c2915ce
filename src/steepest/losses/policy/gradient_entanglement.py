"""Gradient entanglement: why losses on a margin move the chosen and the rejected log-probability together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core.checks import check_number, check_tensor, refuse, refuse_type
from ...core.frozen_pass import copied_buffers
from ...core.preference import preference_loss

LogProbability = Callable[[Any], Tensor]
"""The log-probability of an answer under a model."""


def entanglement_report(
    model: nn.Module,
    chosen_logp_fn: LogProbability,
    rejected_logp_fn: LogProbability,
    params: Iterable[Tensor] | None = None,
    *,
    coefficients: tuple[float, float] = (1.0, 1.0),
) -> dict[str, float | str]:
    r"""How a gradient step on a margin changes both log-probabilities, to first order in its size.

    With :math:`w = \log\pi(y_w)`, :math:`l = \log\pi(y_l)`, their gradients and the coefficients of a loss
    (:func:`margin_loss_coefficients`), a step :math:`\eta` of gradient descent gives

    .. math:: \Delta w \approx \eta \bigl(d_W \|g_w\|^2 - d_L \langle g_w, g_l\rangle\bigr), \qquad
        \Delta l \approx \eta \bigl(d_W \langle g_w, g_l\rangle - d_L \|g_l\|^2\bigr)

    Losses of the margin alone have :math:`d_W = d_L`: the step is healthy (w rises and l falls) exactly where the inner
    product is not above the smaller squared norm, and both move together where it lies between the two. The statement
    is of plain gradient descent; other optimizers rescale the gradient. Neither ``.grad`` nor the model is changed.

    Args:
        model: the policy.
        chosen_logp_fn: ``chosen_logp_fn(model)`` gives w, a scalar (of one answer, or a mean over a batch).
        rejected_logp_fn: the same for l.
        params: tensors that the step moves; None is every parameter of the model that asks for a gradient.
        coefficients: :math:`d_W` and :math:`d_L`, >= 0.

    Returns:
        ``gw2``, ``gl2``, ``inner``, their cosine ``cos`` (NaN where a gradient is 0), ``predicted_dw`` and
        ``predicted_dl`` for a step of size 1, and the ``regime``: ``"healthy"``, ``"both up"`` or ``"both down"``.

    Raises:
        ValueError: a log-probability that is no scalar, negative coefficients, no parameters.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> chosen, rejected = torch.tensor([1.0, 0.5]), torch.tensor([2.0, 0.5])
        >>> report = entanglement_report(model, lambda m: m(chosen).sum(), lambda m: m(rejected).sum())
        >>> report["inner"], report["predicted_dw"], report["predicted_dl"], report["regime"]
        (2.25, -1.0, -2.0, 'both down')

    Source: A Common Pitfall of Margin-based Language Model Alignment: Gradient Entanglement, arXiv:2410.13828.
    """
    for name, value in zip(("coefficients[0]", "coefficients[1]"), coefficients):
        check_number(name, value, low=0.0, high=math.inf, open_high=True)
    leaves = _leaves("params", [p for p in model.parameters() if p.requires_grad] if params is None else params)
    with copied_buffers(list(model.modules())):
        chosen = _gradient("chosen_logp_fn", chosen_logp_fn(model), leaves)
    with copied_buffers(list(model.modules())):
        rejected = _gradient("rejected_logp_fn", rejected_logp_fn(model), leaves)
    gw2, gl2, inner = (
        float(v) for v in torch.stack([_dot(chosen, chosen), _dot(rejected, rejected), _dot(chosen, rejected)])
    )
    up, down = coefficients
    dw, dl = up * gw2 - down * inner, up * inner - down * gl2
    scale = math.sqrt(gw2 * gl2)
    return {
        "gw2": gw2,
        "gl2": gl2,
        "inner": inner,
        "cos": inner / scale if scale else math.nan,
        "predicted_dw": dw,
        "predicted_dl": dl,
        # w down and l up at once would break the inequality of Cauchy and Schwarz
        "regime": "healthy" if dw >= 0 >= dl else "both up" if dl > 0 else "both down",
    }


def margin_loss_coefficients(
    name: str,
    logp_w: Tensor,
    logp_l: Tensor,
    ref_w: Tensor | None = None,
    ref_l: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    r"""How strongly a loss pulls the chosen log-probability up and pushes the rejected one down.

    .. math:: d_W = -\frac{\partial L}{\partial w}, \qquad d_L = \frac{\partial L}{\partial l}

    DPO has :math:`d_W = d_L = \beta\sigma(-\beta\rho)`, IPO :math:`2 (1 / (2 \beta) - \rho)`; a likelihood term adds
    its weight to :math:`d_W`. With :math:`k = d_W / d_L`, w rises where :math:`k \|g_w\|^2 \ge \langle g_w, g_l\rangle`
    and l falls where :math:`\|g_l\|^2 \ge k \langle g_w, g_l\rangle`.

    Args:
        name: a loss of :func:`~steepest.losses.policy.preference_loss`.
        logp_w, logp_l: log-probabilities under the policy, scalars or ``[B]``.
        ref_w, ref_l: under the reference, for losses that have one.
        **options: what the named loss takes: ``beta``, ``chosen_length`` ...

    Returns:
        Both coefficients, of the shapes of ``logp_w`` and ``logp_l``; detached.

    Raises:
        ValueError: what :func:`~steepest.losses.policy.preference_loss` refuses.

    Example:
        >>> zero = torch.tensor(0.0)
        >>> margin_loss_coefficients("sigmoid", torch.tensor(-4.0), torch.tensor(-10.0), zero, zero, beta=0.1)
        (tensor(0.0354), tensor(0.0354))

    Source: A Common Pitfall of Margin-based Language Model Alignment: Gradient Entanglement, arXiv:2410.13828.
    """
    check_tensor("logp_w", logp_w, ndim=(0, 1), floating=True)
    check_tensor("logp_l", logp_l, ndim=(0, 1), floating=True)
    policy = [value.detach().reshape(-1).requires_grad_() for value in (logp_w, logp_l)]
    refs = [value.reshape(-1) if isinstance(value, Tensor) else value for value in (ref_w, ref_l)]
    flat = {key: value.reshape(-1) if key.endswith("_length") else value for key, value in options.items()}
    with torch.enable_grad():
        losses = preference_loss(policy[0], policy[1], refs[0], refs[1], name, **flat).losses
        slopes = torch.autograd.grad(losses.sum(), policy)
    return -slopes[0].reshape(logp_w.shape), slopes[1].reshape(logp_l.shape)


def pairwise_normalized_step(logp_w: Tensor, logp_l: Tensor, params: Iterable[Tensor]) -> None:
    r"""Set ``.grad`` so that a gradient step never lowers the chosen nor raises the rejected log-probability.

    .. math:: \Delta\theta \propto \frac{g_w}{\|g_w\|} - \frac{g_l}{\|g_l\|}

    To first order w changes by :math:`\|g_w\| (1 - \cos) \ge 0` and l by :math:`-\|g_l\| (1 - \cos) \le 0`. Gradients
    of one direction give no step.

    Args:
        logp_w: the chosen log-probability, a scalar with a graph; ``[B]`` are summed, and the statement is of the sums.
        logp_l: the rejected one.
        params: tensors that ask for a gradient; whatever is in their ``.grad`` is replaced.

    Raises:
        ValueError: another number of dimensions, no parameters.

    Example:
        >>> p = torch.zeros(2, requires_grad=True)
        >>> pairwise_normalized_step(p @ torch.tensor([3.0, 0.0]), p @ torch.tensor([0.0, 2.0]), [p])
        >>> p.grad
        tensor([-1.,  1.])

    Source: A Common Pitfall of Margin-based Language Model Alignment: Gradient Entanglement, arXiv:2410.13828.
    """
    leaves = _leaves("params", params)
    check_tensor("logp_w", logp_w, ndim=(0, 1), floating=True)
    check_tensor("logp_l", logp_l, ndim=(0, 1), floating=True)
    chosen = _gradient("logp_w", logp_w.sum(), leaves)
    rejected = _gradient("logp_l", logp_l.sum(), leaves)
    factors = [torch.where(square > 0, square.rsqrt(), 0.0) for square in (_dot(g, g) for g in (chosen, rejected))]
    for leaf, up, down in zip(leaves, chosen, rejected):
        leaf.grad = (factors[1] * down - factors[0] * up).to(leaf.dtype)


def _leaves(argument: str, params: Iterable[Tensor]) -> list[Tensor]:
    leaves = list(params)
    if not leaves:
        refuse(argument, "at least one tensor that asks for a gradient", leaves)
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            refuse_type(argument, "tensors", leaf)
        if not leaf.requires_grad:
            refuse(argument, "tensors that ask for a gradient", leaf)
    return leaves


def _gradient(argument: str, value: object, leaves: Sequence[Tensor]) -> list[Tensor]:
    """The gradient in each leaf, 0 where the value does not depend on it; the graph is kept for the other answer."""
    check_tensor(argument, value, floating=True, shape=())
    assert isinstance(value, Tensor)
    if not value.requires_grad:
        refuse(argument, "a log-probability that depends on the parameters", value)
    return list(torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True, materialize_grads=True))


def _dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """The inner product over all tensors, in float64."""
    return torch.stack([(a.double() * b.double()).sum() for a, b in zip(first, second)]).sum()
