"""Unlearning: losses and procedures that take what was learned out of a model again, and leave the rest in it.

They differ in what is to go: the influence of some samples, answers, or a whole task.
"""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
