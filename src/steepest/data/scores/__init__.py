"""What each training sample is worth or costs: scores of samples, and samplers that prune by them."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
