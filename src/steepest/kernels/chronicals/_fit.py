"""The bins of best fit decreasing, and the bit set that finds the fullest one."""

from __future__ import annotations

import math

import numpy as np


class Spaces:
    """Which free spaces in 0..limit some bin has; the least of at least a given size in about sqrt(limit) / 64 steps.

    >>> spaces = Spaces(100)
    >>> spaces.add(70), spaces.add(12), spaces.least(13), spaces.least(71)
    (None, None, 70, -1)
    """

    def __init__(self, limit: int) -> None:
        self.width = math.isqrt(limit) + 1
        self.words = [0] * self.width
        self.summary = 0

    def add(self, space: int) -> None:
        """Some bin has this much free space."""
        word, bit = divmod(space, self.width)
        self.words[word] |= 1 << bit
        self.summary |= 1 << word

    def discard(self, space: int) -> None:
        """No bin has it any more."""
        word, bit = divmod(space, self.width)
        self.words[word] &= ~(1 << bit)
        if not self.words[word]:
            self.summary &= ~(1 << word)

    def least(self, size: int) -> int:
        """The least space that is at least ``size``, or -1."""
        word, bit = divmod(size, self.width)
        above = self.words[word] >> bit
        if above:
            return size + _lowest(above)
        rest = self.summary >> (word + 1)
        if not rest:
            return -1
        word += 1 + _lowest(rest)
        return word * self.width + _lowest(self.words[word])


def _lowest(bits: int) -> int:
    return (bits & -bits).bit_length() - 1


def fill_bins(sizes: np.ndarray, capacity: int) -> list[list[int]]:
    """Bins of indices for checked ``sizes`` in 1..capacity.

    A bin that took one of several equal lengths is, while it takes another, still the fullest that does: so it takes
    as many of them as fit at once; and bins with the same free space take them together.
    """
    ranked = np.argsort(-sizes, kind="stable")
    order: list[int] = ranked.tolist()
    values, counts = np.unique(sizes, return_counts=True)
    bins: list[list[int]] = []
    with_space: dict[int, list[int]] = {}
    spaces = Spaces(capacity)
    at = 0
    for size, count in zip(values[::-1].tolist(), counts[::-1].tolist()):
        end = at + count
        while at < end:
            space = spaces.least(size)
            fitting = min((capacity if space < 0 else space) // size, end - at)
            number = (end - at) // fitting  # of bins that take so many
            if space < 0:
                space, homes = capacity, list(range(len(bins), len(bins) + number))
                bins.extend([] for _ in homes)
            else:
                free = with_space[space]
                homes = free[-number:]
                del free[-number:]
                if not free:
                    spaces.discard(space)
            for home in homes:
                bins[home] += order[at : at + fitting]
                at += fitting
            left = space - fitting * size
            with_space.setdefault(left, []).extend(homes)
            spaces.add(left)
    return bins
