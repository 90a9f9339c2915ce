"""What a report rests on: one level, and the folds that all compared objectives have at it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..budget import words_of
from ..design.context import Context, Pair
from ..design.levels import Design, Level
from ..design.settings import Settings
from ..work.store import Store

COUNTS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}


@dataclass(frozen=True)
class Basis:
    """What a report rests on.

    Attributes:
        level: of all its cells.
        names: the objectives that are compared, the baseline first.
        pairs: the folds that all of them have.
        whole: whether these hold a full round.
    """

    level: Level
    names: tuple[str, ...]
    pairs: tuple[Pair, ...]
    whole: bool


def find_basis(context: Context, store: Store, designs: Sequence[Design], last: Sequence[str] = ()) -> Basis:
    """The first design, from the largest down, with a full round for all its objectives; else the level of the first
    with one fold, and what has most folds there.

    Without either: the baseline alone, in the folds that it has at the highest level.

    Args:
        context: of the comparison, at the level that was asked for.
        store: of its cells.
        designs: from what was asked for to the smallest.
        last: objectives that were put last: a round needs them not, but has them where they are complete.
    """
    folds, settings = list(context.folds), context.settings
    first = [pair for pair in folds if pair[0] == folds[0][0]]
    cells = {level: store.cells(level) for level in dict.fromkeys(design.level for design in designs)}
    some = None
    for design in designs:
        own = cells[design.level]
        needed = [name for name in settings.objectives[: design.objectives] if name not in last]
        if len(needed) == 1 < len(settings.objectives):
            continue
        pairs = _shared(own, needed, folds)
        if set(first) <= set(pairs):
            return _widened(context, own, design, tuple(pairs), tuple(first))
        if pairs and (some is None or (design.level == some.level and len(pairs) > len(some.pairs))):
            some = Basis(design.level, _complete(own, settings.objectives, pairs), tuple(pairs), whole=False)
    if some is not None:
        return some
    for level, own in cells.items():
        pairs = _shared(own, [settings.baseline], folds)
        if pairs:
            return Basis(level, (settings.baseline,), (pairs[0],), whole=False)
    raise LookupError("no cell of the baseline is finished")


def _shared(cells: dict[str, Any], names: Sequence[str], pairs: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in pairs if all(pair in cells.get(name, {}) for name in names)]


def _complete(cells: dict[str, Any], names: Sequence[str], pairs: Sequence[Pair]) -> tuple[str, ...]:
    return tuple(name for name in names if len(_shared(cells, [name], pairs)) == len(pairs))


def _widened(
    context: Context, cells: dict[str, Any], design: Design, pairs: tuple[Pair, ...], first: tuple[Pair, ...]
) -> Basis:
    """With all objectives and learners that have a full round: a fold that one of them lacks does not count."""
    settings = context.settings
    for name in (*settings.objectives, *settings.classical):
        fewer = tuple(_shared(cells, [name], pairs))
        if set(first) <= set(fewer):
            pairs = fewer
    return Basis(design.level, _complete(cells, settings.objectives, pairs), pairs, whole=True)


def cut_words(settings: Settings, rows: int, basis: Basis, folds: int) -> list[str]:
    """What a report rests on instead of what was asked for, in words; empty where nothing was cut.

    Args:
        settings: as asked.
        rows: of the largest training part.
        basis: of the report.
        folds: of the whole design.

    >>> asked = Settings(("a", "b"), "a", "accuracy")
    >>> cut_words(asked, 900, Basis(Level(900, 60, 4), ("a", "b"), ((0, 0), (0, 1)), False), 15)
    ['4 trials instead of 8', '2 of 15 folds']
    """
    level, words = basis.level, []
    if level.trials < settings.trials:
        words.append(f"{level.trials} {'trial' if level.trials == 1 else 'trials'} instead of {settings.trials}")
    if level.epochs < settings.epochs:
        words.append(f"{level.epochs} epochs instead of {settings.epochs}")
    if level.rows < rows:
        words.append(f"{level.rows:,} training rows instead of {rows:,}")
    if len(basis.names) < len(settings.objectives):
        words.append(f"{len(basis.names)} of {len(settings.objectives)} {settings.vary}s")
    if len(basis.pairs) < folds:
        whole = basis.whole and len(basis.pairs) % settings.folds == 0 and not settings.test
        done = f"{len(basis.pairs) // settings.folds} of {settings.repeats} repeats" if whole else ""
        words.append(done or f"{len(basis.pairs)} of {folds} folds")
    return words


def basis_facts(context: Context, store: Store, basis: Basis) -> dict[str, Any]:
    """What a report says of its basis, plain values.

    Args:
        context: of the comparison, at the level that was asked for.
        store: of its run; what was decided is among its facts.
        basis: of the report.
    """
    settings, level = context.settings, basis.level
    needed = store.fact("needed")
    cut = cut_words(settings, context.most_rows, basis, len(context.folds))
    late = {name: words_of(seconds) for name, seconds in (store.fact("late") or {}).items() if name not in basis.names}
    cells = store.cells(level)
    left_out = {
        name: _why(facts["seconds"], stopped=facts["stopped"])
        for name, facts in (store.fact("left_out") or {}).items()
        if len(_shared(cells, [name], basis.pairs)) < len(basis.pairs)
    }
    return {
        "rows": level.rows,
        "epochs": level.epochs,
        "trials": level.trials,
        "folds": len(basis.pairs),
        "planned_folds": len(context.folds),
        "whole": basis.whole,
        "cut": cut,
        "late": late,
        "left_out": left_out,
        "undo": f"--budget {words_of(needed)}" if needed and (cut or late) else "",
    }


def _why(seconds: float, *, stopped: bool) -> str:
    """What became of a classical learner whose round of folds takes so many seconds of one core; 0 is unknown.

    >>> _why(600, stopped=False), _why(90, stopped=True), _why(0, stopped=True)
    ('was left out: it needs about 10m of one core', 'was stopped: it needs 1m30s of one core or more', 'was stopped')
    """
    if not seconds:
        return "was stopped" if stopped else "was left out"
    needs = words_of(seconds)
    return (
        f"was stopped: it needs {needs} of one core or more"
        if stopped
        else f"was left out: it needs about {needs} of one core"
    )
