"""A guard of a training run: it says which steps are not to be taken, and takes a run back to where it was sound."""

from .guard import Guard, GuardStop
from .rules import (
    AdamInstability,
    GhostCap,
    GradientSpike,
    LogitGrowth,
    LossSpike,
    NonFinite,
    ProbeRule,
    Rule,
    SpectralAlignment,
)
from .windows import spike_score

__all__ = [
    "AdamInstability",
    "GhostCap",
    "GradientSpike",
    "Guard",
    "GuardStop",
    "LogitGrowth",
    "LossSpike",
    "NonFinite",
    "ProbeRule",
    "Rule",
    "SpectralAlignment",
    "spike_score",
]
