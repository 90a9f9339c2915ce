"""A guard of a training run: it says which steps are not to be taken, and takes a run back to where it was sound."""

from .guard import Guard, GuardStop
from .rules import GhostCap, GradientSpike, LogitGrowth, LossSpike, NonFinite, Rule
from .windows import spike_score

__all__ = [
    "GhostCap",
    "GradientSpike",
    "Guard",
    "GuardStop",
    "LogitGrowth",
    "LossSpike",
    "NonFinite",
    "Rule",
    "spike_score",
]
