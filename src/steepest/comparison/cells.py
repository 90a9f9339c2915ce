"""One cell of a comparison: an objective (or a classical learner) in one outer fold, tuned inside and scored outside.

A job is a set of cells of one objective that train as a stack; the plan fixes which.
"""

from __future__ import annotations

import io
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.objective import TaskInfo
from ..descent.augment import default_augment
from .classical import fit_classical
from .design import Trial, seed_of, trials
from .folds import CLASSES, Fold, inner_splits, outer_folds
from .images import Images
from .inputs import Data, fit_inputs, transform
from .metrics import Outcome, evaluate, fit_temperature, per_class_recall, tune_threshold
from .models import find_model
from .read.several import Part
from .settings import Settings
from .several import counts_of, metric_of, metrics_of, objective_for, target_scale
from .training import Member, Recipe, Split, outcome_of, train

Pair = tuple[int, int]


@dataclass(frozen=True)
class Job:
    """Cells of one objective or classical learner that are computed together."""

    kind: str
    name: str
    cells: tuple[Pair, ...]


@dataclass
class CellResult:
    """What one cell found: plain values, and the outcome on its test rows."""

    kind: str
    name: str
    repeat: int
    fold: int
    values: dict[str, Any]
    outcome: Outcome

    def arrays(self) -> bytes:
        """The outcome, compressed; :func:`~steepest.comparison.stored.read_outcome` reads it."""
        parts = {k: v for k, v in vars(self.outcome).items() if v is not None}
        small = {k: v.astype(np.float32) if v.dtype == np.float64 and k != "predicted" else v for k, v in parts.items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **small)
        return buffer.getvalue()


class Context:
    """A table and settings, with what every cell of them shares."""

    def __init__(self, table: Data, settings: Settings, test: Data | None = None) -> None:
        self.table, self.settings, self.test = table, settings, test
        self.parts: tuple[Part, ...] = getattr(table, "parts", ())
        self.metric = metric_of(settings.metric, table)
        self.classes = len(table.classes)
        self._split = lru_cache(maxsize=3 if isinstance(table, Images) else 48)(self._make_split)

    @property
    def folds(self) -> dict[Pair, Fold]:
        """The outer folds; with a fixed test set one a seed, which trains on every row."""
        if not hasattr(self, "_folds"):
            s = self.settings
            if s.test:
                rows = np.arange(len(self.table.target))
                found = [Fold(repeat, 0, rows, np.arange(0)) for repeat in range(s.repeats)]
            else:
                found = outer_folds(self.table, repeats=s.repeats, folds=s.folds, seed=s.seed)
            self._folds = {(f.repeat, f.fold): f for f in found}
        return self._folds

    def inner(self, pair: Pair) -> list[tuple[np.ndarray, np.ndarray]]:
        """Row positions ``(fit, valid)`` inside one outer training part."""
        once = self.settings.one_cycle
        return inner_splits(
            self.table,
            self.folds[pair].train,
            seed=seed_of(self.settings.seed, *pair, "inner"),
            folds=1 if once else None,
            parts=8 if once else 4,
        )

    def training_target(self, pair: Pair) -> np.ndarray:
        """The target with label noise in the training part of this fold, if the settings ask for it."""
        target = self.table.target
        if not self.settings.noise or self.table.task not in CLASSES:
            return target
        target = target.copy()
        rng = np.random.default_rng(seed_of(self.settings.seed, *pair, "noise"))
        rows = self.folds[pair].train
        hit = rows[rng.random(len(rows)) < self.settings.noise]
        target[hit] = (target[hit] + rng.integers(1, self.classes, len(hit))) % self.classes
        return target

    def split(self, pair: Pair, part: int) -> Split:
        """Part ``0, 1 ..`` of the inner splits, or -1: the whole outer training part against the test part."""
        return self._split(pair, part)

    def _make_split(self, pair: Pair, part: int) -> Split:
        table, fold = self.table, self.folds[pair]
        rows, others = (fold.train, fold.test) if part < 0 else self.inner(pair)[part]
        target = self.training_target(pair)
        prepared = fit_inputs(table, rows)
        weights = table.weights
        other_target, other_weight = target[others], None if weights is None else weights[others]
        test_inputs = None
        if self.settings.one_cycle and part >= 0:
            test_inputs = transform(prepared, *((table, fold.test) if self.test is None else (self.test,)))
        if part < 0 and self.test is not None:
            other_inputs = transform(prepared, self.test)
            other_target, other_weight = self.test.target, self.test.weights
        else:
            other_inputs = transform(prepared, table, others)
        y, scale = target_scale(target[rows], table.task, self.parts)
        real = torch.int64 if table.task in ("binary", "multiclass") else torch.float32
        return Split(
            transform(prepared, table, rows),
            torch.as_tensor(y, dtype=real),
            None if weights is None else torch.as_tensor(weights[rows], dtype=torch.float32),
            other_inputs,
            other_target,
            other_weight,
            scale,
            table.task,
            test_inputs,
        )

    def info(self, pair: Pair, part: int) -> TaskInfo:
        """What an objective may know of the training split."""
        split, task = self.split(pair, part), self.table.task
        counts = counts_of(split.target, task, self.classes, self.parts)
        outputs = sum(p.width for p in self.parts) if task == "multitask" else max(1, self.classes)
        rows = len(split.inputs)
        batch = min(self.settings.batch_size, rows)
        return TaskInfo(
            task,
            num_samples=rows,
            num_classes=outputs,
            class_counts=counts,
            epochs=self.settings.epochs,
            steps_per_epoch=-(-rows // batch),
            seed=seed_of(self.settings.seed, *pair, "objective") % 2**31,
        )

    def objective(self, name: str) -> Any:
        """The objective's class; with several targets of a mix, what stands for it."""
        return objective_for(name, self.table.task, self.parts, trust=self.settings.own_parts)

    def recipe(self, objective: Any) -> Recipe:
        """What is the same for every training of an objective."""
        s = self.settings
        augment = None
        if isinstance(self.table, Images) and s.augment:
            height, width, channels = self.table.pixels.shape[1:]
            augment = default_augment((channels, height, width))
        return Recipe(
            objective,
            find_model(s.model, trust=s.own_parts),
            s.epochs,
            s.patience,
            s.batch_size,
            self.metric,
            s.device,
            augment,
            s.one_cycle,
        )

    def member(self, pair: Pair, part: int, trial: Trial, length: int | None = None) -> Member:
        """One training in one split; equal folds have equal backbones and orders, whatever the objective."""
        seeds = {role: seed_of(self.settings.seed, *pair, role) for role in ("backbone", "head", "objective")}
        seeds["order"] = seed_of(self.settings.seed, pair[0], pair[1] * 64 + part + 1, "order")
        return Member(self.split(pair, part), trial, self.info(pair, part), seeds, length)


def run_job(context: Context, job: Job) -> list[CellResult]:
    """Compute the cells of a job; the random states of torch and NumPy are left as they were."""
    reset_peak()
    with numpy_seed(seed_of(context.settings.seed, *job.cells[0], "classical") % 2**32), torch.random.fork_rng([]):
        found = _classical(context, job) if job.kind == "classical" else _objective(context, job)
    peak = peak_megabytes()
    for cell in found:
        cell.values["peak_memory_mb"] = peak
    return found


@contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """NumPy's global random state, from which scikit-learn's SVC draws, seeded and afterwards as it was."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _objective(context: Context, job: Job) -> list[CellResult]:
    cls = context.objective(job.name)
    recipe = context.recipe(cls)
    settings = trials(cls, context.settings.trials, context.settings.seed)
    parts = {pair: len(context.inner(pair)) for pair in job.cells}
    members = {
        (pair, t): [context.member(pair, part, trial) for part in range(parts[pair])]
        for pair in job.cells
        for t, trial in enumerate(settings)
    }
    flat = [m for group in members.values() for m in group]
    spent = train(recipe, flat)
    chosen: dict[Pair, int] = {}
    finals: dict[Pair, Member] = {}
    for pair in job.cells:
        scores = [float(np.mean([m.score for m in members[pair, t]])) for t in range(len(settings))]
        chosen[pair] = best_trial(scores, context.metric.greater_is_better)
        if recipe.one_cycle:
            (finals[pair],) = members[pair, chosen[pair]]
            continue
        epochs = max(1, round(float(np.mean([m.epochs for m in members[pair, chosen[pair]]]))))
        finals[pair] = context.member(pair, -1, settings[chosen[pair]], length=epochs)
    again = {} if recipe.one_cycle else train(recipe, list(finals.values()))
    total = {k: spent[k] + again.get(k, 0.0) for k in spent}
    results = []
    for pair in job.cells:
        best = chosen[pair]
        values: dict[str, Any] = {
            "inner": [_finite(np.mean([m.score for m in members[pair, t]])) for t in range(len(settings))],
            "inner_epochs": [
                round(float(np.mean([m.epochs for m in members[pair, t]])), 2) for t in range(len(settings))
            ],
            "trial": best,
            "trial_text": settings[best].describe(),
            "epochs": finals[pair].length or finals[pair].epochs,
            "curve": _mean_curve([m.curve for m in members[pair, best]]),
            "diverged": sum(not np.isfinite(m.score) for t in range(len(settings)) for m in members[pair, t]),
            "seconds": total["seconds"] / len(job.cells),
            "seconds_per_epoch": total["seconds"] / max(total["epochs"], 1),
        }
        values |= operating_point(context, members[pair, best])
        final = finals[pair]
        outputs = final.test_outputs if recipe.one_cycle else final.outputs
        assert final.objective is not None and outputs is not None
        final.objective.eval()
        outcome = outcome_of(final.objective, outputs, final.split)
        values["diverged"] += not outcome.finite
        results.append(_scored(context, job, pair, values, outcome))
    return results


def operating_point(context: Context, tuned: Sequence[Member]) -> dict[str, float | None]:
    """Threshold and temperature from the inner validation rows of the chosen setting."""
    if context.table.task not in CLASSES:
        return {"threshold": None, "temperature": None}
    outcomes = []
    for m in tuned:
        assert m.objective is not None and m.outputs is not None
        m.objective.eval()
        outcomes.append(outcome_of(m.objective, m.outputs, m.split))
    return operating_point_of(context, [m.split for m in tuned], outcomes)


def operating_point_of(
    context: Context, splits: Sequence[Split], outcomes: Sequence[Outcome]
) -> dict[str, float | None]:
    """Threshold and temperature from what models, each trained on one of the splits, say of its other rows."""
    y = np.concatenate([split.other_target for split in splits])
    parts = [split.other_weight for split in splits if split.other_weight is not None]
    weights = np.concatenate(parts) if parts else None
    if context.table.task not in CLASSES or not all(o.finite for o in outcomes):
        return {"threshold": None, "temperature": None}
    threshold = temperature = None
    decisions = [o.decision for o in outcomes if o.decision is not None]
    if context.table.task == "binary" and len(decisions) == len(outcomes):
        threshold = float(tune_threshold(y, np.concatenate(decisions), weights=weights))
    probabilities = [o.probabilities for o in outcomes if o.probabilities is not None]
    if len(probabilities) == len(outcomes):
        temperature = float(fit_temperature(np.concatenate(probabilities), y, weights))
    return {"threshold": threshold, "temperature": temperature}


def _classical(context: Context, job: Job) -> list[CellResult]:
    results = []
    for pair in job.cells:
        started = time.perf_counter()
        seed = seed_of(context.settings.seed, *pair, "classical") % 2**31
        scores, outcomes, splits = [], [], []
        for part in range(len(context.inner(pair))):
            split = context.split(pair, part)
            outcome = _fit_classical(context, job.name, seed, split)
            scores.append(context.metric(split.other_target, outcome, split.other_weight))
            outcomes.append(outcome)
            splits.append(split)
        split = context.split(pair, -1)
        outcome = _fit_classical(context, job.name, seed, split)
        values: dict[str, Any] = {"inner": [_finite(np.mean(scores))], "diverged": 0, "trial_text": ""}
        values |= operating_point_of(context, splits, outcomes)
        values["seconds"] = time.perf_counter() - started
        results.append(_scored(context, job, pair, values, outcome))
    return results


def _fit_classical(context: Context, name: str, seed: int, split: Split) -> Outcome:
    rows = len(context.table.target)
    return fit_classical(name, split, classes=context.classes, rows=rows, seed=seed)


def _scored(context: Context, job: Job, pair: Pair, values: dict[str, Any], outcome: Outcome) -> CellResult:
    split, task = context.split(pair, -1), context.table.task
    y, w = split.other_target, split.other_weight
    values["score"] = _finite(context.metric(y, outcome, w))
    if task in ("multilabel", "multitask"):
        own = metrics_of(context.table)
        found = {name: metric(y, outcome, w) for name, metric in own.items()}
        values["metrics"] = {name: _finite(value) for name, value in found.items()}
    else:
        values["metrics"] = evaluate(
            y,
            outcome,
            task,
            context.classes or None,
            weights=w,
            threshold=values.get("threshold"),
            temperature=values.get("temperature"),
        )
    if task in CLASSES:
        values["recall"] = list(per_class_recall(y, outcome, context.classes, w).values())
    return CellResult(job.kind, job.name, *pair, values, outcome)


def best_trial(scores: Sequence[float], greater_is_better: bool) -> int:
    """The first of the best; what is not finite never wins over what is.

    >>> best_trial([0.5, float("nan"), 0.7, 0.7], True)
    2
    """
    signed = [(s if greater_is_better else -s) if np.isfinite(s) else -np.inf for s in scores]
    return int(np.argmax(signed))


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _mean_curve(curves: Sequence[Sequence[float]]) -> list[float | None]:
    longest = max(map(len, curves))
    return [_finite(np.mean([c[e] for c in curves if len(c) > e])) for e in range(longest)]


def reset_peak() -> None:
    """Forget the peak of this process's memory, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_megabytes() -> float:
    """Peak resident memory of this process in MB, since :func:`reset_peak` where that works."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return round(int(line.split()[1]) / 1024, 1)
    except OSError:
        pass
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
