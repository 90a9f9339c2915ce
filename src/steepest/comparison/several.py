"""Several targets in one comparison: metrics of label sets and of target mixes, and a plain sum of objectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.checks import check_tensor
from ..core.objective import Objective, TaskInfo
from . import scores
from .metrics import METRICS, Metric, Outcome, chosen_metric, default_metric, find_metric
from .objectives import baseline_of, find_objective
from .operating_point import negative_log_likelihood
from .own_parts import Trust
from .read.several import Part

Function = Callable[[np.ndarray, Outcome, "np.ndarray | None"], "float | None"]


def _labels(function: Callable[[np.ndarray, np.ndarray, np.ndarray | None], float]) -> Function:
    """A metric of hits and predictions ``[N, L]``."""
    return lambda y, outcome, weights: float(function(y, outcome.predicted, weights))


def _ranked(score: Callable[..., np.ndarray]) -> Function:
    """Mean of a ranking metric over the labels that have both values here; None where no label has."""

    def function(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float | None:
        if outcome.decision is None or not np.isfinite(outcome.decision).all():
            return None
        hits = y == 1
        both = hits.any(0) & ~hits.all(0)
        return float(np.mean(score(hits[:, both], outcome.decision[:, both], weights))) if both.any() else None

    return function


def _macro(part: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Function:
    """Mean over labels of 2 TP / what ``part`` makes of the weights of positives and predictions; 0 where that is 0."""

    def score(y: np.ndarray, predicted: np.ndarray, weights: np.ndarray | None) -> float:
        both = 2 * np.average(y * predicted, axis=0, weights=weights)
        whole = part(np.average(y, axis=0, weights=weights), np.average(predicted, axis=0, weights=weights))
        return float(np.mean(np.divide(both, whole, out=np.zeros_like(both), where=whole > 0)))

    return _labels(score)


def _log_loss(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float | None:
    if outcome.probabilities is None:
        return None
    p = outcome.probabilities
    columns = [
        negative_log_likelihood(y[:, k], np.stack([1 - p[:, k], p[:, k]], 1), weights) for k in range(y.shape[1])
    ]
    return float(np.mean(columns))


_SHARE = (0.0, 1.0)
MULTILABEL: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("average_precision", True, "Average precision", _ranked(scores.average_precision), bounds=_SHARE),
        Metric("auroc", True, "AUROC", _ranked(scores.area_under_roc), bounds=_SHARE),
        Metric("macro_f1", True, "Macro F1", _macro(lambda actual, predicted: actual + predicted), bounds=_SHARE),
        Metric("precision", True, "Macro precision", _macro(lambda actual, predicted: 2 * predicted), bounds=_SHARE),
        Metric("recall", True, "Macro recall", _macro(lambda actual, predicted: 2 * actual), bounds=_SHARE),
        Metric(
            "label_accuracy",
            True,
            "Label accuracy",
            _labels(lambda y, p, w: np.average((y == p).mean(1), weights=w)),
            bounds=_SHARE,
        ),
        Metric(
            "exact_match",
            True,
            "Exact match",
            _labels(lambda y, p, w: np.average((y == p).all(1), weights=w)),
            bounds=_SHARE,
        ),
        Metric("nll", False, "Log loss", _log_loss, bounds=(0.0, np.inf)),
    )
}


def multitask_metrics(parts: Sequence[Part]) -> dict[str, Metric]:
    """The mean over targets of accuracy (classes) and R² (numbers), and each target's own.

    >>> list(multitask_metrics([Part("a", "regression"), Part("b", "binary", ("0", "1"))]))
    ['mean_score', 'r2 of a', 'accuracy of b']
    """

    def own(place: int, part: Part) -> Function:
        single = scores.r2 if part.task == "regression" else scores.accuracy

        def function(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float | None:
            return single(y[:, place], Outcome(outcome.predicted[:, place]), weights)

        return function

    each = [own(place, part) for place, part in enumerate(parts)]

    def mean(y: np.ndarray, outcome: Outcome, weights: np.ndarray | None) -> float | None:
        values = [function(y, outcome, weights) for function in each]
        return None if any(v is None for v in values) else float(np.mean([v for v in values if v is not None]))

    found = [Metric("mean_score", True, "Mean score", mean)]
    for part, function in zip(parts, each):
        kind = "r2" if part.task == "regression" else "accuracy"
        found.append(
            Metric(f"{kind} of {part.name}", True, f"{'R²' if kind == 'r2' else 'Accuracy'} of {part.name}", function)
        )
    return {metric.name: metric for metric in found}


def metrics_of(data: Any) -> dict[str, Metric]:
    """The metrics of the task of some data."""
    if data.task == "multitask":
        return multitask_metrics(data.parts)
    return MULTILABEL if data.task == "multilabel" else METRICS[data.task]


def metric_of(spec: str, data: Any) -> Metric:
    """The metric that the present call names for this data, whatever its task; own code is imported.

    Raises:
        InputError: unknown, or not for this task.
    """
    if ":" in spec:
        return find_metric(spec, "multiclass", trust=True)
    return chosen_metric(spec, metrics_of(data), data.task)


def default_of(data: Any, counts: Sequence[int] | None) -> Metric:
    """The metric where the user names none: macro average precision of labels, the mean score of a mix."""
    if data.task in ("multilabel", "multitask"):
        return next(iter(metrics_of(data).values()))
    return default_metric(data.task, counts)


def target_scale(y: np.ndarray, task: str, parts: Sequence[Part]) -> tuple[np.ndarray, tuple[Any, Any]]:
    """Targets on the training scale, and the mean and deviation that bring predictions back.

    >>> target_scale(np.array([1.0, 3.0]), "regression", ())
    (array([-1.,  1.]), (2.0, 1.0))
    """
    if task == "regression":
        scale: tuple[Any, Any] = (float(y.mean()), float(y.std()) or 1.0)
    elif task == "multitask":
        numbers = np.array([part.task == "regression" for part in parts])
        deviation = np.where(numbers & (y.std(0) > 0), y.std(0), 1.0)
        scale = (np.where(numbers, y.mean(0), 0.0), deviation)
    else:
        return y, (0.0, 1.0)
    return (y - scale[0]) / scale[1], scale


def counts_of(target: Tensor, task: str, classes: int, parts: Sequence[Part]) -> tuple[int, ...]:
    """Training counts of each class; positives of each label; of all class targets of a mix."""
    if task == "regression":
        return ()
    if task == "multilabel":
        return tuple(int(n) for n in target.sum(0))
    if task == "multitask":
        columns = [(target[:, t].long(), part) for t, part in enumerate(parts) if part.classes]
        return tuple(n for y, part in columns for n in counts_of(y, "multiclass", len(part.classes), ()))
    return tuple(torch.bincount(target, minlength=classes).tolist())


class SeveralHeads(nn.Module):
    """One head a target, outputs side by side: ``[B, D] -> [B, sum of widths]``."""

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, features: Tensor) -> Tensor:
        """The joined outputs."""
        outputs = [head(features) for head in self.heads]
        return torch.cat([out.unsqueeze(-1) if out.ndim == features.ndim - 1 else out for out in outputs], -1)


class SeveralTargets(Objective):
    """A plain sum of objectives, one a target.

    Args:
        members: the objective of each target.
        parts: the targets; ``members[t]`` gets the outputs of ``parts[t]`` and column t of the target.
    """

    name = "several_targets"
    tasks = ("multitask",)
    domain = "real"
    targets = ("real",)
    unit = "batch"

    def __init__(self, members: Sequence[Objective], parts: Sequence[Part]) -> None:
        super().__init__("mean")
        self.members = nn.ModuleList(members)
        self.parts = list(parts)
        self.stateful = any(m.stateful for m in members)  # type: ignore[misc]
        self.needs = tuple(dict.fromkeys(need for m in members for need in m.needs))  # type: ignore[misc]

    def head(self, feature_dim: int, info: TaskInfo) -> nn.Module:
        """The members' own heads, side by side."""
        infos = part_infos(info, self.parts)
        return SeveralHeads([m.head(feature_dim, own) for m, own in zip(self._all(), infos)])

    def _all(self) -> list[Objective]:
        return [m for m in self.members if isinstance(m, Objective)]

    def split(self, outputs: Tensor) -> list[Tensor]:
        """Each member's outputs: ``[B, C]``, or ``[B]`` for numbers and for one score."""
        found, place = [], 0
        for member, part in zip(self._all(), self.parts):
            scalar = part.task == "regression" or (member.domain == "score" and part.task == "binary")
            width = 1 if scalar else part.width
            piece = outputs[..., place : place + width]
            found.append(piece.squeeze(-1) if scalar else piece)
            place += width
        return found

    def forward(self, outputs: Tensor, target: Tensor, **named: Any) -> Tensor:
        """The sum of the members' losses on outputs ``[B, W]`` and targets ``[B, T]``."""
        check_tensor("target", target, floating=True, shape=(outputs.shape[0], len(self.parts)))
        total = outputs.new_zeros(())
        for t, (member, part, piece) in enumerate(zip(self._all(), self.parts, self.split(outputs))):
            column = target[:, t] if part.task == "regression" else target[:, t].long()
            total = total + member(piece, column, **{need: named[need] for need in member.needs})
        return total

    def predict(self, outputs: Tensor) -> Tensor:
        """``[B, T]`` floats: class codes and numbers."""
        return torch.stack([m.predict(o).to(outputs.dtype) for m, o in zip(self._all(), self.split(outputs))], -1)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        for member in self._all():
            member.start_epoch(epoch, epochs)

    def after_step(self) -> None:
        for member in self._all():
            member.after_step()


def objective_for(name: str, task: str, parts: Sequence[Part], *, trust: Trust = False) -> Any:
    """The class of an objective; with a mix of targets, what stands for it there."""
    cls = find_objective(name, trust=trust)
    if task != "multitask":
        return cls
    return SeveralFactory(cls, parts, lambda kind: find_objective(baseline_of(kind)))


def part_infos(info: TaskInfo, parts: Sequence[Part]) -> list[TaskInfo]:
    """What each member may know: ``info.class_counts`` holds the counts of all class targets, one after another."""
    found, place = [], 0
    for part in parts:
        counts = info.class_counts[place : place + len(part.classes)]
        place += len(part.classes)
        found.append(TaskInfo(**{**vars(info), "task": part.task, "num_classes": part.width, "class_counts": counts}))
    return found


class SeveralFactory:
    """Stands for an objective class where there are several targets: the class for the targets that it fits, the
    baseline of the others' kind for the rest."""

    def __init__(self, cls: type[Objective], parts: Sequence[Part], fallback: Callable[[str], type[Objective]]) -> None:
        self.classes = [cls if cls.fits(part.task) else fallback(part.task) for part in parts]
        self.own = [cls.fits(part.task) for part in parts]
        self.parts, self.search, self.name, self.unit = list(parts), cls.search, cls.name, "batch"

    def from_task(self, info: TaskInfo, **hyper: Any) -> SeveralTargets:
        """The sum for a task; hyper-parameters go to the targets that the class fits."""
        infos = part_infos(info, self.parts)
        members = [
            cls.from_task(own, **(hyper if fits else {})) for cls, own, fits in zip(self.classes, infos, self.own)
        ]
        return SeveralTargets(members, self.parts)
