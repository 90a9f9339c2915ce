"""Jacobians of several outputs in parameters, row by row, and directions written into ``.grad``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def jacobian_rows(losses: Tensor, parameters: Sequence[Tensor], *, retain_graph: bool = False) -> Tensor:
    """The Jacobian ``[m, n]`` of losses ``[m]`` in parameters, in their order; 0 where a loss does not depend on one.

    >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> jacobian_rows(torch.stack([w.sum(), w.square().sum()]), [w])
    tensor([[1., 1.],
            [2., 4.]])
    """
    return products(list(losses), [None] * len(losses), parameters, retain_graph=retain_graph)


def products(
    outputs: Sequence[Any], upstreams: Sequence[Any], parameters: Sequence[Tensor], *, retain_graph: bool = False
) -> Tensor:
    """Vector-Jacobian products ``[m, n]``, a row for each output (a tensor or several) and its upstream gradient."""
    width = sum(p.numel() for p in parameters)
    dtype = max((p.dtype for p in parameters), key=lambda d: torch.finfo(d).bits)
    jacobian = torch.zeros(len(outputs), width, dtype=dtype, device=parameters[0].device)
    for number, (output, upstream) in enumerate(zip(outputs, upstreams)):
        last = number == len(outputs) - 1 and not retain_graph
        gradients = torch.autograd.grad(output, parameters, upstream, retain_graph=not last, allow_unused=True)
        position = 0
        for parameter, gradient in zip(parameters, gradients):
            if gradient is not None:
                jacobian[number, position : position + parameter.numel()] = gradient.flatten()
            position += parameter.numel()
        del gradients, gradient  # not beside those of the next row
    return jacobian


def leaves_of(outputs: Sequence[Tensor], stop: Sequence[Tensor] = ()) -> list[Tensor]:
    """The leaves that outputs depend on, found in their graph; not those that are reached through ``stop`` alone."""
    barrier = {tensor.grad_fn for tensor in stop if tensor.grad_fn is not None}
    open_nodes = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    leaves = {id(tensor): tensor for tensor in outputs if tensor.grad_fn is None and tensor.requires_grad}
    seen = set(open_nodes)
    while open_nodes:
        node = open_nodes.pop()
        if node in barrier:
            continue
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves[id(variable)] = variable
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                open_nodes.append(below)
    return list(leaves.values())


def add_to_gradients(direction: Tensor, parameters: Sequence[Tensor]) -> None:
    """Add a vector to the ``.grad`` of parameters, in their order."""
    position = 0
    for parameter in parameters:
        piece = direction[position : position + parameter.numel()]
        position += parameter.numel()
        _add(parameter, piece.view_as(parameter))


def _add(parameter: Tensor, gradient: Tensor) -> None:
    gradient = gradient.detach().to(parameter.dtype)
    parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient
