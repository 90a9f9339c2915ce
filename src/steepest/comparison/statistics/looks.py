"""Several looks at one comparison that grows: each takes a part of the level, and all together never more than it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...core.checks import check_number

ALPHA = 0.05
"""The level of a comparison: the chance of any false alarm, over all its looks."""
LEAST_FOR_INTERVAL, LEAST_FOR_TEST = 2, 5
"""So many folds it takes to say how far a mean may be off, and to test it."""


@dataclass(frozen=True)
class Look:
    """A report on a comparison that may go on: number k tests, and takes its intervals, at the level alpha / 2^k.

        sum_k alpha / 2^k <= alpha

    so that however often one looks, a true null hypothesis is rejected at any of the looks with probability alpha at
    most, whatever the dependence between looks (Bonferroni).

    Attributes:
        number: 1 for the first report.
        cells: finished cells that it rests on.

    Raises:
        ValueError: a number below 1, negative cells.

    >>> look = Look(2, cells=30)
    >>> look.alpha, look.words
    (0.0125, 'look 2: tested at 1.25%')
    """

    number: int
    cells: int

    def __post_init__(self) -> None:
        check_number("number", self.number, low=1, integer=True)
        check_number("cells", self.cells, low=0, integer=True)

    @property
    def alpha(self) -> float:
        """The level of its tests; its intervals have the confidence 1 - alpha."""
        return float(ALPHA / 2**self.number)

    @property
    def fact(self) -> dict[str, int]:
        """What a run keeps of it: ``last`` of :func:`next_look`."""
        return {"number": self.number, "cells": self.cells}

    @property
    def words(self) -> str:
        """For the report."""
        return f"look {self.number}: tested at {percent(self.alpha)}"


def next_look(last: Mapping[str, Any] | None, cells: int) -> Look:
    """The look that a report on ``cells`` finished cells is.

    Args:
        last: ``number`` and ``cells`` of the last look; None before the first.
        cells: all finished cells of the run, over all levels. A report on no more cells than the last is that look
            again: it shows nothing that was not shown.

    >>> next_look(None, 10), next_look({"number": 1, "cells": 10}, 10), next_look({"number": 1, "cells": 10}, 20)
    (Look(number=1, cells=10), Look(number=1, cells=10), Look(number=2, cells=20))
    """
    if last is None:
        return Look(1, cells)
    if cells <= last["cells"]:
        return Look(last["number"], last["cells"])
    return Look(last["number"] + 1, cells)


def percent(share: float) -> str:
    """A level to three digits.

    >>> percent(0.05), percent(0.0125), percent(0.05 / 2**5)
    ('5%', '1.25%', '0.156%')
    """
    return f"{float(f'{100 * share:.3g}'):.10g}%"


def confidence(alpha: float) -> str:
    """The confidence of an interval at level ``alpha``, in percent.

    >>> confidence(0.05), confidence(0.0125), confidence(0.05 / 2**5), confidence(0.05 / 2**10)
    ('95%', '98.75%', '99.844%', '99.99512%')
    """
    return f"{100 - float(f'{100 * alpha:.3g}'):.10g}%"
