"""What a learned optimizer sees of a tensor and what its network makes of it, for a stack of particles at once.

The first dimension of every tensor is that of the particles: each has its own parameters, accumulators and
meta-parameters. An optimizer of one model is a stack of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MOMENTUM, RMS, FACTORED = (0.9, 0.99, 0.999), (0.999,), (0.9, 0.99, 0.999)
"""Decays before any is learned."""
SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
"""Of the features of time, in steps."""
FEATURES, HIDDEN = 28, 4
LAYERS = ((FEATURES + len(SCALES), HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 2))
OFFSETS = len(MOMENTUM) + len(RMS) + len(FACTORED)
SIZE = sum(wide * out + out for wide, out in LAYERS) + OFFSETS
"""Meta-parameters: weights and biases layer by layer, then the offsets of the decays."""
STEP = 0.001
"""Factor of both outputs."""
State = dict[str, Tensor]


class Network(NamedTuple):
    """Meta-parameters ``[B, 197]`` by what they are."""

    weights: list[Tensor]
    biases: list[Tensor]
    momentum: Tensor
    rms: Tensor
    factored: Tensor


def network(theta: Tensor) -> Network:
    """Weights ``[B, in, out]``, biases ``[B, out]`` and decays ``[B, k]``; those of squares lie in [0, 1]."""
    weights, biases, start = [], [], 0
    for wide, out in LAYERS:
        weights.append(theta[:, start : start + wide * out].reshape(-1, wide, out))
        start += wide * out
        biases.append(theta[:, start : start + out])
        start += out
    kinds = theta[:, start:].split([len(MOMENTUM), len(RMS), len(FACTORED)], 1)
    momentum, rms, factored = (decays(first, shift) for first, shift in zip((MOMENTUM, RMS, FACTORED), kinds))
    return Network(weights, biases, momentum, rms.clamp(0.0, 1.0), factored.clamp(0.0, 1.0))


def decays(first: Sequence[float], offsets: Tensor) -> Tensor:
    """``1 - exp(10 (log(1 - first) / 10 + offset))``: an offset of 0 leaves the first ones."""
    return 1 - torch.exp(10 * (torch.log1p(-offsets.new_tensor(first)) / 10 + offsets))


def initial(generator: torch.Generator | None = None) -> Tensor:
    """Meta-parameters ``[197]`` before training: weights of a normal distribution cut at two deviations, zeros else."""
    pieces = []
    for wide, out in LAYERS:
        weights = torch.nn.init.trunc_normal_(torch.empty(wide * out), a=-2.0, b=2.0, generator=generator)
        pieces += [weights / math.sqrt(wide), torch.zeros(out)]
    return torch.cat([*pieces, torch.zeros(OFFSETS)])


def factored_dims(shape: Sequence[int]) -> tuple[int, int] | None:
    """The second largest and the largest dimension, later ones counting as larger; None below two dimensions."""
    order = sorted(range(len(shape)), key=lambda i: shape[i])
    return (order[-2], order[-1]) if len(shape) > 1 else None


def started(p: Tensor) -> State:
    """Zero accumulators of parameters ``[B, *shape]``."""
    dims, shape = factored_dims(p.shape[1:]), list(p.shape[1:])

    def zeros(number: int, without: int | None = None) -> Tensor:
        own = [size for i, size in enumerate(shape) if i != without]
        return p.new_zeros(len(p), number, *own)

    state = {"momentum": zeros(len(MOMENTUM)), "rms": zeros(len(RMS))}
    if dims is None:
        return state | {"square": zeros(len(FACTORED))}
    return state | {"row": zeros(len(FACTORED), dims[1]), "col": zeros(len(FACTORED), dims[0])}


def average(old: Tensor, decay: Tensor, new: Tensor) -> Tensor:
    """Averages ``[B, k, ...]`` with decays ``[B, k]`` after values ``[B, ...]``."""
    decay = decay.reshape(*decay.shape, *[1] * (old.ndim - 2))
    return decay * old + (1 - decay) * new[:, None]


def accumulated(net: Network, state: State, g: Tensor) -> State:
    """The accumulators after gradients ``[B, *shape]``."""
    square = g.square()
    tiny = square + 1e-30

    after = {
        "momentum": average(state["momentum"], net.momentum, g),
        "rms": average(state["rms"], net.rms, square),
    }
    dims = factored_dims(g.shape[1:])
    if dims is None:
        return after | {"square": average(state["square"], net.factored, tiny)}
    return after | crossed(net, state, tiny, dims)


def crossed(net: Network, state: State, tiny: Tensor, dims: tuple[int, int]) -> State:
    """Averages over one dimension each, after squares ``[B, *shape]``."""
    second, first = dims
    row, col = tiny.mean(first + 1), tiny.mean(second + 1)
    return {
        "row": average(state["row"], net.factored, row),
        "col": average(state["col"], net.factored, col),
    }


def shared(state: State, dims: tuple[int, int]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What the entries of a row share, and those of a column: the averages, their inverse roots, the factor of both."""
    second, first = dims
    row, col = state["row"], state["col"]
    share = row / (row.mean((second - 1 if second > first else second) + 2, keepdim=True) + 1e-9)
    return (row, (row + 1e-8).rsqrt(), _rsqrt(share)), (col, (col + 1e-8).rsqrt(), _rsqrt(col))


def seen(g: Tensor, p: Tensor, state: State) -> Tensor:
    """The features ``[B, 28, n]`` of each entry, before they are normalised."""
    m, rms = state["momentum"], state["rms"]
    root = (rms + 1e-6).rsqrt()
    dims = factored_dims(g.shape[1:])
    if dims is None:
        square = state["square"]
        rows = cols = square
        row_root = col_root = (square + 1e-8).rsqrt()
        factored = g[:, None] * _rsqrt(square + 1e-9)
        momentum = m * (square + 1e-6).rsqrt()
    else:
        second, first = dims
        kinds_of_row, kinds_of_col = shared(state, dims)
        rows, row_root, by_row = (x.unsqueeze(first + 2).expand_as(m) for x in kinds_of_row)
        cols, col_root, by_col = (x.unsqueeze(second + 2).expand_as(m) for x in kinds_of_col)
        both = by_row * by_col
        factored, momentum = g[:, None] * both, m * both
    kinds = [
        g[:, None], p[:, None], m, rms, m * root, root, factored,
        rows, cols, row_root, col_root, momentum,
    ]  # fmt: skip
    return torch.cat(kinds, 1).reshape(len(g), FEATURES, -1)


def normaliser(features: Tensor) -> Tensor:
    """What each feature ``[B, k, n]`` of a tensor is multiplied with, ``[B, k]``."""
    length: Tensor = torch.linalg.vector_norm(features, dim=-1)
    return (1e-5 + length.square() / features.shape[-1]).rsqrt()


def time_features(t: int, like: Tensor) -> Tensor:
    """``tanh(t / s - 1)`` for the eleven scales."""
    return torch.tanh(t / like.new_tensor(SCALES) - 1.0)


def change(net: Network, features: Tensor, t: int) -> Tensor:
    """What is taken off each entry, ``[B, n]``: ``0.001 a exp(0.001 b)`` of the outputs (a, b)."""
    first = net.weights[0]
    weights = first[:, :FEATURES] * normaliser(features)[..., None]
    bias = net.biases[0] + time_features(t, features) @ first[:, FEATURES:]
    hidden = torch.baddbmm(bias[..., None], weights.transpose(1, 2), features)
    for weights, bias in zip(net.weights[1:], net.biases[1:]):
        hidden = torch.baddbmm(bias[..., None], weights.transpose(1, 2), hidden.relu())
    return STEP * hidden[:, 0] * torch.exp(STEP * hidden[:, 1])


def _rsqrt(x: Tensor) -> Tensor:
    return x.clamp(min=1e-9).rsqrt()
