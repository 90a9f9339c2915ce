"""Classical learners on one split: numbers, classes, or one learner a label; and fitted ones made whole again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from ..baselines import Baseline, Validation, classical_learners
from ..baselines.boosting import RoundsBaseline
from ..design.context import Context, Split
from ..design.embeddings import RAW
from ..design.trials import learner_trials
from ..read.lists import RANKING
from ..read.retrieval import RETRIEVAL
from ..scores.outcome import Outcome
from .raw_inputs import RawInputs, ranked_alike, ranked_inputs

NUMBERS = ("regression", RANKING)
"""Tasks whose learners learn numbers."""


def learners_of(task: str, rows: int, seed: int = 0) -> dict[str, Baseline]:
    """The classical learners by name, each as it is by default; of label sets, those of one label.

    >>> list(learners_of("multilabel", 20_000))
    ['constant', 'knn', 'logistic', 'lda', 'forest', 'boosting', 'lightgbm']
    """
    if task == RETRIEVAL:
        return {RAW: cast("Baseline", RawInputs())}
    kind = "regression" if task in NUMBERS else "classification"
    own = [classical_learners(kind, rows, seed, boosting=boosting) for boosting in ("boosting", "lightgbm")]
    return {learner.name: learner for learners in own for learner in learners}


def learner_of(
    name: str, task: str, rows: int, seed: int = 0, hyper: Mapping[str, Any] | None = None, rounds: int | None = None
) -> Baseline:
    """A fresh learner of a trial.

    Args:
        name: of the learner.
        task: of the target.
        rows: of the whole table.
        seed: of the learner.
        hyper: arguments of the trial; others are the defaults.
        rounds: of a learner that adds trees in rounds.

    Raises:
        KeyError: no comparison of such a table has it.
    """
    plain = learners_of(task, rows, seed)[name]
    changed = {**(hyper or {}), **({} if rounds is None else {"rounds": rounds})}
    return plain.again(**changed) if changed else plain


def trials_of_learner(context: Context, name: str) -> list[dict[str, Any]]:
    """What a learner gets to try at the level of a context: as many trials as an objective, or its defaults alone."""
    settings = context.settings
    learner = learners_of(context.table.task, len(context.table.target))[name]
    return learner_trials(learner.search, settings.trials, settings.seed)


def fit_learners(
    name: str,
    split: Split,
    *,
    classes: int,
    rows: int,
    seed: int,
    hyper: Mapping[str, Any] | None = None,
    rounds: Sequence[int] = (),
    stop: bool = False,
) -> list[Baseline]:
    """The learner, fitted on the split; of label sets one a label.

    Args:
        name: of the learner.
        split: standardised inputs; targets on the training scale.
        classes: C, where the task has classes.
        rows: of the whole table.
        seed: of the learner.
        hyper: arguments of its trial.
        rounds: of trees, a number for each learner; none where it knows no rounds.
        stop: whether one that adds trees in rounds looks at the other rows of the split when to stop.
    """
    if split.task == RETRIEVAL:
        return [*learners_of(RETRIEVAL, rows).values()]
    inputs = split.inputs.numpy().astype(np.float64)
    weight = None if split.weight is None else split.weight.numpy().astype(np.float64)
    target, others = split.target.numpy(), np.asarray(split.other_target)
    targets, other_targets = [target], [others]
    known: dict[str, Any] = {} if split.task in NUMBERS else {"num_classes": classes}
    if split.task == RANKING:  # grades, row by row
        targets, other_targets = [target.astype(np.float64)], [others[:, 0]]
    if split.task == "multilabel":
        known = {"num_classes": 2}
        targets, other_targets = ([label.astype(np.int64) for label in both.T] for both in (target, others))
    elif split.task == "regression":
        mean, deviation = split.scale
        targets = [target.astype(np.float64) * deviation + mean]
    fitted: list[Baseline] = []
    for place, (own, looked_at) in enumerate(zip(targets, other_targets)):
        learner = learner_of(name, split.task, rows, seed, hyper, rounds[place] if rounds else None)
        if stop and isinstance(learner, RoundsBaseline):
            valid = Validation(split.other_inputs.numpy().astype(np.float64), looked_at, split.other_weight)
            fitted.append(learner.fit(inputs, own, weight, valid=valid, **known))
        else:
            fitted.append(learner.fit(inputs, own, weight, **known))
    return fitted


def rounds_of(tuned: Sequence[Sequence[Baseline]]) -> list[int]:
    """Rounds of trees for the whole, a number for each learner: the mean of those that were best in the inner splits.

    Args:
        tuned: learners of each inner split, as :func:`fit_learners` gave them.
    """
    return [
        max(1, round(float(np.mean([learner.best for learner in own if isinstance(learner, RoundsBaseline)]))))
        for own in zip(*tuned)
        if isinstance(own[0], RoundsBaseline)
    ]


def outcome_of_learners(learners: Sequence[Baseline], task: str, inputs: np.ndarray) -> Outcome:
    """What fitted learners (of label sets one a label) say of rows ``[N, d]``."""
    if task == RETRIEVAL:
        return ranked_alike(inputs)
    outcomes = [learner.outcome(inputs) for learner in learners]
    if task != "multilabel":
        return outcomes[0]
    return Outcome(
        np.stack([outcome.predicted for outcome in outcomes], 1),
        _columns([None if outcome.probabilities is None else outcome.probabilities[:, 1] for outcome in outcomes]),
        _columns([outcome.decision for outcome in outcomes]),
    )


def outcome_of_split(learners: Sequence[Baseline], split: Split) -> Outcome:
    """What fitted learners say of the other rows of a split."""
    if split.task == RETRIEVAL:
        return ranked_inputs(split)
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
