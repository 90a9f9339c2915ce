"""Gradients that are changed before they are joined, because they conflict or differ in size."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
