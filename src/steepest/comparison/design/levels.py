"""The sizes of cells, and the order in which a comparison gets smaller: fixed before the first training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..baselines import tuned_learners
from .settings import Settings

FEWEST_TRIALS, FEWEST_EPOCHS, FEWEST_OBJECTIVES = 4, 8, 3
FEWEST_ROWS, ROWS_A_CLASS = 1000, 20
ORDER = ("repeats", "trials", "objectives", "epochs", "fewer trials", "rows")
"""What is cut, in this order; what the user asked for by name comes after the others."""


@dataclass(frozen=True)
class Level:
    """The size of a cell: training rows at most, epochs at most, trials of an objective.

    >>> Level(1000, 60, 8).text, Level.of_text("1000/60/8") == Level(1000, 60, 8)
    ('1000/60/8', True)
    """

    rows: int
    epochs: int
    trials: int

    @property
    def text(self) -> str:
        """As the store keeps it."""
        return f"{self.rows}/{self.epochs}/{self.trials}"

    @classmethod
    def of_text(cls, text: str) -> Level:
        """What :attr:`text` gave."""
        return cls(*map(int, text.split("/")))

    def of(self, kind: str, name: str = "") -> str:
        """The text for cells of a kind and name: a classical learner knows no epochs, and few of them know trials.

        >>> [Level(1000, 60, 8).of("classical", name) for name in ("knn", "forest")]
        ['1000/0/0', '1000/0/8']
        """
        return self.text if kind == "objective" else self.of_learner(name).text

    def of_learner(self, name: str) -> Level:
        """Of it what counts for a classical learner."""
        return Level(self.rows, 0, self.trials if name in tuned_learners() else 0)


@dataclass(frozen=True)
class Design:
    """How much a comparison computes: rounds of folds, objectives (from the start of the list), and a level."""

    repeats: int
    objectives: int
    level: Level


def designs(settings: Settings, rows: int, classes: int, typed: Sequence[str] = ()) -> list[Design]:
    """Designs from the one that was asked for to the smallest, each smaller than the one before in one thing.

    Args:
        settings: as asked.
        rows: of the largest training part.
        classes: C, or 0.
        typed: what the user asked for by name: repeats, trials, objectives, epochs. It is cut last.
    """
    from_largest = [Design(settings.repeats, len(settings.objectives), Level(rows, settings.epochs, settings.trials))]
    for step in sorted(ORDER, key=lambda step: step.removeprefix("fewer ") in typed):
        for value in _values(step, from_largest[-1], classes):
            last = from_largest[-1]
            if step in ("repeats", "objectives"):
                from_largest.append(replace(last, **{step: value}))
            else:
                from_largest.append(replace(last, level=replace(last.level, **{step.removeprefix("fewer "): value})))
    return from_largest


def _values(step: str, design: Design, classes: int) -> Iterator[int]:
    level = design.level
    if step == "repeats":
        yield from (1,) if design.repeats > 1 else ()
    elif step == "objectives":
        yield from range(design.objectives - 1, FEWEST_OBJECTIVES - 1, -1)
    elif step.endswith("trials"):
        wanted = (FEWEST_TRIALS,) if step == "trials" else (3, 1)
        yield from (count for count in wanted if count < level.trials)
    elif step == "epochs":
        yield from _halves(level.epochs, FEWEST_EPOCHS)
    else:
        yield from (rows for rows in _halves(level.rows, max(FEWEST_ROWS, ROWS_A_CLASS * classes), whole=True))


def _halves(value: int, least: int, *, whole: bool = False) -> Iterator[int]:
    """Halves down to ``least``: ``whole`` ones only, or the last of them raised to it."""
    while value > least and not (whole and value // 2 < least):
        value = max(least, value // 2)
        yield value


def levels_of(designs: Sequence[Design]) -> list[Level]:
    """The levels of designs, highest first."""
    return list(dict.fromkeys(design.level for design in designs))


def trial_groups(levels: Sequence[Level], level: Level) -> tuple[int, ...]:
    """Where the trials of a level are parted into stacks: at the trials of the lower levels of its rows and epochs.

    So a trial trains in the same stack whether or not a lower level came before.

    >>> trial_groups([Level(9, 8, 8), Level(9, 8, 4), Level(9, 4, 1)], Level(9, 8, 8))
    (4, 8)
    """
    alike = {another.trials for another in levels if (another.rows, another.epochs) == (level.rows, level.epochs)}
    return tuple(sorted({count for count in alike if count < level.trials} | {level.trials}))


def prefix(train: np.ndarray, target: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """``rows`` row positions of a training part: the start of one order of them, so that fewer lie within more.

    Classes come in their shares, the first two rows of each before all others; other targets in random order.

    Args:
        train: row positions, sorted.
        target: of all rows; integers are classes.
        rows: how many are kept.
        seed: of the order.
    """
    if rows >= len(train):
        return train
    rng = np.random.default_rng(seed)
    mixed = rng.permutation(train)
    place = np.arange(len(mixed), dtype=np.float64)
    if target.ndim == 1 and target.dtype.kind in "iu":
        own = target[mixed]
        for label in np.unique(own):
            at = np.flatnonzero(own == label)
            place[at] = (np.arange(len(at)) + 0.5) / len(at)
            place[at[:2]] = -1.0
    return np.sort(mixed[np.argsort(place, kind="stable")[:rows]])
