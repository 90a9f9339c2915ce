"""The main job: compare objectives on a user's data, with statistics that hold.

``compare`` does everything; ``Winner`` loads what it saved.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import baselines, statistics
    from .api import OverBudget, compare
    from .errors import InputError
    from .finished import Comparison
    from .winner import Winner

_HOMES = {"Comparison": "finished", "OverBudget": "api", "compare": "api", "InputError": "errors", "Winner": "winner"}
_ROOMS = ("baselines", "statistics")
__all__ = ["Comparison", "InputError", "OverBudget", "Winner", "baselines", "compare", "statistics"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*(name for name in globals() if name.startswith("__")), *__all__])
