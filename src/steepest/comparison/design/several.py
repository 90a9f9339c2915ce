"""Several targets in one comparison: their scales and counts, and a plain sum of objectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...core.checks import check_tensor
from ...core.objective import Objective, TaskInfo
from ..own_parts import Trust
from ..parts import Part
from ..read.lists import RANKING
from .objectives import baseline_of, find_objective
from .ranking import of_lists


def target_scale(y: np.ndarray, task: str, parts: Sequence[Part]) -> tuple[np.ndarray, tuple[Any, Any]]:
    """Targets on the training scale, and the mean and deviation that bring predictions back.

    >>> target_scale(np.array([1.0, 3.0]), "regression", ())
    (array([-1.,  1.]), (2.0, 1.0))
    """
    if task == "regression":
        scale: tuple[Any, Any] = (float(y.mean()), float(y.std()) or 1.0)
    elif task == "multitask":
        numbers = np.array([target.task == "regression" for target in parts])
        deviation = np.where(numbers & (y.std(0) > 0), y.std(0), 1.0)
        scale = (np.where(numbers, y.mean(0), 0.0), deviation)
    else:
        return y, (0.0, 1.0)
    return (y - scale[0]) / scale[1], scale


def counts_of(target: Tensor, task: str, classes: int, parts: Sequence[Part]) -> tuple[int, ...]:
    """Training counts of each class; positives of each label; of all class targets of a mix."""
    if task in ("regression", RANKING):
        return ()
    if task == "multilabel":
        return tuple(int(n) for n in target.sum(0))
    if task == "multitask":
        columns = [
            (target[:, t].long(), single_target) for t, single_target in enumerate(parts) if single_target.classes
        ]
        return tuple(
            n for y, single_target in columns for n in counts_of(y, "multiclass", len(single_target.classes), ())
        )
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
        apart: whether it gives the losses ``[T]`` for an aggregator of their gradients, and not their sum.
    """

    name = "several_targets"
    tasks = ("multitask",)
    domain = "real"
    targets = ("real",)
    unit = "batch"

    def __init__(self, members: Sequence[Objective], parts: Sequence[Part], *, apart: bool = False) -> None:
        super().__init__("mean")
        self.apart = apart
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
        outputs_of, place = [], 0
        for member, target in zip(self._all(), self.parts):
            scalar = target.task == "regression" or (member.domain == "score" and target.task == "binary")
            width = 1 if scalar else target.width
            piece = outputs[..., place : place + width]
            outputs_of.append(piece.squeeze(-1) if scalar else piece)
            place += width
        return outputs_of

    def forward(self, outputs: Tensor, target: Tensor, **named: Any) -> Tensor:
        """The sum of the members' losses on outputs ``[B, W]`` and targets ``[B, T]``."""
        check_tensor("target", target, floating=True, shape=(outputs.shape[0], len(self.parts)))
        losses = []
        for t, (member, single_target, piece) in enumerate(zip(self._all(), self.parts, self.split(outputs))):
            column = target[:, t] if single_target.task == "regression" else target[:, t].long()
            losses.append(member(piece, column, **{need: named[need] for need in member.needs}))
        return torch.stack(losses) if self.apart else sum(losses, outputs.new_zeros(()))

    def predict(self, outputs: Tensor) -> Tensor:
        """``[B, T]`` floats: class codes and numbers."""
        return torch.stack([m.predict(o).to(outputs.dtype) for m, o in zip(self._all(), self.split(outputs))], -1)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        for member in self._all():
            member.start_epoch(epoch, epochs)

    def after_step(self) -> None:
        for member in self._all():
            member.after_step()


def objective_for(name: str, task: str, parts: Sequence[Part], *, trust: Trust = False, apart: bool = False) -> Any:
    """The class of an objective; with a mix of targets, what stands for it there."""
    cls = find_objective(name, trust=trust)
    if task == RANKING:
        return of_lists(cls)
    if task != "multitask":
        return cls
    return SeveralFactory(cls, parts, lambda kind: find_objective(baseline_of(kind)), apart=apart)


def part_infos(info: TaskInfo, parts: Sequence[Part]) -> list[TaskInfo]:
    """What each member may know: ``info.class_counts`` holds the counts of all class targets, one after another."""
    infos, place = [], 0
    for target in parts:
        counts = info.class_counts[place : place + len(target.classes)]
        place += len(target.classes)
        infos.append(
            TaskInfo(**{**vars(info), "task": target.task, "num_classes": target.width, "class_counts": counts})
        )
    return infos


class SeveralFactory:
    """Stands for an objective class where there are several targets: the class for the targets that it fits, the
    baseline of the others' kind for the rest."""

    def __init__(
        self,
        cls: type[Objective],
        parts: Sequence[Part],
        fallback: Callable[[str], type[Objective]],
        *,
        apart: bool = False,
    ) -> None:
        self.apart = apart
        self.classes = [cls if cls.fits(target.task) else fallback(target.task) for target in parts]
        self.own = [cls.fits(target.task) for target in parts]
        self.parts, self.search, self.name, self.unit = list(parts), cls.search, cls.name, "batch"

    def from_task(self, info: TaskInfo, **hyper: Any) -> SeveralTargets:
        """The sum for a task; hyper-parameters go to the targets that the class fits."""
        infos = part_infos(info, self.parts)
        members = [
            cls.from_task(own, **(hyper if fits else {})) for cls, own, fits in zip(self.classes, infos, self.own)
        ]
        return SeveralTargets(members, self.parts, apart=self.apart)
