"""What experiments on verification share: images of many identities, an encoder under a head of cosines, measures."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..core.cosine import unit_rows
from ..core.objective import Objective, TaskInfo
from .classify import small_cnn
from .views import random_view

SIDE = 14


def identities(
    count: int, images: int, seed: int, draw: int, *, common: float = 0.5, noise: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Images of generated identities ``[count * images, SIDE ** 2]`` in float64, and labels.

    An identity is a smooth random pattern beside one that all of a seed have in common; an image of it is turned,
    scaled, moved, of another contrast, and noisy.

    Args:
        count, images: identities, and images of each.
        seed, draw: of the common pattern; of identities and images (another draw has others).
        common, noise: size of the common pattern and of the noise, beside patterns of size 1.

    >>> [tuple(t.shape) for t in identities(3, 2, 0, 0)]
    [(6, 196), (6,)]
    """
    waves = torch.arange(1, 5, dtype=torch.float64)
    points = (torch.arange(SIDE, dtype=torch.float64) + 0.5) * math.pi / SIDE
    basis = torch.cos(waves.unsqueeze(1) * points) / waves.unsqueeze(1) ** 0.5

    def patterns(number: int, generator: torch.Generator) -> Tensor:
        smooth = torch.randn(number, 4, 4, generator=generator, dtype=torch.float64)
        fields = torch.einsum("nab,ax,by->nxy", smooth, basis, basis).flatten(1)
        return fields / fields.std(1, keepdim=True)

    generator = torch.Generator().manual_seed(seed)
    shared = patterns(1, generator)
    generator.manual_seed(1_000_003 * (draw + 1) + seed)
    own = patterns(count, generator) + common * shared
    views = random_view(own.repeat_interleave(images, 0), generator)
    views = views + noise * torch.randn(views.shape, generator=generator, dtype=torch.float64)
    return views, torch.arange(count).repeat_interleave(images)


def train_cosines(
    x: Tensor,
    y: Tensor,
    objective: type[Objective],
    hyper: dict[str, Any],
    *,
    epochs: int,
    lr: float,
    seed: int,
    batch_size: int = 64,
    width: int = 32,
) -> tuple[nn.Module, nn.Module, Objective]:
    """The encoder, its head and the objective after training by Adam whose rate falls to 0.

    Args:
        x, y: images ``[N, pixels]`` and labels ``[N]``, 0 to C - 1.
        objective, hyper: made by ``from_task``; its own head of ``width`` features is trained with the encoder.
        epochs, lr, seed, batch_size, width: of the training; the last rows of an epoch that fill no batch are left out.
    """
    batch_size = min(batch_size, len(x))
    steps = len(x) // batch_size
    classes = int(y.max()) + 1
    counts = tuple(torch.bincount(y).tolist())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = nn.Sequential(small_cnn(x.shape[1]), nn.Linear(64, width)).to(x.dtype)
        info = TaskInfo("multiclass", len(x), classes, counts, width, epochs, steps, seed)
        loss = objective.from_task(info, **hyper).to(x.dtype)
        head = loss.head(width, info).to(x.dtype)
    parameters = [*encoder.parameters(), *head.parameters(), *loss.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr, foreach=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (epochs * steps))
    generator = torch.Generator().manual_seed(seed + 1)
    for epoch in range(epochs):
        loss.start_epoch(epoch + 1, epochs)
        for index in torch.randperm(len(x), generator=generator)[: steps * batch_size].split(batch_size):
            features = encoder(x[index])
            needs = {"features": features} if "features" in loss.needs else {}
            optimizer.zero_grad()
            loss(head(features), y[index], **needs).backward()
            optimizer.step()
            schedule.step()
            loss.after_step()
    return encoder.eval(), head.eval(), loss.eval()


@torch.no_grad()
def embed(encoder: nn.Module, x: Tensor) -> Tensor:
    """Unit embeddings in float64."""
    return unit_rows(encoder(x).double())


@torch.no_grad()
def verification(embeddings: Tensor, labels: Tensor, false_accepts: float = 0.01) -> dict[str, float]:
    """How well cosines of unit rows tell whether two are of one label, in per cent.

    Returns:
        "R@1": queries whose nearest other row is of their label; "mAP": mean average precision of all others as a
        ranking; "TAR": pairs of one label that are accepted where ``false_accepts`` of the others are; and "spread",
        the standard deviation of cosines of different labels times 100.

    >>> verification(torch.eye(2).repeat_interleave(2, 0), torch.tensor([0, 0, 1, 1]))["R@1"]
    100.0
    """
    cosines = embeddings @ embeddings.T
    same = labels.unsqueeze(1) == labels
    itself = torch.eye(len(labels), dtype=torch.bool)
    order = cosines.masked_fill(itself, -2.0).argsort(1, descending=True)[:, :-1]
    hits = same.gather(1, order).double()
    precision = hits.cumsum(1) / torch.arange(1, len(labels), dtype=torch.float64)
    upper = torch.ones_like(same).triu(1)
    positive, negative = cosines[upper & same], cosines[upper & ~same]
    threshold = np.quantile(negative.numpy(), 1 - false_accepts)
    return {
        "R@1": 100 * float(hits[:, 0].mean()),
        "mAP": 100 * float(((precision * hits).sum(1) / hits.sum(1)).mean()),
        "TAR": 100 * float((positive > threshold).double().mean()),
        "spread": 100 * float(negative.std()),
    }
