"""Losses where only a bag's proportion or mean response is known, not each member's."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
