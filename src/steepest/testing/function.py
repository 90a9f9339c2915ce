"""Conformance of a loss as a plain function, driven with the samples of a class that takes the same arguments.

``check_function(function, cls)`` runs all; ``function_checks(function, cls)`` lists ``(name, check)`` for pytest's
``parametrize``. What a class refuses its function refuses too. For a function with other arguments,
``check_reduced(function, args, kwargs)`` checks its weights and reductions on one valid call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.objective import Objective
from ..core.reductions import REDUCTIONS
from ._common import Case, cases, close, refused, value, with_reduction, wrong_arguments, wrong_weights
from ._constructor import as_numpy

Function = Callable[..., Tensor]
REDUCED = ("weight", "reduction")
"""The keywords by which losses of samples become one number."""


def keywords(function: Function) -> set[str]:
    """The names of its keyword-only arguments."""
    parameters = inspect.signature(function).parameters
    return {name for name, parameter in parameters.items() if parameter.kind is parameter.KEYWORD_ONLY}


def is_loss_function(function: Any) -> bool:
    """Whether it is a function that takes ``weight=`` or ``reduction=``."""
    return inspect.isfunction(function) and bool(keywords(function) & set(REDUCED))


def function_cases(function: Function, cls: type[Objective], dtype: torch.dtype = torch.float64) -> list[Case]:
    """The samples of ``cls`` that ``function`` takes: the instance, and arguments that make the function that loss.

    Arguments after outputs and target come from the sample, else from the attribute of that name, else they stay out.
    """
    parameters = inspect.signature(function).parameters
    if list(parameters)[1:2] != ["target"]:
        return []
    further = {name: p for name, p in list(parameters.items())[2:] if name not in REDUCED}
    of_function: list[Case] = []
    for objective, (args, kwargs) in cases(cls, dtype):
        have = {name: getattr(objective, name) for name in further if hasattr(objective, name)} | kwargs
        named = {name: have[name] for name in further if name in have}
        if all(name in named or p.default is not p.empty for name, p in further.items()):
            of_function.append((objective, (args, named)))
    return of_function


def check_value(function: Function, cls: type[Objective]) -> None:
    """The function gives what the class gives, for every reduction and with weights."""
    for objective, (args, named) in function_cases(function, cls):
        own = {name: named[name] for name in cls.needs}
        weighted = [{}, {"weight": torch.linspace(0.5, 2.0, args[0].shape[0], dtype=torch.float64)}]
        reductions: tuple[str, ...] = ("mean",)
        if cls.unit == "sample":
            # a function of several numbers a sample sums over all of them, a class over samples
            alike = value(with_reduction(objective, "none"), args, own).shape
            reductions = REDUCTIONS if function(*args, **named, reduction="none").shape == alike else reductions
        for reduction in reductions:
            for extra in weighted if "weight" in keywords(function) else weighted[:1]:
                wanted = value(with_reduction(objective, reduction), args, {**own, **extra})
                loss = function(*args, **named, **extra, reduction=reduction)
                close(loss, wanted, 1e-12, f"{reduction}, weights {bool(extra)}")


def check_bad_input(function: Function, cls: type[Objective]) -> None:
    """Wrong outputs, targets, weights and reductions are refused with the uniform error."""
    for _, (args, named) in function_cases(function, cls, torch.float32):
        for what, wrong in wrong_arguments(cls, args):
            refused(what, function, *wrong, **named)
        check_reduced(function, args, named)


def check_reduced(
    function: Function, args: Sequence[Any], kwargs: Mapping[str, Any], arguments: Sequence[str] = REDUCED
) -> None:
    """Weights of another shape, type or sign and unknown reductions are refused on a call that is valid without."""
    function(*args, **kwargs)
    if "weight" in keywords(function) & set(arguments):
        for what, weight in wrong_weights(args[0].shape[0]):
            refused(what, function, *args, **{**kwargs, "weight": weight})
    if "reduction" in keywords(function):
        for reduction in ("median", "", None, 1):
            refused(f"reduction={reduction!r}", function, *args, **{**kwargs, "reduction": reduction})


def check_numpy(function: Function, cls: type[Objective]) -> None:
    """Numbers of numpy do what Python's do."""
    parameters = inspect.signature(function).parameters
    defaults = {name: p.default for name, p in parameters.items() if isinstance(p.default, (bool, int, float))}
    for _, (args, named) in function_cases(function, cls):
        numbers, exact = as_numpy(defaults | named)
        # arithmetic between two numbers of numpy may be rounded to float32
        close(function(*args, **numbers), function(*args, **exact), 8 * torch.finfo(torch.float32).eps, "numpy")


CHECKS: tuple[Callable[[Function, type[Objective]], None], ...] = (check_value, check_bad_input, check_numpy)


def function_checks(
    function: Function, cls: type[Objective], *, same: bool = True
) -> list[tuple[str, Callable[[], None]]]:
    """``(name, check)`` for every check of a function with the samples of a class.

    Args:
        function: the function.
        cls: a class whose samples it takes.
        same: whether the two are one loss, so that their values are compared.

    Raises:
        ValueError: ``function`` takes none of the samples.
    """
    if not function_cases(function, cls):
        raise ValueError(f"function: expected one that takes samples of {cls.__name__}, got {function.__name__}")

    def bind(check: Callable[[Function, type[Objective]], None]) -> Callable[[], None]:
        return lambda: check(function, cls)

    return [
        (check.__name__.removeprefix("check_"), bind(check)) for check in CHECKS if same or check is not check_value
    ]


def check_function(function: Function, cls: type[Objective], *, same: bool = True) -> None:
    """Run all checks of a function.

    Raises:
        AssertionError: the first promise that it does not keep.
    """
    for name, check in function_checks(function, cls, same=same):
        try:
            check()
        except Exception as error:
            raise AssertionError(f"{function.__name__}, {name}: {error}") from error
