"""What a model says of rows, in numbers: outcomes, scores of them, thresholds, temperatures, calibration.

A library of every stage; it knows none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.lazy import lazily

if TYPE_CHECKING:
    from .functions import ece as ece
    from .operating_point import apply_temperature, fit_temperature, reliability_bins, tune_threshold
    from .outcome import Outcome

_HOMES = {
    "Outcome": "outcome",
    "apply_temperature": "operating_point",
    "ece": "functions",
    "fit_temperature": "operating_point",
    "reliability_bins": "operating_point",
    "tune_threshold": "operating_point",
}
__all__ = ["Outcome", "apply_temperature", "fit_temperature", "reliability_bins", "tune_threshold"]

__getattr__, __dir__ = lazily(__name__, _HOMES)
