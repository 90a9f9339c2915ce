"""What runs beside the loop: early stopping by a metric, checkpoints, anything a user hangs on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.checks import check_number, refuse
from ..core.objective import Batch
from .loop import Descent, Hook


def drop(descent: Descent, going: Sequence[bool]) -> None:
    """Take the models that are done out of a stack: its data, parameters, objectives and averages."""
    for of_models in (descent.batches, descent.model, descent.objective, descent.optimizer):
        of_models.keep(going)  # type: ignore[union-attr, operator]


class Checkpoint(Hook):
    """Save the run to ``path``, atomically, every ``every`` steps and at the end of each epoch.

    Args:
        path: the file, given to :meth:`Descent.resume` later.
        every: steps between saves; None saves at epoch ends only.
        seconds: least time between two saves at epoch ends.
    """

    saves = True

    def __init__(self, path: str | Path, *, every: int | None = None, seconds: float = 0.0) -> None:
        if every is not None:
            check_number("every", every, low=1, integer=True)
        self.path, self.every, self.seconds = Path(path), every, seconds
        self._last = -math.inf
        self._steps = 0

    def on_step(self, descent: Descent, batch: Batch, loss: Tensor) -> None:
        self._steps += 1
        if self.every is not None and self._steps % self.every == 0:
            descent.save(self.path)

    def on_epoch_end(self, descent: Descent) -> None:
        now = time.monotonic()
        if now - self._last >= self.seconds:
            descent.save(self.path)
            self._last = now

    def on_end(self, descent: Descent) -> None:
        descent.save(self.path)


class EarlyStopping(Hook):
    """Stop when a metric has not improved for ``patience`` epochs. In a stack each model stops by itself.

    Args:
        evaluate: ``evaluate(descent)`` gives the metric, or one value for each model still in the stack.
        patience: epochs without improvement, >= 1; None never stops.
        greater_is_better: direction of the metric; NaN counts as worst.
        keep_best: keep the best epoch's state of the model and load it at the end (not for stacks).
        improved: called with a model's number, right after the epoch that improved it.

    After ``fit``: ``best`` and ``best_epoch``, lists with one entry for each model the run began with, and
    ``curves``, each model's metric by epoch.
    """

    def __init__(
        self,
        evaluate: Callable[[Descent], float | Sequence[float]],
        *,
        patience: int | None = 10,
        greater_is_better: bool = True,
        keep_best: bool = False,
        improved: Callable[[int], None] | None = None,
    ) -> None:
        if patience is not None:
            check_number("patience", patience, low=1, integer=True)
        self.evaluate, self.patience = evaluate, patience
        self.sign = 1.0 if greater_is_better else -1.0
        self.keep_best, self.improved = keep_best, improved
        self.alive: list[int] = []
        self.best: list[float] = []
        self.best_epoch: list[int] = []
        self.curves: list[list[float]] = []
        self._state: dict[str, Tensor] | None = None

    def on_epoch_end(self, descent: Descent) -> None:
        values: list[float] = torch.as_tensor(self.evaluate(descent), dtype=torch.float64).reshape(-1).tolist()
        if not self.best:
            self.alive = list(range(len(values)))
            self.best = [-math.inf * self.sign] * len(values)
            self.best_epoch = [0] * len(values)
            self.curves = [[] for _ in values]
        if len(values) != len(self.alive):
            refuse("evaluate", f"{len(self.alive)} values, one for each model still there", values)
        if self.keep_best and len(self.best) > 1:
            refuse("keep_best", "False for a stack; 'improved' can keep a model's best", True)
        for model, value in zip(self.alive, values):
            self.curves[model].append(value)
            if self.best_epoch[model] == 0 or self.sign * value > self.sign * self.best[model]:
                self.best[model] = value if not math.isnan(value) else -math.inf * self.sign
                self.best_epoch[model] = descent.epoch
                if self.improved is not None:
                    self.improved(model)
                if self.keep_best:
                    self._state = {k: v.detach().clone() for k, v in descent.model.state_dict().items()}
        if self.patience is None:
            return
        going = [descent.epoch - self.best_epoch[model] < self.patience for model in self.alive]
        if not any(going):
            descent.stop = True
        elif not all(going):
            drop(descent, going)
            self.alive = [model for model, on in zip(self.alive, going) if on]

    def on_end(self, descent: Descent) -> None:
        if self.keep_best and self._state is not None:
            descent.model.load_state_dict(self._state)

    def state_dict(self) -> dict[str, Any]:
        return {
            "alive": self.alive,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "curves": self.curves,
            "state": self._state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.alive, self.best, self.best_epoch = list(state["alive"]), list(state["best"]), list(state["best_epoch"])
        self.curves = [list(curve) for curve in state["curves"]]
        self._state = state["state"]
