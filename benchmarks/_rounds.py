"""Rounds that take turns, so that all that is compared sees the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

Key = TypeVar("Key")


def measure(steps: Mapping[Key, Callable[[], object]], rounds: int, device: str) -> dict[Key, list[float]]:
    """Milliseconds of each, round by round; the first two rounds warm up."""
    times: dict[Key, list[float]] = {key: [] for key in steps}
    for number in range(rounds + 2):
        for key, step in steps.items():
            if device != "cpu":
                torch.cuda.synchronize()
            begin = time.perf_counter()
            step()
            if device != "cpu":
                torch.cuda.synchronize()
            if number >= 2:
                times[key].append(1e3 * (time.perf_counter() - begin))
    return times
