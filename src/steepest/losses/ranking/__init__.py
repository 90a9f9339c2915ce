"""Losses of rankings: of lists of documents with grades, of pairs, of positives and negatives of a score.

Losses of lists take flat scores, grades and the query of each document; their functions take padded lists and a mask.
"""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
