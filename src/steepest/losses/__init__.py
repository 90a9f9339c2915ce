"""Objectives and penalties, a package for each family.

Every public name of every family imports from here as well (``from steepest.losses import LDRLoss``) and is loaded when
it is first asked for, so that importing this package costs nothing.
"""

from __future__ import annotations

from ..catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
