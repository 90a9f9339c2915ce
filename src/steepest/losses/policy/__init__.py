"""Losses of policies: of log-probabilities of whole answers and their tokens, from preferences, rewards and values."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
