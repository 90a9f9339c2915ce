"""Who looks on while a run computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..design.context import Context
from ..design.deadline import Deadline
from ..design.jobs import Job
from ..design.levels import Level
from .cells import CellResult
from .store import Store


class Watcher(Protocol):
    """Who looks on while a run computes."""

    def start(self, context: Context, store: Store, deadline: Deadline, workers: int) -> None:
        """A run computes from here on: ``context`` is the whole design."""

    def level(self, context: Context, level: Level, objectives: Sequence[str], deadline: Deadline) -> None:
        """What is computed now: ``context`` at this level, these objectives of it, until the deadline."""

    def finished(self, job: Job, results: Sequence[CellResult]) -> None:
        """A job's cells are stored."""

    def stop(self) -> None:
        """Nothing more is computed."""
