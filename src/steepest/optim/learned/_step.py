"""Steps of a learned optimizer in C++ for float32 on the CPU: two passes over a tensor, no feature is stored."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core import native
from ...core.lists import Memory, plain_lists
from ._network import FEATURES, STEP, Network, factored_dims, shared, time_features

SOURCE = Path(__file__).with_name("step.cpp")


def runs(p: Tensor, g: Tensor, state: dict[str, Any]) -> bool:
    """Whether it takes a parameter with its gradient and state: float32 on the CPU, contiguous.

    The first call in a process may build the library.
    """
    averages = [value for name, value in state.items() if name != "step"]
    return plain_lists([p], [g]) and plain_lists(averages) and _library(native.level()) is not None


class Steps:
    """Steps with the meta-parameters of one network.

    Args:
        net: a stack of one, in float32 on the CPU.
        lr: the rate.
    """

    def __init__(self, net: Network, lr: float) -> None:
        library = _library(native.level())
        assert library is not None
        self._library, self.net, self._memory = library, net, Memory()
        first = net.weights[0][0]
        layers = [first[:FEATURES]]
        layers += [torch.cat([w[0].flatten(), b[0]]) for w, b in zip(net.weights[1:], net.biases[1:])]
        layers.append(torch.cat([net.momentum[0], net.rms[0], net.factored[0]]))
        self._network = (*(self._memory.numbers("f", layer.flatten().tolist()) for layer in layers),)
        self._rate = ctypes.c_float(lr * STEP)
        self._biases: dict[int, list[float]] = {}

    def _bias(self, t: int) -> list[float]:
        """Of the first layer, with the features of time."""
        if t not in self._biases:
            first = self.net.weights[0]
            self._biases[t] = (self.net.biases[0] + time_features(t, first) @ first[:, FEATURES:])[0].tolist()
        return self._biases[t]

    def vectors(self, weights: Sequence[Tensor], slopes: Sequence[Tensor], states: Sequence[dict[str, Any]]) -> None:
        """Move vectors and scalars, and their averages, in place."""
        memory = Memory()
        averages = ([state[name] for state in states] for name in ("momentum", "rms", "square"))
        biases = [value for state in states for value in self._bias(state["step"])]
        self._library.learned_vectors(
            memory.pointers(weights), memory.pointers(slopes), *map(memory.pointers, averages),
            memory.sizes(weights), memory.numbers("f", biases), ctypes.c_int64(len(weights)),
            *self._network, self._rate,
        )  # fmt: skip
        torch.autograd.graph.increment_version(list(weights))

    def matrix(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> None:
        """Move a parameter of two dimensions or more, its momenta and squares, in place; rows and columns are new."""
        memory, dims = Memory(), factored_dims(p.shape)
        assert dims is not None
        second, first = dims
        rows, cols = shared({name: value[None] for name, value in state.items() if name != "step"}, dims)
        row_at, col_at = _places(tuple(p.shape))
        last = p.ndim - 1
        self._library.learned_matrix(
            *map(memory.pointer, (p, g, state["momentum"], state["rms"])),
            ctypes.c_int64(p.numel() // p.shape[last]), ctypes.c_int64(p.shape[last]),
            *(memory.pointer(torch.cat(own, 1)) for own in (rows, cols)),
            ctypes.c_int64(p.numel() // p.shape[first]), ctypes.c_int64(p.numel() // p.shape[second]),
            ctypes.c_int64(first != last), ctypes.c_int64(second != last),
            memory.pointer(row_at), memory.pointer(col_at),
            memory.numbers("f", self._bias(state["step"])), *self._network, self._rate,
        )  # fmt: skip
        torch.autograd.graph.increment_version([p])


@cache
def _places(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Of each line along the last dimension the first place among rows, and among columns."""
    dims = factored_dims(shape)
    assert dims is not None
    places = []
    for without in reversed(dims):
        own = [size for i, size in enumerate(shape) if i != without]
        numbers = torch.arange(torch.Size(own).numel()).reshape(own).unsqueeze(without).expand(shape)
        places.append(numbers[..., 0].flatten().contiguous())
    return places[0], places[1]


@cache
def _library(level: str) -> ctypes.CDLL | None:
    return native.library(SOURCE)
