"""Gradients of a stack layer by layer, without a graph: for the layers of which autograd costs more than the work.

Linear and rectified layers give their gradients themselves, with the operations and the rounding of their batched form;
any other layer is differentiated by torch, by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

NO_LENGTH = 1e-12
"""Rows as short have no direction."""

FEW = range(4, 32)
"""Outputs of a layer for which the transposed product is the faster one."""

Parameters = Mapping[str, Tensor]
Run = Callable[[Parameters, Tensor], Tensor]
"""``run(parameters, x)``, with a leading dimension of models everywhere."""


class Layer(Protocol):
    """A layer of a stack, which gives its gradients."""

    def hold(self, parameters: Parameters) -> None:
        """Take the tensors to work on, which change in place."""

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        """Outputs, and what :meth:`backward` needs of this pass."""

    def backward(self, saved: Any, upstream: Tensor, gradients: dict[str, Tensor], needed: bool) -> Tensor | None:
        """Add the gradients of its own parameters; gives that of its inputs where it is needed."""


class WithoutParameters:
    """A layer that nothing of is trained."""

    def hold(self, parameters: Parameters) -> None:
        return


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``x W^T + b`` of each model.

    A few outputs are computed transposed, as a product with many columns: that of many rows takes twice as long.
    """
    if weight.shape[1] in FEW and x.is_cpu:
        return torch.baddbmm(bias.unsqueeze(2), weight, x.mT).mT.contiguous()
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


class Rooms:
    """Tensors that come again at every step, in the memory of the step before: it takes longer to get than to fill.

    >>> rooms = Rooms()
    >>> rooms.of("y", (2, 3), torch.zeros(1)).data_ptr() == rooms.of("y", (2, 3), torch.zeros(1)).data_ptr()
    True
    """

    def __init__(self) -> None:
        self._tensors: dict[object, Tensor] = {}

    def of(self, key: object, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """The tensor of a key, with whatever it held; a new one where it had another shape, type or place."""
        known = self._tensors.get(key)
        if known is None or known.shape != shape or known.dtype != like.dtype or known.device != like.device:
            known = self._tensors[key] = torch.empty(shape, dtype=like.dtype, device=like.device)
        return known


class Affine:
    """``x W^T + b``.

    Args:
        prefix: of the parameters' names.
        rooms: where large outputs and gradients lie, until the next step.
    """

    def __init__(self, prefix: str, rooms: Rooms | None = None) -> None:
        self.weight, self.bias, self.rooms = prefix + "weight", prefix + "bias", rooms

    def hold(self, parameters: Parameters) -> None:
        self._w, self._b = parameters[self.weight].detach(), parameters[self.bias].detach()

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        if self.rooms is None:
            return affine(x, self._w, self._b), x
        y = self.rooms.of((self.weight, "outputs"), (*x.shape[:2], self._w.shape[1]), x)
        return torch.baddbmm(self._b.unsqueeze(1), x, self._w.mT, out=y), x

    def backward(self, saved: Any, upstream: Tensor, gradients: dict[str, Tensor], needed: bool) -> Tensor | None:
        gradients[self.weight] = torch.bmm(upstream.mT, saved)
        gradients[self.bias] = upstream.sum(1)
        if not needed:
            return None
        if self.rooms is None:
            return torch.bmm(upstream, self._w)
        return torch.bmm(upstream, self._w, out=self.rooms.of((self.weight, "slope"), saved.shape, saved))


class Rectified(WithoutParameters):
    """The positive part; ``over`` its input where nobody reads that again."""

    def __init__(self, over: bool) -> None:
        self.over = over

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        y = x.relu_() if self.over else x.relu()
        return y, y

    def backward(self, saved: Any, upstream: Tensor, gradients: dict[str, Tensor], needed: bool) -> Tensor | None:
        return torch.ops.aten.threshold_backward(upstream, saved, 0) if needed else None


class Last(WithoutParameters):
    """``[M, B, 1]`` as ``[M, B]``."""

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return x.squeeze(-1), None

    def backward(self, saved: Any, upstream: Tensor, gradients: dict[str, Tensor], needed: bool) -> Tensor | None:
        return upstream.unsqueeze(-1)


class CosinePower:
    """``-n log(1 - cos(x, w) + eps)`` for each centre w: the head of distances whose graph is the longest."""

    def __init__(self, prefix: str, n: float, eps: float) -> None:
        self.weight, self.n, self.eps = prefix + "weight", n, eps

    def hold(self, parameters: Parameters) -> None:
        self._w = parameters[self.weight].detach()

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        (u, length), (v, size) = _directions(x), _directions(self._w)
        apart = (1.0 - torch.bmm(u, v.mT)).clamp_min_(0.0)
        return -self.n * torch.log(apart + self.eps), (u, length, v, size, apart)

    def backward(self, saved: Any, upstream: Tensor, gradients: dict[str, Tensor], needed: bool) -> Tensor | None:
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

    def hold(self, parameters: Parameters) -> None:
        self._parameters = parameters

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            y = self.run(self._parameters, leaf)
        return y.detach(), (leaf, y)

    def backward(self, saved: Any, upstream: Tensor, gradients: dict[str, Tensor], needed: bool) -> Tensor | None:
        leaf, y = saved
        inputs = [self._parameters[name] for name in self.names] + ([leaf] if needed else [])
        if not inputs:
            return None
        slopes = torch.autograd.grad(y, inputs, upstream, materialize_grads=True)
        gradients.update(zip(self.names, slopes))
        return slopes[-1] if needed else None


class Chain:
    """Layers one after the other: :meth:`forward` keeps what :meth:`backward` needs.

    Args:
        layers: in their order.
    """

    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers
        self._saved: list[Any] = []

    def hold(self, parameters: Parameters) -> None:
        """Take the parameters to work on, which change in place; again when they are other tensors."""
        for layer in self.layers:
            layer.hold(parameters)

    def keep(self, going: Tensor) -> None:
        """Drop the models that are done from what layers hold beside parameters; then :meth:`hold` what is left."""
        for layer in self.layers:
            if (keep := getattr(layer, "keep", None)) is not None:
                keep(going)

    def leave_out(self, step: int | None) -> None:
        """Say to layers that leave units out which step this is; None leaves out nothing."""
        for layer in self.layers:
            if hasattr(layer, "step"):
                layer.step = step

    def forget(self) -> None:
        """Let go of what the last :meth:`forward` has kept."""
        self._saved = []

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all models, without a graph."""
        self._saved = []
        for layer in self.layers:
            x, saved = layer.forward(x)
            self._saved.append(saved)
        return x

    def backward(self, upstream: Tensor) -> dict[str, Tensor]:
        """The gradient of each parameter, from that of the outputs of the last :meth:`forward`."""
        gradients: dict[str, Tensor] = {}
        slope: Tensor | None = upstream
        for number in reversed(range(len(self.layers))):
            if slope is None:
                break
            slope = self.layers[number].backward(self._saved[number], slope, gradients, number > 0)
        self._saved = []
        return gradients
