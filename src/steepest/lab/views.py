"""What experiments on views of images share: random views, an encoder with a projection, training, a linear probe."""

from __future__ import annotations

import math

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from ..core.pair_loss import PairLoss
from .classify import small_cnn


def random_view(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flat square images ``[B, side ** 2]``, each turned by up to 20 degrees, scaled, moved, with another contrast.

    >>> random_view(torch.ones(2, 196), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 196])
    """
    rows, side = len(images), math.isqrt(images.shape[1])
    draws = torch.rand(5, rows, generator=generator, dtype=torch.float64).to(images.dtype) * 2 - 1
    angle, size = draws[0] * math.radians(20), 1 + 0.2 * draws[1]
    cosine, sine = angle.cos() / size, angle.sin() / size
    turn = torch.stack(
        [torch.stack([cosine, -sine, 0.25 * draws[2]], 1), torch.stack([sine, cosine, 0.25 * draws[3]], 1)], 1
    )
    grid = nn.functional.affine_grid(turn, [rows, 1, side, side], align_corners=False)
    moved = nn.functional.grid_sample(images.reshape(rows, 1, side, side), grid, align_corners=False)
    return moved.flatten(1) * (1 + 0.4 * draws[4]).unsqueeze(1)


def encoder(pixels: int, seed: int, dtype: torch.dtype, width: int = 32, normed: bool = False) -> nn.Sequential:
    """A small convolutional network to 64 features, and a projection of them: ``[B, pixels] -> [B, width]``.

    Batch norm in the projection, where it is asked for, follows both linear layers.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projection = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, width))
        if normed:
            projection = nn.Sequential(projection[0], nn.BatchNorm1d(64), *projection[1:], nn.BatchNorm1d(width))
        return nn.Sequential(small_cnn(pixels), projection).to(dtype)


def train_views(
    x: np.ndarray,
    y: np.ndarray,
    loss: PairLoss,
    *,
    epochs: int,
    lr: float,
    seed: int,
    batch_size: int = 64,
    dtype: torch.dtype = torch.float32,
    normed: bool = False,
) -> nn.Sequential:
    """The encoder, its body first, after training on two views of each image of a batch by Adam.

    Args:
        x, y: images ``[N, pixels]`` and labels ``[N]``, which self-supervised losses do not read.
        loss: a loss of pairs that takes two views.
        epochs, lr, seed, batch_size, dtype: of the training; the last rows of an epoch that fill no batch are left out.
        normed: whether the projection has batch norm, over both views of a batch together; it is left in evaluation.
    """
    network = encoder(x.shape[1], seed, dtype, normed=normed)
    images, labels = torch.as_tensor(x, dtype=dtype), torch.as_tensor(y)
    generator = torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, foreach=True)
    for epoch in range(epochs):
        loss.start_epoch(epoch + 1, epochs)
        for index in torch.randperm(len(x), generator=generator).split(batch_size):
            if len(index) < batch_size:
                continue
            both = random_view(images[index].repeat(2, 1), generator)
            z = network(both).unflatten(0, (2, len(index)))
            value = loss(z, labels[index], **({"index": index} if "index" in loss.needs else {}))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            loss.after_step()
    return network.eval()


@torch.no_grad()
def features(body: nn.Module, x: np.ndarray) -> np.ndarray:
    """What a body makes of images."""
    dtype = next(body.parameters()).dtype
    values: np.ndarray = body(torch.as_tensor(x, dtype=dtype)).double().numpy()
    return values


def linear_probe(body: nn.Module, x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray) -> float:
    """Test accuracy, in per cent, of a logistic regression on frozen features."""
    train, test = features(body, x), features(body, x_test)
    scaler = StandardScaler().fit(train)
    probe = LogisticRegression(C=1.0, max_iter=300).fit(scaler.transform(train), y)
    return 100 * float(probe.score(scaler.transform(test), y_test))
