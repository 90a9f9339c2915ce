"""From data and options to a context: every setting resolved, every bad one refused in one line."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from .asked import refuse_for_images, refuse_for_tables
from .baselines import classical_learners
from .cells import Context
from .errors import InputError, nearest
from .folds import CLASSES
from .images import Images, is_image_source, load_images
from .inputs import Data, shape_text
from .metric_words import known_as
from .metrics import BINARY, MULTICLASS, REGRESSION
from .models import IMAGE_MODELS, MODELS, feature_width, find_model
from .objectives import choose_objectives
from .own_parts import imported
from .read import Table, load_like, load_table, table_from_arrays, table_from_frame
from .read.frames import check_labels, feature_columns
from .read.several import target_names
from .read.task import MAX_AUTO_CLASSES
from .results import class_counts
from .settings import Settings, check_numbers
from .several import default_of, metric_of


def prepare(
    data: Any,
    y: Any = None,
    *,
    target: str | int | Sequence[str] | None = None,
    task: str = "auto",
    objectives: Any = "default",
    metric: Any = None,
    model: Any = None,
    repeats: int | None = None,
    folds: int | None = None,
    trials: int | None = None,
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
    groups: Any = None,
    times: Any = None,
    sample_weight: Any = None,
    rare: str | None = None,
    positive: str | None = None,
    encoding: str | None = None,
    separator: str | None = None,
    header: str | bool | None = None,
    missing: str | Sequence[str] | None = None,
    dayfirst: bool | None = None,
    types: str | Path | Mapping[str, str] | None = None,
    test: str | Path | None = None,
    split: str = "auto",
    size: int | None = None,
    augment: bool = True,
    device: str = "cpu",
    name: str = "data",
) -> tuple[Context, list[str]]:
    """Read the data and resolve every setting; gives the context and lines about what was left out.

    ``groups``, ``times`` and ``sample_weight`` are what ``group``, ``time`` and ``weight`` name, as arrays ``[rows]``.

    Raises:
        InputError: for whatever cannot be used, in one line.
    """
    pictures = y is None and isinstance(data, (str, Path)) and is_image_source(data)
    folds = (3 if pictures else 5) if folds is None else folds
    check_numbers(folds=folds)
    options: dict[str, Any] = {
        "task": task,
        "drop": drop,
        "group": group,
        "time": time,
        "weight": weight,
        "rare": rare,
        "folds": folds,
        "positive": positive,
        "encoding": encoding,
        "separator": separator,
        "header": header,
        "missing": missing,
        "dayfirst": dayfirst,
        "types": types,
    }
    arrays = {"group": ("groups", groups), "time": ("times", times), "weight": ("sample_weight", sample_weight)}
    for role, (word, values) in arrays.items():
        if values is not None:
            data, target, options[role] = _with_column(data, y, target, role, word, values, options[role])
    fixed: Data | None = None
    table: Data
    if pictures:
        refuse_for_images(str(data), {**options, "target": target, "test": test})
        table, fixed = load_images(str(data), split=split, size=size, folds=folds)
    else:
        refuse_for_tables(split)
        table = _table_for(metric, data, y, target, name, options)
        fixed = None if test is None else load_like(test, table)
        if fixed is not None and table.parts:
            raise InputError("--test: takes one target")
    images, rows = isinstance(table, Images), len(table.target)
    counts = class_counts(table)
    if noise and table.task not in CLASSES:
        raise InputError(f"--noise: label noise is for classes, and this task is {table.task}")
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise InputError(
            f"--device: {device!r} is not here; use cpu" + (" or cuda" if torch.cuda.is_available() else "")
        )
    parts = getattr(table, "parts", ())
    kinds = [part.task for part in parts] if table.task == "multitask" else []
    chosen, notes = choose_objectives(_specs(objectives), table.task, weighted=table.weights is not None, kinds=kinds)
    asked_metric = default_of(table, counts or None).name if metric is None else _spec(metric)
    metric_spec = metric_of(asked_metric, table).name
    if metric_spec != asked_metric:
        notes.append(f"metric: {asked_metric} is {metric_spec} here")
    model_spec = ("resnet" if images else "mlp") if model is None else _spec(model)
    if (model_spec in IMAGE_MODELS) != images and model_spec in MODELS:
        fitting = [name for name in MODELS if (name in IMAGE_MODELS) == images]
        raise InputError(f"--model: {model_spec!r} does not take {shape_text(table)}; use {' or '.join(fitting)}")
    backbone = find_model(model_spec, trust=True)
    learners = classical and not images and table.task != "multitask"
    kind = "classification" if table.task == "multilabel" else table.task
    settings = Settings(
        objectives=tuple(chosen),
        baseline=chosen[0],
        metric=metric_spec,
        model=model_spec,
        repeats=_repeats(table, rows, fixed) if repeats is None else repeats,
        folds=folds,
        trials=(1 if images else 8) if trials is None else trials,
        epochs=(20 if images else 60 if rows <= 10_000 else 30) if epochs is None else epochs,
        patience=patience,
        batch_size=(128 if images else 64 if rows <= 5_000 else 256) if batch_size is None else batch_size,
        classical=tuple(learner.name for learner in classical_learners(kind, rows)) if learners else (),
        noise=noise,
        seed=seed,
        test="" if fixed is None else fixed.sha256,
        device=device,
        augment=augment and images,
        one_cycle=images,
        code=_code_hash([*chosen, model_spec, metric_spec]),
    )
    context = Context(table, settings, fixed)
    shape = tuple(context.split(next(iter(context.folds)), 0).inputs.shape[1:])
    with torch.random.fork_rng(devices=[]):
        try:
            body = backbone(shape[0])
        except Exception as error:
            raise InputError(f"--model: the function failed for {shape_text(table)}: {error}") from error
        feature_width(body, shape)
    return context, notes


def _with_column(
    data: Any, y: Any, target: Any, role: str, word: str, values: Any, named: str | None
) -> tuple[Any, Any, str]:
    """The features with one more column, of the groups, times or weights; the target; and the name of the column."""
    if named is not None:
        raise InputError(f"{word}: an array, or {role} with the name of a column, not both")
    if isinstance(data, (str, Path)):
        raise InputError(f"{word} goes with arrays and frames; of a file, name the column: {role}=...")
    if isinstance(data, pd.DataFrame):
        frame = data
    else:
        names, _, _ = feature_columns(data)
        frame = pd.DataFrame(np.asarray(data)).set_axis(names, axis=1)
    if np.ndim(values) != 1 or len(values) != len(frame):
        raise InputError(f"{word}: expected {len(frame)} values, one a row of X, got shape {np.shape(values)}")
    check_labels(data, values, "X", word)
    while word in frame.columns:
        word += "_"
    if y is None and target is None:
        target = str(frame.columns[-1])
    column = values.array if isinstance(values, pd.Series) else np.asarray(values)
    return frame.assign(**{word: column}), target, word


def _table(data: Any, y: Any, target: Any, name: str, options: dict[str, Any]) -> Table:
    """A table from whatever a caller has: a file, a frame with its target inside, features and target apart."""
    if y is None and not isinstance(data, pd.DataFrame):
        return load_table(data, target=target, **options)
    if y is not None and getattr(y, "ndim", 1) == 2 and np.shape(y)[1] > 1:
        targets = y if isinstance(y, pd.DataFrame) else pd.DataFrame(np.asarray(y)).add_prefix("target_")
        features = data if isinstance(data, pd.DataFrame) else pd.DataFrame(np.asarray(data)).add_prefix("c")
        if len(features) != len(targets):
            raise InputError(f"X has {len(features)} rows and y has {len(targets)}: expected one length")
        check_labels(data, y, "X", "y")
        data = pd.concat([features.reset_index(drop=True), targets.reset_index(drop=True)], axis=1)
        y, target = None, [str(column) for column in targets.columns]
    if y is not None:
        return table_from_arrays(data, y, name=name, **options)
    names = [str(column) for column in data.columns]
    goals = [names[-1]] if target is None else target_names(target, names)
    for goal in goals:
        if goal not in names:
            raise InputError(f"target: the frame has no column {goal!r}{nearest(goal, names)}")
    frame = data.set_axis(names, axis=1)
    rest = [column for column in names if column not in goals]
    if len(goals) == 1:
        return table_from_arrays(frame[rest], frame[goals[0]], name=name, **options)
    return table_from_frame(frame[[*rest, *goals]], goals, name=name, **options)


def _table_for(metric: Any, data: Any, y: Any, target: Any, name: str, options: dict[str, Any]) -> Table:
    """The table; where the task is left open, and the metric is for one kind alone, it is of that kind if it can be."""
    word = metric if options["task"] == "auto" and isinstance(metric, str) else ""
    if known_as(word, REGRESSION) in REGRESSION:
        try:
            table = _table(data, y, target, name, {**options, "task": "regression"})
        except InputError:
            return _table(data, y, target, name, options)
        return _said(table, f"task: numbers, as {word} needs them") if _like_classes(table) else table
    table = _table(data, y, target, name, options)
    if known_as(word, {*BINARY, *MULTICLASS}) in BINARY and _few_integers(table):
        table = _table(data, y, target, name, {**options, "task": "classification"})
        return _said(table, f"task: classes, as {word} needs them")
    return table


def _said(table: Table, decision: str) -> Table:
    return replace(table, decisions=(*table.decisions, decision))


def _like_classes(table: Table) -> bool:
    """Whether a target of numbers would be one of classes by itself."""
    values = pd.unique(table.target) if table.task == "regression" else np.arange(0)
    return len(values) == 2 or (0 < len(values) <= MAX_AUTO_CLASSES and bool((values == np.floor(values)).all()))


MOST_CLASSES, MOST_DISTINCT = 1000, 0.05
"""Integers of at most so many values, that are at most this share of the rows, are classes where the metric asks."""


def _few_integers(table: Table) -> bool:
    """Whether a target of numbers may as well be one of classes."""
    if table.task != "regression":
        return False
    values = pd.unique(table.target)
    most = min(MOST_CLASSES, MOST_DISTINCT * len(table.target))
    return len(values) <= most and bool((values == np.floor(values)).all())


def _repeats(table: Data, rows: int, fixed: Data | None) -> int:
    """Rounds of folds; with a fixed test part seeds, three for images."""
    if isinstance(table, Images):
        return 3 if fixed is not None else 1
    return 1 if rows > 5_000 or table.times is not None or fixed is not None else 3


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
            module = inspect.getmodule(imported("own code", spec, trust=True))
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
