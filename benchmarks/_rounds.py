"""Rounds that take turns, so that all that is compared sees the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch

Key = TypeVar("Key")


def measure(
    steps: Mapping[Key, Callable[[], object]],
    rounds: int,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, list[float]]:
    """Milliseconds of each, round by round; the first two rounds warm up.

    With ``time.process_time`` for a clock, what other programs take does not count: for what runs in one thread.
    """
    times: dict[Key, list[float]] = {key: [] for key in steps}
    for number in range(rounds + 2):
        for key, step in steps.items():
            if device != "cpu":
                torch.cuda.synchronize()
            begin = clock()
            step()
            if device != "cpu":
                torch.cuda.synchronize()
            if number >= 2:
                times[key].append(1e3 * (clock() - begin))
    return times
