"""Fit a classical learner on one split: numbers, classes, or one learner a label."""

from __future__ import annotations

import numpy as np

from .baselines import Baseline, classical_learners
from .metrics import Outcome
from .training import Split


def learner(name: str, task: str, rows: int, seed: int) -> Baseline:
    """The classical learner of that name; of label sets, that of one label."""
    kind = "regression" if task == "regression" else "classification"
    return next(b for b in classical_learners(kind, rows, seed) if b.name == name)


def fit_classical(name: str, split: Split, *, classes: int, rows: int, seed: int) -> Outcome:
    """What the learner, fitted on the split, says of its other rows.

    Args:
        name: of the learner.
        split: standardised inputs; targets on the training scale.
        classes: C, where the task has classes.
        rows: of the whole table.
        seed: of the learner.
    """
    inputs, others = (part.numpy().astype(np.float64) for part in (split.inputs, split.other_inputs))
    weight = None if split.weight is None else split.weight.numpy().astype(np.float64)
    target = split.target.numpy()
    if split.task == "multilabel":
        found = []
        for label in target.T:
            model = learner(name, split.task, rows, seed)
            found.append(model.fit(inputs, label.astype(np.int64), weight, num_classes=2).outcome(others))
        return Outcome(
            np.stack([each.predicted for each in found], 1),
            _columns([None if each.probabilities is None else each.probabilities[:, 1] for each in found]),
            _columns([each.decision for each in found]),
        )
    model = learner(name, split.task, rows, seed)
    if split.task == "regression":
        mean, deviation = split.scale
        return model.fit(inputs, target.astype(np.float64) * deviation + mean, weight).outcome(others)
    return model.fit(inputs, target, weight, num_classes=classes).outcome(others)


def _columns(parts: list[np.ndarray | None]) -> np.ndarray | None:
    known = [part for part in parts if part is not None]
    return np.stack(known, 1) if len(known) == len(parts) else None
