"""Output layers that objectives ask for."""

from __future__ import annotations

from torch import Tensor, nn


class ScalarHead(nn.Module):
    """A linear layer to one number a sample: ``[B, D] -> [B]``.

    >>> import torch
    >>> ScalarHead(3)(torch.zeros(2, 3)).shape
    torch.Size([2])
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Score or prediction ``[B]``."""
        out: Tensor = self.linear(features)
        return out.squeeze(-1)
