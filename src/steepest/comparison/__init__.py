"""The main job: compare objectives on a user's data, with statistics that hold.

``compare`` does everything; ``Winner`` loads what it saved.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Comparison, OverBudget, compare
    from .errors import InputError
    from .winner import Winner

_HOMES = {"Comparison": "api", "OverBudget": "api", "compare": "api", "InputError": "errors", "Winner": "winner"}
__all__ = ["Comparison", "InputError", "OverBudget", "Winner", "compare"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
