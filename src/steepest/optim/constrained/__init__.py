"""Constraints: multipliers that rise where a constraint is broken, and steps that converge with them."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
