"""Losses of policies: gradients of rewards of sampled answers, and preferences between answers.

They take log-probabilities of tokens or of whole answers, under the policy and under what it is compared with.
"""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
