"""Images of a comparison: from files and folders to pixels, a target and what was decided."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .image_set import Images, load_images
    from .scaler import ImageScaler
    from .source import is_image_source

_HOMES = {"ImageScaler": "scaler", "Images": "image_set", "is_image_source": "source", "load_images": "image_set"}
__all__ = ["ImageScaler", "Images", "is_image_source", "load_images"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*(name for name in globals() if name.startswith("__")), *__all__])
