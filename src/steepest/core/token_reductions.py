"""Means of token losses by counts of all that a step sees, never by a padded width; masks that keep NaN outside."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_choice, check_number, check_range, check_tensor, refuse, values_visible
from .reductions import widen

MODES = ("token_mean", "sequence_mean_token_mean", "sequence_sum", "constant")


def masked(values: Tensor, mask: Tensor, fill: float = 0.0) -> Tensor:
    """Values where the mask is true, a constant elsewhere: before any exp, so that NaN and inf do no harm there.

    >>> masked(torch.tensor([1.0, float("nan")]), torch.tensor([True, False]))
    tensor([1., 0.])
    """
    return torch.where(mask, values, fill)


def sequence_sums(values: Tensor, mask: Tensor, segments: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Sums of the valid values of each sequence, and how many there are ``[S]``.

    Args:
        values: ``[B, T]``; without segments a row is a sequence.
        mask: valid tokens ``[B, T]``.
        segments: of packed rows, which sequence a token is of ``[B, T]``, numbers in 0..T-1 that begin anew in each
            row; anything where the mask is false.

    Returns:
        sums and counts ``[B]``; with segments ``[B * T]``, zeros for numbers that no token has.

    Raises:
        ValueError: other shapes, a number out of range.

    >>> sequence_sums(torch.ones(1, 4), torch.tensor([[True, True, True, False]]), torch.tensor([[0, 0, 1, 9]]))
    (tensor([2., 1., 0., 0.]), tensor([2., 1., 0., 0.]))
    """
    check_tensor("values", values, ndim=2, floating=True)
    check_tensor("mask", mask, shape=tuple(values.shape), floating=False)
    valid = mask.bool()
    values = masked(widen(values), valid)
    counts = valid.to(values.dtype)
    if segments is None:
        return values.sum(1), counts.sum(1)
    check_tensor("segments", segments, shape=tuple(values.shape), floating=False)
    steps = values.shape[1]
    numbers = torch.where(valid, segments, 0).long()
    check_range("segments", numbers, 0, steps - 1)
    places = (numbers + steps * torch.arange(len(numbers), device=numbers.device)[:, None]).flatten()
    zeros = values.new_zeros(values.numel())
    return zeros.index_add(0, places, values.flatten()), zeros.index_add(0, places, counts.flatten())


def runs_of_tokens(keys: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Runs of equal keys among the valid tokens of each row: sequences of packed rows, steps of an answer.

    Args:
        keys: ``[B, T]``, anything where a token is not valid.
        valid: ``[B, T]``.

    Returns:
        The number of each valid token's run from 0 on ``[B, T]``, and where a run begins ``[B, T]``.

    >>> runs_of_tokens(torch.tensor([[7, 7, 0, 7, 2]]), torch.tensor([[True, True, False, True, True]]))
    (tensor([[0, 0, 0, 0, 1]]), tensor([[ True, False, False, False,  True]]))
    """
    place = torch.arange(keys.shape[1], device=keys.device)
    last = torch.where(valid, place, -1).cummax(1).values
    before = torch.cat([torch.full_like(last[:, :1], -1), last[:, :-1]], 1)
    first = valid & ((before < 0) | (keys != keys.gather(1, before.clamp_min(0))))
    return (first.cumsum(1) - 1).clamp_min(0), first


def suffix_sums(values: Tensor, runs: Tensor | None = None) -> Tensor:
    """Of each token the sum of the values from it to the end of its run, or of its row.

    What stands in one run doesn't touch another, so that nothing cancels: a scan in log2(T) passes.

    Args:
        values: ``[B, T]``, 0 where a token doesn't count.
        runs: numbers of runs ``[B, T]``, not falling along a row.

    >>> suffix_sums(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([[0, 0, 1, 1]]))
    tensor([[ 3.,  2., 12.,  8.]])
    """
    if runs is None:
        return values.flip(1).cumsum(1).flip(1)
    shift = 1
    while shift < values.shape[1]:
        later = torch.where(runs[:, shift:] == runs[:, :-shift], values[:, shift:], 0.0)
        values = values + torch.nn.functional.pad(later, (0, shift))
        shift *= 2
    return values


def mean_of_sequences(losses: Tensor, counts: Tensor, *, num_items: float | Tensor | None = None) -> Tensor:
    """The mean over sequences that have a token.

    Args:
        losses: of sequences ``[S]``; anything where there is no token.
        counts: tokens of each ``[S]``.
        num_items: the divisor, > 0, the sequences of all micro-batches and ranks of a step; None is the count here.

    Returns:
        A scalar; 0 with a graph where no sequence has a token.

    >>> mean_of_sequences(torch.tensor([3.0, 9.0]), torch.tensor([2, 0]))
    tensor(3.)
    """
    check_tensor("losses", losses, ndim=1, floating=True)
    check_tensor("counts", counts, shape=tuple(losses.shape))
    there = counts > 0
    total = masked(losses, there).sum()
    return total / _divisor(num_items, there.sum(), total)


def count_items(mask: Tensor, mode: str = "token_mean", segments: Tensor | None = None) -> Tensor:
    """What :func:`aggregate_tokens` divides by for one batch: its tokens, or its sequences that have one.

    The sum over all micro-batches and ranks of a step is the ``num_items`` of each of them.

    Args:
        mask: valid tokens ``[B, T]``.
        mode: one of the four.
        segments: of packed rows; see :func:`sequence_sums`.

    >>> mask = torch.tensor([[True, True], [False, False]])
    >>> count_items(mask), count_items(mask, "sequence_sum")
    (tensor(2), tensor(1))
    """
    check_choice("mode", mode, MODES)
    if mode == "token_mean":
        return mask.bool().sum()
    _, counts = sequence_sums(torch.zeros(mask.shape, device=mask.device), mask, segments)
    return (counts > 0).sum()


def _divisor(num_items: float | Tensor | None, count: Tensor, total: Tensor) -> Tensor:
    """The number of all items where it is given, else those counted, at least 1."""
    if num_items is None:
        return torch.where(count > 0, count, 1).to(total)
    if not isinstance(num_items, Tensor):
        check_number("num_items", num_items, low=0.0, open_low=True)
        return torch.as_tensor(num_items).to(total)
    check_tensor("num_items", num_items, shape=())
    num_items = num_items.detach()
    if values_visible(num_items, count) and not (float(num_items) > 0 or (float(num_items) == 0 and not count.any())):
        refuse("num_items", "a count >= 0, 0 only where nothing counts", float(num_items))
    divisor = num_items.to(total)
    return torch.where(divisor == 0, torch.ones_like(divisor), divisor)  # of nothing the sum is 0


def aggregate_tokens(
    values: Tensor,
    mask: Tensor,
    mode: str = "token_mean",
    *,
    num_items: float | Tensor | None = None,
    length: float | None = None,
    segments: Tensor | None = None,
) -> Tensor:
    r"""One number of a batch of token losses.

    - "token_mean": the sum over valid tokens by their number;
    - "sequence_mean_token_mean": the mean over sequences of each one's mean over its tokens;
    - "sequence_sum": the mean over sequences of each one's sum;
    - "constant": the mean over sequences of each one's sum over a length that is given, the same for all.

    Sequences without a valid token don't count. What a step sees may come in several micro-batches or on several ranks:
    then ``num_items`` is the count of all of it (tokens for the first, sequences for the others), and the sum of the
    parts is the loss of the whole.

    Args:
        values: losses ``[B, T]``; NaN and inf do no harm where the mask is false.
        mask: valid tokens ``[B, T]``.
        mode: one of the four.
        num_items: the divisor, > 0; None is the count of this batch.
        length: of "constant", > 0, and of no other.
        segments: of packed rows; see :func:`sequence_sums`.

    Returns:
        A scalar; 0 with a graph where nothing is valid.

    Raises:
        ValueError: another mode, shapes that differ, a length where there is none or none where one is needed.

    >>> losses = torch.tensor([[4.0, 0.0], [1.0, 3.0]])
    >>> mask = torch.tensor([[True, False], [True, True]])
    >>> [round(float(aggregate_tokens(losses, mask, mode)), 4) for mode in MODES[:3]]
    [2.6667, 3.0, 4.0]
    >>> aggregate_tokens(losses, mask, "constant", length=8)
    tensor(0.5000)
    """
    check_choice("mode", mode, MODES)
    if (length is None) == (mode == "constant"):
        refuse("length", 'a number with mode="constant" and with no other', length)
    if length is not None:
        check_number("length", length, low=0.0, open_low=True)
    sums, counts = sequence_sums(values, mask, segments)
    if mode == "sequence_mean_token_mean":
        sums = sums / counts.clamp_min(1.0)
    elif length is not None:
        sums = sums / length
    total = sums.sum()
    return total / _divisor(num_items, (counts if mode == "token_mean" else (counts > 0)).sum(), total)
