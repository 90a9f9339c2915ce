"""The main job: compare objectives on a user's data, with statistics that hold.

``compare`` does everything; ``Winner`` loads what it saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.lazy import lazily

if TYPE_CHECKING:
    from . import baselines, statistics
    from .api import OverBudget, compare
    from .errors import InputError
    from .finished import Comparison
    from .winner import Winner

_HOMES = {
    "Comparison": "finished",
    "InputError": "errors",
    "OverBudget": "api",
    "Winner": "winner",
    "baselines": "",
    "compare": "api",
    "statistics": "",
}
__all__ = ["Comparison", "InputError", "OverBudget", "Winner", "baselines", "compare", "statistics"]

__getattr__, __dir__ = lazily(__name__, _HOMES)
