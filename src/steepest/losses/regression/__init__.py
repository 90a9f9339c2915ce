"""Regression losses: real predictions in, real targets.

They differ in how a residual is weighed: which statistic of the conditional distribution their minimiser estimates, and
how far a single outlier can move it.
"""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
