"""Losses of distributions: optimal transport and the distances that come from it."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
