"""Conformance of losses of log-probabilities of whole answers, beyond what every loss promises.

``check_preference(cls)`` runs all; ``preference_checks(cls)`` lists ``(name, check)`` for pytest's ``parametrize``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core.loss import Loss
from ._common import refused
from ._constructor import given_arguments
from ._suite import run_all
from .loss import loss_cases, of_copy

FAR = 1e4
"""Log-probabilities down to minus this give a finite value and gradient."""
OTHER_VALUES = {"mean": "sum", "sum": "mean", "none": "mean"}


def with_tensors(
    args: Any, kwargs: Any, change: Callable[[int | str, Tensor], Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Arguments with each tensor replaced by ``change(place, tensor)``."""
    positional = [change(i, a) if isinstance(a, Tensor) else a for i, a in enumerate(args)]
    return positional, {k: change(k, v) if isinstance(v, Tensor) else v for k, v in kwargs.items()}


def check_reference(cls: type[Loss]) -> None:
    """No gradient flows into anything but the policy's log-probabilities."""
    for loss, (args, kwargs) in loss_cases(cls):
        leaves: dict[int | str, Tensor] = {}

        def leaf(place: int | str, value: Tensor, into: dict[int | str, Tensor] = leaves) -> Tensor:
            if not value.is_floating_point():
                return value
            into[place] = value.detach().clone().requires_grad_()
            return into[place]

        positional, named = with_tensors(args, kwargs, leaf)
        value = of_copy(loss, positional, named)
        slopes = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        for place, slope in zip(leaves, slopes):
            if place in cls.differentiable:
                assert slope is not None and slope.any(), f"{loss}: no gradient in argument {place!r}"
            else:
                assert slope is None or not slope.any(), f"{loss}: a gradient in argument {place!r}"


def check_lengths(cls: type[Loss]) -> None:
    """Tensors of another length than their partner's are refused, never broadcast."""
    for loss, (args, kwargs) in loss_cases(cls):
        answers = [p for p, v in [*enumerate(args), *kwargs.items()] if isinstance(v, Tensor) and v.ndim]
        for place in answers if len(answers) > 1 else []:
            for what, cut in (("one row less", lambda t: t[1:]), ("a column", lambda t: t[:, None])):
                changed = with_tensors(args, kwargs, lambda p, t, at=place, f=cut: f(t) if p == at else t)
                refused(f"{what} in argument {place!r}", of_copy, loss, *changed)


def check_far(cls: type[Loss]) -> None:
    """A value that is finite has finite gradients, at the step before the first and at log-probabilities of -1e4."""
    for dtype in (torch.float32, torch.float64):
        for loss, (args, kwargs) in loss_cases(cls, dtype):
            for near, far in ((-1.0, -1.0), (-1.0, -FAR), (-FAR, -1.0), (-FAR, -FAR)):

                def moved(place: int | str, value: Tensor, ends: tuple[float, float] = (near, far)) -> Tensor:
                    if place not in cls.differentiable:
                        return value
                    first = place == cls.differentiable[0]
                    return torch.full_like(value, ends[0] if first else ends[1]).requires_grad_()

                positional, named = with_tensors(args, kwargs, moved)
                value = of_copy(loss, positional, named)
                policy = [positional[p] if isinstance(p, int) else named[p] for p in cls.differentiable]
                assert not value.isnan(), f"{loss}: NaN at {near:g} and {far:g}"
                slopes = torch.autograd.grad(value, policy, allow_unused=True)
                fine = all(s is None or bool(s.isfinite().all()) for s in slopes)
                assert fine or not math.isfinite(value.item()), f"{loss}: a gradient that is not finite"


def check_hyperparameters(cls: type[Loss]) -> None:
    """Every argument of the constructor changes the value, or is refused by name; each is taken by some sample."""
    members = loss_cases(cls)
    given = given_arguments(cls, lambda: loss_cases(cls))
    names = {name for arguments in given for name in arguments} | _numbers(cls)
    for name in sorted(names):
        acts = False
        for (loss, (args, kwargs)), arguments in zip(members, given):
            before = arguments.get(name, getattr(loss, name, None))
            try:
                changed = cls(**{**arguments, name: _another(before)})
                value = of_copy(changed, args, kwargs)
            except (ValueError, TypeError) as error:
                # another loss may want other arguments; a number that is refused is named
                assert name in str(error) or isinstance(before, str), f"{name}: {error}"
            else:
                acts = True
                assert not torch.equal(value, of_copy(loss, args, kwargs)), f"{name} was taken and does nothing: {loss}"
        assert acts, f"{name} is refused by all samples"


def _numbers(cls: type[Loss]) -> set[str]:
    """Arguments of the constructor that take a number or a word."""
    parameters = inspect.signature(cls.__init__).parameters
    return {name for name, p in parameters.items() if p.default is None or isinstance(p.default, (int, float, str))}


def _another(value: Any) -> Any:
    if isinstance(value, str):
        return OTHER_VALUES.get(value, "hinge" if value != "hinge" else "ipo")
    if value is None:
        return 0.37
    return 0.17 if value == 0 else 0.8 * value


CHECKS: tuple[Callable[[type[Loss]], None], ...] = (check_reference, check_lengths, check_far, check_hyperparameters)


def preference_checks(cls: type[Loss]) -> list[tuple[str, Callable[[], None]]]:
    """``(name, check)`` for every check."""

    def bind(check: Callable[[type[Loss]], None]) -> Callable[[], None]:
        return lambda: check(cls)

    return [(check.__name__.removeprefix("check_"), bind(check)) for check in CHECKS]


def check_preference(cls: type[Loss]) -> None:
    """Run the whole suite on a class.

    Raises:
        AssertionError: the first promise that the class does not keep.
    """
    run_all(preference_checks(cls), cls)
