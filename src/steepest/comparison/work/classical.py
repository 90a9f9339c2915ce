"""Classical learners on one split: numbers, classes, or one learner a label; and fitted ones made whole again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..baselines import Baseline, classical_learners
from ..design.context import Split
from ..scores.outcome import Outcome


def learners_of(task: str, rows: int, seed: int = 0) -> dict[str, Baseline]:
    """The classical learners by name; of label sets, those of one label.

    >>> list(learners_of("multilabel", 20_000))
    ['constant', 'knn', 'logistic', 'lda', 'forest', 'boosting']
    """
    kind = "regression" if task == "regression" else "classification"
    return {learner.name: learner for learner in classical_learners(kind, rows, seed)}


def fit_learners(name: str, split: Split, *, classes: int, rows: int, seed: int) -> list[Baseline]:
    """The learner, fitted on the split; of label sets one a label.

    Args:
        name: of the learner.
        split: standardised inputs; targets on the training scale.
        classes: C, where the task has classes.
        rows: of the whole table.
        seed: of the learner.
    """
    inputs = split.inputs.numpy().astype(np.float64)
    weight = None if split.weight is None else split.weight.numpy().astype(np.float64)
    target = split.target.numpy()
    if split.task == "multilabel":
        columns = [label.astype(np.int64) for label in target.T]
        return [learners_of(split.task, rows, seed)[name].fit(inputs, own, weight, num_classes=2) for own in columns]
    learner = learners_of(split.task, rows, seed)[name]
    if split.task == "regression":
        mean, deviation = split.scale
        return [learner.fit(inputs, target.astype(np.float64) * deviation + mean, weight)]
    return [learner.fit(inputs, target, weight, num_classes=classes)]


def outcome_of_learners(learners: Sequence[Baseline], task: str, inputs: np.ndarray) -> Outcome:
    """What fitted learners (of label sets one a label) say of rows ``[N, d]``."""
    outcomes = [learner.outcome(inputs) for learner in learners]
    if task != "multilabel":
        return outcomes[0]
    return Outcome(
        np.stack([outcome.predicted for outcome in outcomes], 1),
        _columns([None if outcome.probabilities is None else outcome.probabilities[:, 1] for outcome in outcomes]),
        _columns([outcome.decision for outcome in outcomes]),
    )


def fit_classical(name: str, split: Split, *, classes: int, rows: int, seed: int) -> Outcome:
    """What the learner, fitted on the split, says of its other rows; arguments as :func:`fit_learners`."""
    learners = fit_learners(name, split, classes=classes, rows=rows, seed=seed)
    return outcome_of_learners(learners, split.task, split.other_inputs.numpy().astype(np.float64))


def moved_by(learner: Baseline) -> dict[str, Any]:
    """What a fitted learner does to numbers beside its estimator: ``scale`` of the target, ``middle`` of the inputs."""
    middle = np.atleast_1d(getattr(learner, "_middle", ()))
    return {"scale": [float(learner._centre), float(learner._scale)], "middle": [float(value) for value in middle]}


def restored(learner: Baseline, model: Any, *, rows: int, width: int, classes: int, moved: dict[str, Any]) -> Baseline:
    """The learner as it was when ``model`` had been fitted.

    Args:
        learner: a fresh one of the same name, task and seed.
        model: the fitted scikit-learn estimator.
        rows, width: of the inputs that it was fitted on.
        classes: C, 0 in regression.
        moved: as :func:`moved_by` gave.
    """
    learner._model, learner.rows, learner.columns, learner.num_classes = model, rows, width, classes
    learner._centre, learner._scale = moved["scale"]
    if moved["middle"]:
        learner._middle = np.array(moved["middle"])  # type: ignore[attr-defined]
    return learner


def _columns(parts: list[np.ndarray | None]) -> np.ndarray | None:
    known = [column for column in parts if column is not None]
    return np.stack(known, 1) if len(known) == len(parts) else None
