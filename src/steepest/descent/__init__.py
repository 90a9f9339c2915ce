"""The training loop itself: batches, one loop, hooks, exact resume, and many small models trained as one stack."""

from .batches import ArrayBatches, Batches, LoaderBatches
from .hooks import Checkpoint, EarlyStopping, drop
from .loop import Descent, Hook
from .stack import Stack, StackedBatches, StackedObjective, architecture, stackable
from .stacked_adamw import StackedAdamW
from .stacked_step import StackedStep

__all__ = [
    "ArrayBatches",
    "Batches",
    "Checkpoint",
    "Descent",
    "EarlyStopping",
    "Hook",
    "LoaderBatches",
    "Stack",
    "StackedAdamW",
    "StackedBatches",
    "StackedObjective",
    "StackedStep",
    "architecture",
    "drop",
    "stackable",
]
