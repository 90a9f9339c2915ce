"""Output layers that objectives ask for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ScalarHead(nn.Module):
    """A linear layer to one number a sample: ``[B, D] -> [B]``.

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


class MemberHeads(nn.Module):
    """A head for each of several members: ``[B, members, D] -> [B, members, ...]``.

    Args:
        heads: one a member; ``[B, D] -> [B, ...]``, all alike.
    """

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def __getitem__(self, member: int) -> nn.Module:
        return self.heads[member]

    def forward(self, features: Tensor) -> Tensor:
        """The outputs of every member."""
        return torch.stack([head(features[:, m]) for m, head in enumerate(self.heads)], 1)


class LinearHeads(MemberHeads):
    """The same of linear layers, in one product.

    >>> LinearHeads([nn.Linear(3, 2) for _ in range(4)])(torch.zeros(5, 4, 3)).shape
    torch.Size([5, 4, 2])
    """

    def forward(self, features: Tensor) -> Tensor:
        """The outputs of every member."""
        weight = torch.stack([head.weight for head in self.heads])
        outputs = torch.bmm(features.transpose(0, 1), weight.mT).transpose(0, 1)
        if self.heads[0].bias is None:
            return outputs
        return outputs + torch.stack([head.bias for head in self.heads])


def heads_of_members(heads: Sequence[nn.Module]) -> MemberHeads:
    """The heads of several members as one module."""
    return (LinearHeads if all(type(head) is nn.Linear for head in heads) else MemberHeads)(heads)
