"""Offline optimisation by a surrogate whose mean output is held insensitive to small moves of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ...core.checks import check_choice, check_number, check_tensor, refuse, refuse_type
from ...core.displaced import ascent, displaced, length, random_numbers, same_random_numbers, unrecorded
from ...core.search import Float
from ...core.wrapper import Params, Wrapper

MODES = ("constraint", "penalty")
Predict = Callable[[nn.Module, Any], Tensor]


def _outputs(model: nn.Module, inputs: Any) -> Tensor:
    outputs: Tensor = model(inputs)
    return outputs


def _mean_gradient(
    model: nn.Module, parameters: Sequence[Tensor], inputs: Any, predict: Predict, start: dict[str, Tensor]
) -> list[Tensor | None]:
    """The gradient of the mean prediction, over all ranks; buffers and random numbers are afterwards as before."""
    with torch.enable_grad(), unrecorded([model]), same_random_numbers(start):
        predicted = predict(model, inputs)
        check_tensor("model", predicted, floating=True)
        mean = predicted.mean()
        if not mean.requires_grad:
            return [None] * len(parameters)
        slopes: list[Tensor | None] = list(torch.autograd.grad(mean, list(parameters), allow_unused=True))
    ranks = torch.distributed
    if ranks.is_available() and ranks.is_initialized() and ranks.get_world_size() > 1:
        for slope in slopes:
            if slope is not None:
                ranks.all_reduce(slope)
                slope /= ranks.get_world_size()
    return slopes


def surrogate_sharpness(model: nn.Module, inputs: Any, rho: float = 0.05, *, predict: Predict = _outputs) -> Tensor:
    r"""How far a surrogate's mean output can rise, to first order, when its parameters move by at most rho.

    .. math:: \max_{\|u\| \le \rho} G(\beta + u) - G(\beta) \approx \rho \, \|\nabla_\beta G(\beta)\|, \qquad
        G(\beta) = \frac{1}{m} \sum_i f_\beta(x_i)

    Args:
        model: the surrogate.
        inputs: a batch of designs.
        rho: radius >= 0.
        predict: ``predict(model, inputs)`` gives the predicted values, where the model itself gives more (a variance).

    Returns:
        a scalar in float64.

    Raises:
        ValueError: rho below 0.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> surrogate_sharpness(model, torch.tensor([[3.0, 4.0]]), rho=0.1)
        tensor(0.5000, dtype=torch.float64)

    Source: Incorporating Surrogate Gradient Norm to Improve Offline Optimization Techniques (NeurIPS 2024).
    """
    check_number("rho", rho, low=0.0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    slopes = _mean_gradient(model, parameters, inputs, predict, random_numbers())
    return rho * length([slope for slope in slopes if slope is not None])


class IGNITE(Wrapper):
    r"""An optimizer that trains a surrogate under a constraint on its sharpness, by a multiplier.

    .. math:: \min_\beta L(\beta) \text{ s.t. } \rho \|\nabla G(\beta)\| \le \epsilon, \qquad
        n = \frac{\nabla G(\beta + r v) - \nabla G(\beta)}{r}, \; v = \frac{\nabla G}{\|\nabla G\|} \\
        \text{gradient } \nabla L + \lambda \rho\, n, \qquad
        \lambda \leftarrow \max(0, \lambda + \eta_\lambda (\rho \|\nabla G(\beta)\| - \epsilon))

    G is the mean prediction over the batch (:func:`surrogate_sharpness`); its norm is that of all parameters with a
    gradient of both G and L as one vector. Three gradients a step. Where a maximum is searched on a surrogate, errors
    are found and exploited; this one changes less when its parameters do. Targets are to be brought to unit scale, or
    eps has none. A gradient that is not finite changes nothing, and is counted in ``skipped``. (Official code has no
    floor at 0: below it the constraint would reward sharpness.)

    Args:
        optimizer: what steps; the publication takes Adam at 3e-4.
        model: the surrogate.
        rho: radius >= 0; 0 is the optimizer alone.
        r: step of the difference, > 0.
        eps: largest sharpness, >= 0.
        lam: the multiplier at the start, >= 0.
        dual_lr: its rate, >= 0.
        mode: ``"constraint"``, or ``"penalty"``, where lam stays (:class:`IGNITE2`).
        inputs: designs of all steps; None takes ``step(inputs=...)`` or the closure's batch, which
            :class:`steepest.descent.Descent` gives.
        predict: as in :func:`surrogate_sharpness`.

    Raises:
        ValueError: an argument out of its range.
        TypeError: no optimizer, no module, no inputs, a sparse gradient.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        >>> x, y = torch.randn(8, 2), torch.ones(8, 1)
        >>> optimizer = IGNITE(torch.optim.Adam(model.parameters(), lr=3e-4), model)
        >>> nn.functional.mse_loss(model(x), y).backward()
        >>> optimizer.step(inputs=x)
        >>> optimizer.lam > 1e-3
        True

    Source: Incorporating Surrogate Gradient Norm to Improve Offline Optimization Techniques (NeurIPS 2024).
    """

    name = "ignite"
    search = {"rho": Float(0.01, 0.2, log=True), "eps": Float(1e-4, 1e-1, log=True)}
    exempt = {"zero_gradient": "the penalty also moves weights where the loss is flat"}

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        rho: float = 0.05,
        r: float = 0.05,
        eps: float = 1e-3,
        lam: float = 1e-3,
        dual_lr: float = 1e-3,
        mode: str = "constraint",
        *,
        inputs: Any = None,
        predict: Predict = _outputs,
    ) -> None:
        if not isinstance(model, nn.Module):
            refuse_type("model", "a module", model)
        for name, value in (("rho", rho), ("eps", eps), ("lam", lam), ("dual_lr", dual_lr)):
            check_number(name, value, low=0.0)
        check_number("r", r, low=0.0, open_low=True)
        check_choice("mode", mode, MODES)
        self.model, self.rho, self.r, self.eps, self.lam = model, float(rho), float(r), float(eps), float(lam)
        self.dual_lr, self.mode, self.inputs, self.predict = float(dual_lr), mode, inputs, predict
        self.norm = 0.0
        """Of the gradient of G in the last step."""
        self.skipped = 0
        self._inputs: Any = None
        super().__init__(optimizer)

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        inputs: Any = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> Any:
        """One step.

        Args:
            closure: zeroes, runs forward and backward and returns the loss; None where that was done.
            inputs: the batch of designs.
            scaler: the gradient scaler that the closure's backward uses.

        Raises:
            TypeError: no inputs, a sparse gradient.
        """
        if inputs is None:
            inputs = self.inputs
        if inputs is None:
            batch = getattr(closure, "inputs", None)
            inputs = getattr(batch, "inputs", batch)
        if inputs is None:
            refuse_type("inputs", "designs, here, in the constructor or as inputs of the closure", None)
        self._inputs = inputs
        try:
            return super().step(closure, scaler=scaler)
        finally:
            self._inputs = None

    def _still(self) -> bool:
        return self.rho == 0 or (self.lam == 0 and self.mode == "penalty")

    @torch.no_grad()
    def _advance(self, closure: Callable[[], Any] | None) -> None:
        if not self._still() and not self._add():
            self.skipped += 1
            return
        self.base_optimizer.step()

    def _add(self) -> bool:
        """Add the penalty's gradient and move the multiplier, unless something is not finite."""
        groups = [group for group in self.param_groups for p in group["params"] if p.grad is not None]
        parameters = self._with_gradients()
        for p in parameters:
            if p.grad is not None and p.grad.layout != torch.strided:
                refuse_type("params", "dense gradients", p.grad)
        if not parameters:
            return True
        model = self.model.module if isinstance(self.model, nn.parallel.DistributedDataParallel) else self.model
        start = random_numbers()
        first = _mean_gradient(model, parameters, self._inputs, self.predict, start)
        norm = float(length([slope for slope in first if slope is not None]))
        second = first
        if self.lam > 0 and 0 < norm < float("inf"):
            with displaced(parameters, ascent(parameters, first, self.r)):
                second = _mean_gradient(model, parameters, self._inputs, self.predict, start)
        finite = bool(length([slope for slope in second if slope is not None]).isfinite()) and norm < float("inf")
        if not finite or not bool(self._finite()):
            return False
        if second is not first:
            share = self.lam * self.rho / self.r
            for p, a, b, group in zip(parameters, first, second, groups):
                if a is not None and b is not None:
                    assert p.grad is not None
                    p.grad.add_(b - a, alpha=-share if group.get("maximize") else share)
        self.norm = norm
        if self.mode == "constraint":
            self.lam = max(0.0, self.lam + self.dual_lr * (self.rho * norm - self.eps))
        return True

    def own_state(self) -> dict[str, Any]:
        """The multiplier, and how many steps were skipped."""
        return {"lam": self.lam, "skipped": self.skipped}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take what :meth:`own_state` gave."""
        self.lam, self.skipped = float(state["lam"]), int(state["skipped"])

    @classmethod
    def builders(cls) -> list[Callable[[Params], IGNITE]]:
        """Over optimizers with and without averages, on a surrogate of the given parameters."""
        return [
            lambda params: _over(cls, torch.optim.SGD(params, lr=0.01, momentum=0.9)),
            lambda params: _over(cls, torch.optim.AdamW(params, lr=0.05, eps=1e-6)),
        ]


class IGNITE2(IGNITE):
    r"""An optimizer that trains a surrogate with a penalty of its sharpness: :math:`L + \lambda \rho \|\nabla G\|`.

    As :class:`IGNITE`, with a multiplier that stays.

    Args:
        optimizer, model, rho, r, inputs, predict: as in :class:`IGNITE`.
        lam: weight >= 0; 0 is the optimizer alone.

    Raises:
        ValueError: an argument out of its range.
        TypeError: no optimizer, no module, no inputs, a sparse gradient.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = IGNITE2(torch.optim.Adam(model.parameters(), lr=3e-4), model, lam=0.1)
        >>> optimizer.mode
        'penalty'

    Source: Incorporating Surrogate Gradient Norm to Improve Offline Optimization Techniques (NeurIPS 2024).
    """

    name = "ignite_2"
    search = {"rho": Float(0.01, 0.2, log=True), "lam": Float(1e-3, 1.0, log=True)}

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        rho: float = 0.05,
        r: float = 0.05,
        lam: float = 1e-3,
        *,
        inputs: Any = None,
        predict: Predict = _outputs,
    ) -> None:
        super().__init__(optimizer, model, rho, r, 0.0, lam, 0.0, "penalty", inputs=inputs, predict=predict)


class _Squares(nn.Module):
    """A surrogate of given parameters for the conformance suite: the input times their length."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__()
        self.own = nn.ParameterList(parameters)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.stack([p.abs().square().sum().double() for p in self.own]).sum()


def _over(cls: type[IGNITE], optimizer: Optimizer) -> IGNITE:
    model = _Squares([p for group in optimizer.param_groups for p in group["params"]])
    return cls(optimizer, model, lam=0.01, inputs=torch.ones(2, dtype=torch.float64))


def offline_search(
    model: nn.Module,
    x0: F[Tensor, "starts dimensions"],
    steps: int = 100,
    lr: float = 0.05,
    *,
    bounds: tuple[float, float] | None = None,
    predict: Predict = _outputs,
) -> F[Tensor, "starts dimensions"]:
    r"""Designs after gradient ascent on a surrogate, :math:`x \leftarrow x + \eta \nabla_x f_\beta(x)`, start by start.

    The model's mode, gradients, buffers and the random numbers are afterwards as before.

    Args:
        model: the surrogate.
        x0: the best logged designs.
        steps: >= 0.
        lr: > 0.
        bounds: least and greatest value of each coordinate, to which designs are clamped.
        predict: as in :func:`surrogate_sharpness`.

    Returns:
        of the shape of ``x0``.

    Raises:
        ValueError: an argument out of its range.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> x = offline_search(model, torch.zeros(2, 1), steps=10, lr=0.1)
        >>> torch.allclose(x, model.weight.detach().expand(2, 1))
        True

    Source: Incorporating Surrogate Gradient Norm to Improve Offline Optimization Techniques (NeurIPS 2024).
    """
    check_tensor("x0", x0, floating=True)
    check_number("steps", steps, low=0, integer=True)
    check_number("lr", lr, low=0.0, open_low=True)
    if bounds is not None and not bounds[0] < bounds[1]:
        refuse("bounds", "a least and a greater value", bounds)
    x = x0.detach().clone()
    with unrecorded([model]), same_random_numbers(random_numbers()):
        for _ in range(steps):
            at = x.requires_grad_()
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(predict(model, at).sum(), at)
            x = at.detach() + lr * slope
            if bounds is not None:
                x = x.clamp(*bounds)
    return x.detach()
