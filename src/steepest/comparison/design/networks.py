"""Which network a comparison trains where that is left open, and how long and at which rates networks train."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..budget import words_of
from ..names import AUTO
from ..request import Request
from .context import Context
from .effort import SPEED, STEP, cell_seconds, default_workers, work_of
from .levels import FEWEST_OBJECTIVES, Level
from .models import TABMS

TABM_SPEED, TABM_REACHED = 8e10, 7e10
"""Floating-point operations a second with which the model tells what trainings of TabM take on one core.

That is so on average over eight tables: they reach the second number, and stop earlier than the model takes them to."""
TABM_TRIALS, TABM_PART, TABM_HERE = 4, 0.5, 0.6
"""A round of folds with so many trials has to fit this part of the budget, or plain networks are trained.

The second part is for what the first steps on this machine say: above it epochs would be cut. Of the fewest members a
round with half of the objectives has to fit."""
TABM_STEPS = 12
"""Steps that are timed for that."""
CANDIDATES = (*TABMS, "plain")
"""Between which ``auto`` chooses, the strongest and slowest first."""
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
    >>> training_of("tabm", 30_000)
    Training(epochs=30, patience=10, batch_size=256)
    """
    if model == "resnet":
        return Training(20, 10, 128)
    if model in TABMS:
        epochs, patience = (60, 16) if rows <= 10_000 else (30, 10)
        return Training(epochs, patience, next(batch for least, batch in BATCHES if rows >= least))
    if rows <= 5_000:
        return Training(60, 10, 64)
    return Training(150, 20, 64) if rows <= 10_000 else Training(30, 10, 256)


def with_network(request: Request, context: Context, model: str) -> Context:
    """The same comparison with another network, trained as that is unless the user asked for something else."""
    training = vars(training_of(model, len(context.table.target)))
    own = {name: default for name, default in training.items() if getattr(request, name) is None}
    return context.trained_by(replace(context.settings, model=model, **own))


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
    """How many times as long as expected the trials of the baseline take.

    Args:
        members: the comparison with TabM.
        seconds: of all trials of a cell at full length at :func:`tabm_level`, by their first steps.
    """
    return seconds / _tabm_cell(members, TABM_REACHED, full=True, refit=False)


def _tabm_cell(members: Context, speed: float, **parts: bool) -> float:
    inner = len(members.inner(next(iter(members.folds))))
    return cell_seconds(members, tabm_level(members), work=work_of(members), inner=inner, speed=speed, **parts)


def share_of_one(context: Context, count: int) -> float:
    """The part of a step of a stack of ``count`` models that a step of one of them takes."""
    s = context.settings
    step = 6.0 * s.batch_size * work_of(context) / (TABM_REACHED if s.model in TABMS else SPEED)
    return (STEP + step) / (STEP + count * step)


def choose_network(
    request: Request,
    context: Context,
    models: Sequence[str] = TABMS,
    *,
    seconds_of: Callable[[Request, Context], float] = round_of_tabm,
    share: float = TABM_PART,
    where: str = "",
) -> tuple[str, str]:
    """Which network ``auto`` is, and why in words.

    TabM with as many members as let one round of folds with four trials fit a part of the budget, else plain; with all
    members on a GPU. With the fewest members half of the objectives have to fit: plain networks cost a score more than
    objectives that are left out. By default an estimate that counts operations and times nothing.

    Args:
        request: what the user asked for.
        context: the comparison with any of these networks.
        models: that are asked about, from the most members.
        seconds_of: what a round takes.
        share: of the budget that it may take.
        where: what the seconds hold for, in words that follow the budget.
    """
    budget, count = request.budget_seconds, len(context.settings.objectives)
    least = max(math.ceil(count / 2), min(count, FEWEST_OBJECTIVES))
    if context.settings.device != "cpu":
        return models[0], f"{AUTO}: on {context.settings.device}"
    words: list[str] = []
    for model in models:
        seconds = seconds_of(request, with_network(request, context, model))
        if words:
            words.append(f"of {model} about {words_of(seconds)}")
        else:
            start = f"{AUTO}: a round of {model} would take about"
            words.append(f"{start} {words_of(seconds)} of {words_of(budget)}{where}")
        if seconds > share * budget and model == TABMS[-1] and least < count:
            seconds *= least / count
            words.append(f"about {words_of(seconds)} with {least} of {count} objectives")
        if seconds <= share * budget:
            return model, ", ".join(words)
    return "plain", ", ".join(words)
