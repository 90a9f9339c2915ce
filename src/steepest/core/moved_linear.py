"""Linear layers at many points of a plane through their weights: what all points share is computed once.

A first layer sees the same rows at every point, and is linear in its weights: its outputs are a base and K moves, from
K + 1 products in place of one a point. Later layers are a batched product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .torch_private import is_batchedtensor, is_functorch_wrapped_tensor

FEW_CLASSES = 64
"""Below so many columns a normaliser of rows is computed on their transpose, along which a CPU can go many at once."""
MOST_KEPT = 16
"""Layers and batches whose products are kept."""
PLAIN = ("weight", "size_average", "reduce", "label_smoothing")


class SharedProducts:
    """Base and moves of layers that see the same rows at every point, kept from one call to the next.

    Args:
        whole: by name, base and moves of weights ``[1 + K, ...]``.
    """

    def __init__(self, whole: dict[str, Tensor]) -> None:
        self.whole = whole
        self._outputs: dict[tuple[Any, ...], tuple[Tensor, int, Tensor]] = {}

    def outputs(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``[1 + K, *rows, out]`` of rows and of base and moves of a layer."""
        key = id(weight), id(bias), x.data_ptr(), x.shape, x.stride()
        held = self._outputs.get(key)
        if held is None or held[1] != x._version:
            moves = functional.linear(x, weight.flatten(0, 1)).unflatten(-1, weight.shape[:2]).movedim(-2, 0)
            if bias is not None:
                moves = moves + bias.view(len(bias), *[1] * (x.ndim - 1), -1)
            if len(self._outputs) >= MOST_KEPT:
                self._outputs.clear()
            held = x, x._version, moves.contiguous()
            self._outputs[key] = held
        return held[2]


class MovedLayers(TorchFunctionMode):
    """Inside the block, under ``vmap``, layers whose weights are among the moved ones take the way through them.

    Args:
        row: ``[K]``, how far along each direction.
        weights: by name, what stands in for the model's own.
        shared: with base and moves of the same names.
    """

    def __init__(self, row: Tensor, weights: dict[str, Tensor], shared: SharedProducts) -> None:
        super().__init__()
        self.row = torch.cat([torch.ones_like(row[:1]), row])
        self.shared = shared
        self.whole = {id(t): shared.whole[name] for name, t in weights.items() if shared.whole[name].dtype == t.dtype}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear and len(args) in (2, 3) and not kwargs:
            x, w, b = args if len(args) == 3 else (*args, None)
            whole, bias = self.whole.get(id(w)), self.whole.get(id(b))
            if whole is not None and (b is None) == (bias is None) and x.ndim > 1 and x.dtype == w.dtype:
                if is_batchedtensor(x):
                    y = x @ w.mT
                    return y if b is None else y.add_(b)
                if _plain(x):
                    moves = self.shared.outputs(x, whole, bias)
                    return (self.row.to(moves) @ moves.flatten(1)).view(moves.shape[1:])
        if func is functional.cross_entropy and len(args) == 2 and not any(kwargs.get(name) for name in PLAIN):
            outputs, target = args
            few = outputs.ndim == 2 and outputs.shape[1] < FEW_CLASSES and outputs.device.type == "cpu"
            if few and target.ndim == 1 and not target.is_floating_point():
                rest = {name: kwargs[name] for name in ("ignore_index", "reduction") if name in kwargs}
                return functional.nll_loss(outputs.mT.contiguous().log_softmax(0).mT, target, **rest)
        return func(*args, **kwargs)


def _plain(x: Tensor) -> bool:
    """Whether rows are the same at every point, and are neither differentiated nor cast on the way."""
    differentiated = x.requires_grad and torch.is_grad_enabled()
    return not (differentiated or is_functorch_wrapped_tensor(x) or torch.is_autocast_enabled(x.device.type))
