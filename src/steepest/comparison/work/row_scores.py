"""Which rows are suspicious: scores of training rows by small networks, and what leaving the worst out does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ...core.objective import Objective, TaskInfo
from ...core.random import seed_all
from ...data.scores.influence_scores import el2n, forgetting_counts, last_layer_self_influence
from ...descent import Descent, Hook, Stack, StackedAdamW, StackedBatches, StackedObjective, StackedStep
from ...losses.classification.cross_entropy import CrossEntropyLoss
from ...losses.regression.squared_error import SquaredErrorLoss
from ...nn.networks import Network, mlp
from ..design.folds import CLASSES, inner_splits, outer_folds
from ..design.trials import seed_of
from ..errors import InputError
from ..metrics.metric import Metric
from ..names import OF_NUMBERS
from ..read.inputs import Data, fit_inputs, transform
from ..scores.outcome import Outcome
from ..statistics.resampled import corrected_resampled_ttest
from ..statistics.results import PairedResult

WIDTH, DEPTH, DECAY = 128, 2, 1e-2
STEPS = 300
"""Steps that a training has in about, between the least and the most epochs."""
LEAST, MOST = 8, 40
EARLY = 0.2
"""Share of the epochs after which EL2N is taken."""
INNER = 4
SEEDS = 2
"""Networks of each way in a split where rows are left out."""
NUMBERS = 50_000_000
"""Inputs that a stack of networks looks at, at most."""


@dataclass(frozen=True)
class RowSettings:
    """How rows are scored: repeats of outer folds, and the training of each network."""

    repeats: int = 2
    folds: int = 5
    epochs: int | None = None
    batch_size: int = 64
    lr: float = 3e-3
    seed: int = 0

    def training(self, rows: int) -> tuple[int, int, int]:
        """``(batch size, steps an epoch, epochs)`` for so many rows."""
        batch = min(self.batch_size, max(1, rows // 4))
        steps = -(-rows // batch)
        return batch, steps, self.epochs or min(MOST, max(LEAST, round(STEPS / steps)))


@dataclass(frozen=True)
class RowScores:
    """Scores of N rows; each ``[N]``, high is suspicious.

    Attributes:
        loss: out of fold: by networks that have not seen the row.
        el2n, forgetting, influence: in training, a mean over the networks that have seen it; the first two of classes
            alone, NaN for numbers. The loss of numbers is in variances of the target.
        predicted: out of fold, class codes or numbers.
    """

    loss: np.ndarray
    el2n: np.ndarray
    forgetting: np.ndarray
    influence: np.ndarray
    predicted: np.ndarray

    def order(self, score: str) -> np.ndarray:
        """Rows from the most suspicious on; equal scores are ordered by the loss, then by row."""
        return np.lexsort((np.arange(len(self.loss)), -self.loss, -getattr(self, score)))


@dataclass(frozen=True)
class LeftOut:
    """What leaving rows out does, over the splits: metrics on rows that no choice and no training has seen.

    Attributes:
        metric: its name and whether greater is better.
        count: rows that are left out of a training part.
        everything, without, at_random: the metric of each split, trained on all rows, without the most suspicious, and
            without as many at random.
        gain, gain_at_random: paired differences from all rows, with their intervals; above 0 is better.
    """

    metric: Metric
    count: int
    everything: np.ndarray
    without: np.ndarray
    at_random: np.ndarray
    gain: PairedResult
    gain_at_random: PairedResult


@dataclass
class _Training:
    """Rows to look at ``[N, d]``, targets on the scale of the training, which rows train, a seed; and what came out."""

    inputs: Tensor
    target: Tensor
    rows: np.ndarray
    seed: int
    scale: tuple[float, float] = (0.0, 1.0)
    outputs: Tensor = field(default_factory=lambda: torch.zeros(0))
    correct: list[Tensor] = field(default_factory=list)
    early: Tensor | None = None
    influence: Tensor | None = None


def check_rows(data: Data, score: str) -> None:
    """Refuse data that are not of one target, and scores that they don't have.

    Raises:
        InputError: in one line.
    """
    if data.task not in (*CLASSES, "regression"):
        raise InputError(f"data score: takes one target of classes or numbers, and this task is {data.task}")
    if data.task == "regression" and score not in OF_NUMBERS:
        raise InputError(f"--score: {score} is for classes; of numbers there are {' and '.join(OF_NUMBERS)}")
    if getattr(data, "times", None) is not None:
        raise InputError("--time: rows are scored in shuffled folds")


def score_rows(data: Data, settings: RowSettings, tell: Callable[[str], None] = lambda line: None) -> RowScores:
    """Score every row by cross-validation; preparation of inputs is learnt on training parts.

    Args:
        data: a table or images, one target of classes or numbers.
        settings: how.
        tell: gets a line now and then.
    """
    trainings = []
    held_out = []
    for fold in outer_folds(data, repeats=settings.repeats, folds=settings.folds, seed=settings.seed):  # type: ignore[arg-type]
        inputs, target, scale = _prepared(data, fold.train)
        seed = seed_of(settings.seed, fold.repeat, fold.fold, "order")
        trainings.append(_Training(inputs, target, fold.train, seed, scale))
        held_out.append(fold.test)
    tell(f"scoring {len(data.target)} rows: {len(trainings)} networks")
    _train(data, trainings, settings, look=True)
    return _scores(data, trainings, held_out, np.arange(len(data.target)))


def leave_out(
    data: Data,
    settings: RowSettings,
    score: str,
    share: float,
    metric: Metric,
    tell: Callable[[str], None] = lambda line: None,
) -> LeftOut:
    """Train with and without the most suspicious rows of each training part, and look at the part that is held out.

    The rows of a training part are scored by folds of it alone, so that nothing of the held-out part decides. All ways
    take the same number of steps.

    Args:
        data, settings: as for :func:`score_rows`.
        score: by which rows are left out.
        share: of the training rows.
        metric: of the held-out rows, whose labels stay as they are.
        tell: gets a line now and then.
    """
    values: list[list[float]] = []
    folds = outer_folds(data, repeats=settings.repeats, folds=settings.folds, seed=settings.seed)  # type: ignore[arg-type]
    count = 0
    for number, fold in enumerate(folds, 1):
        tell(f"leaving rows out: split {number} of {len(folds)}")
        inputs, target, scale = _prepared(data, fold.train)
        seeds = [seed_of(settings.seed, fold.repeat, fold.fold, role) for role in ("order", "backbone", "head")]
        splits = inner_splits(data, fold.train, seed=seeds[1], folds=INNER)  # type: ignore[arg-type]
        inner = [_Training(inputs, target, fit, seeds[0] + place) for place, (fit, _) in enumerate(splits)]
        _train(data, inner, settings, look=True)
        order = fold.train[_scores(data, inner, [valid for _, valid in splits], fold.train).order(score)]
        count = max(1, round(share * len(order)))
        drawn = np.random.default_rng(seeds[2]).permutation(order)
        ways = [np.sort(rows) for rows in (order, order[count:], drawn[count:])]
        trainings = [_Training(inputs, target, rows, seeds[0] + s, scale) for rows in ways for s in range(SEEDS)]
        _train(data, trainings, settings, look=False)
        of_trainings = [_held_out(data, training, fold.test, metric) for training in trainings]
        values.append([float(np.mean(of_trainings[way * SEEDS : (way + 1) * SEEDS])) for way in range(3)])
    everything, without, at_random = np.array(values).T
    if not np.isfinite(values).all():
        raise InputError(f"--metric: {metric.name} has no value on a held-out part; choose another, or more rows")
    sign = 1.0 if metric.greater_is_better else -1.0
    fraction = 1.0 / settings.folds
    gains = [corrected_resampled_ttest(sign * (v - everything), test_fraction=fraction) for v in (without, at_random)]
    return LeftOut(metric, count, everything, without, at_random, *gains)


def _prepared(data: Data, rows: np.ndarray) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """All inputs as learnt on some rows, all targets on their scale, and that scale."""
    inputs = transform(fit_inputs(data, rows), data).flatten(1)
    if data.task in CLASSES:
        return inputs, torch.from_numpy(data.target).long(), (0.0, 1.0)
    mean, deviation = float(data.target[rows].mean()), float(data.target[rows].std()) or 1.0
    return inputs, torch.from_numpy((data.target - mean) / deviation).float(), (mean, deviation)


def _held_out(data: Data, training: _Training, rows: np.ndarray, metric: Metric) -> float:
    """The metric of some rows by a network."""
    outputs = training.outputs[torch.from_numpy(rows)]
    if data.task not in CLASSES:
        return metric(data.target[rows], Outcome(_in_units(outputs, training.scale).numpy()))
    objective = CrossEntropyLoss()
    p = outputs.double().softmax(1).numpy()
    decision = objective.decision(outputs) if data.task == "binary" else outputs
    return metric(data.target[rows], Outcome(p.argmax(1), p, decision.double().numpy()))


def _in_units(outputs: Tensor, scale: tuple[float, float]) -> Tensor:
    return outputs.double() * scale[1] + scale[0]


def _scores(data: Data, trainings: Sequence[_Training], held_out: Sequence[np.ndarray], rows: np.ndarray) -> RowScores:
    """Scores of ``rows`` from trainings, each of which has not seen its held-out part."""
    total, classes = len(data.target), data.task in CLASSES
    outputs = torch.zeros(total, max(1, len(data.classes)), dtype=torch.float64)
    target = trainings[0].target
    sums = {name: torch.zeros(total, dtype=torch.float64) for name in ("loss", "el2n", "forgetting", "influence")}
    looks = torch.zeros(2, total, dtype=torch.float64)
    for training, test in zip(trainings, held_out):
        seen, unseen = torch.from_numpy(training.rows), torch.from_numpy(test)
        own = training.outputs[unseen].double()
        outputs[unseen] += own.softmax(1) if classes else _in_units(own, training.scale)[:, None]
        looks[0, unseen] += 1
        looks[1, seen] += 1
        if not classes:
            sums["loss"][unseen] += (own - training.target[unseen]).square()
        else:
            assert training.early is not None
            sums["el2n"][seen] += training.early[seen].double()
            sums["forgetting"][seen] += forgetting_counts(torch.stack(training.correct)[:, seen]).double()
        assert training.influence is not None
        sums["influence"][seen] += training.influence[seen].double()
    unseen_count, seen_count = looks.clamp_min(1)
    outputs /= unseen_count[:, None]
    chosen = torch.from_numpy(rows)
    if classes:
        of_label = outputs.gather(1, target[:, None])[:, 0]
        loss, predicted = -of_label.clamp_min(torch.finfo(torch.float64).tiny).log(), outputs.argmax(1)
    else:
        loss, predicted = sums["loss"] / unseen_count, outputs[:, 0]
    nothing = np.full(len(rows), np.nan)
    means = {name: (sums[name] / seen_count)[chosen].numpy() for name in ("el2n", "forgetting", "influence")}
    if not classes:
        means |= {"el2n": nothing, "forgetting": nothing}
    return RowScores(loss[chosen].numpy(), predicted=predicted[chosen].numpy(), **means)


class _Look(Hook):
    """After each epoch: which rows are right, their influence on themselves; once, early, how far they are off."""

    def __init__(self, trainings: Sequence[_Training], inputs: Tensor, rate: float, early: int) -> None:
        self.trainings, self.inputs, self.rate, self.early = trainings, inputs, rate, early

    @torch.no_grad()
    def on_epoch_end(self, descent: Descent) -> None:
        assert isinstance(descent.model, Stack)
        features, outputs = descent.model.features_and_outputs(self.inputs)
        assert features is not None
        for training, h, z in zip(self.trainings, features, outputs):
            y = training.target
            if y.is_floating_point():
                own = (2 * (z - y)).square() * (h.square().sum(1) + 1)
            else:
                own = last_layer_self_influence(h, z, y)
                training.correct.append(z.argmax(1) == y)
                if descent.epoch == self.early:
                    training.early = el2n(z, y)
            training.influence = self.rate * own + (0.0 if training.influence is None else training.influence)


def _train(data: Data, trainings: Sequence[_Training], settings: RowSettings, *, look: bool) -> None:
    """Train a network for each, in place: those of equal width as stacks, all with the same number of steps."""
    batch, steps, epochs = settings.training(max(len(training.rows) for training in trainings))
    batch = min(batch, *(len(training.rows) for training in trainings))
    groups: dict[int, list[_Training]] = {}
    for training in trainings:
        groups.setdefault(training.inputs.shape[1], []).append(training)
    for width, group in groups.items():
        size = max(1, NUMBERS // (max(1, width) * len(group[0].inputs)))
        for start in range(0, len(group), size):
            _train_stack(data, group[start : start + size], settings, batch, steps, epochs, look=look)


def _train_stack(
    data: Data, group: Sequence[_Training], settings: RowSettings, batch: int, steps: int, epochs: int, *, look: bool
) -> None:
    classes = data.task in CLASSES
    objective: type[Objective] = CrossEntropyLoss if classes else SquaredErrorLoss
    networks, objectives = [], []
    for training in group:
        counts = tuple(np.bincount(data.target[training.rows], minlength=len(data.classes))) if classes else ()
        info = TaskInfo(data.task, len(training.rows), len(data.classes) or 1, counts, WIDTH, epochs, steps)
        with torch.random.fork_rng(devices=[]):
            seed_all(training.seed)
            objectives.append(objective.from_task(info))
            body = mlp(training.inputs.shape[1], width=WIDTH, depth=DEPTH)
            networks.append(Network(body, objectives[-1].head(WIDTH, info)))
    sets = [
        (training.inputs[rows], training.target[rows], None)
        for training in group
        for rows in (torch.from_numpy(training.rows),)
    ]
    batches = StackedBatches(
        sets, range(len(group)), [training.seed for training in group], batch_size=batch, steps=steps
    )
    stack = Stack(networks)
    optimizer = StackedAdamW(stack, lr=[settings.lr] * len(group), weight_decay=[DECAY] * len(group), one_pass=True)
    inputs = torch.stack([training.inputs for training in group])
    hooks = [_Look(group, inputs, settings.lr, max(1, round(EARLY * epochs)))] if look else []
    Descent(
        stack,
        StackedObjective(objectives, batches.labels),
        batches,
        method=StackedStep(by_hand=True),
        optimizer=optimizer,
        hooks=hooks,
    ).fit(epochs)
    with torch.no_grad():
        for training, outputs in zip(group, stack(inputs)):
            training.outputs = outputs.clone()
