"""The contract of a calibrator: fitted on held-out logits, it gives probabilities that mean what they say."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .arguments import Arguments
from .checks import check_index, check_logits, refuse
from .reductions import widen


class Calibrator(Arguments, nn.Module):
    """``fit(logits, target)`` and ``transform(logits)``, as in scikit-learn; what is fitted lies in ``state_dict``.

    Class attributes:
        name: snake_case, unique.
        keeps_decision: whether the most probable class stays the one with the largest logit.
        exempt: names of conformance checks that don't apply, each with its reason.

    Members write :meth:`_fit` and :meth:`_transform`, which get checked float32 or float64 logits.
    """

    name: ClassVar[str] = ""
    keeps_decision: ClassVar[bool] = True
    exempt: ClassVar[dict[str, str]] = {}
    fitted: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fitted", torch.tensor(False))

    def fit(self, logits: Tensor, target: Tensor) -> Self:
        """Fit on logits ``[N, C]`` and class indices ``[N]`` that the classifier was not trained on.

        Raises:
            ValueError: wrong shapes, no rows, labels out of range, logits that are not finite.
            TypeError: not tensors, or of the wrong kind.
        """
        check_logits(logits, argument="logits")
        check_index(target, logits)
        if not len(logits):
            refuse("logits", "at least one row", logits)
        if not bool(torch.isfinite(logits).all()):
            refuse("logits", "finite numbers", logits)
        with torch.enable_grad():
            self._fit(widen(logits.detach()), target.long())
        self.fitted.fill_(True)
        return self

    @torch.no_grad()
    def transform(self, logits: Tensor) -> Tensor:
        """Probabilities ``[N, C]`` of logits ``[N, C]``, in float32 or wider.

        Raises:
            RuntimeError: before :meth:`fit`.
        """
        check_logits(logits, argument="logits")
        if not bool(self.fitted):
            raise RuntimeError(f"{type(self).__name__}: call fit(logits, target) before transform(logits)")
        return self._transform(widen(logits))

    def forward(self, logits: Tensor, **extra: Any) -> Tensor:
        """:meth:`transform`: a calibrator is called as it transforms."""
        return self.transform(logits, **extra)

    def fit_transform(self, logits: Tensor, target: Tensor) -> Tensor:
        """:meth:`fit`, then :meth:`transform` of the same logits."""
        return self.fit(logits, target).transform(logits)

    def _fit(self, logits: Tensor, target: Tensor) -> None:
        raise NotImplementedError

    def _transform(self, logits: Tensor) -> Tensor:
        raise NotImplementedError

    @classmethod
    def instances(cls) -> list[Self]:
        """Unfitted calibrators for the conformance suite; quick to fit."""
        return [cls()]

    def extra_repr(self) -> str:
        return ", ".join(filter(None, [super().extra_repr(), "fitted" if bool(self.fitted) else "not fitted"]))
