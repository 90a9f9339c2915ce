"""Images of a comparison: from files and folders to pixels, a target and what was decided."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....core.lazy import lazily

if TYPE_CHECKING:
    from .image_set import Images, load_images
    from .scaler import ImageScaler
    from .source import is_image_source

_HOMES = {"ImageScaler": "scaler", "Images": "image_set", "is_image_source": "source", "load_images": "image_set"}
__all__ = ["ImageScaler", "Images", "is_image_source", "load_images"]

__getattr__, __dir__ = lazily(__name__, _HOMES)
