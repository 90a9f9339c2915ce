"""Single numbers: Python's from numpy's, as a state or a file keeps them; arithmetic alike for floats and tensors."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .lazy import late

if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch = late("torch")  # commands that take numbers of a line don't wait for it

Scalar: TypeAlias = "float | Tensor"
"""A number of Python where the host may know it, else a tensor of no dimension, which it does not wait for."""


def readable(value: Tensor) -> Scalar:
    """A number on the CPU as one of Python's; elsewhere as it came.

    >>> import torch
    >>> readable(torch.tensor(0.5)), readable(torch.tensor(0.5, device="meta")).device.type
    (0.5, 'meta')
    """
    return float(value) if value.device.type == "cpu" else value


def like(value: Scalar, known: Scalar) -> Scalar:
    """A number as one that is known: of Python, or a tensor of its type on its device.

    >>> like(torch.tensor(0.5), 2.0), like(0.5, torch.zeros((), dtype=torch.float64))
    (0.5, tensor(0.5000, dtype=torch.float64))
    """
    if isinstance(known, torch.Tensor):
        return torch.as_tensor(value, dtype=known.dtype, device=known.device)
    return float(value)


def clamped(value: Scalar, low: float = -math.inf, high: float = math.inf) -> Scalar:
    """A number cut at bounds; NaN stays.

    >>> clamped(3.0, high=1.0), clamped(torch.tensor(-2.0), low=0.0), clamped(math.nan, low=0.0)
    (1.0, tensor(0.), nan)
    """
    if isinstance(value, torch.Tensor):
        return value.clamp(low, high)
    return low if value < low else high if value > high else value


def chosen(condition: bool | Tensor, yes: Scalar, no: Scalar) -> Scalar:
    """One of two numbers.

    >>> chosen(True, 1.0, 2.0), chosen(torch.tensor(False), torch.tensor(1.0), torch.tensor(2.0))
    (1.0, tensor(2.))
    """
    if isinstance(condition, torch.Tensor):
        return torch.where(condition, yes, no)
    return yes if condition else no


def quotient(above: Scalar, below: Scalar) -> Scalar:
    """A quotient where the number below is positive, else 0.

    >>> quotient(1.0, 4.0), quotient(1.0, 0.0), quotient(torch.tensor(1.0), torch.tensor(0.0))
    (0.25, 0.0, tensor(0.))
    """
    if isinstance(below, torch.Tensor):
        return torch.where(below > 0, above / below, 0.0)
    return above / below if below > 0 else 0.0


def plain(value: Any) -> Any:
    """A numpy scalar as the Python number that it is, inside tuples, lists and dicts too; anything else as it came.

    >>> plain(np.float32(2)), plain((np.int64(4), np.bool_(True))), plain({"a": [np.float64(0.5)]})
    (2.0, (4, True), {'a': [0.5]})
    """
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.floating):
        return float(value)
    if type(value) in (tuple, list):
        return type(value)(map(plain, value))
    if type(value) is dict:
        return {name: plain(item) for name, item in value.items()}
    return value


def is_number(value: object, *, integer: bool = False) -> bool:
    """Whether ``value`` is a number of Python or numpy (``integer``: a whole one); a bool is none.

    >>> is_number(np.int64(4), integer=True), is_number(np.float32(4), integer=True), is_number(True)
    (True, False, False)
    """
    if isinstance(value, int if integer else (int, float)):
        return not isinstance(value, bool)
    return isinstance(value, np.integer if integer else (np.integer, np.floating))


def is_flag(value: object) -> bool:
    """Whether ``value`` is True or False, Python's or numpy's.

    >>> is_flag(np.bool_(False)), is_flag(0)
    (True, False)
    """
    return isinstance(value, (bool, np.bool_))
