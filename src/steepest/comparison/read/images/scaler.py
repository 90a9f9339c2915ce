"""From pixels to what a network takes, standardised by a training part only."""

from __future__ import annotations

from typing import Any, Self

import numpy as np

from ....core.stored import Listed, Number, Record, refuse_stored
from ...errors import InputError
from .raw import size_of

_CHUNK = 4096
STORED = Record({"mean": Listed(Number(), least=1), "std": Listed(Number(positive=True), least=1)})
"""What :meth:`ImageScaler.to_json` gives."""


class ImageScaler:
    """``(pixel / 255 - mean) / std``, a mean and a standard deviation a channel, learnt on a training part.

    A channel without any variation gets a standard deviation of 1.

    >>> pixels = np.array([0, 255], dtype=np.uint8).reshape(2, 1, 1, 1)
    >>> ImageScaler().fit(pixels).transform(pixels).ravel().tolist()
    [-1.0, 1.0]
    """

    def __init__(self) -> None:
        self.mean = np.zeros(0)
        self.std = np.ones(0)

    def fit(self, pixels: np.ndarray) -> Self:
        """Learn from ``pixels`` uint8 ``[N, H, W, C]``, at least one image."""
        self._check(pixels)
        if not pixels.size:
            raise InputError(f"expected at least one image to fit on, got shape {size_of(pixels.shape)}")
        # Counts of the 256 values are exact, and need no float copy of the images
        values = np.arange(256) / 255
        counts = np.stack([np.bincount(pixels[..., c].ravel(), minlength=256) for c in range(pixels.shape[3])])
        weights = counts / counts.sum(axis=1, keepdims=True)
        self.mean = weights @ values
        self.std = np.sqrt((weights * (values - self.mean[:, None]) ** 2).sum(axis=1))
        self.std[(counts > 0).sum(axis=1) == 1] = 1.0
        return self

    def transform(self, pixels: np.ndarray) -> np.ndarray:
        """``pixels`` uint8 ``[N, H, W, C]`` as float32 ``[N, C, H, W]``.

        Raises:
            InputError: for another number of channels than was fitted.
        """
        self._check(pixels)
        if pixels.shape[3] != len(self.mean):
            raise InputError(f"expected images with {len(self.mean)} channels, got {pixels.shape[3]}")
        count, height, width, channels = pixels.shape
        # A table of the 256 values a channel: looked up, not computed
        table = ((np.arange(256) / 255 - self.mean[:, None]) / self.std[:, None]).astype(np.float32)
        out = np.empty((count, channels, height, width), dtype=np.float32)
        for start in range(0, count, _CHUNK):
            for c in range(channels):
                out[start : start + _CHUNK, c] = table[c][pixels[start : start + _CHUNK, :, :, c]]
        return out

    def to_json(self) -> dict[str, Any]:
        """All that was learnt, for ``json.dumps``."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_json(cls, state: dict[str, Any], where: str = "preprocessing") -> Self:
        """What ``to_json`` gave, made whole again.

        Args:
            state: from a file: nothing of it is taken unchecked.
            where: it stood, for errors.

        Raises:
            InputError: it is not what ``to_json`` gives.
        """
        STORED.check(state, where)
        if len(state["mean"]) != len(state["std"]):
            refuse_stored(where, "a mean and a standard deviation a channel", state)
        new = cls()
        new.mean, new.std = (np.array(state[key], dtype=np.float64) for key in ("mean", "std"))
        return new

    @staticmethod
    def _check(pixels: np.ndarray) -> None:
        if pixels.ndim != 4 or pixels.dtype != np.uint8:
            raise InputError(f"expected pixels uint8 N x H x W x C, got {pixels.dtype} {size_of(pixels.shape)}")
