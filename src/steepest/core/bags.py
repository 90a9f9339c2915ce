"""Bags: groups of rows of which only a common value is known."""

from __future__ import annotations

import torch
from jaxtyping import Float as F
from jaxtyping import Int as I
from torch import Tensor

from .checks import check_interval, check_range, check_tensor, refuse_type, values_visible


def check_bag_index(bag_index: object, rows: int, bags: int) -> None:
    """Check that ``bag_index`` ``[N]`` names a bag of 0..M-1 for each of ``rows`` rows, and that no bag is empty.

    Args:
        bag_index: integers ``[N]``.
        rows: N.
        bags: M, >= 1.

    Raises:
        ValueError: another shape, no bag, a bag outside the range, a bag without rows.
        TypeError: not an integer tensor.

    Example:
        >>> check_bag_index(torch.tensor([0, 2, 2]), 3, 3)
        Traceback (most recent call last):
        ValueError: bag_index: expected at least one row in each of 3 bags, got no row of bag 1
    """
    check_tensor("bag_index", bag_index, floating=False, shape=(rows,))
    assert isinstance(bag_index, Tensor)
    if bag_index.dtype == torch.bool:
        refuse_type("bag_index", "bags of an integer type", bag_index)
    if bags < 1:
        raise ValueError("bag_index: expected at least one bag, got none")
    check_range("bag_index", bag_index, 0, bags - 1)
    if values_visible(bag_index):
        empty = (torch.bincount(bag_index, minlength=bags) == 0).nonzero()
        if len(empty):
            raise ValueError(
                f"bag_index: expected at least one row in each of {bags} bags, got no row of bag {int(empty[0])}"
            )


def check_share(argument: str, value: Tensor) -> None:
    """Check that values lie in [0, 1], where they may be looked at.

    Raises:
        ValueError: one that does not.

    Example:
        >>> check_share("proportions", torch.tensor([0.5, 1.5]))
        Traceback (most recent call last):
        ValueError: proportions: expected values in [0, 1], got 1.5
    """
    check_interval(argument, value, 0.0, 1.0)


def bag_sums(values: F[Tensor, rows * rest], bag_index: I[Tensor, " rows"], bags: int) -> F[Tensor, bags * rest]:
    """Sum of the values of each bag.

    Args:
        values: ``[N, ...]``.
        bag_index: bags 0..M-1 of the rows, ``[N]``.
        bags: M.

    Returns:
        ``[M, ...]``, 0 for an empty bag.

    Example:
        >>> bag_sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 0, 1]), 2)
        tensor([2., 5.])
    """
    return values.new_zeros(bags, *values.shape[1:]).index_add(0, bag_index, values)


def bag_sizes(bag_index: I[Tensor, " rows"], bags: int, dtype: torch.dtype = torch.float32) -> F[Tensor, " bags"]:
    """Number of rows of each bag, as ``dtype``: ``[N] -> [M]``.

    >>> bag_sizes(torch.tensor([1, 0, 1]), 2)
    tensor([1., 2.])
    """
    return bag_sums(torch.ones_like(bag_index, dtype=dtype), bag_index, bags)


def bag_means(values: F[Tensor, rows * rest], bag_index: I[Tensor, " rows"], bags: int) -> F[Tensor, bags * rest]:
    """Mean of the values of each bag: ``[N, ...] -> [M, ...]``, NaN for an empty bag.

    >>> bag_means(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1, 0, 1]), 2)
    tensor([2.0000, 2.5000])
    """
    sizes = bag_sizes(bag_index, bags, values.dtype)
    return bag_sums(values, bag_index, bags) / sizes.reshape(-1, *[1] * (values.ndim - 1))
