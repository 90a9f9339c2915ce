"""What a checkpoint holds: the shape of all that a resumed run goes on from."""

from __future__ import annotations

from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.checks import refuse

_STATES = ("model", "objective", "method", "optimizer")
_NAMES = (*_STATES, "random", "schedule", "hooks", "epoch", "step", "stop", "sum", "history", "random_at_epoch")


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
    if state["schedule"] is not None:
        _check_names("schedule", state["schedule"])
    _check_random("random", state["random"])
    if state["random_at_epoch"] is not None:
        _check_random("random_at_epoch", state["random_at_epoch"])
    if not isinstance(state["hooks"], list):
        refuse("hooks", "a list", state["hooks"])
    for hook in state["hooks"]:
        _check_names("hooks", hook)
    for name in ("epoch", "step", "drawn"):
        value = state.get(name, 0)
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


def check_taken(name: str, own: dict[str, Any], saved: dict[str, Any]) -> None:
    """Refuse where a part does not hold what the file says after loading it: torch converts other types in silence."""
    mine, theirs = ({key: _kind(value) for key, value in state.items()} for state in (own, saved))
    for key in (*mine, *theirs):
        if mine.get(key) != theirs.get(key):
            refuse(f"{name}: {key}", mine.get(key, "no such tensor"), theirs.get(key))


def check_optimizer(own: dict[str, Any], saved: dict[str, Any]) -> None:
    """Refuse a state of other parts or groups than this optimizer's; torch takes any and fails at the next step."""
    if own.keys() != saved.keys():
        refuse("optimizer", "the parts " + ", ".join(own), sorted(saved))
    if own.keys() != {"state", "param_groups"}:
        return  # one that keeps its state in its own way checks it itself
    groups, state = saved["param_groups"], saved["state"]
    if not isinstance(groups, list) or len(groups) != len(own["param_groups"]):
        refuse("optimizer: param_groups", f"{len(own['param_groups'])} groups", groups)
    for mine, group in zip(own["param_groups"], groups):
        _check_names("optimizer: param_groups", group)
        for key, value in mine.items():
            if key in group and not _alike(value, group[key]):
                refuse(f"optimizer: {key}", f"a value like {value!r}", group[key])
        if group.get("params") != mine["params"]:
            refuse("optimizer: params", f"the {len(mine['params'])} parameters of the group", group.get("params"))
    known = {number for group in own["param_groups"] for number in group["params"]}
    if not isinstance(state, dict) or not set(state) <= known:
        refuse("optimizer: state", "a state by parameter", state)
    for of_parameter in state.values():
        _check_names("optimizer: state", of_parameter)
        if any(isinstance(value, (dict, str)) for value in of_parameter.values()):
            refuse("optimizer: state", "tensors and numbers", of_parameter)


def _alike(mine: object, theirs: object) -> bool:
    """Whether two settings of an optimizer are of one kind: None, numbers and tensors stand for each other."""
    if isinstance(mine, (list, tuple)):
        return (
            isinstance(theirs, (list, tuple))
            and len(theirs) == len(mine)
            and all(_alike(one, another) for one, another in zip(mine, theirs))
        )
    flag = (bool, np.bool_)
    if isinstance(mine, flag) or isinstance(theirs, flag):
        return all(value is None or isinstance(value, flag) for value in (mine, theirs))
    number = (Number, Tensor, type(None))  # numbers of numpy among them
    return isinstance(theirs, number) if isinstance(mine, number) else type(mine) is type(theirs)


def _kind(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"


def _check_random(name: str, state: object) -> None:
    """Refuse what ``random_state`` cannot have given; the generators themselves check what is inside their words."""
    _check_names(name, state)
    assert isinstance(state, dict)
    parts = {"cpu", "python", "python_gauss", "numpy", "numpy_rest", "batches"}
    if set(state) - {"cuda"} != parts:
        refuse(name, "the parts " + ", ".join(sorted(parts)), sorted(state))
    for key in ("cpu", "batches", "cuda"):
        states = [state[key]] if key == "cpu" else state.get(key, [])
        if not isinstance(states, list) or not all(isinstance(s, Tensor) and s.dtype == torch.uint8 for s in states):
            refuse(f"{name}: {key}", "states of torch's generators", state[key])
    python, gauss = state["python"], state["python_gauss"]
    if not isinstance(python, list) or not all(type(word) is int for word in python):
        refuse(f"{name}: python", "the words of Python's generator", python)
    if gauss is not None and not isinstance(gauss, float):
        refuse(f"{name}: python_gauss", "a number or None", gauss)
    words, rest = state["numpy"], state["numpy_rest"]
    if not (isinstance(words, Tensor) and words.dtype == torch.int64 and words.shape == (624,)):
        refuse(f"{name}: numpy", "the words of NumPy's generator", words)
    if int(words.min()) < 0 or int(words.max()) >= 2**32:
        refuse(f"{name}: numpy", "words of 32 bits", [int(words.min()), int(words.max())])
    if not isinstance(rest, list) or [type(value) for value in rest] != [int, int, float]:
        refuse(f"{name}: numpy_rest", "two integers and a number", rest)


def _check_names(name: str, value: object) -> None:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        refuse(name, "values by name", value)
