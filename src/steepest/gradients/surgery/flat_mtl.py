"""Flat regions for each task: sharpness-aware gradients in several tasks, joined by any aggregator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core.aggregator import Aggregator
from ...core.checks import check_flag, check_number, check_tensor, refuse, refuse_type
from ...core.displaced import sharpness_aware
from ...core.jacobian import add_to_gradients

Trained = nn.Module | Iterable[Tensor]
Gradients = list[Tensor | None]


def task_sharpness_aware(
    closure: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    *,
    rho: float = 0.05,
    adaptive: bool = False,
    modules: Iterable[nn.Module] = (),
) -> tuple[Gradients, Gradients]:
    r"""A task's gradient, and its gradient at its own worst point nearby.

    .. math:: g = \nabla L(\theta), \qquad g^{SAM} = \nabla L\left(\theta + \rho \frac{g}{\|g\|}\right), \qquad
        \text{adaptive: } \theta + \rho \frac{T^2 g}{\|T g\|}, \; T = |\theta|

    Args:
        closure: runs forward and gives the scalar loss of the task.
        parameters: shared ones and those of the task's head.
        rho: radius >= 0.
        adaptive: whether moves are measured relative to each weight.
        modules: whose running statistics only the first pass may change.

    Returns:
        ``(g, g_sam)``, a tensor or None for each parameter; parameters are as they were, to the last bit.

    Raises:
        ValueError: a radius below 0, a loss that is no scalar.

    Example:
        >>> s = torch.nn.Parameter(torch.ones(2))
        >>> g, g_sam = task_sharpness_aware(lambda: 0.5 * s[0] ** 2 + 5 * s[1] ** 2, [s], rho=0.1)
        >>> g_sam[0]
        tensor([ 1.0100, 10.9950])

    Source: Improving Multi-task Learning via Seeking Task-based Flat Regions, arXiv:2211.13723.
    """
    check_number("rho", rho, low=0.0)
    check_flag("adaptive", adaptive)

    def scalar() -> Tensor:
        loss = closure()
        check_tensor("closures", loss, ndim=0, floating=True)
        return loss

    _, gradients, flat = sharpness_aware(scalar, parameters, rho=rho, adaptive=adaptive, modules=modules)
    return gradients, flat


class FlatMTL:
    r"""Gradients of several tasks, each taken at its own worst point nearby, joined by an aggregator.

    .. math:: u = \mathrm{Agg}(g_1 .. g_m) + \mathrm{Agg}(f_1 .. f_m), \qquad f_i = g_i^{SAM} - g_i

    over the shared parameters; each head gets the sharpness-aware gradient of its task. A step costs two passes a task.

    Args:
        shared: the shared module, or its parameters.
        heads: of each task its module, or its parameters (none: ``[]``).
        aggregator: from ``[m, n]`` to ``[n]``; one of ours, of TorchJD, any callable.
        rho: radius >= 0; each task's is that of the shared parameters and of its own head as one vector.
        adaptive: whether moves are measured relative to each weight.
        split: whether losses and flatness are aggregated apart; False joins them before: Agg(g_sam).
        modules: further modules whose running statistics only the first pass of a task may change, where ``shared`` or
            ``heads`` are parameters.

    Raises:
        ValueError: no head for a task, a radius below 0.

    Example:
        >>> from steepest.gradients import UPGrad
        >>> body, first, second = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 1)
        >>> x = torch.ones(5, 3)
        >>> flat = FlatMTL(body, [first, second], UPGrad())
        >>> flat.backward([lambda: first(body(x)).square().mean(), lambda: second(body(x)).mean()]).shape
        torch.Size([2])
        >>> body.weight.grad.shape
        torch.Size([4, 3])

    Source: Improving Multi-task Learning via Seeking Task-based Flat Regions, arXiv:2211.13723.
    """

    def __init__(
        self,
        shared: Trained,
        heads: Sequence[Trained],
        aggregator: Aggregator | Callable[[Tensor], Tensor],
        rho: float = 0.05,
        *,
        adaptive: bool = False,
        split: bool = True,
        modules: Iterable[nn.Module] = (),
    ) -> None:
        check_number("rho", rho, low=0.0)
        check_flag("adaptive", adaptive)
        check_flag("split", split)
        if not callable(aggregator):
            refuse_type("aggregator", "a callable from [m, n] to [n]", aggregator)
        self.shared = _parameters("shared", shared)
        if not self.shared:
            refuse("shared", "at least one parameter that requires a gradient", shared)
        self.heads = [_parameters("heads", head) for head in heads]
        self.aggregator, self.rho, self.adaptive, self.split = aggregator, rho, adaptive, split
        self.modules = [own for own in (shared, *heads, *modules) if isinstance(own, nn.Module)]

    def backward(self, closures: Sequence[Callable[[], Tensor]]) -> Tensor:
        """Add the gradients to ``.grad``; gives the losses ``[m]`` of the first passes.

        Args:
            closures: m functions, each runs forward and gives the scalar loss of a task.

        Raises:
            ValueError: another number of tasks than heads, a loss that is no scalar.
        """
        if len(closures) != len(self.heads):
            refuse("closures", f"{len(self.heads)} functions, one a task", len(closures))
        losses, first, flat, of_heads = [], [], [], []
        for closure, head in zip(closures, self.heads):
            recorded: list[Tensor] = []

            def task(closure: Callable[[], Tensor] = closure, recorded: list[Tensor] = recorded) -> Tensor:
                loss = closure()
                recorded.append(loss.detach())
                return loss

            g, g_sam = task_sharpness_aware(
                task, [*self.shared, *head], rho=self.rho, adaptive=self.adaptive, modules=self.modules
            )
            count = len(self.shared)
            losses.append(recorded[0])
            first.append(_row(g[:count], self.shared))
            flat.append(_row(g_sam[:count], self.shared))
            of_heads.append(g_sam[count:])
        jacobian, at_worst = torch.stack(first), torch.stack(flat)
        if self.split:
            direction = self.aggregator(jacobian) + self.aggregator(at_worst - jacobian)
        else:
            direction = self.aggregator(at_worst)
        check_tensor("aggregator", direction, shape=(jacobian.shape[1],))
        add_to_gradients(direction, self.shared)
        for head, gradients in zip(self.heads, of_heads):
            for parameter, gradient in zip(head, gradients):
                if gradient is not None:
                    add_to_gradients(gradient.flatten(), [parameter])
        return torch.stack(losses)


FSMTL = FlatMTL
"""The name in the authors' code."""


def _parameters(argument: str, trained: Any) -> list[Tensor]:
    parameters = list(trained.parameters() if isinstance(trained, nn.Module) else trained)
    for parameter in parameters:
        if not isinstance(parameter, Tensor):
            refuse_type(argument, "a module or parameters", parameter)
    return [p for p in parameters if p.requires_grad]


def _row(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    """Gradients as one vector; 0 for None."""
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(gradients, parameters)]
    )
