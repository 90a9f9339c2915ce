"""Representations: what the features of a layer look like, how that changes in training, and between networks."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
