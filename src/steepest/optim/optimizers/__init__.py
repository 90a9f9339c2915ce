"""Optimizers, and wrappers that change the gradient an optimizer sees."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
