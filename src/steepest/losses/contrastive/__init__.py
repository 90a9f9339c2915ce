"""Losses of pairs of embeddings: what belongs together is drawn close, the rest is pushed apart."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
