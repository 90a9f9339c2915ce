"""What every source of images becomes first: pixels and labels of one or two parts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np


@dataclass
class RawPart:
    """Pixels ``[N, H, W, C]`` uint8 and labels ``[N]`` of text (objects)."""

    pixels: np.ndarray
    labels: np.ndarray


@dataclass
class RawImages:
    """Images as read.

    Args:
        name: of the source.
        train: the images, or the training part of them.
        test: the source's own test part, or None.
        sha256: of the bytes read.
        label: what the source calls its labels, for messages.
        decisions, warnings: a line each.
    """

    name: str
    train: RawPart
    test: RawPart | None
    sha256: str
    label: str = "the labels"
    decisions: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def size_of(shape: tuple[int, ...]) -> str:
    """A shape as a line shows it.

    >>> size_of((32, 32, 3))
    '32 x 32 x 3'
    """
    return " x ".join(map(str, shape))


def copies(pixels: np.ndarray, others: np.ndarray | None = None) -> int:
    """How many images equal an earlier one, or one of ``others`` if these are given."""
    known = set() if others is None else {_digest(image) for image in others}
    repeated = 0
    for image in pixels:
        digest = _digest(image)
        repeated += digest in known
        if others is None:
            known.add(digest)
    return repeated


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
