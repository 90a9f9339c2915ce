"""One line in a training loop: the gradients of several losses, joined by an aggregator, into ``.grad``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.aggregator import Aggregator
from ..core.balancer import as_losses
from ..core.checks import check_tensor, refuse, refuse_type
from ..core.jacobian import add_to_gradients, jacobian_rows, leaves_of, products


def backward(
    losses: Tensor | Sequence[Tensor],
    parameters: Iterable[Tensor] | None = None,
    *,
    aggregator: Aggregator | Any,
    features: Tensor | Sequence[Tensor] | None = None,
    retain_graph: bool = False,
) -> None:
    """Add the aggregated gradient of several losses to ``.grad``, in place of ``losses.sum().backward()``.

    With ``features`` the parameters below them are shared and get the aggregated gradient, those between them and the
    losses (heads) get their own one, and heads run backward once. Without, all parameters are shared.

    Args:
        losses: ``[m]``, or m scalars; row 0 is the main one where the aggregator asks.
        parameters: the shared ones, whose order is that of the Jacobian's columns; by default all that the losses (or
            the features) depend on. With ``features`` only those below them count.
        aggregator: from a Jacobian ``[m, n]`` to a direction ``[n]``: one of ours, one of TorchJD's, or any callable.
        features: what the shared part of the network gives, a tensor or several.
        retain_graph: keep the graph for another call.

    Raises:
        ValueError: losses that depend on no parameter, or on shared ones beside the features; a direction of another
            shape.
        TypeError: not tensors.

    Example:
        >>> from steepest.gradients import UPGrad, backward
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> backward([w @ torch.tensor([-1.0, 1.0]), w.square().sum()], [w], aggregator=UPGrad())
        >>> w.grad
        tensor([0.5000, 2.5000])
    """
    joined = as_losses(losses)
    if not joined.requires_grad:
        refuse("losses", "losses that depend on parameters", joined)
    below = _tensors("features", features)
    shared = leaves_of(below or [joined])
    if parameters is not None:  # in their order: what an aggregator keeps between calls belongs to columns
        reached = {id(p) for p in shared}
        shared = [p for p in _tensors("parameters", list(parameters)) if id(p) in reached]
    if not shared:
        refuse("parameters", "at least one that the losses depend on", parameters)
    if below:
        jacobian, heads = _through_features(joined, below, shared, retain_graph)
    else:
        jacobian, heads = jacobian_rows(joined, shared, retain_graph=retain_graph), []
    direction = aggregator(jacobian)
    check_tensor("aggregator", direction, shape=(jacobian.shape[1],))
    del jacobian  # not beside the gradients
    add_to_gradients(direction, shared)
    for parameter, gradient in heads:
        add_to_gradients(gradient.flatten(), [parameter])


def _through_features(
    losses: Tensor, features: list[Tensor], shared: list[Tensor], retain_graph: bool
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """The Jacobian in the shared parameters, and what the others get: the gradient of the sum of losses."""
    known = {id(p) for p in leaves_of(features)}
    heads = leaves_of([losses], stop=features)
    if any(id(p) in known for p in heads):  # their Jacobian would lack that part
        refuse(
            "features", "tensors through which all paths to the parameters below them go", [f.shape for f in features]
        )
    slopes = [
        torch.autograd.grad(loss, [*features, *heads], retain_graph=True, allow_unused=True) for loss in list(losses)
    ]
    upstreams = [
        [torch.zeros_like(f) if g is None else g for f, g in zip(features, own[: len(features)])] for own in slopes
    ]
    jacobian = products([features] * len(losses), upstreams, shared, retain_graph=retain_graph)
    gradients = []
    for position, head in enumerate(heads, start=len(features)):
        own = [row[position] for row in slopes if row[position] is not None]
        if own:
            gradients.append((head, torch.stack(own).sum(0)))
    return jacobian, gradients


def _tensors(argument: str, value: Any) -> list[Tensor]:
    tensors = [] if value is None else [value] if isinstance(value, Tensor) else list(value)
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            refuse_type(argument, "tensors", tensor)
    return tensors
