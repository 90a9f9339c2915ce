"""Optimizers that are networks: what they see of each parameter, and how they are trained over many short trainings."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
