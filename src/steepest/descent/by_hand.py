"""Gradients of a stack layer by layer, without a graph: for the layers of which autograd costs more than the work.

Linear and rectified layers give their gradients themselves, with the operations and the rounding of their batched form;
any other layer is differentiated by torch, by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

NO_LENGTH = 1e-12
"""Rows as short have no direction."""

Parameters = Mapping[str, Tensor]
Run = Callable[[Parameters, Tensor], Tensor]
"""``run(parameters, x)``, with a leading dimension of models everywhere."""


class Affine:
    """``x W^T + b``."""

    def __init__(self, prefix: str) -> None:
        self.weight, self.bias = prefix + "weight", prefix + "bias"

    def forward(self, parameters: Parameters, x: Tensor) -> tuple[Tensor, Any]:
        return torch.baddbmm(parameters[self.bias].unsqueeze(1), x, parameters[self.weight].mT), x

    def backward(
        self, parameters: Parameters, saved: Any, upstream: Tensor, gradients: dict[str, Tensor], needed: bool
    ) -> Tensor | None:
        gradients[self.weight] = torch.bmm(upstream.mT, saved)
        gradients[self.bias] = upstream.sum(1)
        return torch.bmm(upstream, parameters[self.weight]) if needed else None


class Rectified:
    """The positive part; ``over`` its input where nobody reads that again."""

    def __init__(self, over: bool) -> None:
        self.over = over

    def forward(self, parameters: Parameters, x: Tensor) -> tuple[Tensor, Any]:
        y = x.relu_() if self.over else x.relu()
        return y, y

    def backward(
        self, parameters: Parameters, saved: Any, upstream: Tensor, gradients: dict[str, Tensor], needed: bool
    ) -> Tensor | None:
        return torch.ops.aten.threshold_backward(upstream, saved, 0) if needed else None


class Last:
    """``[M, B, 1]`` as ``[M, B]``."""

    def forward(self, parameters: Parameters, x: Tensor) -> tuple[Tensor, Any]:
        return x.squeeze(-1), None

    def backward(
        self, parameters: Parameters, saved: Any, upstream: Tensor, gradients: dict[str, Tensor], needed: bool
    ) -> Tensor | None:
        return upstream.unsqueeze(-1)


class CosinePower:
    """``-n log(1 - cos(x, w) + eps)`` for each centre w: the head of distances whose graph is the longest."""

    def __init__(self, prefix: str, n: float, eps: float) -> None:
        self.weight, self.n, self.eps = prefix + "weight", n, eps

    def forward(self, parameters: Parameters, x: Tensor) -> tuple[Tensor, Any]:
        (u, length), (v, size) = _directions(x), _directions(parameters[self.weight])
        apart = (1.0 - torch.bmm(u, v.mT)).clamp_min_(0.0)
        return -self.n * torch.log(apart + self.eps), (u, length, v, size, apart)

    def backward(
        self, parameters: Parameters, saved: Any, upstream: Tensor, gradients: dict[str, Tensor], needed: bool
    ) -> Tensor | None:
        u, length, v, size, apart = saved
        # towards the cosine; none where rounding has taken it above 1 and the distance was held at 0
        slope = (self.n * upstream / (apart + self.eps)).masked_fill_(apart == 0, 0.0)
        gradients[self.weight] = _across(torch.bmm(slope.mT, u), v).div_(size)
        return _across(torch.bmm(slope, v), u).div_(length) if needed else None


def _directions(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows and their lengths; 0 and infinity where a row has no direction, as in ``core.cosine.unit_rows``."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    length.masked_fill_(length <= NO_LENGTH, torch.inf)
    return x / length, length


def _across(slope: Tensor, unit: Tensor) -> Tensor:
    """What is left of a slope across its row's direction: along it a cosine does not change."""
    return slope.sub_(unit * (slope * unit).sum(-1, keepdim=True))


class Differentiated:
    """Any layer, by autograd."""

    def __init__(self, run: Run, names: list[str]) -> None:
        self.run, self.names = run, names

    def forward(self, parameters: Parameters, x: Tensor) -> tuple[Tensor, Any]:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            y = self.run(parameters, leaf)
        return y.detach(), (leaf, y)

    def backward(
        self, parameters: Parameters, saved: Any, upstream: Tensor, gradients: dict[str, Tensor], needed: bool
    ) -> Tensor | None:
        leaf, y = saved
        inputs = [parameters[name] for name in self.names] + ([leaf] if needed else [])
        if not inputs:
            return None
        slopes = torch.autograd.grad(y, inputs, upstream, materialize_grads=True)
        gradients.update(zip(self.names, slopes))
        return slopes[-1] if needed else None


Layer = Affine | Rectified | Last | CosinePower | Differentiated


class Chain:
    """Layers one after the other: :meth:`forward` keeps what :meth:`backward` needs.

    Args:
        layers: in their order.
    """

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers
        self._saved: list[Any] = []

    def forward(self, parameters: Parameters, x: Tensor) -> Tensor:
        """Outputs of all models, without a graph."""
        self._saved = []
        for layer in self.layers:
            x, saved = layer.forward(parameters, x)
            self._saved.append(saved)
        return x

    def backward(self, parameters: Parameters, upstream: Tensor) -> dict[str, Tensor]:
        """The gradient of each parameter, from that of the outputs of the last :meth:`forward`."""
        gradients: dict[str, Tensor] = {}
        slope: Tensor | None = upstream
        for number in reversed(range(len(self.layers))):
            if slope is None:
                break
            slope = self.layers[number].backward(parameters, self._saved[number], slope, gradients, number > 0)
        self._saved = []
        return gradients
