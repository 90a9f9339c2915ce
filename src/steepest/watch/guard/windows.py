"""Robust z-scores of positive numbers against a window of what came before, without a look from the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

NORMAL = 1.4826
"""The standard deviation of a normal variable over its median absolute deviation."""


class Windows:
    r"""Several series of positive numbers, the last W accepted logarithms of each.

    .. math:: z = \frac{\log x - \operatorname{median}}{\max(1.4826 \operatorname{MAD}, \text{floor})}

    Numbers that are not finite, not positive or not accepted enter no statistic. Everything is a tensor on the device
    of what is judged: nothing waits.

    Args:
        size: W, the window.
        least: of each series: until so many are in the window, z is NaN, which is above nothing.
        floors: of each series: the least standard deviation of a logarithm.
    """

    def __init__(self, size: int, least: Sequence[int], floors: Sequence[float]) -> None:
        self.size = size
        self.least = torch.tensor(least).unsqueeze(1)
        self.floors = torch.tensor(floors, dtype=torch.float64).unsqueeze(1)
        self.logs = torch.full((len(least), size), torch.nan, dtype=torch.float64)
        self.counts = torch.zeros((len(least), 1), dtype=torch.int64)
        self._places = torch.arange(size)

    def to(self, device: torch.device) -> None:
        """Move to where the numbers are."""
        if self.logs.device != device:
            self.logs, self.counts = self.logs.to(device), self.counts.to(device)
            self._places, self.least, self.floors = (t.to(device) for t in (self._places, self.least, self.floors))

    def scores(self, values: Tensor) -> Tensor:
        """z of a number of each series, ``[series]``; NaN where there is none."""
        logs = values.log().unsqueeze(1)
        middle = self.logs.nanmedian(1, keepdim=True).values
        spread = (self.logs - middle).abs().nanmedian(1, keepdim=True).values.mul(NORMAL)
        scores = (logs - middle) / torch.maximum(spread, self.floors)
        return torch.where(self.counts >= self.least, scores, torch.nan).squeeze(1)

    def add(self, values: Tensor, accepted: Tensor) -> None:
        """Take a number of each series where it is accepted, ``[series]`` or a scalar, and finite and positive."""
        logs = values.log().unsqueeze(1)
        good = logs.isfinite() & accepted.reshape(-1, 1)
        self.logs = torch.where((self._places == self.counts % self.size) & good, logs, self.logs)
        self.counts = self.counts + good

    def state_dict(self) -> dict[str, Any]:
        """Copies on the CPU."""
        return {"logs": self.logs.cpu().clone(), "counts": self.counts.cpu().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from them."""
        self.logs = state["logs"].to(self.logs.device, copy=True)
        self.counts = state["counts"].to(self.counts.device, copy=True)


def spike_score(values: Tensor, *, window: int = 128, sigma: float = 6.0) -> float:
    r"""The share of a run's steps that lie beyond ``sigma`` standard deviations of the ``window`` steps before.

    Steps that are not finite count as beyond and enter no window; those before a full window are not judged.

    Args:
        values: losses or gradient norms, ``[steps]``.
        window: steps >= 2.
        sigma: standard deviations.

    Returns:
        In [0, 1]; NaN where no step has a full window before it.

    Example:
        >>> values = 2 + 0.1 * torch.arange(200.0).sin()
        >>> values[150] = 5.0
        >>> round(spike_score(values), 4)
        0.0139

    Source: SpikeScore of OLMo 2 (2 OLMo 2 Furious, arXiv:2501.00656), with a window of 128 and 6 deviations.
    """
    values = values.detach().double().cpu()
    finite = values.isfinite()
    beyond = torch.zeros_like(finite)
    before = torch.cumsum(finite, 0) - finite.long()
    accepted = values[finite]
    full = before >= window
    if accepted.numel() >= window:
        views = accepted.unfold(0, window, 1)
        middle, spread = views.mean(1), views.std(1)
        places = (before - window).clamp_min(0).clamp_max(len(views) - 1)
        beyond = full & ((values - middle[places]).abs() > sigma * spread[places])
    beyond = beyond | (full & ~finite)
    return int(beyond.sum()) / int(full.sum()) if bool(full.any()) else float("nan")
