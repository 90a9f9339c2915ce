"""Losses of language models: what a next token, or a whole answer, is trained for beside its likelihood.

Labels are aligned with the outputs. Each takes logits, or hidden states and a head whose logits are never formed as a
whole.
"""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
