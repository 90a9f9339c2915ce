"""Two heads on one backbone: one that predicts, and one that a second loss trains beside it."""

from __future__ import annotations

from jaxtyping import Float as F
from torch import Tensor, nn

from ..core.checks import check_choice, check_number, check_tensor

HIDDEN, DROPOUT = 200, 0.1


class DualHead(nn.Module):
    """A linear main head, and an auxiliary head that only training has.

    Args:
        in_features: d, width of the features.
        num_classes: C of both heads.
        aux: the auxiliary head: "linear", or "mlp" with one layer of 200 rectified units behind dropout of 0.1 and
            batch normalisation.

    Attributes:
        main: ``nn.Linear(d, C)``, all of the head that is wanted after training.
        auxiliary: the other.

    Raises:
        ValueError: a number below 1, another kind of head.

    Example:
        >>> import torch
        >>> head = DualHead(4, 3)
        >>> [outputs.shape for outputs in head(torch.zeros(2, 4))]
        [torch.Size([2, 3]), torch.Size([2, 3])]
        >>> head.eval()(torch.zeros(2, 4)).shape
        torch.Size([2, 3])

    Source: Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head, arXiv:2411.08937.
    """

    def __init__(self, in_features: int, num_classes: int, aux: str = "linear") -> None:
        super().__init__()
        check_number("in_features", in_features, low=1, integer=True)
        check_number("num_classes", num_classes, low=1, integer=True)
        check_choice("aux", aux, ("linear", "mlp"))
        self.in_features = in_features
        self.main = nn.Linear(in_features, num_classes)
        self.auxiliary = (
            nn.Linear(in_features, num_classes)
            if aux == "linear"
            else nn.Sequential(
                nn.Linear(in_features, HIDDEN),
                nn.Dropout(DROPOUT),
                nn.BatchNorm1d(HIDDEN),
                nn.ReLU(),
                nn.Linear(HIDDEN, num_classes),
            )
        )

    def forward(self, features: F[Tensor, "batch features"]) -> Tensor | tuple[Tensor, Tensor]:
        """Main and auxiliary logits ``[B, C]`` in training; the main ones alone in evaluation."""
        check_tensor("features", features, floating=True, shape=(None, self.in_features))
        outputs: Tensor = self.main(features)
        return (outputs, self.auxiliary(features)) if self.training else outputs
