"""What a fitted model says about rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...core.arrays import outcome_part
from ...core.checks import refuse
from .operating_point import in_range


@dataclass(frozen=True)
class Outcome:
    """What a fitted model says about N rows.

    Attributes:
        predicted: [N] class codes, or real values.
        probabilities: [N, C], or None where the model gives none, and in regression.
        decision: binary [N], larger means class 1 and 0 is the boundary that ``predicted`` uses; multiclass [N, C]
            scores; None in regression.

    With several targets a column each. Numbers that are not finite say that the model diverged.

    Raises:
        ValueError: lengths differ, a column ``[N, 1]``, finite probabilities outside 0..1.
        TypeError: not numbers.
    """

    predicted: np.ndarray
    probabilities: np.ndarray | None = None
    decision: np.ndarray | None = None

    def __post_init__(self) -> None:
        rows: int | None = None
        for name in ("predicted", "probabilities", "decision"):
            value = getattr(self, name)
            if value is not None or name == "predicted":
                value = outcome_part(name, value, rows)
                rows = len(value)
                object.__setattr__(self, name, value)
        if self.probabilities is not None:
            if self.probabilities.ndim == 1:
                refuse("probabilities", "a column for each class", self.probabilities)
            in_range("probabilities", self.probabilities)

    def rows(self, index: np.ndarray) -> Outcome:
        """The same of some rows.

        >>> Outcome(np.array([3, 4, 5])).rows(np.array([2, 0])).predicted
        array([5, 3])
        """
        parts = (self.predicted, self.probabilities, self.decision)
        return Outcome(*(None if array is None else array[index] for array in parts))

    @property
    def finite(self) -> bool:
        """Whether every number is finite; a diverged model's are not."""
        parts = (self.predicted, self.probabilities, self.decision)
        return all(array is None or bool(np.isfinite(array).all()) for array in parts)
