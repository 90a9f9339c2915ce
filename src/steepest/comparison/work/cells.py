"""One cell of a comparison: an objective (or a classical learner) in one outer fold, tuned inside and scored outside.

The result of each trial on inner validation is kept by itself: a higher level trains only the trials that a lower one
has not, and fits again.
"""

from __future__ import annotations

import io
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...descent.augment import default_augment
from ..design.arms import PLAIN, Arm
from ..design.context import Context, Pair, Split
from ..design.deadline import OutOfTime
from ..design.embeddings import Embedder
from ..design.folds import CLASSES
from ..design.jobs import Job
from ..design.models import find_model
from ..design.text_models import find_text_model
from ..design.trials import Trial, seed_of, words_of_trial
from ..errors import InputError
from ..metrics.tables import evaluate, metrics_of, per_class_recall
from ..read.images import Images
from ..read.lists import RANKING
from ..read.retrieval import RETRIEVAL
from ..scores.operating_point import fit_temperature, tune_threshold
from ..scores.outcome import Outcome
from ..scores.retrieval import WIDTH
from .classical import fit_learners, outcome_of_split, rounds_of, trials_of_learner
from .training import Member, Recipe, outcome_of, train

Known = Mapping[tuple[Pair, int], dict[str, Any]]
"""What is known of trials, by fold and number: a record each, as the store keeps it."""


@dataclass
class CellResult:
    """What one cell found: plain values, and the outcome on its test rows.

    Attributes:
        level: as text, see :meth:`~steepest.comparison.design.levels.Level.of`.
        trials: records of the trials on inner validation that were trained for it, by number.
        stored: whether it is in the store already, where somebody else has put it.
        took: wall seconds of this computation; ``values["seconds"]`` has those of reused trials in it.
    """

    kind: str
    name: str
    repeat: int
    fold: int
    values: dict[str, Any]
    outcome: Outcome
    level: str = ""
    trials: dict[int, dict[str, Any]] = field(default_factory=dict)
    took: float = 0.0
    stored: bool = False

    def arrays(self) -> bytes:
        """The outcome, compressed; :func:`~steepest.comparison.work.stored.read_outcome` reads it."""
        parts = {k: v for k, v in vars(self.outcome).items() if isinstance(v, np.ndarray)}
        small = {k: v.astype(np.float32) if v.dtype == np.float64 and k != "predicted" else v for k, v in parts.items()}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **small)
        return buffer.getvalue()


def recipe_of(context: Context, objective: Any, over: Callable[[], bool] | None = None, *, arm: Arm = PLAIN) -> Recipe:
    """What is the same for every training of an arm; ``over`` says whether its time is over."""
    s = context.settings
    augment = None
    if isinstance(context.table, Images) and s.augment:
        height, width, channels = context.table.pixels.shape[1:]
        augment = default_augment((channels, height, width))
    of_text = context.table.task == "text"
    backbone: Any = find_text_model(s.model) if of_text else find_model(s.model, trust=s.own_parts)
    if s.embedding:
        size = context.table.pixels.shape[1:3] if isinstance(context.table, Images) else ()
        backbone = Embedder(backbone, s.embedding, size)
    return Recipe(
        objective,
        backbone,
        s.epochs,
        s.patience,
        s.batch_size,
        context.metric,
        s.device,
        augment,
        s.fixed_length,
        over,
        arm,
        s.vary == "objective",
    )


def member_of(context: Context, pair: Pair, inner_fold: int, trial: Trial, length: int | None = None) -> Member:
    """One training in one split; equal folds have equal backbones and orders, whatever the objective."""
    seed = context.settings.seed
    seeds = {role: seed_of(seed, *pair, role) for role in ("backbone", "head", "objective")}
    seeds["order"] = seed_of(seed, pair[0], pair[1] * 64 + inner_fold + 1, "order")
    return Member(context.split(pair, inner_fold), trial, context.info(pair, inner_fold), seeds, length)


def run_job(
    context: Context, job: Job, known: Known | None = None, over: Callable[[], bool] | None = None
) -> list[CellResult]:
    """Compute the cells of a job; the random states of torch and NumPy are left as they were.

    A cell of an objective beside the baseline that raises is finished, with no score: that counts as the worst.

    Args:
        context: of the comparison, at any level.
        job: its cells, and their level.
        known: records of trials that need no training, of the job's rows and epochs.
        over: whether the time is over; asked while networks train.

    Raises:
        OutOfTime: it was.
    """
    reset_peak()
    started = time.perf_counter()
    if job.level is not None:
        context = context.at(job.level)
    with numpy_seed(seed_of(context.settings.seed, *job.cells[0], "classical") % 2**32), torch.random.fork_rng([]):
        try:
            if job.kind == "classical":
                scored = _classical(context, job, over)
            else:
                scored = _objective(context, job, known or {}, over)
        except (OutOfTime, InputError, MemoryError):
            raise
        except Exception as error:
            if job.name == context.settings.baseline:
                raise
            scored = [_failed(context, job, pair, error) for pair in job.cells]
    peak, capability = peak_megabytes(), torch.backends.cpu.get_cpu_capability()
    for cell in scored:
        cell.values["peak_memory_mb"] = peak
        cell.values["capability"] = capability
        cell.level = context.level.of(job.kind, job.name)
        cell.took = (time.perf_counter() - started) / len(scored)
    return scored


def _failed(context: Context, job: Job, pair: Pair, error: Exception) -> CellResult:
    """The finished cell of what raised: no score."""
    split, count = context.split(pair, -1), context.settings.trials
    if job.kind == "classical":
        count = len(trials_of_learner(context, job.name))
    rows = len(split.other_target)
    values: dict[str, Any] = {
        "score": None,
        "metrics": {},
        "inner": [None] * count,
        "threshold": None,
        "temperature": None,
        "trial": 0,
        "trial_text": "",
        "epochs": 0,
        "curve": [],
        "diverged": count,
        "seconds": 0.0,
        "seconds_per_epoch": 0.0,
        "failed": " ".join(f"{type(error).__name__}: {error}".split())[:300],
    }
    if context.table.task in CLASSES:
        values["recall"] = [None] * context.classes
        outcome = Outcome(np.zeros(rows, dtype=np.int64), np.full((rows, context.classes), np.nan))
    else:
        width = {"text": 2, RETRIEVAL: WIDTH}.get(split.task)
        shape = np.shape(split.other_target) if width is None else (rows, width)
        shape = (rows,) if split.task == RANKING else shape
        outcome = Outcome(np.full(shape, np.nan))
    return CellResult(job.kind, job.name, *pair, values, outcome)


@contextmanager
def numpy_seed(seed: int) -> Iterator[None]:
    """NumPy's global random state, from which scikit-learn's SVC draws, seeded and afterwards as it was."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002


def _objective(context: Context, job: Job, known: Known, over: Callable[[], bool] | None) -> list[CellResult]:
    cls = context.objective(job.name)
    recipe = recipe_of(context, cls, over, arm=context.arm(job.name))
    settings = context.trials(job.name)
    members: dict[tuple[Pair, int], list[Member]] = {}
    records = {(pair, t): known[pair, t] for pair in job.cells for t in range(len(settings)) if (pair, t) in known}
    trained: dict[tuple[Pair, int], dict[str, Any]] = {}
    groups = list(pairwise((0, *(job.groups or (len(settings),)))))

    def search(pairs: Sequence[Pair], numbers: Sequence[int]) -> None:
        """Train trials as one stack."""
        own = {
            (pair, t): [
                member_of(context, pair, inner_fold, settings[t]) for inner_fold in range(len(context.inner(pair)))
            ]
            for pair in pairs
            for t in numbers
        }
        spent = train(recipe, [m for group in own.values() for m in group]) if own else {}
        for key, group in own.items():
            trained[key] = _record(group, spent["seconds"] / len(own))
        members.update(own)
        records.update(trained)

    for start, end in groups:
        missing = [t for t in range(start, end) if any((pair, t) not in records for pair in job.cells)]
        search(job.cells, missing)
    chosen: dict[Pair, int] = {}
    finals: dict[Pair, Member] = {}
    for pair in job.cells:
        own = [records[pair, t] for t in range(len(settings))]
        best = chosen[pair] = best_trial([_score_of(record) for record in own], context.metric.greater_is_better)
        if (pair, best) not in members and (recipe.fixed_length or "point" not in own[best]):  # its outputs are needed
            search([pair], next(range(start, end) for start, end in groups if best < end))
        if recipe.fixed_length:
            (finals[pair],) = members[pair, best]
            continue
        epochs = max(1, round(float(np.mean(own[best]["epochs"]))))
        finals[pair] = member_of(context, pair, -1, settings[best], length=epochs)
    again = {} if recipe.fixed_length else train(recipe, list(finals.values()))
    results = []
    for pair in job.cells:
        best = chosen[pair]
        own = [records[pair, t] for t in range(len(settings))]
        if (pair, best) in members:
            trained[pair, best]["point"] = operating_point(context, members[pair, best])
        seconds = sum(record["seconds"] for record in own) + again.get("seconds", 0.0) / len(job.cells)
        epochs = sum(len(curve) for record in own for curve in record["curves"]) + (finals[pair].length or 0)
        values: dict[str, Any] = {
            "inner": [_finite(_score_of(record)) for record in own],
            "inner_epochs": [round(float(np.mean(record["epochs"])), 2) for record in own],
            "trial": best,
            "trial_text": settings[best].describe(),
            "epochs": finals[pair].length or finals[pair].epochs,
            "curve": _mean_curve([[_number(v) for v in curve] for curve in own[best]["curves"]]),
            "diverged": sum(score is None for record in own for score in record["scores"]),
            "seconds": seconds,
            "seconds_per_epoch": seconds / max(epochs, 1),
            **records[pair, best]["point"],
        }
        final = finals[pair]
        if final.samples:
            values["samples"] = final.samples
        if final.conflict is not None:
            values["conflict"] = final.conflict
        outputs = final.test_outputs if recipe.fixed_length else final.outputs
        assert final.objective is not None and outputs is not None
        final.objective.eval()
        tested = context.split(pair, -1) if final.split.task == RETRIEVAL else final.split
        outcome = outcome_of(final.objective, outputs, tested)
        values["diverged"] += not outcome.finite
        scored = _scored(context, job, pair, values, outcome)
        scored.trials = {t: record for (where, t), record in trained.items() if where == pair}
        results.append(scored)
    return results


def _record(members: Sequence[Member], seconds: float) -> dict[str, Any]:
    """What is kept of a trial, its members one for each inner split."""
    return {
        "scores": [_finite(m.score) for m in members],
        "epochs": [m.epochs for m in members],
        "curves": [[_finite(value) for value in m.curve] for m in members],
        "seconds": seconds,
    }


def _score_of(record: dict[str, Any]) -> float:
    """The mean score of a trial over the inner splits; NaN where one diverged."""
    return float(np.mean([_number(score) for score in record["scores"]]))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


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


def _classical(context: Context, job: Job, over: Callable[[], bool] | None) -> list[CellResult]:
    """Each trial is fitted on the inner splits; the best one again, on the whole training part."""
    results = []
    settings = trials_of_learner(context, job.name)
    for pair in job.cells:
        started = time.perf_counter()
        seed = seed_of(context.settings.seed, *pair, "classical") % 2**31
        options: dict[str, Any] = {"classes": context.classes, "rows": len(context.table.target), "seed": seed}
        splits = [context.split(pair, inner_split) for inner_split in range(len(context.inner(pair)))]
        scores: list[float] = []
        outcomes: list[list[Outcome]] = []
        rounds: list[list[int]] = []
        for hyper in settings:
            tuned = []
            for split in splits:
                _ask(over)
                tuned.append(fit_learners(job.name, split, hyper=hyper, stop=True, **options))
            outcomes.append([outcome_of_split(own, split) for own, split in zip(tuned, splits)])
            own_scores = [context.metric(s.other_target, o, s.other_weight) for s, o in zip(splits, outcomes[-1])]
            scores.append(float(np.mean(own_scores)))
            rounds.append(rounds_of(tuned))
        best = best_trial(scores, context.metric.greater_is_better)
        _ask(over)
        split = context.split(pair, -1)
        learners = fit_learners(job.name, split, hyper=settings[best], rounds=rounds[best], **options)
        values: dict[str, Any] = {
            "inner": [_finite(score) for score in scores],
            "diverged": 0,
            "trial": best,
            "trial_text": words_of_trial(settings[best]) if learners[0].search else "",
            **operating_point_of(context, splits, outcomes[best]),
        }
        outcome = outcome_of_split(learners, split)
        values["seconds"] = time.perf_counter() - started
        results.append(_scored(context, job, pair, values, outcome))
    return results


def _ask(over: Callable[[], bool] | None) -> None:
    """Raise where the time is over."""
    if over is not None and over():
        raise OutOfTime


def _scored(context: Context, job: Job, pair: Pair, values: dict[str, Any], outcome: Outcome) -> CellResult:
    split, task = context.split(pair, -1), context.table.task
    y, w = split.other_target, split.other_weight
    values["score"] = _finite(context.metric(y, outcome, w))
    if task in ("multilabel", "multitask", "text", RETRIEVAL, "ranking"):
        own = metrics_of(context.table)
        scores = {name: metric(y, outcome, w) for name, metric in own.items()}
        values["metrics"] = {name: _finite(value) for name, value in scores.items()}
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
