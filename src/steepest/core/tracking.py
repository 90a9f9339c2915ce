"""One hook that is told how a comparison or a run goes: MLflow, TensorBoard, or any function."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

Hook = Callable[[str, Mapping[str, Any]], Any]
"""``hook(event, facts)``; who calls it says which events there are."""


def tracker_of(word: str) -> Hook | None:
    """The hook that a word names: ``mlflow[:URI]`` or ``tensorboard[:FOLDER]``; None of another word.

    Raises:
        InputError: its package is not installed.
    """
    name, _, place = word.partition(":")
    if name == "mlflow":
        tracker: Hook = importlib.import_module("steepest.integrations.mlflow").MLflowTracker(uri=place or None)
        return tracker
    if name == "tensorboard":
        module = importlib.import_module("steepest.integrations.tensorboard")
        writer: Hook = module.TensorBoardTracker(place) if place else module.TensorBoardTracker()
        return writer
    return None
