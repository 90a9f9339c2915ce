"""One cycle of the learning rate with momentum moving against it, and the test that finds the largest usable rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...core.checks import check_choice, check_number, refuse, refuse_type
from ...core.schedule import Curve, Piece, Schedule, check_optimizer, check_steps
from ...core.undisturbed import Snapshot, same_random_states


def _rates(steps: int, div: float, final_div: float, anneal: float) -> Curve:
    top = (1.0 - anneal) * steps
    low = 1.0 / div
    triangle = [Piece(top / 2, low, 1.0), Piece(top, 1.0, low)]
    return Curve([*triangle, Piece(steps, low, low / final_div)] if anneal else triangle)


def _momenta(steps: int, high: float, low: float, anneal: float) -> Curve:
    top = (1.0 - anneal) * steps
    return Curve([Piece(top / 2, high, low), Piece(top, low, high)])


def cyclical_momentum(t: int, T: int, high: float = 0.95, low: float = 0.85, anneal: float = 0.1) -> float:
    r"""The momentum of one cycle at step t of T: down while the rate rises, up while it falls, then held.

    .. math:: high \to low \text{ over } [0, h], \quad low \to high \text{ over } [h, 2h], \quad
        h = \tfrac{1}{2} (1 - anneal)\, T

    Args:
        t: step >= 0.
        T: steps of the run >= 1.
        high, low: momentum in [0, 1) at both ends, and in the middle.
        anneal: share of the run after the cycle, in [0, 1).

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> [round(cyclical_momentum(t, 100), 6) for t in (0, 20, 45, 70, 90, 100)]
        [0.95, 0.905556, 0.85, 0.905556, 0.95, 0.95]

    Source: A disciplined approach to neural network hyper-parameters, arXiv:1803.09820.
    """
    check_steps("t", t, low=0)
    _check_cycle(T, anneal)
    _check_momenta(high, low)
    return _momenta(T, high, low, anneal)(t)


def one_cycle_rate(
    t: int, T: int, lr_max: float, div: float = 10.0, final_div: float = 100.0, anneal: float = 0.1
) -> tuple[float, float]:
    r"""The learning rate and the momentum of one cycle at step t of T.

    .. math:: h = \tfrac{1}{2} (1 - anneal)\, T: \quad lr_{min} \to lr_{max} \text{ over } [0, h], \quad
        lr_{max} \to lr_{min} \text{ over } [h, 2h], \quad lr_{min} \to lr_{min} / final\_div \text{ over } [2h, T]

    all along straight lines, with lr_min = lr_max / div; after T the last rate is held.

    Args:
        t: step >= 0.
        T: steps of the run >= 1.
        lr_max: rate in the middle of the cycle, above 0.
        div: lr_max / lr_min >= 1.
        final_div: lr_min / last rate >= 1.
        anneal: share of the run in which the rate falls below lr_min, in [0, 1); 0 is a plain triangle, which ends at
            lr_min.

    Raises:
        ValueError: a value outside its range.

    Example:
        >>> one_cycle_rate(45, 100, 1.0)
        (1.0, 0.85)

    Source: A disciplined approach to neural network hyper-parameters, arXiv:1803.09820.
    """
    check_steps("t", t, low=0)
    _check_cycle(T, anneal, div, final_div)
    check_number("lr_max", lr_max, low=0.0, high=math.inf, open_low=True, open_high=True)
    return lr_max * _rates(T, div, final_div, anneal)(t), cyclical_momentum(t, T, anneal=anneal)


def _check_cycle(steps: object, anneal: object, div: object = 1.0, final_div: object = 1.0) -> None:
    check_steps("total_steps", steps)
    check_number("anneal", anneal, low=0.0, high=1.0, open_high=True)
    for name, value in (("div", div), ("final_div", final_div)):
        check_number(name, value, low=1.0, high=math.inf, open_high=True)


def _check_momenta(high: object, low: object) -> None:
    for name, value in (("high", high), ("low", low)):
        check_number(name, value, low=0.0, high=1.0, open_high=True)


class OneCycle(Schedule):
    r"""One triangle of the learning rate, momentum against it, then a short fall to a hundredth of where it began.

    The curves are those of :func:`one_cycle_rate` and :func:`cyclical_momentum`: straight lines, three phases. It is
    ``optax.linear_onecycle_schedule`` with pct_start (1 - anneal) / 2 and pct_final 1 - anneal; torch's ``OneCycleLR``
    by default has two phases of a cosine, other ends, and momentum for the step before.

    Args:
        optimizer: with ``momentum`` or ``betas`` in each group, unless ``cycle_momentum`` is False; of betas the first
            is cycled.
        lr_max: rate in the middle, the one that :func:`lr_range_test` suggests; where groups came with different rates
            it is that of the largest, and the others keep their ratio to it. None: each group's own rate.
        total_steps: steps of the run >= 1; after them the last rate is held.
        div: lr_max / first rate >= 1, 3 to 25.
        final_div: first rate / last rate >= 1.
        anneal: share of the run after the triangle, in [0, 1); 0 is a plain triangle.
        cycle_momentum: whether momentum moves.
        high, low: momentum in [0, 1) at both ends, and in the middle.
        last_epoch: None goes on where the optimizer is; see :class:`steepest.core.schedule.Schedule`.

    Raises:
        ValueError: a value outside its range; nothing to cycle in the optimizer.
        TypeError: not an optimizer.

    Example:
        >>> optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
        >>> schedule = OneCycle(optimizer, lr_max=1.0, total_steps=100)
        >>> schedule.get_last_lr(), optimizer.param_groups[0]["momentum"]
        ([0.1], 0.95)

    Source: A disciplined approach to neural network hyper-parameters, arXiv:1803.09820.
    """

    name = "one_cycle"

    def __init__(
        self,
        optimizer: Optimizer,
        lr_max: float | None,
        total_steps: int,
        *,
        div: float = 10.0,
        final_div: float = 100.0,
        anneal: float = 0.1,
        cycle_momentum: bool = True,
        high: float = 0.95,
        low: float = 0.85,
        last_epoch: int | None = None,
    ) -> None:
        check_optimizer(optimizer)
        _check_cycle(total_steps, anneal, div, final_div)
        _check_momenta(high, low)
        self.curve = _rates(total_steps, div, final_div, anneal)
        self._momenta = _momenta(total_steps, high, low, anneal) if cycle_momentum else None
        if lr_max is not None:
            check_number("lr_max", lr_max, low=0.0, high=math.inf, open_low=True, open_high=True)
            _peak_at(optimizer, lr_max)
        super().__init__(optimizer, last_epoch)

    def momentum(self, step: int) -> float | None:
        return None if self._momenta is None else self._momenta(step)

    @classmethod
    def spanning(cls, optimizer: Optimizer, steps: int) -> Self:
        check_steps("steps", steps)
        cycled = all("momentum" in group or "betas" in group for group in optimizer.param_groups)
        return cls(optimizer, None, steps, cycle_momentum=cycled)

    @classmethod
    def samples(cls) -> list[tuple[int, dict[str, Any]]]:
        return [
            (100, {"lr_max": 1.0, "total_steps": 100}),
            (7, {"lr_max": None, "total_steps": 7, "anneal": 0.0, "div": 3.0, "low": 0.5}),
            (12, {"lr_max": 0.3, "total_steps": 12, "cycle_momentum": False, "final_div": 1.0}),
        ]


def _peak_at(optimizer: Optimizer, lr_max: float) -> None:
    """Set the groups' own rates so that the largest is ``lr_max`` and the others keep their ratio to it."""
    rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    largest = max(rates)
    if largest == lr_max:
        return
    if largest <= 0.0 and len(rates) > 1:
        refuse("optimizer", "a rate above 0 in some group, because the others keep their ratio to it", rates)
    for group, rate in zip(optimizer.param_groups, rates):
        own = lr_max * (rate / largest) if largest > 0.0 else lr_max
        held = group["lr"]
        group["initial_lr"] = torch.full_like(held, own) if isinstance(held, Tensor) else own


@dataclass
class RangeTest:
    """What :func:`lr_range_test` measured.

    Attributes:
        lrs: the rate of each optimizer step.
        losses: the mean training loss of the batches of that step, before it.
        smoothed: their exponential average, bias-corrected.
        suggestion: the rate at which the smoothed loss is lowest, divided by 10: a peak for :class:`OneCycle`.
        steepest: the rate at which the smoothed loss falls fastest over the logarithm of the rate.
        diverged: whether the test ended because the loss rose to several times its lowest, or was no number.
    """

    lrs: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float
    steepest: float
    diverged: bool
    _snapshot: Snapshot | None = field(default=None, repr=False, compare=False)

    @property
    def history(self) -> dict[str, list[float]]:
        """Rates and smoothed losses, under the words of pytorch-lr-finder: ``lr`` and ``loss``."""
        return {"lr": self.lrs, "loss": self.smoothed}

    def reset(self) -> None:
        """Put model and optimizer back to where the test found them, whatever has happened since."""
        if self._snapshot is not None:
            self._snapshot.restore()


def lr_range_test(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    loader: Iterable[Any],
    start_lr: float = 1e-6,
    end_lr: float = 1.0,
    num_iter: int = 200,
    *,
    optimizer: Optimizer | None = None,
    step_mode: str = "exp",
    accumulation_steps: int = 1,
    smoothing: float = 0.98,
    divergence: float = 4.0,
    divide: float = 10.0,
    scaler: torch.amp.GradScaler | None = None,
    device: torch.device | str | None = None,
) -> RangeTest:
    r"""A short training with a rising rate that finds the largest usable one, and leaves no trace.

    .. math:: lr_t: start \to end, \qquad \tilde L_t = \frac{(1 - \beta) \sum_{s \le t} \beta^{t - s} L_s}
        {1 - \beta^{t + 1}}, \qquad \text{stop at } \tilde L_t > 4 \min_{s \le t} \tilde L_s

    The rate rises with every step of the optimizer: not with the batches that one step accumulates, and not with a step
    that a gradient scaler skips. Afterwards, and after an exception, model, loss, optimizer, scaler and all random
    states are bit for bit what they were.

    Args:
        model: any; it is trained in training mode.
        loss: ``loss(outputs, target)``, a scalar; where it is a module, its parameters and memories go back too.
        loader: batches ``(inputs, target)``; begun anew when it ends.
        start_lr, end_lr: rates above 0, the second larger.
        num_iter: steps of the optimizer >= 1, a few hundred.
        optimizer: the one that will train; default SGD with momentum 0.9. Its largest rate is moved, the groups keep
            their ratios.
        step_mode: ``"exp"`` multiplies the rate, ``"linear"`` adds to it.
        accumulation_steps: batches of one step >= 1.
        smoothing: beta in [0, 1).
        divergence: how many times its lowest value the smoothed loss may reach, above 1.
        divide: by which the rate of the lowest smoothed loss is divided for the suggestion, 3 to 10.
        scaler: of mixed precision.
        device: where batches go; default that of the model.

    Raises:
        ValueError: a value outside its range; a loader without batches; a loss that is no number at the first step.
        TypeError: no model, no optimizer.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(64, 3); y = (x[:, 0] > 0).long()
        >>> model = nn.Linear(3, 2)
        >>> test = lr_range_test(model, nn.functional.cross_entropy, [(x, y)], 1e-3, 100.0, 50)
        >>> len(test.lrs) == len(test.losses), test.suggestion < test.lrs[-1]
        (True, True)

    Source: A disciplined approach to neural network hyper-parameters, arXiv:1803.09820; where to stop, what to divide
    by and the smoothing are choices of this library.
    """
    if not isinstance(model, nn.Module):
        refuse_type("model", "a module", model)
    check_number("start_lr", start_lr, low=0.0, high=math.inf, open_low=True, open_high=True)
    check_number("end_lr", end_lr, low=start_lr, high=math.inf, open_low=True, open_high=True)
    check_steps("num_iter", num_iter)
    check_choice("step_mode", step_mode, ("exp", "linear"))
    check_steps("accumulation_steps", accumulation_steps)
    check_number("smoothing", smoothing, low=0.0, high=1.0, open_high=True)
    check_number("divergence", divergence, low=1.0, open_low=True)
    check_number("divide", divide, low=1.0, high=math.inf, open_high=True)
    modules = [model, loss] if isinstance(loss, nn.Module) else [model]
    if optimizer is None:
        trained = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
        optimizer = torch.optim.SGD(trained.values(), lr=start_lr, momentum=0.9)
    check_optimizer(optimizer)
    place = device if device is not None else next((p.device for p in model.parameters()), torch.device("cpu"))

    snapshot = Snapshot(modules, optimizer)
    scaler_before = None if scaler is None else scaler.state_dict()
    with same_random_states(*_generators(loader)):
        try:
            for module in modules:
                module.train()
            shape = "exponential" if step_mode == "exp" else "linear"
            rates = Curve([Piece(max(num_iter - 1, 1), start_lr, end_lr, shape)])
            windows = _windows(loader, accumulation_steps, place)
            measured = _rise(model, loss, windows, optimizer, rates, num_iter, smoothing, divergence, scaler)
        finally:
            snapshot.restore()
            if scaler is not None and scaler_before is not None:
                scaler.load_state_dict(scaler_before)
    lrs, losses, smoothed, diverged = measured
    lowest = int(np.argmin(smoothed))
    steepest = lrs[0]
    if len(lrs) > 1:
        steepest = lrs[int(np.argmin(np.gradient(np.array(smoothed), np.log(np.array(lrs)))))]
    return RangeTest(lrs, losses, smoothed, lrs[lowest] / divide, steepest, diverged, snapshot)


def _rise(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    windows: Iterator[list[tuple[Any, Any]]],
    optimizer: Optimizer,
    rates: Curve,
    num_iter: int,
    smoothing: float,
    divergence: float,
    scaler: torch.amp.GradScaler | None,
) -> tuple[list[float], list[float], list[float], bool]:
    """Rates, losses and smoothed losses of the steps that were taken, and whether the loss diverged."""
    lrs: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    average, shares = 0.0, _shares(optimizer)
    skipped = 0
    for window in windows:
        rate = rates(len(lrs))
        for group, share in zip(optimizer.param_groups, shares):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * share)
            else:
                group["lr"] = rate * share
        optimizer.zero_grad(set_to_none=True)
        value = 0.0
        for inputs, target in window:
            mean = loss(model(inputs), target) / len(window)
            (mean if scaler is None else scaler.scale(mean)).backward()
            value += float(mean.detach())
        if not math.isfinite(value) and not lrs:
            refuse("loss", "a number at the first step", value)
        if _stepped(optimizer, scaler):
            lrs.append(rate)
            losses.append(value)
            average = smoothing * average + (1.0 - smoothing) * value
            smoothed.append(average / (1.0 - smoothing ** len(lrs)))
            if not math.isfinite(value):
                lrs, losses, smoothed = lrs[:-1], losses[:-1], smoothed[:-1]
                return lrs, losses, smoothed, True
            if smoothed[-1] > divergence * min(smoothed):
                return lrs, losses, smoothed, True
        else:
            skipped += 1
            if skipped > 100 + num_iter:
                refuse("scaler", "steps that it does not skip", f"{skipped} skipped steps")
        if len(lrs) == num_iter:
            break
    return lrs, losses, smoothed, False


def _shares(optimizer: Optimizer) -> list[float]:
    """The rate of each group as a share of the largest."""
    rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    largest = max(rates)
    return [rate / largest if largest > 0.0 else 1.0 for rate in rates]


def _stepped(optimizer: Optimizer, scaler: torch.amp.GradScaler | None) -> bool:
    """One step; whether the scaler let it pass."""
    if scaler is None:
        optimizer.step()
        return True
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale() >= before


def _windows(loader: Iterable[Any], size: int, device: Any) -> Iterator[list[tuple[Any, Any]]]:
    """The batches of one step after the other, the loader begun anew when it ends."""
    window: list[tuple[Any, Any]] = []
    while True:
        empty = True
        for batch in loader:
            empty = False
            inputs, target = (_moved(value, device) for value in batch)
            window.append((inputs, target))
            if len(window) == size:
                yield window
                window = []
        if empty:
            refuse("loader", "at least one batch, each time it is begun", loader)


def _moved(value: Any, device: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _generators(loader: Any) -> Sequence[torch.Generator]:
    owners = (loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None))
    generators = [getattr(owner, "generator", None) for owner in owners]
    return list({id(g): g for g in generators if isinstance(g, torch.Generator)}.values())
