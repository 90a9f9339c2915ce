"""Argument checks: one helper makes every error, so that all of them read alike.

Shapes, types and Python scalars are always checked. Values inside tensors are checked on CPU tensors in eager mode; on
an accelerator only after ``steepest.checks(True)``, because looking at a value there costs a synchronisation; under
``torch.compile`` and ``vmap``, and of meta and fake tensors never, because there is no value to look at.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from .scalars import is_flag, is_number, plain
from .transforms import eager as eager
from .transforms import valueless

_everywhere = False


def checks(everywhere: bool) -> None:
    """Check the *values* of tensors on every device (``True``), or on CPU tensors only (``False``); in eager mode."""
    global _everywhere
    _everywhere = bool(everywhere)


def values_visible(*tensors: Tensor) -> bool:
    """Whether the values of ``tensors`` may be looked at here without a hidden synchronisation."""
    if not eager() or any(valueless(t) for t in tensors):
        return False
    return _everywhere or all(t.device.type == "cpu" for t in tensors)


def describe(got: object) -> str:
    """A short text for what came: the shape and type of a tensor or an array, the value of anything else."""
    if isinstance(got, Tensor):
        return f"a {str(got.dtype).removeprefix('torch.')} tensor of shape {tuple(got.shape)}"
    if isinstance(got, np.ndarray):
        return f"an array ({got.dtype}) of shape {got.shape}"
    text = repr(got)
    return text if len(text) <= 80 else text[:77] + "..."


def refuse(argument: str, expected: str, got: object) -> NoReturn:
    """Raise the uniform ``ValueError``: the argument, what was expected, what came.

    >>> refuse("tau", "a number >= 0", -1)
    Traceback (most recent call last):
    ValueError: tau: expected a number >= 0, got -1
    """
    raise ValueError(f"{argument}: expected {expected}, got {describe(got)}")


def refuse_type(argument: str, expected: str, got: object) -> NoReturn:
    """Raise the uniform ``TypeError``."""
    raise TypeError(f"{argument}: expected {expected}, got {describe(got)} ({type(got).__name__})")


def check_number(
    argument: str,
    value: object,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
    integer: bool = False,
) -> None:
    """Check a scalar of Python or numpy against a range, open or closed at either end."""
    kind = "an integer" if integer else "a number"
    if not is_number(value, integer=integer):
        refuse_type(argument, kind, value)
    number = plain(value)
    inside = (number > low if open_low else number >= low) and (number < high if open_high else number <= high)
    if not inside:  # NaN lands here too
        if math.isinf(number) and (open_high if number > 0 else open_low):
            kind = "a finite number"
        parts = []
        if low > -math.inf:
            parts.append(f"{'>' if open_low else '>='} {low:g}")
        if high < math.inf:
            parts.append(f"{'<' if open_high else '<='} {high:g}")
        refuse(argument, " ".join([kind, " and ".join(parts)]).strip(), value)


def check_flag(argument: str, value: object) -> None:
    """Check that ``value`` is True or False."""
    if not is_flag(value):
        refuse_type(argument, "True or False", value)


def check_choice(argument: str, value: object, options: Collection[object]) -> None:
    """Check that ``value`` is one of ``options``."""
    if value not in list(options):  # a list takes values that cannot be hashed
        refuse(argument, "one of " + ", ".join(map(repr, options)), value)


def option_of(argument: str, value: float | None, default: float, *, applies: bool, only: str, **bounds: Any) -> float:
    """A number that some forms of a loss alone read: None is the default, and where nothing reads it None is asked for.

    Args:
        argument, value, bounds: as of :func:`check_number`.
        default: of the forms that read it.
        applies: whether this form does.
        only: which ones do, for the error.
    """
    if value is None:
        return default
    if not applies:
        refuse(argument, f"None unless {only}", value)
    check_number(argument, value, **bounds)
    return value


def check_tensor(
    argument: str,
    value: object,
    *,
    ndim: int | tuple[int, ...] | None = None,
    floating: bool | None = None,
    shape: tuple[int | None, ...] | None = None,
) -> None:
    """Check that ``value`` is a tensor of a kind: number of dimensions, floating or integer, shape (``None``: any)."""
    if not isinstance(value, Tensor):
        refuse_type(argument, "a tensor", value)
    if floating is not None and value.is_floating_point() != floating:
        refuse_type(argument, "a floating tensor" if floating else "an integer tensor", value)
    if ndim is not None and value.ndim not in ((ndim,) if isinstance(ndim, int) else ndim):
        wanted = ndim if isinstance(ndim, int) else " or ".join(map(str, ndim))
        refuse(argument, f"{wanted} dimensions", value)
    if shape is not None and (
        value.ndim != len(shape) or any(w is not None and w != s for w, s in zip(shape, value.shape))
    ):
        refuse(argument, f"shape ({', '.join('*' if w is None else str(w) for w in shape)})", value)


def check_scalar(argument: str, value: object, **bounds: Any) -> None:
    """Check a number as :func:`check_number` does, or that ``value`` is a floating tensor of no dimensions.

    >>> check_scalar("scale", torch.ones(3))
    Traceback (most recent call last):
    ValueError: scale: expected shape (), got a float32 tensor of shape (3,)
    """
    if isinstance(value, Tensor):
        check_tensor(argument, value, floating=True, shape=())
    else:
        check_number(argument, value, **bounds)


def check_logits(outputs: object, *, argument: str = "outputs", classes: int = 2) -> None:
    """Check ``[N, C]`` floating outputs with at least ``classes`` columns."""
    check_tensor(argument, outputs, ndim=2, floating=True)
    assert isinstance(outputs, Tensor)
    if outputs.shape[1] < classes:
        refuse(argument, f"at least {classes} classes in dimension 1", outputs)


def check_index(target: object, outputs: Tensor, *, argument: str = "target", ignore_index: int | None = None) -> None:
    """Check class indices ``[N]`` for ``[N, C]`` outputs, values included where they may be looked at."""
    check_tensor(argument, target, floating=False, shape=(outputs.shape[0],))
    assert isinstance(target, Tensor)
    if target.dtype == torch.bool:
        refuse_type(argument, "class indices of an integer type", target)
    check_range(argument, target, 0, outputs.shape[1] - 1, ignore_index=ignore_index)


def check_range(argument: str, value: Tensor, low: int, high: int, *, ignore_index: int | None = None) -> None:
    """Check that integer values lie in ``low..high`` or equal ``ignore_index``, where they may be looked at."""
    if value.numel() == 0 or not values_visible(value):
        return
    least, greatest = value.aminmax()
    if int(least) >= low and int(greatest) <= high:
        return
    counted = value if ignore_index is None else value[value != ignore_index]
    if counted.numel() and (int(counted.min()) < low or int(counted.max()) > high):
        extra = "" if ignore_index is None else f" or {ignore_index}"
        refuse(argument, f"values in {low}..{high}{extra}", [int(counted.min()), int(counted.max())])


def check_binary(target: object, outputs: Tensor, *, argument: str = "target") -> None:
    """Check labels in {0, 1} (integer, bool or floating) of the shape of ``outputs``."""
    check_tensor(argument, target, shape=tuple(outputs.shape))
    assert isinstance(target, Tensor)
    if target.numel() and values_visible(target) and not bool(((target == 0) | (target == 1)).all()):
        refuse(argument, "labels in {0, 1}", torch.unique(target).tolist())


def check_weight(weight: object, *shape: int) -> None:
    """Check weights, one a loss (``[N]``, one a sample): floating, not negative."""
    if weight is None:
        return
    check_tensor("weight", weight, floating=True, shape=shape)
    assert isinstance(weight, Tensor)
    if weight.numel() and values_visible(weight) and bool((weight < 0).any()):
        refuse("weight", "values >= 0", float(weight.min()))


def check_interval(
    argument: str,
    value: Tensor,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    what: str = "values",
    rounding: float | None = None,
) -> None:
    """Check that values lie in ``low..high``, where they may be looked at; NaN passes and propagates.

    Args:
        argument: its name.
        value: of any shape.
        low, high: ends of the interval.
        what: what the values are, for the error.
        rounding: how far they may lie outside; None for eight units of rounding of their type.

    Raises:
        ValueError: a value outside.

    >>> check_interval("p", torch.tensor([0.5, 1.5]), 0.0, 1.0, what="probabilities")
    Traceback (most recent call last):
    ValueError: p: expected probabilities in [0, 1], got 1.5
    """
    if not value.numel() or not values_visible(value):
        return
    if rounding is None:
        rounding = 8 * torch.finfo(value.dtype).eps if value.is_floating_point() else 0.0
    if value.is_floating_point():
        least, greatest = value.detach().aminmax()
        if bool((least >= low - rounding) & (greatest <= high + rounding)):  # NaN is looked at more closely
            return
    outside = value.detach()[(value < low - rounding) | (value > high + rounding)]
    if outside.numel():
        ends = f"in [{low:g}, {high:g}]" if low > -math.inf and high < math.inf else None
        refuse(argument, f"{what} {ends or (f'<= {high:g}' if low == -math.inf else f'>= {low:g}')}", float(outside[0]))


_DOMAINS = {
    "probabilities": ("probabilities", 0.0, 1.0),
    "log_probabilities": ("log-probabilities", -math.inf, 0.0),
    "cosine": ("cosines", -1.0, 1.0),
}


def check_domain(argument: str, value: Tensor, domain: str) -> None:
    """Check that values are what a domain of outputs says; a domain of all reals has nothing to check.

    >>> check_domain("outputs", torch.tensor([-0.1, 0.2]), "log_probabilities")
    Traceback (most recent call last):
    ValueError: outputs: expected log-probabilities <= 0, got 0.20000000298023224
    """
    if domain in _DOMAINS:
        what, low, high = _DOMAINS[domain]
        check_interval(argument, value, low, high, what=what)


def check_simplex(argument: str, value: Tensor) -> None:
    """Check rows of probabilities ``[..., C]`` that sum to 1, up to a hundredth, where they may be looked at."""
    check_domain(argument, value, "probabilities")
    if value.numel() and values_visible(value) and bool(((value.sum(-1) - 1).abs() > 1e-2).any()):
        refuse(argument, "rows of probabilities that sum to 1", value.sum(-1))
