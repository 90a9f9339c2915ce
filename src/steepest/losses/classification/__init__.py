"""Classification losses: outputs of a head in, class indices or soft labels as target.

They differ in what they do with a confident mistake, a rare class and an easy example; each says which of its outputs
read as probabilities, if any do.
"""

from __future__ import annotations

from ...catalogue import lazy_room

__getattr__, __dir__ = lazy_room(__name__)
