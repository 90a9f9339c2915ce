"""What experiments on sharpness share: handwritten digits, a small CNN, its training, its curvature."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ....nn.networks import Network
from ...classify import small_cnn
from ...data import flip_labels, halved, mnist_10k, split

Digits = tuple[Tensor, Tensor, Tensor, Tensor]
BATCH = 50


@cache
def digits(seed: int, full: bool, rows: int, noise: float = 0.0) -> Digits:
    """``(x, y, x_test, y_test)``: MNIST digits at 14 x 14 pixels; ``noise`` of the training labels are another class.

    Without ``full`` a few random pictures in float64, for the smoke run.
    """
    if not full:
        generator = torch.Generator().manual_seed(seed)
        inputs, target = torch.randn(60, 196, generator=generator, dtype=torch.float64), torch.arange(60) % 10
        return inputs[:40], target[:40], inputs[40:], target[40:]
    pictures, labels = mnist_10k()
    x, y, x_test, y_test = split(halved(pictures), labels, seed, train=rows)
    if noise:
        y, _ = flip_labels(y, noise, seed)
    as_tensor = torch.as_tensor
    return as_tensor(x).float(), as_tensor(y), as_tensor(x_test[:3000]).float(), as_tensor(y_test[:3000])


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
    loss: Callable[[Tensor, Tensor, Tensor, int, Tensor], Tensor] | None = None,
    after: Callable[[], None] | None = None,
) -> Network:
    """A network after so many epochs; the rate falls to 0 along a cosine.

    Args:
        data: what trains and tests.
        seed: of initial weights and order: the same for all arms of a seed.
        epochs: passes over the training rows.
        optimizer: made over the network.
        loss: ``loss(outputs, target, index, epoch, inputs)``; cross-entropy by default.
        after: called after each step.
    """
    x, y, _, _ = data
    model = network(data, seed)
    stepper = optimizer(model)
    batch = min(BATCH, len(x))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, epochs * (len(x) // batch))
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(x), generator=generator).split(batch):
            if len(rows) < batch:
                continue

            def forward(rows: Tensor = rows, epoch: int = epoch) -> Tensor:
                outputs = model(x[rows])
                if loss is None:
                    return nn.functional.cross_entropy(outputs, y[rows])
                return loss(outputs, y[rows], rows, epoch, x[rows])

            closure = _Closure(stepper, forward)
            stepper.step(closure)  # type: ignore[arg-type]
            schedule.step()
            if after is not None:
                after()
    return model


class _Closure:
    """What a step gets: ``closure()`` zeroes, runs forward and backward; ``closure.loss()`` runs forward only."""

    def __init__(self, stepper: Optimizer, loss: Callable[[], Tensor]) -> None:
        self.stepper, self.loss = stepper, loss

    def __call__(self) -> Tensor:
        self.stepper.zero_grad()
        loss = self.loss()
        loss.backward()
        return loss.detach()


@torch.no_grad()
def accuracy(model: nn.Module, data: Digits) -> float:
    """Share of the test rows that are right, in percent."""
    return 100 * float((model(data[2]).argmax(1) == data[3]).double().mean())


def curvature(model: nn.Module, data: Digits, rows: int = 500, rounds: int = 12) -> float:
    """The largest eigenvalue of the Hessian of the training loss, by power iteration on some rows."""
    parameters = list(model.parameters())
    value = nn.functional.cross_entropy(model(data[0][:rows]), data[1][:rows])
    slopes = torch.autograd.grad(value, parameters, create_graph=True)
    generator = torch.Generator().manual_seed(0)
    along = [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype) for p in parameters]
    size = 0.0
    for _ in range(rounds):
        norm = torch.linalg.vector_norm(torch.stack([v.double().norm() for v in along])).to(along[0].dtype)
        along = [v / norm for v in along]
        product = torch.stack([(s * v).sum() for s, v in zip(slopes, along)]).sum()
        after = torch.autograd.grad(product, parameters, retain_graph=True)
        size = float(sum((a.double() * v.double()).sum() for a, v in zip(after, along)))
        along = list(after)
    return size
