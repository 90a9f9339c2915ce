"""Which objectives are the baseline under another name while they keep their default hyper-parameters."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ...core.objective import Objective, TaskInfo
from .objectives import baseline_of, find_objective
from .several import SeveralFactory

_ROWS, _WIDTH = 9, 6
_TOLERANCE = 1e-9
"""Of the gradients in float64: far above its rounding, far below any difference that a step would feel."""


@cache
def is_twin(objective: type[Objective] | SeveralFactory) -> bool:
    """Whether its gradient at its defaults is proportional to the baseline's, in every task that it fits.

    Adam divides the factor out, so that such an objective trains as the baseline does to rounding. With several targets
    it is the class for those that it fits that counts.

    >>> from steepest.losses import CompSumLoss, FocalLoss
    >>> is_twin(CompSumLoss), is_twin(FocalLoss)
    (True, False)
    """
    if not hasattr(objective, "fits") and not isinstance(objective, SeveralFactory):  # a loss of tokens
        return False
    if isinstance(objective, SeveralFactory):
        return all(is_twin(cls) for cls, own in zip(objective.classes, objective.own) if own)
    tasks = [task for task in ("binary", "multiclass", "multilabel", "regression") if objective.fits(task)]
    if not tasks or objective.needs or objective.stateful or objective.views > 1:
        return False
    try:
        return all(_proportional(objective, find_objective(baseline_of(task)), task) for task in tasks)
    except Exception:  # what fails on plain random outputs is no twin; its training will say what is wrong
        return False


def _proportional(objective: type[Objective], baseline: type[Objective], task: str) -> bool:
    if objective is baseline:
        return False
    classes = {"binary": 2, "regression": 1}.get(task, 4)
    counts = () if task == "regression" else tuple(range(5, 5 + classes))
    info = TaskInfo(task, 5 * _ROWS, classes, counts, feature_dim=_WIDTH, epochs=10, steps_per_epoch=5)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(_ROWS, _WIDTH, generator=generator, dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        losses = [cls.from_task(info).train() for cls in (objective, baseline)]
        shapes = [loss.head(_WIDTH, info).double()(features).shape for loss in losses]
        if shapes[0] != shapes[1]:
            return False
        ratios = []
        for scale, epoch in ((0.3, 1), (3.0, 1), (1.0, info.epochs)):
            for loss in losses:
                loss.start_epoch(epoch, info.epochs)
            outputs = scale * torch.randn(shapes[0], generator=generator, dtype=torch.float64)
            target = _target(task, shapes[0], classes, generator)
            own, of_second = (_gradient(loss, outputs, target) for loss in losses)
            ratio = (own * of_second).sum() / of_second.square().sum()
            if ratio <= 0 or bool((own - ratio * of_second).abs().max() > _TOLERANCE * own.abs().max()):
                return False
            ratios.append(float(ratio))
    return max(ratios) - min(ratios) <= _TOLERANCE * max(ratios)


def _target(task: str, shape: torch.Size, classes: int, generator: torch.Generator) -> Tensor:
    if task == "regression":
        return torch.randn(shape, generator=generator, dtype=torch.float64)
    if task == "multilabel":
        return torch.randint(2, shape, generator=generator)
    return torch.arange(_ROWS) % classes


def _gradient(loss: Objective, outputs: Tensor, target: Tensor) -> Tensor:
    leaf = outputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf, target), leaf)
    return gradient
