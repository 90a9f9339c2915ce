"""Steps towards flat minima: gradients at the worst point nearby, penalties of the gradient's length, trajectories."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
