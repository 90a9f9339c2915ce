"""Steps: optimizers, sharpness-aware wrappers, schedules and controllers of the learning rate, a package for each kind.

Every optimizer takes ``step(closure)``; wrappers take the class of the optimizer they drive.
"""

from __future__ import annotations

from ..catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
