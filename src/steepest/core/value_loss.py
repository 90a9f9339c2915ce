"""The contract of a loss of values: one number a transition, in tensors of one shape."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from .checks import check_choice, check_tensor
from .loss import Loss
from .reductions import REDUCTIONS, widen


def checked_values(**values: Tensor) -> list[Tensor]:
    """Values of transitions in float32 or wider, all in the type of the first.

    A shape ``[B, 1]`` beside ``[B]`` would broadcast to ``[B, B]`` and regress every value on every target: it is
    refused.

    Args:
        **values: floating tensors by the names of their arguments, all of the shape of the first.

    Returns:
        The tensors in their order.

    Raises:
        ValueError: another shape than that of the first.
        TypeError: not a floating tensor.

    Example:
        >>> import torch
        >>> checked_values(value=torch.zeros(3, 1), target=torch.zeros(3))
        Traceback (most recent call last):
        ValueError: target: expected shape (3, 1), got a float32 tensor of shape (3,)
    """
    names = list(values)
    check_tensor(names[0], values[names[0]], floating=True)
    first = widen(values[names[0]])
    for name in names[1:]:
        check_tensor(name, values[name], floating=True, shape=tuple(first.shape))
    return [first, *(values[name].to(first) for name in names[1:])]


class ValueLoss(Loss):
    """A loss of values: ``forward(value, target, *, weight=None)``, or with the parts that make up the target.

    Values are ``[B]`` (transitions), ``[T]`` (a trajectory) or of any other shape; all leading arguments have the same
    one. In the words of rlax, ``value`` is v_tm1 and ``target`` is r_t + discount_t * v_t, with discount_t = 0 where
    the episode ends.

    Class attributes:
        values: the leading arguments of ``forward`` in their order, tensors of one shape.
        stopped: those of them into which no gradient flows.
        alternatives: for each argument of ``__init__`` beside ``reduction``, values that give other losses or
            gradients on ``samples()``.
        divergence: whether a loss is 0 where the value is right and above 0 elsewhere. The value of a loss with
            stopped gradients alone may be below 0.

    Args:
        reduction: ``"none"``, ``"mean"`` or ``"sum"``; the mean is that of the weights.
    """

    values: ClassVar[tuple[str, ...]] = ("value", "target")
    stopped: ClassVar[tuple[str, ...]] = ("target",)
    alternatives: ClassVar[dict[str, tuple[Any, ...]]] = {}
    divergence: ClassVar[bool] = True

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        self.reduction = reduction

    @property
    def largest(self) -> float:
        """Up to which size of the values loss and gradient are finite in float32."""
        return math.inf

    @staticmethod
    def fitted(*args: Tensor) -> tuple[Tensor, ...]:
        """The leading arguments with values that leave no error: every gradient is 0 there."""
        return args[1], *args[1:]

    @staticmethod
    def reference_gradient(loss: Any, *args: Tensor, **kwargs: Tensor) -> dict[str, Tensor]:
        """For ``gradient = "surrogate"``: the gradient of the sum in each argument, written by hand."""
        raise NotImplementedError("a surrogate gradient needs a reference")
