"""Schedules: the learning rate, and for some the momentum, as a function of the step."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
