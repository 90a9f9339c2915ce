"""Objectives by name: those of the catalogue, and a user's own as ``module:Class``."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence

from ...core.objective import Objective
from ..errors import InputError
from ..names import GROUPS, objective_homes, objective_words, unknown_objective
from ..own_parts import Trust, imported
from ..read.lists import RANKING
from .ranking import SHORTLIST as RANKING_SHORTLIST

PREFERRED_FIRST = {"regression": "squared_error", "ranking": "squared_error", "multilabel": "binary_cross_entropy"}
SUPPORTED_NEEDS = {"index", "features", "inputs"}
"""What the tables of a comparison can give an objective."""


def known_objectives() -> dict[str, tuple[type[Objective], int | None]]:
    """``name -> (class, rank in the shortlist or None)`` of every objective of the catalogue: imports them all."""
    return {name: (_class_of(name), home.rank) for name, home in objective_homes().items()}


def _class_of(name: str) -> type[Objective]:
    """The class of a name of the catalogue; nothing but its own module is imported."""
    home = objective_homes()[name]
    cls: type[Objective] = getattr(importlib.import_module(f"steepest.{home.module}"), home.name)
    return cls


def shortlist(task: str = "") -> list[str]:
    """The objectives that are tried when none is named, by rank: from its end it is cut; of lists there are others.

    >>> shortlist()[0]
    'cross_entropy'
    """
    if task == RANKING:
        return list(RANKING_SHORTLIST)
    ranks = {name: home.rank for name, home in objective_homes().items() if home.rank is not None}
    return sorted(ranks, key=ranks.__getitem__)


def baseline_of(task: str) -> str:
    """The objective that the others are compared with."""
    return PREFERRED_FIRST.get(task, "cross_entropy")


def why_not(cls: type[Objective], task: str, weighted: bool, kinds: Sequence[str] = ()) -> str:
    """Why an objective cannot be used here, or an empty string; ``kinds`` are the tasks of several targets."""
    fitting = (RANKING, "regression") if task == RANKING else kinds or (task,)  # numbers are learnt row by row
    if not any(cls.fits(kind) for kind in fitting):
        return f"it is for {' and '.join(cls.tasks)} targets"
    missing = set(cls.needs) - SUPPORTED_NEEDS - ({"query"} if task == RANKING else set())
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
    if name in objective_homes():
        return _class_of(name)
    if ":" in name:
        cls = imported("--objectives", name, trust=trust)
        if not inspect.isclass(cls) or not issubclass(cls, Objective):
            raise InputError(f"--objectives {name!r}: expected a subclass of steepest.core.objective.Objective")
        if not cls.tasks:
            raise InputError(f"--objectives {name!r}: the class declares no tasks")
        return cls
    raise unknown_objective(name, objective_homes())


def choose_objectives(
    asked: str | Sequence[str], task: str, *, weighted: bool = False, kinds: Sequence[str] = ()
) -> tuple[list[str], list[str]]:
    """Names to run, the baseline first and a shortlist by rank, and a line for each left out of a group word.

    The names are those of the present call, so own code among them is imported.

    Args:
        asked: ``"default"``, ``"all"``, or names (a list, or one text with commas); empty is the baseline.
        task: of the table.
        weighted: whether there are sample weights.
        kinds: the tasks of several targets; an objective must fit one of them.

    Raises:
        InputError: an unknown name, or one that does not fit the task.

    >>> choose_objectives("comp_sum", "multiclass")[0]
    ['cross_entropy', 'comp_sum']
    """
    words = objective_words(asked) if asked else []
    numbers = bool(kinds) and all(kind == "regression" for kind in kinds)
    names, notes = [baseline_of("regression" if numbers else task)], []
    for word in words:
        if word in GROUPS:
            for name in objective_homes() if word == "all" else shortlist(task):
                if not any(_class_of(name).fits(own_task) for own_task in kinds or (task,)):
                    continue
                if reason := why_not(_class_of(name), task, weighted, kinds):
                    notes.append(f"left out {name}: {reason}")
                else:
                    names.append(name)
            continue
        reason = why_not(find_objective(word, trust=True), task, weighted, kinds)
        if reason:
            known = known_objectives()
            fitting = [name for name, (cls, _) in known.items() if not why_not(cls, task, weighted, kinds)]
            raise InputError(
                f"objective {word!r} does not fit a {task} target: {reason}. Those that fit: {', '.join(fitting)}"
            )
        names.append(word)
    return list(dict.fromkeys(names)), notes
