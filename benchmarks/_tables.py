"""Tables on which networks and trees stand beside each other, and rows that are kept as they are measured."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from steepest.comparison.read.builtin import BUILTIN

TABLES = (
    "sonar", "ionosphere", "ecoli", "pima", "winequality-red", "abalone", "phoneme", "oil-spill", "compas", "adult",
)  # fmt: skip
FILES = {"adult": "adult-train", "compas": "compas-two-years", "pima": "pima-indians-diabetes"}
TREES = ("forest", "lightgbm", "boosting")


def asked(name: str) -> tuple[str, dict[str, Any]]:
    """The data of a table in the folder that ``$STEEPEST_DATA`` names, or built in, and what they need said."""
    data = name if name in BUILTIN else str(Path(os.environ.get("STEEPEST_DATA", ".")) / f"{FILES.get(name, name)}.csv")
    if name == "compas":
        listed = (files("steepest.comparison") / "examples" / "compas-drop.txt").read_text()
        return data, {"target": "two_year_recid", "drop": tuple(listed.split())}
    if name == "abalone":
        return data, {"task": "regression", "metric": "r2"}
    return data, {}


class Rows(list[dict[str, Any]]):
    """What was measured, a line of JSON each in a file, so that a run of hours goes on where it was ended.

    Args:
        path: of the file; empty keeps none.
    """

    def __init__(self, path: str) -> None:
        self.file = Path(path) if path else None
        lines = self.file.read_text().splitlines() if self.file is not None and self.file.exists() else []
        super().__init__(json.loads(line) for line in lines)

    def has(self, **known: Any) -> bool:
        """Whether a row with these values was measured."""
        return any(known.items() <= {key: row[key] for key in known}.items() for row in self)

    def add(self, row: dict[str, Any]) -> None:
        """Keep one more."""
        self.append(row)
        if self.file is not None:
            with self.file.open("a") as file:
                file.write(json.dumps(row) + "\n")
