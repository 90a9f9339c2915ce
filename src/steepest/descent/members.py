"""Layers of TabM for a stack, which give their gradients themselves; dropout is the same alone and in any stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.dropout import rectified_dropout_, rectified_dropout_slope
from ..core.heads import LinearHeads
from ..core.member_scale import member_scale, member_scale_backward
from ..nn.networks import Network
from ..nn.tabm import TabM
from .by_hand import Affine, Last, Layer, Parameters, Rooms


class Embedded:
    """Numbers of columns with bins, embedded, then the other columns: ``[M, B, F]`` to ``[M, B, D]``.

    Args:
        models: of the stack, in order.
        prefix: of their parameters' names.
        rooms: where the shares of bins lie, until the next step.
    """

    def __init__(self, models: Sequence[TabM], prefix: str, rooms: Rooms) -> None:
        self.prefix, self.rooms = prefix, rooms
        self.names = [f"{prefix}embed.{name}" for name in ("weight", "bias", "bends")]
        self.numeric, self.plain = models[0].numeric, models[0].plain
        encodings = [model.embed.encoding for model in models if model.embed is not None]
        names = ("slope", "start", "low", "high")
        self._bins = [torch.stack([getattr(encoding, name) for encoding in encodings]).unsqueeze(2) for name in names]

    def hold(self, parameters: Parameters) -> None:
        self._weight, self._bias, self._bends = (parameters[name].detach() for name in self.names)

    def keep(self, going: Tensor) -> None:
        """Drop the models that are done."""
        self._bins = [own[going] for own in self._bins]

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        slope, start, low, high = self._bins
        own = x[..., self.numeric]
        models, rows, columns = own.shape
        by_column = own.transpose(1, 2).contiguous().unsqueeze(-1)
        room = self.rooms.of(self.prefix, (models, columns, rows, slope.shape[-1]), x)
        encoding = torch.addcmul(start, slope, by_column, out=room).clamp_(low, high)
        columns_first = encoding.flatten(0, 1)  # [M F, B, bins]
        linear = torch.addcmul(self._bias.unsqueeze(1), self._weight.unsqueeze(1), own.unsqueeze(-1))
        bent = torch.bmm(columns_first, self._bends.flatten(0, 1)).view(models, columns, rows, -1).transpose(1, 2)
        return torch.cat([linear.add_(bent).flatten(2), x[..., self.plain]], 2), (own, columns_first)

    def backward(self, saved: Any, upstream: Tensor, gradients: dict[str, Tensor], needed: bool) -> Tensor | None:
        own, columns_first = saved
        _, columns, _, width = self._bends.shape
        slope = upstream[..., : columns * width].unflatten(2, (columns, width))
        weight, bias, bends = self.names
        gradients[weight] = (own.unsqueeze(-1) * slope).sum(1)
        gradients[bias] = slope.sum(1)
        by_column = slope.transpose(1, 2).flatten(0, 1)
        gradients[bends] = torch.bmm(columns_first.mT, by_column).view_as(self._bends)
        return None  # nothing below is trained


class Scaled:
    """Each member's own scale of its inputs: ``[M, B, D]`` to ``[M, k B, D]``, the rows of a member together."""

    def __init__(self, prefix: str, rooms: Rooms) -> None:
        self.name, self.rooms = prefix + "scale", rooms

    def hold(self, parameters: Parameters) -> None:
        self._scale = parameters[self.name].detach()

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        room = self.rooms.of(self.name, (*self._scale.shape[:2], *x.shape[1:]), x)
        return member_scale(x, self._scale, out=room).flatten(1, 2), x

    def backward(self, saved: Any, upstream: Tensor, gradients: dict[str, Tensor], needed: bool) -> Tensor | None:
        by_member = upstream.unflatten(1, (self._scale.shape[1], -1))
        gradients[self.name], below = member_scale_backward(by_member, saved, self._scale, needed)
        return below


class RectifiedDropout:
    """The positive part, of which a share is left out in training.

    Args:
        p: the share.
        seeds: of each model and this layer.
    """

    def __init__(self, p: float, seeds: Sequence[int]) -> None:
        self.p, self.seeds = p, list(seeds)
        self.step: int | None = None
        """The step under way; None where nothing is left out."""

    def hold(self, parameters: Parameters) -> None:
        return

    def keep(self, going: Tensor) -> None:
        """Drop the models that are done."""
        self.seeds = [seed for seed, on in zip(self.seeds, going.tolist()) if on]

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        y = x.relu_() if self.step is None else rectified_dropout_(x, self.seeds, self.step, self.p)
        return y, y

    def backward(self, saved: Any, upstream: Tensor, gradients: dict[str, Tensor], needed: bool) -> Tensor | None:
        return rectified_dropout_slope(upstream, saved, 0.0 if self.step is None else self.p)


class MemberAffine:
    """The members' heads: ``[M, k B, D]`` to ``[M, B, k, C]``."""

    def __init__(self, prefix: str, rooms: Rooms) -> None:
        self.weight, self.bias, self.rooms = prefix + "weight", prefix + "bias", rooms

    def hold(self, parameters: Parameters) -> None:
        self._w, self._b = parameters[self.weight].detach(), parameters[self.bias].detach()

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        models, members, outputs, width = self._w.shape
        by_member = x.view(models * members, -1, width)
        y = torch.baddbmm(self._b.flatten(0, 1).unsqueeze(1), by_member, self._w.flatten(0, 1).mT)
        return y.view(models, members, -1, outputs).transpose(1, 2).contiguous(), by_member

    def backward(self, saved: Any, upstream: Tensor, gradients: dict[str, Tensor], needed: bool) -> Tensor | None:
        models, members, outputs, width = self._w.shape
        by_member = upstream.transpose(1, 2).reshape(models * members, -1, outputs)
        gradients[self.weight] = torch.bmm(by_member.mT, saved).view_as(self._w)
        gradients[self.bias] = upstream.sum(1)
        room = self.rooms.of(self.weight, saved.shape, saved)
        return torch.bmm(by_member, self._w.flatten(0, 1), out=room).view(models, -1, width)


def is_tabm(model: nn.Module) -> bool:
    """Whether a model is a TabM of which all layers stand here.

    >>> is_tabm(nn.Linear(2, 2))
    False
    """
    return type(model) is Network and type(model.backbone) is TabM and type(model.head) is LinearHeads


def layers_of_tabm(models: Sequence[nn.Module], seeds: Sequence[int]) -> list[Layer]:
    """The layers of a stack of TabMs, one after the other, each with its gradient.

    Args:
        models: for which :func:`is_tabm`, of one architecture.
        seeds: of each model, for the units that it leaves out.
    """
    bodies = [model.backbone for model in models if isinstance(model, Network) and isinstance(model.backbone, TabM)]
    first = bodies[0]
    rooms = Rooms()
    layers: list[Layer] = [] if first.embed is None else [Embedded(bodies, "backbone.", rooms)]
    layers.append(Scaled("backbone.", rooms))
    for number, block in enumerate(first.layers):
        assert isinstance(block, nn.Sequential) and isinstance(block[2], nn.Dropout)
        own = [seed * len(first.layers) + number for seed in seeds]
        layers += [Affine(f"backbone.layers.{number}.0.", rooms), RectifiedDropout(block[2].p, own)]
    head = models[0].head
    assert isinstance(head, LinearHeads)
    return [*layers, MemberAffine("head.", rooms), *([Last()] if head.scalar else [])]
