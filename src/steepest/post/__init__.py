"""After training: calibration, out-of-distribution detection and what else works on a finished network."""

from __future__ import annotations

from ..catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
