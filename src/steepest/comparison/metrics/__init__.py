"""The metrics that select, compare and describe models: of one target, of label sets, of mixes of targets.

A library of every stage; it knows none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...core.lazy import lazily

if TYPE_CHECKING:
    from ..scores.outcome import Outcome
    from .metric import Metric
    from .several import MULTILABEL, multitask_metrics
    from .tables import (
        BINARY,
        METRICS,
        MULTICLASS,
        REGRESSION,
        confusion,
        default_metric,
        evaluate,
        find_metric,
        per_class_recall,
    )

_HOMES = {
    "BINARY": "tables",
    "METRICS": "tables",
    "MULTICLASS": "tables",
    "MULTILABEL": "several",
    "Metric": "metric",
    "Outcome": "metric",
    "REGRESSION": "tables",
    "confusion": "tables",
    "default_metric": "tables",
    "evaluate": "tables",
    "find_metric": "tables",
    "multitask_metrics": "several",
    "per_class_recall": "tables",
}
__all__ = [
    "BINARY",
    "METRICS",
    "MULTICLASS",
    "MULTILABEL",
    "Metric",
    "Outcome",
    "REGRESSION",
    "confusion",
    "default_metric",
    "evaluate",
    "find_metric",
    "multitask_metrics",
    "per_class_recall",
]

__getattr__, __dir__ = lazily(__name__, _HOMES)
