"""Losses of a stack of layers at many points of a plane through its weights, in buffers that are used again.

Layers that see the same rows at every point are linear in their weights, so that their outputs are a base and K moves;
later ones are batched products. What a point needs stays in a cache, and nothing is given back to the system between
points, which costs more than the work itself where layers are small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

IN_CACHE, IN_CACHE_OF_IMAGES = 2**19, 2**18
"""Entries of the widest layer's outputs, of so many points at once as make no more of them; with convolutions, whose
memory is not used again, fewer."""
MOST = 64
IN_PLACE: dict[type[nn.Module], Callable[[Tensor], Tensor]] = {
    nn.ReLU: torch.relu_,
    nn.Tanh: torch.tanh_,
    nn.Sigmoid: torch.sigmoid_,
}
SINGLE_ENTRIES = (
    nn.CELU, nn.Dropout, nn.ELU, nn.GELU, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.LogSigmoid, nn.Mish,
    nn.ReLU6, nn.SELU, nn.SiLU, nn.Softplus, nn.Softsign,
)  # fmt: skip
PLAIN_LOSSES = {"weight": None, "ignore_index": -100, "reduction": "mean", "label_smoothing": 0.0}
Batch = tuple[Tensor, Tensor]
Layer = tuple[nn.Module, str | None, str | None]
"""A layer, and the names of its weight and bias."""


class MovedStack:
    """The mean loss of a stack over batches, at rows of coefficients.

    Args:
        layers: of the stack in evaluation mode, as :func:`layers_of` gives them.
        whole: by name, base and moves of each weight ``[1 + K, ...]``.
        loss_fn: of outputs and targets, the mean of a batch.
        batches: inputs, one tensor, and targets.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> whole = {"weight": torch.tensor([[[2.0]], [[1.0]]])}
    >>> batches = [(torch.ones(1, 1), torch.zeros(1, 1))]
    >>> stack = MovedStack(layers_of(layer, {"weight": layer.weight}), whole, functional.mse_loss, batches)
    >>> with torch.no_grad():
    ...     stack.losses(torch.tensor([[0.0], [1.0]]))
    tensor([4., 9.])
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        whole: dict[str, Tensor],
        loss_fn: Callable[[Any, Tensor], Tensor],
        batches: Sequence[Batch],
    ) -> None:
        self.layers, self.whole, self.loss_fn, self.batches = layers, whole, loss_fn, batches
        self._buffers: dict[tuple[int, str], Tensor] = {}
        self._shared: dict[tuple[int, int], Tensor] = {}
        self._widest = 1

    def points(self) -> int:
        """How many should go through at once, once one has."""
        images = any(isinstance(layer, nn.Conv2d) for layer, *_ in self.layers)
        return max(1, min(MOST, (IN_CACHE_OF_IMAGES if images else IN_CACHE) // self._widest))

    def losses(self, coefficients: Tensor) -> Tensor:
        """``[P]``, of coefficients ``[P, K]``."""
        factors = torch.cat([coefficients.new_ones(len(coefficients), 1), coefficients], 1)
        total, count, dtype = torch.zeros(len(coefficients), dtype=torch.float64), 0, torch.float32
        for number, (inputs, targets) in enumerate(self.batches):
            values = self._of_batch(number, inputs, targets, factors)
            dtype = torch.promote_types(values.dtype, torch.float32)
            total += values.double() * len(targets)
            count += len(targets)
        return (total / count).to(dtype)

    def _of_batch(self, number: int, x: Tensor, targets: Tensor, factors: Tensor) -> Tensor:
        """The loss of one batch at each point."""
        last = len(self.layers) - 1
        columns = False  # whether logits lie with rows across
        shared = True  # whether x is the same at every point
        for place, (layer, *_) in enumerate(self.layers):
            if isinstance(layer, nn.Flatten):
                x = x.flatten(1 if shared else 2)
            elif isinstance(layer, nn.Linear | nn.Conv2d):
                if shared:
                    x = self._first((number, place), x, factors)
                elif isinstance(layer, nn.Conv2d):
                    x = self._convolution(place, x, factors)
                else:
                    columns = place == last and x.ndim == 3 and _plain(self.loss_fn, targets, layer.out_features)
                    x = self._linear(place, x, factors, columns)
                shared = False
                self._widest = max(self._widest, x.numel() // len(factors))
            elif type(layer) in IN_PLACE and not shared:
                x = IN_PLACE[type(layer)](x)
            else:
                x = layer(x)
        if columns:
            return _cross_entropy(x, targets)
        outputs = x.expand(len(factors), *x.shape) if shared else x
        return torch.stack([torch.as_tensor(self.loss_fn(own, targets)).detach() for own in outputs])

    def _weights(self, place: int, factors: Tensor) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of a layer at each point ``[P, ...]``."""
        own: list[Tensor | None] = []
        for name in self.layers[place][1:]:
            moved = None
            if name is not None:
                whole = self.whole[name]
                moved = self._buffer(place, name, (len(factors), *whole.shape[1:]), whole)
                torch.mm(factors.to(whole), whole.flatten(1), out=moved.view(len(factors), -1))
            own.append(moved)
        weight, bias = own
        assert weight is not None
        return weight, bias

    def _first(self, key: tuple[int, int], x: Tensor, factors: Tensor) -> Tensor:
        """Outputs of a layer for rows that are the same at every point."""
        moves = self._shared.get(key)
        if moves is None:
            layer, name, beside = self.layers[key[1]]
            assert name is not None
            weight = self.whole[name]
            if isinstance(layer, nn.Conv2d):
                y = functional.conv2d(x, weight.flatten(0, 1), None, layer.stride, layer.padding, layer.dilation)
                moves = y.unflatten(1, (len(weight), -1)).movedim(1, 0)
                shape = [len(weight), 1, -1, 1, 1]
            else:
                moves = functional.linear(x, weight.flatten(0, 1)).unflatten(-1, (len(weight), -1)).movedim(-2, 0)
                shape = [len(weight), *[1] * (x.ndim - 1), -1]
            moves = (moves if beside is None else moves + self.whole[beside].view(shape)).contiguous()
            self._shared[key] = moves
        out = self._buffer(key[1], "outputs", (len(factors), *moves.shape[1:]), moves)
        torch.mm(factors.to(moves), moves.flatten(1), out=out.view(len(factors), -1))
        return out

    def _linear(self, place: int, x: Tensor, factors: Tensor, columns: bool) -> Tensor:
        weight, bias = self._weights(place, factors)
        rows = x.reshape(len(factors), -1, x.shape[-1])
        if columns:
            out = self._buffer(place, "outputs", (len(factors), weight.shape[1], rows.shape[1]), x)
            torch.bmm(weight, rows.mT, out=out)
            return out if bias is None else out.add_(bias[:, :, None])
        out = self._buffer(place, "outputs", (len(factors), rows.shape[1], weight.shape[1]), x)
        torch.bmm(rows, weight.mT, out=out)
        if bias is not None:
            out.add_(bias[:, None])
        return out.view(*x.shape[:-1], -1)

    def _convolution(self, place: int, x: Tensor, factors: Tensor) -> Tensor:
        """Points are groups of channels."""
        layer: Any = self.layers[place][0]
        weight, bias = self._weights(place, factors)
        joined = None if bias is None else bias.flatten()
        channels = self._buffer(place, "channels", (x.shape[1], len(factors) * x.shape[2], *x.shape[3:]), x)
        channels.view(x.shape[1], *x.shape[:1], *x.shape[2:]).copy_(x.transpose(0, 1))
        strides = layer.stride, layer.padding, layer.dilation
        y: Tensor = functional.conv2d(channels, weight.flatten(0, 1), joined, *strides, len(factors))
        images: Tensor = y.unflatten(1, (len(factors), -1)).transpose(0, 1)
        return images

    def _buffer(self, place: int, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Memory that was used before, where it was."""
        size = torch.Size(shape).numel()
        own = self._buffers.get((place, name))
        if own is None or own.numel() < size:
            own = self._buffers[place, name] = like.new_empty(size)
        return own[:size].view(shape)


def layers_of(model: nn.Module, tensors: dict[str, Tensor]) -> list[Layer] | None:
    """The layers of a stack with the names of their weights; None of a model of another kind.

    A model is a layer, or ``nn.Sequential`` of layers: linear ones, convolutions, functions of single entries.

    >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    >>> [names for _, *names in layers_of(model, dict(model.named_parameters()))]
    [['0.weight', None], [None, None]]
    >>> layers_of(nn.Sequential(nn.LayerNorm(2)), {}) is None
    True
    """
    names = {id(t): name for name, t in tensors.items()}
    layers: list[Layer] = []
    waiting = [model]
    while waiting:
        layer = waiting.pop()
        if layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
            return None
        if type(layer) is nn.Sequential:
            waiting.extend(reversed(list(layer)))
            continue
        if not _known(layer):
            return None
        own: list[str | None] = []
        for place in ("weight", "bias"):
            value = getattr(layer, place, None)
            if value is not None and id(value) not in names:  # made of others, by a hook
                return None
            own.append(None if value is None else names[id(value)])
        layers.append((layer, own[0], own[1]))
    return layers


def _known(layer: nn.Module) -> bool:
    kind = type(layer)
    if isinstance(layer, nn.Flatten):
        return kind is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)
    if isinstance(layer, nn.Conv2d):
        return (
            kind is nn.Conv2d
            and layer.groups == 1
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        )
    return kind is nn.Linear or kind in IN_PLACE or kind in SINGLE_ENTRIES


def _plain(loss_fn: Any, targets: Tensor, classes: int) -> bool:
    """Whether a loss is the mean cross-entropy of classes that are all there."""
    if type(loss_fn) is nn.CrossEntropyLoss:
        plain = all(getattr(loss_fn, name) == value for name, value in PLAIN_LOSSES.items())
    else:
        plain = loss_fn is functional.cross_entropy
    if not plain or targets.ndim != 1 or targets.dtype != torch.int64 or not len(targets):
        return False
    return bool(((targets >= 0) & (targets < classes)).all())


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Its mean at each point, of logits ``[P, C, B]``, which are overwritten."""
    logits.sub_(logits.amax(1, keepdim=True))
    own = logits.gather(1, targets.expand(len(logits), 1, -1)).squeeze(1)
    return logits.exp_().sum(1).log_().sub_(own).mean(1)
