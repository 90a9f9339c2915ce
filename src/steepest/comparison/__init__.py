"""The main job: compare objectives on a user's data, with statistics that hold.

Data pass five stages: ``read``, ``design``, ``work``, ``verdict``, ``report``. Under them lie libraries that
know no stage: ``scores``, ``metrics``, ``statistics``, ``baselines``.

``compare`` does everything; ``Winner`` loads what it saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.lazy import lazily

if TYPE_CHECKING:
    from . import baselines, statistics
    from .api import OverBudget, compare
    from .errors import InputError
    from .report.finished import Comparison
    from .report.winner.winner import Winner

_HOMES = {
    "Comparison": "report.finished",
    "InputError": "errors",
    "OverBudget": "api",
    "Winner": "report.winner.winner",
    "baselines": "",
    "compare": "api",
    "statistics": "",
}
__all__ = ["Comparison", "InputError", "OverBudget", "Winner", "baselines", "compare", "statistics"]

__getattr__, __dir__ = lazily(__name__, _HOMES)
