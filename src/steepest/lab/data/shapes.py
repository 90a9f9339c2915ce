"""A segmentation task whose labels have topology: networks and rings, drawn on photographs, with gaps and noise."""

from __future__ import annotations

from functools import cache

import numpy as np

KINDS = ("network", "rings")
PARTS = ("train", "test")


def shapes(
    count: int, seed: int, *, part: str = "train", kinds: tuple[str, ...] = KINDS, size: int = 48
) -> tuple[np.ndarray, np.ndarray]:
    """Grey images and the masks of what is drawn on them; the kinds take turns.

    A network is the edges between the cells of random points, like roads or cell walls; rings are two to four ellipses.
    Lines are 2 to 3.5 pixels wide. The background is a piece of a photograph (one of the two that scikit-learn carries;
    training images take theirs from the left two thirds, test images from the rest). What is drawn is brighter than it
    by a random amount, fades out at four to eight places on the lines, where only their continuation tells, and noise
    is added everywhere. The mask has no gaps.

    Args:
        count: of images.
        seed: same seed, same images.
        part: ``"train"`` or ``"test"``.
        kinds: of ``"network"`` and ``"rings"``.
        size: height and width, >= 24.

    Returns:
        ``(images, masks)``, float32 ``[count, 1, size, size]``: each image standardised, masks in {0, 1}.

    Raises:
        ValueError: an unknown part or kind, a size below 24.

    >>> images, masks = shapes(4, seed=0)
    >>> images.shape, bool(0.05 < masks.mean() < 0.5)
    ((4, 1, 48, 48), True)
    """
    if part not in PARTS:
        raise ValueError(f"part: expected one of {', '.join(PARTS)}, got {part!r}")
    if not kinds or set(kinds) - set(KINDS):
        raise ValueError(f"kinds: expected some of {', '.join(KINDS)}, got {kinds!r}")
    if size < 24:
        raise ValueError(f"size: expected at least 24, got {size}")
    rng = np.random.default_rng([seed, PARTS.index(part), 37])
    images, masks = np.zeros((2, count, 1, size, size), dtype=np.float32)
    for number in range(count):
        mask = (_network if kinds[number % len(kinds)] == "network" else _rings)(rng, size)
        masks[number, 0] = mask
        image = 0.6 * _background(rng, part, size) + rng.uniform(0.25, 0.45) * mask * _fading(rng, mask)
        image += 0.1 * rng.standard_normal((size, size))
        images[number, 0] = (image - image.mean()) / image.std()
    return images, masks


def _network(rng: np.random.Generator, size: int) -> np.ndarray:
    """Where the distance to the line between the two nearest points is small."""
    points = size * rng.uniform(-0.15, 1.15, (int(rng.integers(8, 14)), 2))
    pixels = np.stack(np.mgrid[:size, :size], -1)[:, :, None]
    squares = ((pixels - points) ** 2).sum(-1)
    first, second = np.moveaxis(np.argsort(squares, -1)[..., :2], -1, 0)
    near, next_ = np.moveaxis(np.sort(squares, -1)[..., :2], -1, 0)
    apart = np.linalg.norm(points[first] - points[second], axis=-1)
    network: np.ndarray = (next_ - near) / (2 * apart) < rng.uniform(1, 1.75)
    return network


def _rings(rng: np.random.Generator, size: int) -> np.ndarray:
    """Ellipses that may cross."""
    rings = np.zeros((size, size), dtype=bool)
    rows, columns = np.mgrid[:size, :size]
    for _ in range(int(rng.integers(2, 5))):
        row, column = rng.uniform(0.2 * size, 0.8 * size, 2)
        radius, stretch, width = rng.uniform(5, 11), rng.uniform(0.75, 1.33), rng.uniform(1, 1.75)
        distance = np.hypot((rows - row) * stretch, columns - column)
        rings |= np.abs(distance - radius) < width
    return rings


def _fading(rng: np.random.Generator, mask: np.ndarray) -> np.ndarray:
    """How much of the lines is seen, in [0, 1]: nearly nothing around a few of their pixels."""
    seen = np.ones(mask.shape)
    rows, columns = np.mgrid[: len(mask), : len(mask)]
    drawn = np.argwhere(mask)
    for row, column in drawn[rng.integers(len(drawn), size=int(rng.integers(4, 9)))] if len(drawn) else ():
        radius = rng.uniform(1.5, 3)
        seen *= 1 - 0.95 * np.exp(-((((rows - row) ** 2 + (columns - column) ** 2) / (2 * radius**2)) ** 2))
    return seen


@cache
def _photographs() -> tuple[np.ndarray, ...]:
    """Grey, in [0, 1]."""
    from sklearn.datasets import load_sample_images

    return tuple(image.mean(-1) / 255 for image in load_sample_images().images)


def _background(rng: np.random.Generator, split: str, size: int) -> np.ndarray:
    """A piece of a photograph at a scale of 1 to 3 pixels a pixel."""
    photograph = _photographs()[int(rng.integers(2))]
    border = 2 * photograph.shape[1] // 3
    own = photograph[:, :border] if split == "train" else photograph[:, border:]
    step = int(rng.integers(1, 4))
    step = max(1, min(step, own.shape[0] // size, own.shape[1] // size))
    row, column = (int(rng.integers(extent - step * size + 1)) for extent in own.shape)
    piece = own[row : row + step * size, column : column + step * size]
    background: np.ndarray = piece.reshape(size, step, size, step).mean((1, 3))
    return background
