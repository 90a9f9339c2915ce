"""One call for the objectives of a stack that differ in their hyper-parameters alone: losses of rows, and gradients.

Called one by one, each objective costs its checks and a dozen small operations a step. Here a hyper-parameter is a
column with a number for each row, and the rows of all models go through the rule of the loss at once. What has no form
here is called one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..core.checks import values_visible
from ..core.lazy import late
from ..core.objective import Objective
from ..core.rowwise import PIECE

_one_hot = late("steepest.losses.regression._one_hot")
_focal = late("steepest.losses.classification._focal")
_robust = late("steepest.losses.classification._robust")
_cross_entropy_of = late("steepest.losses.classification._cross_entropy")
_squentropy_of = late("steepest.losses.classification._squentropy")
_stablemax_of = late("steepest.losses.classification._stablemax")

Columns = dict[str, Any]
Form = Callable[[Tensor, Tensor, Tensor, Columns], Tensor]
"""``form(z, y, g, columns) -> losses [R]``: logits ``[R, C]``, classes ``[R]``, the gradient ``[R, C]`` to be filled,
hyper-parameters: each a number where it is the same for all, else ``[R, 1]``."""


def _cross_entropy(z: Tensor, y: Tensor, g: Tensor, columns: Columns) -> Tensor:
    losses: Tensor = _cross_entropy_of.hard_rule(y)(z, g, slice(None))
    return losses


def _smoothed(z: Tensor, y: Tensor, g: Tensor, columns: Columns) -> Tensor:
    losses: Tensor = _cross_entropy_of.smoothed_rule(y, columns["label_smoothing"])(z, g, slice(None))
    return losses


def _harmonic(z: Tensor, y: Tensor, g: Tensor, columns: Columns) -> Tensor:
    losses = _cross_entropy(columns["n"] * z, y, g, columns)
    g.mul_(columns["n"])
    return losses


def _focal_loss(z: Tensor, y: Tensor, g: Tensor, columns: Columns) -> Tensor:
    losses: Tensor = _focal.focal_rule(y, columns["gamma"])(z, g, slice(None))
    return losses


def _ldr(z: Tensor, y: Tensor, g: Tensor, columns: Columns) -> Tensor:
    losses: Tensor = _robust.worst_mean_rule(y, columns["lam"], columns["margin"])(z, g, slice(None))
    return losses


def _squared_error(z: Tensor, y: Tensor, g: Tensor, columns: Columns) -> Tensor:
    losses: Tensor = _one_hot.one_hot_forms(y)[1](z, g, slice(None))
    return losses


def _squentropy(z: Tensor, y: Tensor, g: Tensor, columns: Columns) -> Tensor:
    losses: Tensor = _squentropy_of.squentropy_rule(y, 1.0)(z, g, slice(None))
    return losses


def _stablemax(z: Tensor, y: Tensor, g: Tensor, columns: Columns) -> Tensor:
    losses: Tensor = _stablemax_of.stablemax_rule(y, torch.float64)(z, g, slice(None))
    return losses.to(z.dtype)


@dataclass(frozen=True)
class Entry:
    """How the objectives of a class are joined.

    Attributes:
        form: of the loss of their rows.
        columns: hyper-parameters that may differ between the members.
        needs: what others must be.
    """

    form: Form
    columns: tuple[str, ...] = ()
    needs: dict[str, Any] = field(default_factory=dict)


FORMS = {
    "classification.cross_entropy.CrossEntropyLoss": Entry(_cross_entropy),
    "classification.cross_entropy.SmoothedCrossEntropyLoss": Entry(_smoothed, ("label_smoothing",)),
    "classification.focal.FocalLoss": Entry(_focal_loss, ("gamma",), {"alpha": None, "form": None}),
    "classification.harmonic.HarmonicLoss": Entry(_harmonic, ("n",)),
    "classification.ldr.LDRLoss": Entry(_ldr, ("lam", "margin"), {"normalize": None}),
    "classification.squentropy.SquentropyLoss": Entry(_squentropy, (), {"square_weight": 1.0}),
    "classification.stablemax.StableMaxCrossEntropy": Entry(_stablemax, (), {"dtype": torch.float64}),
    "regression.squared_error.SquaredErrorLoss": Entry(_squared_error),
}
"""By class, without its room."""


def form_of(member: Objective) -> Entry | None:
    """How an objective is joined with others of its class; None where it is called by itself.

    >>> from steepest.losses import FocalLoss, CompSumLoss
    >>> form_of(FocalLoss(gamma=3.0)).columns, form_of(FocalLoss(alpha=[1.0, 2.0])), form_of(CompSumLoss())
    (('gamma',), None, None)
    """
    cls = type(member)
    entry = FORMS.get(f"{cls.__module__}.{cls.__qualname__}".removeprefix("steepest.losses."))
    if entry is None or any(not _same(getattr(member, name), value) for name, value in entry.needs.items()):
        return None
    return entry


def _same(value: Any, wanted: Any) -> bool:
    return value is wanted if wanted is None or isinstance(value, Tensor) else bool(value == wanted)


class Joined:
    """Losses and gradients of the rows of several objectives of one form.

    Args:
        members: for each a form, the same one.
        labels: the least and the greatest of all labels, where they are known.
    """

    def __init__(self, members: Sequence[Objective], labels: tuple[int, int] | None = None) -> None:
        entry = form_of(members[0])
        assert entry is not None
        self._form = entry.form
        self._numbers = {name: [float(getattr(member, name)) for member in members] for name in entry.columns}
        self._labels = labels
        self._columns: dict[tuple[int, torch.dtype, torch.device], Columns] = {}

    def takes(self, outputs: Tensor, target: Tensor) -> bool:
        """Whether ``[M, B, C]`` are logits of classes that it takes, and ``[M, B]`` classes of theirs."""
        if outputs.ndim != 3 or target.shape != outputs.shape[:2] or target.dtype != torch.int64:
            return False
        if outputs.dtype not in (torch.float32, torch.float64) or outputs.shape[2] < 2:
            return False
        if not outputs.numel() or outputs.numel() * outputs.element_size() > PIECE:
            return False
        if self._labels is not None:
            least, greatest = self._labels
        elif values_visible(target):  # on an accelerator a look at them would wait for it
            least, greatest = map(int, target.aminmax())
        else:
            return False
        return least >= 0 and greatest < outputs.shape[2]

    def rows(self, outputs: Tensor, target: Tensor, gradient: Tensor) -> Tensor:
        """Losses ``[M, B]``; fills the gradient of each in its own outputs, ``[M, B, C]``."""
        models, rows = target.shape
        z, g = outputs.view(models * rows, -1), gradient.view(models * rows, -1)
        losses = self._form(z, target.reshape(-1), g, self._rows_of(rows, outputs))
        return losses.view(models, rows)

    def _rows_of(self, rows: int, like: Tensor) -> Columns:
        key = (rows, like.dtype, like.device)
        if key not in self._columns:
            self._columns[key] = {
                name: own[0]
                if len(set(own)) == 1
                else torch.tensor(own, dtype=torch.float64)
                .repeat_interleave(rows)
                .unsqueeze(1)
                .to(like.device, like.dtype)
                for name, own in self._numbers.items()
            }
        return self._columns[key]
