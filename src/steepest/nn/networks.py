"""Small networks: a backbone that gives features and a head that gives outputs."""

from __future__ import annotations

from torch import Tensor, nn

from ..core.checks import check_number


class Network(nn.Module):
    """``head(backbone(x))``; objectives that need features or the head find them here.

    Args:
        backbone: ``[B, ...] -> [B, feature_dim]``.
        head: ``[B, feature_dim] -> outputs``.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs of the head."""
        outputs: Tensor = self.head(self.backbone(inputs))
        return outputs


class Residual(nn.Module):
    """``x + inner(x)``."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor) -> Tensor:
        """The sum."""
        outputs: Tensor = inputs + self.inner(inputs)
        return outputs


def mlp(in_features: int, *, width: int = 128, depth: int = 2) -> nn.Sequential:
    """``depth`` layers of ``width`` rectified units: ``[B, in_features] -> [B, width]``.

    >>> sum(p.numel() for p in mlp(4, width=8, depth=2).parameters())
    112
    """
    for name, value in (("in_features", in_features), ("width", width), ("depth", depth)):
        check_number(name, value, low=1, integer=True)
    layers: list[nn.Module] = []
    for layer in range(depth):
        layers += [nn.Linear(in_features if layer == 0 else width, width), nn.ReLU()]
    return nn.Sequential(*layers)


def residual_mlp(in_features: int, *, width: int = 128, depth: int = 2) -> nn.Sequential:
    """A linear embedding, ``depth`` pre-normalised residual blocks, a last norm: ``[B, in_features] -> [B, width]``.

    >>> residual_mlp(4, width=8)(__import__("torch").zeros(3, 4)).shape
    torch.Size([3, 8])
    """
    for name, value in (("in_features", in_features), ("width", width), ("depth", depth)):
        check_number(name, value, low=1, integer=True)
    blocks = [
        Residual(nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)))
        for _ in range(depth)
    ]
    return nn.Sequential(nn.Linear(in_features, width), *blocks, nn.LayerNorm(width), nn.ReLU())
