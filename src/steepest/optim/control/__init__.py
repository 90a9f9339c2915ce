"""Controllers of the update: what an optimizer proposes is measured, and made smaller where it leads too far."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
