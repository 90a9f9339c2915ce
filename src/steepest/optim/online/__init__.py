"""Online learning: a decision each round, its loss afterwards; convex losses, bandits, decision processes."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
