"""Gradients that are watched: their spectra, how far those of samples agree, and whose losses a step takes up."""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
