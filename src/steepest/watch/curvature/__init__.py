"""Curvature of the loss: its Hessian's spectrum, trace and density, of the whole data or of its classes."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__, {"hessian": "hessian"})
