"""Stability of training: early signs of a loss that jumps or diverges, and the conditions under which it doesn't."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
