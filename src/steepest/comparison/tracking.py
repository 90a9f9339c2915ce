"""One hook that is told how a comparison goes: MLflow, TensorBoard, or any function of the user's.

Events are ``"begin"``: id, data, metric, settings; ``"cell"``: name, repeat, fold, number (of the fold, from 0), level,
metric, score (None where it has none), seconds; ``"end"``: results, as in ``results.json``, and the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core.tracking import Hook, tracker_of
from .design.context import Context
from .design.deadline import Deadline
from .design.jobs import Job
from .design.levels import Level
from .errors import InputError
from .own_parts import imported
from .work.cells import CellResult
from .work.store import Store
from .work.watcher import Watcher


def hook_of(word: Any) -> Hook | None:
    """The hook that a call names: ``mlflow``, ``tensorboard``, each with ``:PLACE`` or not, a function, or its name.

    Args:
        word: ``mlflow[:URI]``, ``tensorboard[:FOLDER]``, ``module:function``, a callable, or None.

    Raises:
        InputError: it is none of these, or its package is not installed.
    """
    if word is None:
        return None
    if callable(word):
        given: Hook = word
        return given
    tracker = tracker_of(str(word))
    if tracker is not None:
        return tracker
    if ":" in str(word):
        function: Hook = imported("--track", str(word), trust=True)  # the present call names it
        return function
    raise InputError(f"--track: expected mlflow, tensorboard or module:function, got {word!r:.80}")


class Tracked:
    """A watcher that tells a hook too. A hook that fails is told no more, and the comparison goes on.

    Args:
        watcher: that is told everything.
        hook: see :data:`Hook`.
        warn: told, in one line, that the hook has failed.
    """

    def __init__(self, watcher: Watcher, hook: Hook, warn: Callable[[str], None]) -> None:
        self.watcher, self.warn = watcher, warn
        self.hook: Hook | None = hook
        self._numbers: dict[tuple[int, int], int] = {}
        self._metric = ""

    def tell(self, event: str, facts: Mapping[str, Any]) -> None:
        """Tell the hook."""
        if self.hook is None:
            return
        try:
            self.hook(event, facts)
        except Exception as error:
            self.hook = None
            self.warn(
                f"warning: tracking failed and has ended: {' '.join(f'{type(error).__name__}: {error}'.split())[:300]}"
            )

    def start(self, context: Context, store: Store, deadline: Deadline, workers: int) -> None:
        """A run computes from here on."""
        self.begin(context, store.folder.name)
        self.watcher.start(context, store, deadline, workers)

    def begin(self, context: Context, run: str) -> None:
        """Tell what is compared, once."""
        if self._metric:
            return
        self._numbers = {pair: number for number, pair in enumerate(context.folds)}
        self._metric = context.metric.name
        facts = {"id": run, "data": context.table.name, "metric": self._metric, "settings": context.settings.to_json()}
        self.tell("begin", facts)

    def level(self, context: Context, level: Level, objectives: Sequence[str], deadline: Deadline) -> None:
        """What is computed now."""
        self.watcher.level(context, level, objectives, deadline)

    def finished(self, job: Job, results: Sequence[CellResult]) -> None:
        """A job's cells are stored."""
        self.watcher.finished(job, results)
        for cell in results:
            facts = {"name": cell.name, "repeat": cell.repeat, "fold": cell.fold, "level": cell.level}
            facts |= {"number": self._numbers[cell.repeat, cell.fold], "metric": self._metric}
            self.tell("cell", {**facts, "score": cell.values["score"], "seconds": cell.took})

    def stop(self) -> None:
        """Nothing more is computed."""
        self.watcher.stop()
