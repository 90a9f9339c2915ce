"""Fused operations: the linear cross-entropy family without a logit matrix, softmax, and what fine-tuning repeats.

Each runs on the CPU and, by Triton, on CUDA; losses reach them by a row function, never the other way round.
"""

from __future__ import annotations

from ..catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
