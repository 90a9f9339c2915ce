"""What every test starts from: one thread, a known random state."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def _known_start() -> None:
    """One torch thread and seed 0, where torch is in use at all."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
