"""From data and options to a context: every setting resolved, every bad one refused in one line."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from .baselines import classical_learners
from .cells import Context
from .errors import InputError
from .metrics import default_metric, find_metric
from .models import feature_width, find_model, imported
from .objectives import baseline_of, choose_objectives
from .settings import Settings
from .tables import Table, load_like, load_table, table_from_arrays


def prepare(
    data: Any,
    y: Any = None,
    *,
    target: str | int | None = None,
    task: str = "auto",
    objectives: Any = "default",
    metric: Any = None,
    model: Any = "mlp",
    repeats: int | None = None,
    folds: int = 5,
    trials: int = 8,
    epochs: int | None = None,
    patience: int = 10,
    batch_size: int | None = None,
    noise: float = 0.0,
    seed: int = 0,
    classical: bool = True,
    drop: str | Sequence[str] = (),
    group: str | None = None,
    time: str | None = None,
    weight: str | None = None,
    rare: str | None = None,
    test: str | Path | None = None,
    device: str = "cpu",
    name: str = "data",
) -> tuple[Context, list[str]]:
    """Read the data and resolve every setting; gives the context and lines about what was left out.

    Raises:
        InputError: for whatever cannot be used, in one line.
    """
    if isinstance(folds, bool) or not isinstance(folds, int) or not 2 <= folds <= 50:
        raise InputError(f"--folds: expected an integer in 2..50, got {folds!r}")
    options: dict[str, Any] = {
        "task": task,
        "drop": drop,
        "group": group,
        "time": time,
        "weight": weight,
        "rare": rare,
        "folds": folds,
    }
    if y is None:
        if isinstance(data, pd.DataFrame):
            goal = data.columns[-1] if target is None else target
            if goal not in data.columns:
                raise InputError(f"target: the frame has no column {goal!r}")
            table = table_from_arrays(data.drop(columns=[goal]), data[goal], name=name, **options)
        else:
            table = load_table(data, target=target, **options)
    else:
        table = table_from_arrays(data, y, name=name, **options)
    fixed: Table | None = None if test is None else load_like(test, table)
    rows = len(table.target)
    counts = None if table.task == "regression" else np.bincount(table.target, minlength=len(table.classes)).tolist()
    if noise and table.task == "regression":
        raise InputError("--noise: label noise is for classes, and this target is a number")
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise InputError(
            f"--device: {device!r} is not here; use cpu" + (" or cuda" if torch.cuda.is_available() else "")
        )
    chosen, notes = choose_objectives(_specs(objectives), table.task, weighted=table.weights is not None)
    metric_spec = default_metric(table.task, counts).name if metric is None else _spec(metric)
    find_metric(metric_spec, table.task)
    backbone = find_model(_spec(model))
    settings = Settings(
        objectives=tuple(chosen),
        baseline=baseline_of(table.task),
        metric=metric_spec,
        model=_spec(model),
        repeats=1 if fixed is not None else _repeats(table, rows) if repeats is None else repeats,
        folds=folds,
        trials=trials,
        epochs=(60 if rows <= 10_000 else 30) if epochs is None else epochs,
        patience=patience,
        batch_size=(64 if rows <= 5_000 else 256) if batch_size is None else batch_size,
        classical=tuple(learner.name for learner in classical_learners(table.task, rows)) if classical else (),
        noise=noise,
        seed=seed,
        test="" if fixed is None else fixed.sha256,
        device=device,
        code=_code_hash([*chosen, _spec(model), metric_spec]),
    )
    context = Context(table, settings, fixed)
    width = int(context.split(next(iter(context.folds)), 0).inputs.shape[1])
    with torch.random.fork_rng(devices=[]):
        try:
            body = backbone(width)
        except Exception as error:
            raise InputError(f"--model: the function failed for {width} features: {error}") from error
        feature_width(body, width)
    return context, notes


def _repeats(table: Table, rows: int) -> int:
    return 1 if rows > 5_000 or table.times is not None else 3


def _spec(thing: Any) -> str:
    """A name, or ``module:name`` for a class or function."""
    if isinstance(thing, str):
        return thing
    if not hasattr(thing, "__qualname__") or "<" in thing.__qualname__ or "." in thing.__qualname__:
        raise InputError(f"expected a name, or a class or function at the top of a module, got {thing!r}")
    if inspect.isclass(thing) and thing.__module__.startswith("steepest.losses"):
        return str(thing.name)  # type: ignore[attr-defined]
    return f"{thing.__module__}:{thing.__qualname__}"


def _specs(objectives: Any) -> Any:
    if isinstance(objectives, str):
        return objectives
    if inspect.isclass(objectives):
        return [_spec(objectives)]
    return [_spec(each) for each in objectives]


def _code_hash(specs: Sequence[str]) -> str:
    """A hash of the user's own modules, so that changed code is another run."""
    texts = []
    for spec in specs:
        if ":" in spec:
            module = inspect.getmodule(imported("own code", spec))
            try:
                texts.append(inspect.getsource(module) if module is not None else spec)
            except (OSError, TypeError):
                texts.append(spec)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12] if texts else ""


def default_workers(settings: Settings) -> int:
    """As many processes as cores, at most 8; one where own code lives in ``__main__`` or a GPU trains."""
    own = [*settings.objectives, settings.model, settings.metric]
    if settings.device != "cpu" or any(spec.startswith("__main__:") for spec in own):
        return 1
    return max(1, min(8, os.cpu_count() or 1))
