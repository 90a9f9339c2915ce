"""The loss over directions of parameter space, and the regions of input space: how flat, how rough, how fragmented."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
