"""Attribution: which coordinates of an input a network's answer rests on, and whether a map of them tells the truth."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
