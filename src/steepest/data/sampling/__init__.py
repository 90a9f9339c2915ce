"""Which samples a batch holds: samplers of batches, and what says how often a sample shall come."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
