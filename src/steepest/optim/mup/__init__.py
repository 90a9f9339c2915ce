"""Widths: how initial weights, multipliers and rates must grow or shrink with it so that networks learn alike."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
