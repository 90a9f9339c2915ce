"""Losses of value functions: one value a transition, and what it is learnt from."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
