"""Layers on graphs: what pools neighbours of nodes and of pairs, and features that are passed on before training."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
