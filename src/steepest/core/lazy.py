"""Names of a package that are imported when they are first asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` for a package whose names live in its modules.

    Args:
        package: its ``__name__``.
        homes: by name the module of the package that defines it; ``""``: the name is a module itself.

    Returns:
        the two functions, to be bound at module level: ``__getattr__, __dir__ = lazily(__name__, homes)``.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{homes[name] or name}")
        return getattr(module, name) if homes[name] else module

    def listing() -> list[str]:
        return sorted([*(name for name in vars(sys.modules[package]) if name.startswith("__")), *homes])

    return get, listing
