"""Bilevel optimisation: an upper loss of the minimum of a lower one, and the gradient through that minimum."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
