"""What a user of the comparison did wrong, in one line."""

from __future__ import annotations

from ..core.errors import InputError, nearest

__all__ = ["InputError", "nearest"]
