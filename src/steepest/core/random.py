"""Random streams: torch's own, and one that an objective owns: seeded, in ``state_dict``, copied with its owner."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def seed_all(seed: int) -> None:
    """``torch.manual_seed``, which keeps the whole traceback of each call for accelerators that are not there.

    >>> seed_all(3), float(torch.rand(())) == float(torch.rand((), generator=torch.Generator().manual_seed(3)))
    (None, True)
    """
    (torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed)(seed)


class RandomStream(nn.Module):
    """A CPU generator as a module: its state is saved, loaded and deep-copied with the objective.

    Args:
        seed: seed of the stream, or None to take one from torch's default generator.

    >>> a, b = RandomStream(3), RandomStream(3)
    >>> bool((a.normal(4) == b.normal(4)).all())
    True
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.generator = torch.Generator()
        self.generator.manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal draws on the CPU."""
        return torch.randn(shape, generator=self.generator, dtype=dtype)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """One draw from U(low, high)."""
        return low + (high - low) * float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def get_extra_state(self) -> Tensor:
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        self.generator.set_state(state.cpu())

    def __deepcopy__(self, memo: dict[int, Any]) -> RandomStream:
        twin = RandomStream(0)
        twin.generator.set_state(self.generator.get_state())
        memo[id(self)] = twin
        return twin
