"""Names of a package, and modules of others, that are imported when they are first asked for."""

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


class _Late:
    """A module that is imported when one of its names is first asked for."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


_PUT_OFF: set[str] = set()


def late(name: str) -> Any:
    """The module ``name``, imported at first use: what a command needs at its end should not hold up its start.

    >>> late("statistics").mean([1, 3])
    2
    """
    _PUT_OFF.add(name)
    return _Late(name)


def import_late() -> None:
    """Import every module that :func:`late` has put off, for who measures what comes after."""
    for name in sorted(_PUT_OFF):
        importlib.import_module(name)
