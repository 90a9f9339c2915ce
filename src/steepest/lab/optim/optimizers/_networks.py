"""What experiments on optimizers share: handwritten digits, a small CNN, its training with any optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ....nn.networks import Network
from ...classify import small_cnn
from ...data import halved, mnist_10k, split

Digits = tuple[Tensor, Tensor, Tensor, Tensor]


@cache
def digits(seed: int, full: bool, rows: int, tested: int = 3000) -> Digits:
    """``(x, y, x_test, y_test)``: MNIST digits at 14 x 14 pixels.

    Without ``full`` a few random pictures in float64, for the smoke run.
    """
    if not full:
        generator = torch.Generator().manual_seed(seed)
        inputs, target = torch.randn(60, 196, generator=generator, dtype=torch.float64), torch.arange(60) % 10
        return inputs[:40], target[:40], inputs[40:], target[40:]
    pictures, labels = mnist_10k()
    x, y, x_test, y_test = split(halved(pictures), labels, seed, train=rows)
    as_tensor = torch.as_tensor
    return as_tensor(x).float(), as_tensor(y), as_tensor(x_test[:tested]).float(), as_tensor(y_test[:tested])


def network(data: Digits, seed: int) -> Network:
    """A CNN of two strided convolutions and 64 units, in the data's type."""
    torch.manual_seed(seed)
    return Network(small_cnn(196), nn.Linear(64, 10)).to(data[0].dtype)


def fit(
    data: Digits,
    seed: int,
    epochs: int,
    optimizer: Callable[[nn.Module], Optimizer],
    *,
    batch: int = 50,
    after: Callable[[nn.Module, Tensor], Any] | None = None,
) -> Network:
    """A network after so many epochs of a constant rate.

    Args:
        data: what trains and tests.
        seed: of initial weights and order: the same for all arms of a seed.
        epochs: passes over the training rows.
        optimizer: made over the network.
        batch: rows of a step.
        after: called with the network and the batch's loss after each step.
    """
    x, y, _, _ = data
    model = network(data, seed)
    stepper = optimizer(model)
    size = min(batch, len(x))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(size):
            if len(rows) < size:
                continue

            def closure(rows: Tensor = rows) -> Tensor:
                stepper.zero_grad()
                loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
                loss.backward()
                return loss.detach()

            loss = stepper.step(closure)  # type: ignore[arg-type]
            if after is not None:
                after(model, torch.as_tensor(loss))
    return model


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """Share of the test rows that are right, in percent."""
    return 100 * float((model(data[2]).argmax(1) == data[3]).double().mean())


@torch.no_grad()
def loss_on(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Mean cross-entropy."""
    return float(nn.functional.cross_entropy(model(x), y))
