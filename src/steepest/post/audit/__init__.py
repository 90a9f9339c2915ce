"""What a trained network tells: about its training data, and about how much its task asked for."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
