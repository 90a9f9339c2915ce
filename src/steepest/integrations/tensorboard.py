"""TensorBoard: of a comparison the folds' scores and the answer, of a run that is watched its losses and readings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import InputError

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise InputError(f"tracking: {error}; pip install 'steepest[tensorboard]'") from error


class TensorBoardTracker:
    """A hook for ``steepest.compare(..., track=...)``; each comparison is a folder of its own, named by its ID.

    A :class:`~steepest.watch.Recorder` takes it as a sink: losses, numbers and arrays of readings, the last as
    histograms where they have one axis.

    Args:
        folder: of all of them.

    Example::

        steepest.compare("wine", track=TensorBoardTracker("logs"))
    """

    def __init__(self, folder: str | Path = "steepest-logs") -> None:
        self.folder = Path(folder)
        self._writers: dict[str, SummaryWriter] = {}
        self._id = ""

    def __call__(self, event: str, facts: Mapping[str, Any]) -> None:
        """Write what has happened in a comparison (``begin``, ``cell``, ``end``) or a run (see ``Recorder``)."""
        if event in ("begin", "run_begin"):
            self._id = facts["id"]
        elif event == "losses":
            for step, value in zip(facts["steps"], facts["values"]):
                self._writer("run").add_scalar("loss", value, step)
        elif event == "reading":
            self._reading(facts)
        elif event == "cell":
            writer = self._writer(facts["name"])
            if facts["score"] is not None:
                writer.add_scalar(f"folds/{facts['metric']}", facts["score"], facts["number"])
            writer.add_scalar("folds/seconds", facts["seconds"], facts["number"])
            writer.flush()
        elif event == "run_end":
            self._close()
        elif event == "end":
            self._end(facts["results"])
        elif "text" in facts:
            self._writer("run").add_text(event, facts["text"], facts.get("step", 0))

    def _reading(self, facts: Mapping[str, Any]) -> None:
        writer, step = self._writer("run"), facts["step"]
        for name, value in facts["numbers"].items():
            writer.add_scalar(f"{facts['probe']}/{name}", value, step)
        for name, array in facts["arrays"].items():
            finite = [v for v in array["values"] if isinstance(v, float) and math.isfinite(v)]
            if finite and len(array["axes"]) == 1:  # of numbers that are none TensorBoard makes no histogram
                writer.add_histogram(f"{facts['probe']}/{name}", np.array(finite), step)
        writer.flush()

    def _writer(self, name: str) -> SummaryWriter:
        if name not in self._writers:
            place = "".join(sign if sign.isalnum() or sign in "_-." else "_" for sign in name)
            self._writers[name] = SummaryWriter(str(self.folder / self._id / place))
        return self._writers[name]

    def _end(self, results: Mapping[str, Any]) -> None:
        for row in results["rows"]:
            for name, interval in row["metrics"].items():
                if interval and interval.get("mean") is not None:
                    self._writer(row["name"]).add_scalar(f"mean/{name}", interval["mean"], 0)
        self._writer("comparison").add_text("sentence", results["sentence"], 0)
        self._close()

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
