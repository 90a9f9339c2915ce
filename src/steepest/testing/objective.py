"""Conformance of an objective: everything its contract says, checked on what ``samples()`` gives.

``check_objective(cls)`` runs all; ``objective_checks(cls)`` lists ``(name, check)`` for pytest's ``parametrize``.
A member may declare ``exempt = {check name: reason}``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from ..core.objective import DOMAINS, NEEDS, TARGETS, TASKS, Objective, TaskInfo
from ._common import cases, rebuilds, refused, value, wrong_arguments, wrong_weights
from ._constructor import constructor_checks, seed_torch
from ._numbers import (
    check_autocast,
    check_cuda,
    check_empty,
    check_extremes,
    check_gradient,
    check_ignore_index,
    check_nan,
    check_order,
    check_output,
    check_precision,
    check_probabilities,
    check_reductions,
    check_seed,
    check_weights,
)
from ._state import (
    check_compile,
    check_eval,
    check_repeated_index,
    check_shapes,
    check_state_dict,
    check_stateless,
    check_transforms,
    check_vmap,
)
from ._suite import bound, run_all


def check_declaration(cls: type[Objective]) -> None:
    """Every attribute is declared, from its closed list."""
    assert cls.name.isidentifier() and cls.name == cls.name.lower(), "name: snake_case"
    assert cls.tasks and set(cls.tasks) <= set(TASKS), "tasks"
    assert cls.domain in DOMAINS and cls.targets and set(cls.targets) <= set(TARGETS), "domain, targets"
    assert cls.unit in ("sample", "batch") and cls.gradient in ("exact", "surrogate"), "unit, gradient"
    assert cls.ranks in ("gather", "local"), "ranks"
    if cls.unit == "batch" and cls.ranks == "local":
        texts = " ".join(base.__doc__ or "" for base in cls.__mro__ if base is not Objective)
        assert "several ranks each" in " ".join(texts.split()), "docstring: what several ranks do"
    assert set(cls.needs) <= set(NEEDS) and cls.views >= 1, "needs, views"
    known = set(inspect.signature(cls.__init__).parameters)
    assert set(cls.search) <= known, f"search: {set(cls.search) - known} are no arguments of __init__"
    assert cls.__doc__ and "Example" in cls.__doc__, "docstring with an example"
    if cls.gradient == "surrogate":
        assert hasattr(cls, "reference_gradient"), "a surrogate gradient needs reference_gradient(outputs, target, ...)"


def check_search(cls: type[Objective]) -> None:
    """Every point of the search space makes a working objective."""
    for task in cls.tasks:
        counts = () if task == "regression" else (9, 12) if task == "binary" else (5, 9, 7)
        info = TaskInfo(task, 21, max(1, len(counts)), counts, feature_dim=6, epochs=10, steps_per_epoch=3, seed=1)
        for u in (0.0, 0.5, 0.999):
            cls.from_task(info, **{name: space.at(u) for name, space in cls.search.items()})


def check_parameters(cls: type[Objective]) -> None:
    """Every parameter that a comparison tunes changes the loss over some epochs, the probabilities or the head."""
    for name, space in cls.search.items():
        pairs = list(zip(rebuilds(cls), cases(cls)))
        seen = [
            [_trace(make(**{name: space.at(u)}), *sample) for u in (0.0, 0.5, 0.999)] for make, (_, sample) in pairs
        ]
        assert any(trace != traces[0] for traces in seen for trace in traces[1:]), f"{name} changes nothing"


def _trace(objective: Objective, args: Any, kwargs: Any) -> list[Any]:
    """Numbers on which a parameter can tell: the loss, its state moving on, probabilities, and a head of a task."""
    seed_torch(0)
    classes = args[0].shape[1] if args[0].ndim == 2 else 2
    head = objective.head(6, TaskInfo("multiclass", 21, classes, tuple([5] * classes), feature_dim=6))
    trace = [head(torch.ones(1, 6)).tolist()]
    try:
        for epoch in range(1, 5):
            objective.start_epoch(epoch, 4)
            for _ in range(2):
                trace.append(objective(*args, **kwargs).item())
                objective.after_step()
    except ValueError as refusal:  # outputs of the width that another value of the parameter asks for
        return [*trace, str(refusal)]
    p = objective.probabilities(args[0])
    return trace if p is None else [*trace, p.tolist()]


def check_bad_input(cls: type[Objective]) -> None:
    """Wrong input is refused with the uniform error: the argument, what was expected, what came."""
    for objective, (args, kwargs) in cases(cls, torch.float32):
        for what, wrong in wrong_arguments(cls, args):
            refused(what, value, objective, wrong, kwargs)
        if cls.unit == "sample":
            for what, weight in wrong_weights(args[0].shape[0]):
                refused(what, value, objective, args, {**kwargs, "weight": weight})
    if "reduction" in inspect.signature(cls.__init__).parameters:
        for rebuild in rebuilds(cls):
            refused("reduction='median'", rebuild, reduction="median")


def check_head(cls: type[Objective]) -> None:
    """Its own head maps features to outputs that it takes."""
    for objective, (args, kwargs) in cases(cls, torch.float32):
        if cls.domain == "embedding":
            info = TaskInfo("retrieval", 21, 3, (9, 8, 4), feature_dim=6, epochs=10, steps_per_epoch=3, seed=1)
            outputs = objective.head(6, info)(torch.randn(*args[0].shape[:-1], 6))
            assert outputs.shape[:-1] == args[0].shape[:-1], f"head gives {tuple(outputs.shape)}"
            assert torch.isfinite(value(objective, (outputs, *args[1:]), kwargs))
            continue
        regression = args[1].is_floating_point() and args[1].ndim == 1
        labels = cls.tasks == ("multilabel",)
        classes = 1 if regression else 2 if args[0].ndim == 1 else args[0].shape[1]
        task = "regression" if regression else "binary" if classes == 2 else "multiclass"
        task = "multilabel" if labels else task
        counts = () if regression else tuple([5] * classes)
        info = TaskInfo(task, 21, classes, counts, feature_dim=6, epochs=10, steps_per_epoch=3, seed=1)
        outputs = objective.head(6, info)(torch.randn(args[0].shape[0], 6))
        assert outputs.shape == args[0].shape, f"head gives {tuple(outputs.shape)}"
        assert torch.isfinite(value(objective, (outputs, *args[1:]), kwargs))


CHECKS: tuple[Callable[[type[Objective]], None], ...] = (
    check_declaration, check_search, check_parameters, check_output, check_reductions, check_weights, check_gradient,
    check_precision, check_autocast, check_extremes, check_order, check_ignore_index, check_bad_input, check_empty,
    check_nan,
    check_state_dict, check_eval, check_repeated_index, check_stateless, check_compile, check_vmap, check_transforms,
    check_shapes, check_seed, check_probabilities, check_head, check_cuda, *constructor_checks(cases),
)  # fmt: skip


def objective_checks(cls: type[Objective]) -> list[tuple[str, Callable[[], None]]]:
    """``(name, check)`` for every check that ``cls`` is not exempt from.

    Raises:
        ValueError: an exemption from a check that doesn't exist.
    """
    return bound(CHECKS, cls)


def check_objective(cls: type[Objective]) -> None:
    """Run the whole conformance suite on an objective class.

    Raises:
        AssertionError: the first promise that the class does not keep.
    """
    run_all(objective_checks(cls), cls)
