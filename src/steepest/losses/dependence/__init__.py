"""Losses that measure, raise or remove statistical dependence between variables."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
