"""What every test starts from: one thread, a known random state, and this tree in every process that a test starts."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

# Processes inherit it: they import the tree under test from any folder, not what happens to be installed.
_spec = importlib.util.find_spec("steepest")
assert _spec is not None
assert _spec.origin is not None
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(_spec.origin).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
)


@pytest.fixture(autouse=True)
def _known_start() -> None:
    """One torch thread and seed 0, where torch is in use at all."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
