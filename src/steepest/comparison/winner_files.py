"""The tensors of a saved winner: written with a hash, read back only where they are what the network needs."""

from __future__ import annotations

import hashlib
import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from ..core.objective import Objective
from ..nn.networks import Network
from .bounded import Bounded
from .errors import InputError
from .metrics import Outcome
from .models import build
from .winner_facts import FILE, WinnerFacts

TENSORS = "winner.safetensors"
OBJECTIVE = "objective."
"""Before the names of the objective's own tensors, beside the network's."""
SMALL = 1_000_000
"""Elements that any tensor may have while a winner is built; more only if its file holds as many."""


def winner_folder(folder: str | Path) -> Path:
    """The folder of a winner: itself, or ``winner`` in the folder of a run.

    Raises:
        InputError: neither holds a winner.
    """
    for place in (Path(folder), Path(folder) / "winner"):
        if (place / FILE).is_file():
            return place
    raise InputError(f"no saved winner in {str(folder)!r}: expected {FILE} there, or in its folder 'winner'")


def write_tensors(folder: Path, state: dict[str, Tensor]) -> str:
    """Write the tensors in one step and give the hash of their file."""
    data = save({name: tensor.detach().clone().contiguous() for name, tensor in state.items()})
    part = folder / f".{TENSORS}.part"
    part.write_bytes(data)
    os.replace(part, folder / TENSORS)
    return hashlib.sha256(data).hexdigest()


def read_tensors(folder: Path, digest: str) -> dict[str, Tensor]:
    """The tensors that were written with this hash.

    Raises:
        InputError: they are not there, are others, or are not whole.
    """
    try:
        data = (folder / TENSORS).read_bytes()
    except OSError as error:
        raise InputError(f"no saved winner in {str(folder)!r}: cannot read {TENSORS}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise InputError(f"the saved winner in {str(folder)!r} is not whole: {TENSORS} is not the file of its {FILE}")
    try:
        return load(data)
    except Exception as error:  # safetensors has several
        raise InputError(f"the saved winner in {str(folder)!r} is not whole: {TENSORS}: {said_by(error)}") from error


def built(told: WinnerFacts, state: dict[str, Tensor]) -> tuple[Network, Objective]:
    """The network and objective that the facts describe, with these tensors.

    What is built in is built within the memory that the tensors themselves take: a number in a file buys nothing.

    Raises:
        InputError: the tensors are not those of this network and objective, or not finite.
    """
    largest = max((tensor.numel() for tensor in state.values()), default=0)
    with torch.random.fork_rng(devices=[]), nullcontext() if told.own else Bounded(max(SMALL, largest)):
        objective: Objective = told.objective.from_task(told.info, **told.values["hyper"])
        network = build(told.backbone, told.values["width"], objective, told.info, backbone_seed=0, head_seed=0)
    own = {OBJECTIVE + name: tensor for name, tensor in objective.state_dict().items()}
    expected = {**network.state_dict(), **own}
    for name in (*expected, *state):
        if name not in state or name not in expected:
            raise InputError(f"{TENSORS} {'has an unknown' if name in state else 'lacks the'} tensor {name[:80]!r}")
    for name, tensor in expected.items():
        if _kind(state[name]) != _kind(tensor):
            raise InputError(f"{TENSORS}: {name!r} is {_kind(state[name])}, expected {_kind(tensor)}")
        if name not in own and tensor.is_floating_point() and not bool(torch.isfinite(state[name]).all()):
            raise InputError(f"{TENSORS}: {name!r} holds values that are not finite: its training diverged")
    network.load_state_dict({name: tensor for name, tensor in state.items() if name not in own})
    objective.load_state_dict({name.removeprefix(OBJECTIVE): state[name] for name in own})
    return network, objective


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def check_array(name: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse predictions of another shape, or that are not finite."""
    if values.shape != shape or not np.isfinite(values).all():
        raise InputError(f"{name}: expected finite numbers of shape {shape}, got {values.shape}")


def refuse_infinite(outcome: Outcome) -> None:
    """Refuse the first row for which the network gives no finite number.

    >>> refuse_infinite(Outcome(np.array([1.0, np.inf])))
    Traceback (most recent call last):
    steepest.core.errors.InputError: row 2: the network gives no finite number; its inputs lie too far ...
    """
    parts = [p for p in (outcome.predicted, outcome.probabilities, outcome.decision) if p is not None]
    finite = np.stack([np.isfinite(part).reshape(len(part), -1).all(1) for part in parts]).all(0)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0]) + 1
        raise InputError(
            f"row {row}: the network gives no finite number; its inputs lie too far from the training rows"
        )


def said_by(error: Exception) -> str:
    """What an error says, in at most 300 signs and with its kind where it is not ours."""
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    text = kind + str(error)
    return text if len(text) <= 300 else text[:297] + "..."
