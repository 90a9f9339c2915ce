"""Which network a comparison trains where that is left open, and how long and at which rates networks train."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..budget import words_of
from ..names import AUTO
from ..request import Request
from .context import Context
from .effort import cell_seconds, default_workers, work_of
from .levels import Level

TABM_SPEED, TABM_REACHED = 8e10, 6e10
"""Floating-point operations a second with which the model tells what trainings of TabM take on one core.

That is so on average over eight tables: they reach the second number, and stop earlier than the model takes them to."""
TABM_TRIALS, TABM_PART, TABM_HERE = 4, 0.5, 0.6
"""A round of folds with so many trials has to fit this part of the budget, or plain networks are trained.

The second part is for what the first steps on this machine say: above it epochs would be cut."""
TABM_STEPS = 12
"""Steps that are timed for that."""
OTHER = {"plain": "tabm", "tabm": "plain"}
"""Of the two between which ``auto`` chooses the one that it did not."""
BATCHES = ((108_000, 1024), (32_000, 512), (6_400, 256), (4_500, 128), (2_800, 64), (0, 32))
"""Rows a step of TabM, by the least number of rows of the data."""


@dataclass(frozen=True)
class Training:
    """How a network is trained unless something else is asked for: epochs at most, patience, rows a step."""

    epochs: int
    patience: int
    batch_size: int


def training_of(model: str, rows: int) -> Training:
    """The default training of a network on so many rows.

    >>> training_of("plain", 1000)
    Training(epochs=60, patience=10, batch_size=64)
    >>> training_of("tabm", 1000)
    Training(epochs=60, patience=16, batch_size=32)
    """
    if model == "resnet":
        return Training(20, 10, 128)
    if model == "tabm":
        return Training(60, 16, next(batch for least, batch in BATCHES if rows >= least))
    if rows <= 5_000:
        return Training(60, 10, 64)
    return Training(150, 20, 64) if rows <= 10_000 else Training(30, 10, 256)


def tabm_level(members: Context) -> Level:
    """The level at which a round of TabM has to fit."""
    return replace(members.level, trials=min(TABM_TRIALS, members.settings.trials))


def round_of_tabm(request: Request, members: Context) -> float:
    """Seconds that a round of folds of TabM takes by estimate."""
    settings = members.settings
    workers = default_workers(settings) if request.workers is None else request.workers
    cells = len(settings.objectives) * len(members.folds) / settings.repeats / workers
    return cells * _tabm_cell(members, TABM_SPEED)


def tabm_slowness(members: Context, seconds: float) -> float:
    """How many times as long as expected a cell of the baseline takes.

    Args:
        members: the comparison with TabM.
        seconds: of the cell at full length at :func:`tabm_level`, by its first steps.
    """
    return seconds / _tabm_cell(members, TABM_REACHED, full=True)


def _tabm_cell(members: Context, speed: float, *, full: bool = False) -> float:
    inner = len(members.inner(next(iter(members.folds))))
    return cell_seconds(members, tabm_level(members), work=work_of(members), inner=inner, full=full, speed=speed)


def choose_network(request: Request, members: Context) -> tuple[str, str]:
    """Whether ``auto`` is tabm or plain, and why in words.

    TabM where one round of folds with four trials fits half of the budget by estimate, or on a GPU. The estimate
    counts operations and times nothing.

    Args:
        request: what the user asked for.
        members: the comparison with TabM.
    """
    settings, budget = members.settings, request.budget_seconds
    if settings.device != "cpu":
        return "tabm", f"{AUTO}: on {settings.device}"
    seconds = round_of_tabm(request, members)
    why = f"{AUTO}: a round of tabm would take about {words_of(seconds)} of {words_of(budget)}"
    return ("tabm" if seconds <= TABM_PART * budget else "plain"), why
