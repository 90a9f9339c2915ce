"""A comparison in TensorBoard: a curve of the folds' scores for each objective and learner, and the answer as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import InputError

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as error:
    raise InputError(f"tracking: {error}; pip install 'steepest[tensorboard]'") from error


class TensorBoardTracker:
    """A hook for ``steepest.compare(..., track=...)``; each comparison is a folder of its own, named by its ID.

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
        """Write what has happened: ``begin``, ``cell`` or ``end``."""
        if event == "begin":
            self._id = facts["id"]
        elif event == "cell":
            writer = self._writer(facts["name"])
            if facts["score"] is not None:
                writer.add_scalar(f"folds/{facts['metric']}", facts["score"], facts["number"])
            writer.add_scalar("folds/seconds", facts["seconds"], facts["number"])
            writer.flush()
        else:
            self._end(facts["results"])

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
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
