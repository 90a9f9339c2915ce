"""Output layers that objectives ask for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float as F
from torch import Tensor, nn

from .checks import check_number
from .cosine import unit_rows
from .transforms import without_autocast


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


class LinearHeads(nn.Module):
    """The same of linear layers, in one product: weight ``[members, out, in]``, bias ``[members, out]``.

    Args:
        heads: linear layers with bias, one a member; or those of :class:`ScalarHead`, for ``[B, members]``.
        scalar: whether they are those.

    >>> LinearHeads([nn.Linear(3, 2) for _ in range(4)])(torch.zeros(5, 4, 3)).shape
    torch.Size([5, 4, 2])
    """

    def __init__(self, heads: Sequence[nn.Linear], scalar: bool = False) -> None:
        super().__init__()
        self.scalar = scalar
        self.weight = nn.Parameter(torch.stack([head.weight.detach() for head in heads]))
        self.bias = nn.Parameter(torch.stack([head.bias.detach() for head in heads]))

    def __getitem__(self, member: int) -> nn.Module:
        return _OneOf(self, member)

    def forward(self, features: Tensor) -> Tensor:
        """The outputs of every member."""
        products = torch.baddbmm(self.bias.unsqueeze(1), features.transpose(0, 1), self.weight.mT).transpose(0, 1)
        return products.squeeze(-1) if self.scalar else products


class _OneOf(nn.Module):
    """The head of one member, whose parameters stay those of all."""

    def __init__(self, heads: LinearHeads, member: int) -> None:
        super().__init__()
        self._heads, self.member = [heads], member

    @property
    def weight(self) -> Tensor:
        return self._heads[0].weight[self.member]

    @property
    def bias(self) -> Tensor:
        return self._heads[0].bias[self.member]

    def forward(self, features: Tensor) -> Tensor:
        product = nn.functional.linear(features, self.weight, self.bias)
        return product.squeeze(-1) if self._heads[0].scalar else product


def heads_of_members(heads: Sequence[nn.Module]) -> MemberHeads | LinearHeads:
    """The heads of several members as one module."""
    layers = [head.linear if type(head) is ScalarHead else head for head in heads]
    linear = [layer for layer in layers if type(layer) is nn.Linear and layer.bias is not None]
    scalar = {type(head) is ScalarHead for head in heads}
    if len(linear) < len(heads) or len(scalar) > 1:
        return MemberHeads(heads)
    return LinearHeads(linear, scalar=scalar.pop())


class NormedLinear(nn.Module):
    r"""A head of cosines: :math:`z_j = (x / \|x\|)^\top (w_j / \|w_j\|)`, no bias.

    The weight stays in its own type, whatever the features are.

    Args:
        in_features: width of the features.
        num_classes: number of classes.

    Example:
        >>> bool((NormedLinear(4, 3)(torch.randn(5, 4)).abs() <= 1 + 1e-6).all())
        True
    """

    def __init__(self, in_features: int, num_classes: int) -> None:
        super().__init__()
        check_number("in_features", in_features, low=1, integer=True)
        check_number("num_classes", num_classes, low=1, integer=True)
        self.weight = nn.Parameter(torch.randn(num_classes, in_features))  # directions uniform on the sphere

    def forward(self, features: F[Tensor, "*batch features"]) -> F[Tensor, "*batch classes"]:
        """Cosines ``[..., K]`` in float32 or wider; those of a zero vector are 0."""
        with without_autocast(features):  # which would round them
            return nn.functional.linear(unit_rows(features), unit_rows(self.weight))
