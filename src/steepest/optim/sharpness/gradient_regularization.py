"""A penalty of the squared gradient norm, by one finite difference of gradients along the gradient itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...core.checks import check_choice, check_number, check_tensor, refuse_type
from ...core.displaced import Traces, displaced, random_numbers, same_random_numbers
from ...core.search import Float
from ...core.wrapper import Params, TwoPassWrapper

MODES = ("forward", "backward", "exact")


def finite_difference_gr(
    closure: Callable[[], Tensor],
    params: Iterable[Tensor],
    gamma: float,
    eps: float = 0.05,
    mode: str = "forward",
    *,
    modules: Iterable[nn.Module] = (),
) -> tuple[Tensor, list[Tensor | None]]:
    r"""The loss, and the direction that gradient regularisation steps along.

    .. math:: g + \gamma \Delta, \qquad g = \nabla L(\theta), \qquad
        \Delta = \frac{\nabla L(\theta + \varepsilon g) - g}{\varepsilon} \text{ (forward)}, \quad
        \frac{g - \nabla L(\theta - \varepsilon g)}{\varepsilon} \text{ (backward)}, \quad H g \text{ (exact)}

    Both finite differences tend to :math:`H g`, the gradient of :math:`\|g\|^2 / 2`, as eps goes to 0. Parameters are
    afterwards what they were, to the last bit; buffers and random numbers what one pass leaves.

    Args:
        closure: runs forward and returns the scalar loss.
        params: parameters.
        gamma: weight of the penalty :math:`\gamma \|g\|^2 / 2`, >= 0.
        eps: step of the difference along the raw gradient, > 0; of no meaning with ``"exact"``.
        mode: ``"forward"``, ``"backward"``, or ``"exact"`` by differentiating twice.
        modules: further modules whose buffers a pass writes without calling them.

    Returns:
        the loss, and a tensor for each parameter; None where the loss does not depend on one.

    Raises:
        ValueError: another mode, gamma below 0, eps not above 0, a loss that is no scalar.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
        >>> loss, (direction,) = finite_difference_gr(lambda: 0.5 * w[0] ** 2 + 1.5 * w[1] ** 2, [w], gamma=0.1)
        >>> direction
        tensor([ 2.2000, -3.9000])

    Source: Understanding Gradient Regularization in Deep Learning, arXiv:2210.02720.
    """
    _check(gamma, eps, mode)
    parameters = list(params)
    traces, start = Traces(modules), random_numbers()
    with torch.enable_grad(), traces.watching():
        loss = closure()
        check_tensor("closure", loss, ndim=0, floating=True)
        if mode == "exact":
            return loss.detach(), _exact(loss, parameters, [gamma] * len(parameters))
        first = torch.autograd.grad(loss, parameters, allow_unused=True)
    away = eps if mode == "forward" else -eps
    moves = [None if g is None else away * g for g in first]
    with displaced(parameters, moves), traces.frozen(), same_random_numbers(start), torch.enable_grad():
        second = torch.autograd.grad(closure(), parameters, allow_unused=True)
    pairs = zip(first, second)
    return loss.detach(), [None if a is None or b is None else _joined(a, b, gamma / away) for a, b in pairs]


def _joined(first: Tensor, second: Tensor, share: float) -> Tensor:
    """g + share (g' - g), exactly g' where share is 1."""
    return torch.lerp(first, second, share)


def _exact(loss: Tensor, parameters: Sequence[Tensor], gammas: Sequence[float]) -> list[Tensor | None]:
    first = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    own = [g for g in first if g is not None]
    half = torch.stack([(g.abs().square() if g.is_complex() else g.square()).sum() for g in own]).sum() / 2
    curved = torch.autograd.grad(half, parameters, allow_unused=True) if half.requires_grad else [None] * len(first)
    directions: list[Tensor | None] = []
    for g, product, gamma in zip(first, curved, gammas):
        if g is None or product is None:
            directions.append(None if g is None else g.detach())
        else:
            directions.append(g.detach() + gamma * product)
    return directions


class GradientRegularization(TwoPassWrapper):
    r"""An optimizer that also lowers the gradient norm: it sees that of :math:`L + \gamma \|\nabla L\|^2 / 2`.

    The penalty's gradient comes from one finite difference (:func:`finite_difference_gr`), so that a step costs two
    passes. Forward differences, taken uphill, select flatter and sparser solutions than backward ones, the more the
    larger eps is. With gamma = eps a forward step takes the gradient at :math:`\theta + \varepsilon g`: sharpness-aware
    minimisation without normalisation. eps multiplies the raw gradient: where that is huge, take a smaller one.

    Args:
        optimizer: what steps. Its groups may have ``gamma`` and ``eps`` of their own.
        gamma: weight of the penalty, >= 0; 0 is the optimizer alone. Usual: 0.01 to 0.1.
        eps: step of the difference, > 0. Usual: 0.05 to 0.1.
        mode: ``"forward"``, ``"backward"``, or ``"exact"``, which differentiates twice and needs a closure with
            ``loss()``, the forward pass alone, as the one of :class:`steepest.descent.Descent` has.
        modules: further modules whose buffers a pass writes without calling them.

    Raises:
        ValueError: another mode, gamma below 0, eps not above 0.
        TypeError: no optimizer; with ``"exact"`` a closure without ``loss()``.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([2.0, -1.0]))
        >>> optimizer = GradientRegularization(torch.optim.SGD([w], lr=0.1), gamma=0.1, eps=0.05)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = 0.5 * w[0] ** 2 + 1.5 * w[1] ** 2
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure).item()
        3.5
        >>> w.data
        tensor([ 1.7800, -0.6100])

    Source: Understanding Gradient Regularization in Deep Learning, arXiv:2210.02720.
    """

    name = "gradient_regularization"
    search = {"gamma": Float(0.005, 0.2, log=True), "eps": Float(0.01, 0.2, log=True)}
    keeps_first = True

    def __init__(
        self,
        optimizer: Optimizer,
        gamma: float = 0.05,
        eps: float = 0.05,
        mode: str = "forward",
        *,
        modules: Iterable[nn.Module] = (),
    ) -> None:
        _check(gamma, eps, mode)
        self.mode = mode
        super().__init__(optimizer, modules=modules, gamma=gamma, eps=eps)

    def _still(self) -> bool:
        return all(self.option(group, "gamma") == 0 for group in self.param_groups)

    def _moves(
        self, parameters: list[Tensor], gradients: list[Tensor], groups: list[dict[str, Any]], norm: Tensor
    ) -> list[Tensor | None]:
        return [self._step_of(group) * g for g, group in zip(gradients, groups)]

    def _step_of(self, group: dict[str, Any]) -> float:
        eps: float = self.option(group, "eps")
        return eps if self.mode == "forward" else -eps

    def _joined(self, first: list[Tensor], second: list[Tensor], groups: list[dict[str, Any]]) -> list[Tensor]:
        return [
            _joined(a, b, self.option(group, "gamma") / self._step_of(group))
            for a, b, group in zip(first, second, groups)
        ]

    def step(self, closure: Callable[[], Any] | None = None, *, scaler: torch.amp.GradScaler | None = None) -> Any:
        """One step; gives the loss of the first pass.

        Raises:
            TypeError: no closure, or one that the mode cannot use.
        """
        if self.mode != "exact" or self._still():
            return super().step(closure, scaler=scaler)
        forward = getattr(closure, "loss", None)
        if not callable(forward):
            refuse_type("closure", "one with loss(), the forward pass alone, because mode is 'exact'", closure)
        traces = Traces([*self.modules, *getattr(closure, "modules", ())])
        pairs = [(p, group) for group in self.param_groups for p in group["params"] if p.requires_grad]
        with torch.enable_grad(), traces.watching():
            loss = forward()
            directions = _exact(loss, [p for p, _ in pairs], [self.option(group, "gamma") for _, group in pairs])
        for (p, _), direction in zip(pairs, directions):
            p.grad = direction
        if bool(self._finite()):
            self.base_optimizer.step()
        else:
            traces.undo()
            self.skipped += 1
        return loss.detach()

    @classmethod
    def builders(cls) -> list[Callable[[Params], GradientRegularization]]:
        """Both differences, over optimizers with and without averages."""
        return [
            lambda params: cls(torch.optim.SGD(params, lr=0.01, momentum=0.9), 0.01, 0.001),
            lambda params: cls(torch.optim.AdamW(params, lr=0.05, eps=1e-6), 0.01, 0.001, "backward"),
        ]


def flooding(loss: Tensor, level: float) -> Tensor:
    r"""The loss above a level; below it the loss turned round, so that descent goes up again.

    .. math:: |L - b| + b, \qquad \text{gradient } \operatorname{sign}(L - b) \nabla L

    Around the level one step goes down and the next one up: together a step along a backward finite difference, so
    that the gradient's norm falls.

    Args:
        loss: a scalar, or losses of any shape, each flooded by itself.
        level: b.

    Returns:
        of the shape of ``loss``.

    Raises:
        ValueError: a level that is not finite.
        TypeError: no floating tensor.

    Example:
        >>> flooding(torch.tensor([0.3, 0.05]), 0.1)
        tensor([0.3000, 0.1500])

    Source: Do We Need Zero Training Loss After Achieving Zero Training Error?, arXiv:2002.08709; as gradient
    regularisation arXiv:2210.02720.
    """
    check_tensor("loss", loss, floating=True)
    check_number("level", level, open_low=True, open_high=True)
    return (loss - level).abs() + level


def _check(gamma: float, eps: float, mode: str) -> None:
    check_number("gamma", gamma, low=0.0)
    check_number("eps", eps, low=0.0, open_low=True)
    check_choice("mode", mode, MODES)
