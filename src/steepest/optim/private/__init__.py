"""Optimization under differential privacy: what is released about a user's rows is bounded."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
