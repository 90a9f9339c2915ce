"""Objectives by name: those of the catalogue, and a user's own as ``module:Class``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from functools import cache

from ...catalogue import systems, there
from ...core.objective import Objective
from ..errors import InputError
from ..names import GROUPS, objective_words, unknown_objective
from ..own_parts import Trust, imported

PREFERRED_FIRST = {"regression": "squared_error", "multilabel": "binary_cross_entropy"}
SUPPORTED_NEEDS = {"index", "features", "inputs"}
"""What the tables of a comparison can give an objective."""


@cache
def known_objectives() -> dict[str, tuple[type[Objective], int | None]]:
    """``name -> (class, rank in the shortlist or None)`` of every objective of the catalogue that is there."""
    objectives: dict[str, tuple[type[Objective], int | None]] = {}
    for row in systems():
        if not row.room.startswith("losses.") or not there(row):
            continue
        module = importlib.import_module(f"steepest.{row.module}")
        first = True
        for _, cls in inspect.getmembers(module, lambda c: inspect.isclass(c) and issubclass(c, Objective)):
            if cls.__module__ != module.__name__ or not cls.name or cls.name in objectives or inspect.isabstract(cls):
                continue
            if cls.__name__ in row.names or cls.tasks:
                objectives[cls.name] = (cls, None)
        for name in row.names:
            cls = getattr(module, name, None)
            if first and inspect.isclass(cls) and issubclass(cls, Objective):
                objectives[cls.name] = (cls, row.default)
                first = False
    return dict(sorted(objectives.items()))


def shortlist() -> list[str]:
    """The objectives that are tried when none is named, by rank: from its end it is cut.

    >>> shortlist()[0]
    'cross_entropy'
    """
    ranks = {name: rank for name, (_, rank) in known_objectives().items() if rank is not None}
    return sorted(ranks, key=ranks.__getitem__)


def baseline_of(task: str) -> str:
    """The objective that the others are compared with."""
    return PREFERRED_FIRST.get(task, "cross_entropy")


def why_not(cls: type[Objective], task: str, weighted: bool, kinds: Sequence[str] = ()) -> str:
    """Why an objective cannot be used here, or an empty string; ``kinds`` are the tasks of several targets."""
    if not any(cls.fits(kind) for kind in kinds or (task,)):
        return f"it is for {' and '.join(cls.tasks)} targets"
    missing = set(cls.needs) - SUPPORTED_NEEDS
    if missing:
        return f"it needs {', '.join(sorted(missing))}, which a table does not have"
    if cls.views > 1:
        return f"it needs {cls.views} views of each input"
    if weighted and cls.unit != "sample":
        return "it is a loss of the batch and takes no sample weights"
    return ""


def find_objective(name: str, *, trust: Trust = False) -> type[Objective]:
    """The class of a name of the catalogue, or of a trusted ``module:Class``.

    Raises:
        InputError: unknown, own code that is not trusted, or not an objective.
    """
    known = known_objectives()
    if name in known:
        return known[name][0]
    if ":" in name:
        cls = imported("--objectives", name, trust=trust)
        if not inspect.isclass(cls) or not issubclass(cls, Objective):
            raise InputError(f"--objectives {name!r}: expected a subclass of steepest.core.objective.Objective")
        if not cls.tasks:
            raise InputError(f"--objectives {name!r}: the class declares no tasks")
        return cls
    raise unknown_objective(name, known)


def choose_objectives(
    asked: str | Sequence[str], task: str, *, weighted: bool = False, kinds: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Names to run, the baseline first and a shortlist by rank, and a line for each left out of a group word.

    The names are those of the present call, so own code among them is imported.

    Args:
        asked: ``"default"``, ``"all"``, or names (a list, or one text with commas).
        task: of the table.
        weighted: whether there are sample weights.
        kinds: the tasks of several targets; an objective must fit one of them.

    Raises:
        InputError: an unknown name, or one that does not fit the task.

    >>> choose_objectives("comp_sum", "multiclass")[0]
    ['cross_entropy', 'comp_sum']
    """
    words = objective_words(asked)
    known = known_objectives()
    fitting = [name for name, (cls, _) in known.items() if not why_not(cls, task, weighted, kinds)]
    numbers = bool(kinds) and all(kind == "regression" for kind in kinds)
    names, notes = [baseline_of("regression" if numbers else task)], []
    for word in words:
        if word in GROUPS:
            wanted = list(known) if word == "all" else shortlist()
            chosen = [n for n in wanted if any(known[n][0].fits(each) for each in kinds or (task,))]
            for name in chosen:
                reason = why_not(known[name][0], task, weighted, kinds)
                notes += [f"left out {name}: {reason}"] if reason else []
            names += [name for name in chosen if name in fitting]
            continue
        reason = why_not(find_objective(word, trust=True), task, weighted, kinds)
        if reason:
            raise InputError(
                f"objective {word!r} does not fit a {task} target: {reason}. Those that fit: {', '.join(fitting)}"
            )
        names.append(word)
    return list(dict.fromkeys(names)), notes
