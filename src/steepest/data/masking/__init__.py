"""Which patches of an image are hidden from a model that is to reconstruct them."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
