"""From several gradients to one: aggregation, surgery, balancing, and a gradient for each class.

:func:`backward` is the line in a training loop; an aggregator takes a Jacobian, a balancer a vector of losses.
"""

from __future__ import annotations

from ..catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
