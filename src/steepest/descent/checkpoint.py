"""What a checkpoint holds: the shape of all that a resumed run goes on from."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.checks import refuse

_STATES = ("model", "objective", "method", "optimizer", "random")
_NAMES = (*_STATES, "schedule", "hooks", "epoch", "step", "stop", "sum", "history", "random_at_epoch")


def check_state(state: Any) -> None:
    """Refuse what :meth:`~steepest.descent.Descent.state_dict` cannot have given.

    Raises:
        ValueError: naming the part, what was expected and what came.
    """
    if not isinstance(state, dict):
        refuse("state", "the parts of a run by name", state)
    for name in _NAMES:
        if name not in state:
            refuse("state", f"a part {name!r}", sorted(map(str, state)))
    for name in _STATES:
        _check_names(name, state[name])
    for name in ("schedule", "random_at_epoch"):
        if state[name] is not None:
            _check_names(name, state[name])
    if not isinstance(state["hooks"], list):
        refuse("hooks", "a list", state["hooks"])
    for hook in state["hooks"]:
        _check_names("hooks", hook)
    for name in ("epoch", "step"):
        value = state[name]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            refuse(name, "an integer >= 0", value)
    if not isinstance(state["stop"], bool):
        refuse("stop", "True or False", state["stop"])
    if state["step"] and state["random_at_epoch"] is None:
        refuse("random_at_epoch", "the random state at the start of the epoch under way", None)
    total = state["sum"]
    if total is not None and not (isinstance(total, Tensor) and total.is_floating_point() and total.ndim == 0):
        refuse("sum", "a floating tensor without dimensions, or None", total)
    if not isinstance(state["history"], list) or len(state["history"]) != state["epoch"]:
        refuse("history", f"{state['epoch']} epochs", state["history"])
    for number, line in enumerate(state["history"], 1):
        if not isinstance(line, dict) or line.get("epoch") != number or not isinstance(line.get("loss"), float):
            refuse("history", f"epoch {number} with its loss", line)


def _check_names(name: str, value: object) -> None:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        refuse(name, "values by name", value)
