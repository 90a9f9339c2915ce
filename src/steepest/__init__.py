"""What a network should minimise, and how it gets down there safely.

A training run draws a batch, scores it with an objective, forms gradients, takes a step, and somebody watches. Each
room of this package holds published methods for one of these, behind one contract: ``steepest.losses``,
``steepest.gradients``, ``steepest.optim``, ``steepest.data``, ``steepest.watch``. ``steepest.compare`` says which
objective to use on your data, and how sure that is.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

_FUNCTIONS = {
    "compare": "comparison",
    "checks": "core.checks",
    "Preprocessor": "comparison.read",
    "Winner": "comparison",
}
_ROOMS = tuple(
    room
    for room in (
        "catalogue", "core", "kernels", "nn", "losses", "gradients", "optim", "data", "descent", "post", "continual",
        "federated", "boosting", "scaling", "watch", "comparison", "lab", "integrations", "testing",
    )
    if Path(__file__).with_name(room).is_dir() or Path(__file__).with_name(f"{room}.py").is_file()
)  # fmt: skip
"""The stages and kinds that are there; each is imported when it is first asked for."""
__all__ = [*_FUNCTIONS, *_ROOMS]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # a build imports the catalogue before there is anything installed

        return version(__name__)
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"{__name__}.{_FUNCTIONS[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    near = ""
    if not name.startswith("_"):
        from .catalogue import owners
        from .core.errors import nearest

        system = owners().get(name)
        near = f"; it is in {__name__}.{system.rooms[0]}" if system else nearest(name, __all__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{near}", name=name)


def __dir__() -> list[str]:
    return sorted([*(name for name in globals() if name.startswith("__")), "__version__", *__all__])
