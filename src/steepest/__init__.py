"""What a network should minimise, and how it gets down there safely.

A training run draws a batch, scores it with an objective, forms gradients, takes a step, and somebody watches. Each
room of this package holds published methods for one of these, behind one contract: ``steepest.losses``,
``steepest.gradients``, ``steepest.optim``, ``steepest.data``, ``steepest.watch``. ``steepest.compare`` says which
objective to use on your data, and how sure that is.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

__version__ = importlib.metadata.version("steepest")

_FUNCTIONS = {"compare": "comparison", "checks": "core.checks"}
_ROOMS = ("catalogue", "descent", "watch")


def __getattr__(name: str) -> Any:
    try:
        if name in _FUNCTIONS:
            return getattr(importlib.import_module(f"{__name__}.{_FUNCTIONS[name]}"), name)
        if name in _ROOMS:
            return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        # An absent room is an absent attribute; an absent dependency of a room is the reader's to install.
        if not (error.name or "").startswith(__name__):
            raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_FUNCTIONS, *_ROOMS})
