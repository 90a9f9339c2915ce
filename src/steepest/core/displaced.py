"""Gradients at displaced weights: perturb, evaluate, restore to the last bit, as if there had been one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .reductions import widen


@contextmanager
def displaced(parameters: Sequence[Tensor], moves: Sequence[Tensor | None]) -> Iterator[None]:
    """Parameters moved inside the block; afterwards, and after an exception, what they were, to the last bit.

    >>> w = torch.nn.Parameter(torch.tensor([0.1]))
    >>> with displaced([w], [torch.tensor([1.0])]):
    ...     print(w.data)
    tensor([1.1000])
    >>> w.data
    tensor([0.1000])
    """
    moved = [(p, move) for p, move in zip(parameters, moves) if move is not None]
    before = [p.detach().clone() for p, _ in moved]
    try:
        with torch.no_grad():
            for p, move in moved:
                p.add_(move)
        yield
    finally:
        with torch.no_grad():
            for (p, _), value in zip(moved, before):
                p.copy_(value)


@contextmanager
def unrecorded(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Passes that leave no trace in buffers (running statistics, memories): afterwards they are what they were."""
    buffers = list({id(b): b for module in modules for b in module.buffers()}.values())
    before = [b.detach().clone() for b in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before):
                buffer.copy_(value)


@contextmanager
def same_random_numbers(state: dict[str, Tensor]) -> Iterator[None]:
    """Inside the block torch draws what it drew from ``state`` on; afterwards it goes on as without the block."""
    after = random_numbers()
    _set_random_numbers(state)
    try:
        yield
    finally:
        _set_random_numbers(after)


def random_numbers() -> dict[str, Tensor]:
    """The states of torch's generators, of the CPU and of a GPU in use."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_numbers(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def ascent(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], rho: float, *, adaptive: bool = False
) -> list[Tensor | None]:
    r"""The move of length rho that raises the loss most, over all parameters as one vector; 0 where the gradient is.

    .. math:: \epsilon = \rho \, g / \|g\|, \qquad \text{adaptive: } \epsilon = \rho \, T^2 g / \|T g\|, \; T = |w|

    >>> ascent([torch.zeros(2)], [torch.tensor([3.0, 4.0])], 0.05)
    [tensor([0.0300, 0.0400])]
    """
    own = [
        None if g is None else widen(g.detach()) * widen(p.detach()).abs() if adaptive else widen(g.detach())
        for p, g in zip(parameters, gradients)
    ]
    norms = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in own if g is not None]
    if not norms:
        return list(own)
    device = norms[0].device
    norm = torch.linalg.vector_norm(torch.stack([n.to(device) for n in norms]))
    factor = torch.where(norm > 0, rho / norm, 0.0)
    moves: list[Tensor | None] = []
    for p, g in zip(parameters, own):
        if g is None:
            moves.append(None)
            continue
        move = g * factor.to(g.device, g.dtype)
        moves.append((move * widen(p.detach()).abs() if adaptive else move).to(p.dtype))
    return moves


def sharpness_aware(
    closure: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    *,
    rho: float,
    adaptive: bool = False,
    modules: Iterable[nn.Module] = (),
) -> tuple[Tensor, list[Tensor | None], list[Tensor | None]]:
    """The loss, its gradient, and its gradient at the worst point within rho: ``(loss, g, g_sam)``.

    The second pass draws the random numbers of the first and leaves the buffers of ``modules`` as the first left them.

    Args:
        closure: runs forward and gives the scalar loss.
        parameters: those that move and are differentiated; None stands where the loss does not depend on one.
        rho: radius >= 0.
        adaptive: whether moves are measured relative to each weight.
        modules: whose buffers (running statistics) the second pass must not change.
    """
    start = random_numbers()
    with torch.enable_grad():
        loss = closure()
        gradients: list[Tensor | None] = list(torch.autograd.grad(loss, parameters, allow_unused=True))
    moves = ascent(parameters, gradients, rho, adaptive=adaptive)
    with displaced(parameters, moves), unrecorded(modules), same_random_numbers(start), torch.enable_grad():
        flat: list[Tensor | None] = list(torch.autograd.grad(closure(), parameters, allow_unused=True))
    return loss.detach(), gradients, flat
