"""What the experiments on distillation share: small convolutional networks, and a loop of epochs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ....nn.networks import Network

Data = tuple[Tensor, Tensor, Tensor, Tensor]
"""Inputs and classes to train, inputs and classes to test."""


def convolutional(pixels: int, channels: int, features: int, classes: int = 10) -> Network:
    """Two strided convolutions of ``channels`` and twice as many, rectified features, a linear head."""
    side = math.isqrt(pixels)
    last = -(-side // 4)
    backbone = nn.Sequential(
        nn.Unflatten(1, (1, side, side)),
        nn.Conv2d(1, channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * channels * last * last, features),
        nn.ReLU(),
    )
    return Network(backbone, nn.Linear(features, classes))


def fit(
    parameters: Iterable[Tensor],
    gradients: Callable[[Tensor, int], object],
    rows: int,
    *,
    rate: float,
    epochs: int,
    batch: int,
    seed: int,
) -> None:
    """Adam over shuffled batches.

    Args:
        parameters: what it moves.
        gradients: ``(positions of a batch, 1-based epoch)``; it fills ``.grad``, which is empty before.
        rows: of the training data.
        rate, epochs, batch: of the training.
        seed: of the order.
    """
    optimizer = torch.optim.Adam(list(parameters), rate, foreach=True)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(1, epochs + 1):
        for positions in torch.randperm(rows, generator=generator).split(batch):
            optimizer.zero_grad()
            gradients(positions, epoch)
            optimizer.step()


@torch.no_grad()
def accuracy(outputs: Tensor, y: Tensor) -> float:
    """Share of rows whose largest output is that of their class, in per cent."""
    return 100 * float((outputs.argmax(1) == y).double().mean())
