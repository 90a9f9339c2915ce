"""The main job: compare objectives on a user's data, with statistics that hold.

Data pass five stages: ``read``, ``design``, ``work``, ``verdict``, ``report``. Under them lie libraries that
know no stage: ``scores``, ``metrics``, ``statistics``, ``baselines``.

``compare`` does everything; ``Winner`` loads what it saved, ``TextWinner`` the language model of a text,
``RetrievalWinner`` a network of embeddings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.lazy import lazily

if TYPE_CHECKING:
    from . import baselines, statistics
    from .api import OverBudget, compare
    from .errors import InputError
    from .report.finished import Comparison
    from .report.winner.retrieval import RetrievalWinner
    from .report.winner.texts import TextWinner
    from .report.winner.winner import Winner

_HOMES = {
    "Comparison": "report.finished",
    "InputError": "errors",
    "OverBudget": "api",
    "RetrievalWinner": "report.winner.retrieval",
    "TextWinner": "report.winner.texts",
    "Winner": "report.winner.winner",
    "baselines": "",
    "compare": "api",
    "statistics": "",
}
__all__ = [
    "Comparison",
    "InputError",
    "OverBudget",
    "RetrievalWinner",
    "TextWinner",
    "Winner",
    "baselines",
    "compare",
    "statistics",
]

__getattr__, __dir__ = lazily(__name__, _HOMES)
