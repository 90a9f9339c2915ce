"""What objectives of cosines share: a normalised head, and probabilities without what training adds."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from .heads import NormedLinear
from .loss import Sample
from .objective import Objective, TaskInfo
from .reductions import widen


class SoftmaxOfCosines(Objective):
    """Cross-entropy of cosines with a direction of each class, times a scale; members change the target's cosine."""

    tasks = ("binary", "multiclass", "retrieval")
    domain = "cosine"
    scale: float

    def head(self, feature_dim: int, info: TaskInfo) -> nn.Module:
        """Cosines with a direction of each class."""
        return NormedLinear(feature_dim, info.num_classes)

    def multiplier(self) -> float | Tensor:
        """What cosines are multiplied by."""
        return self.scale

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax of the scaled cosines; margins belong to training."""
        return (self.multiplier() * widen(outputs)).softmax(-1)

    @classmethod
    def samples(
        cls, generator: torch.Generator, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
    ) -> list[tuple[Self, Sample]]:
        """The default cases at scales that leave gradients to compare."""
        cases = super().samples(generator, dtype, device)
        return [(cls(scale=8.0).to(device), sample) for _, sample in cases]  # type: ignore[call-arg]
