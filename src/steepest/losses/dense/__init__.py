"""Losses of maps: segmentation, registration, sound events, where every cell has a label."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
