"""Distillation losses: a student's outputs against a teacher's, or against its own of an earlier epoch.

They differ in what is taken from the teacher: probabilities, a ranking, features, or answers to further questions.
"""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
