"""The folder of a saved winner, and its network's tensors: read back only where they are what the network needs."""

from __future__ import annotations

import hashlib
import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from ....core.objective import Objective
from ...design.context import Split
from ...design.models import build
from ...errors import InputError
from ...scores.outcome import Outcome
from ...work.training import outcome_of
from .bounded import Bounded
from .facts import FILE, WinnerFacts

TENSORS = "winner.safetensors"
OBJECTIVE = "objective."
"""Before the names of the objective's own tensors, beside the network's."""
SMALL = 1_000_000
"""Elements that any tensor may have while a winner is built; more only if its file holds as many."""


class FittedNetwork:
    """A trained network with its objective.

    Args:
        network: that takes prepared inputs.
        objective: that says what outputs mean.
        task: of the target.
        scale: mean and deviation of a regression target, lists for several.
    """

    def __init__(self, network: nn.Module, objective: Objective, task: str, scale: tuple[object, object]) -> None:
        self.network, self.objective, self.task = network.eval(), objective.cpu().eval(), task
        self.scale = np.asarray(scale[0]), np.asarray(scale[1])
        self.file = TENSORS

    def outcome(self, inputs: Tensor) -> Outcome:
        """What it says of prepared inputs, uncalibrated."""
        empty = torch.zeros(0)
        split = Split(empty, empty, None, inputs, np.zeros(0), None, self.scale, self.task)
        with torch.no_grad():
            outputs = torch.cat([self.network(chunk) for chunk in inputs.split(4096)])
            return outcome_of(self.objective, outputs, split)

    def write(self, folder: Path) -> str:
        """Write the tensors and give the hash of their file."""
        own = {OBJECTIVE + name: tensor for name, tensor in self.objective.state_dict().items()}
        state = {**self.network.state_dict(), **own}
        return write_whole(folder / TENSORS, save({name: t.detach().clone().contiguous() for name, t in state.items()}))

    @classmethod
    def read(cls, folder: Path, told: WinnerFacts) -> FittedNetwork:
        """The network that the facts describe, with the tensors that lie beside them.

        Raises:
            InputError: the file is another, not whole, or not of this network.
        """
        assert told.network is not None
        data = read_whole(folder, TENSORS, told.values["weights"])
        try:
            state = load(data)
        except Exception as error:  # safetensors has several
            raise InputError(
                f"the saved winner in {str(folder)!r} is not whole: {TENSORS}: {said_by(error)}"
            ) from error
        return cls(*_built(told, state), told.task, told.values["scale"])


def winner_folder(folder: str | Path) -> Path:
    """The folder of a winner: itself, or ``winner`` in the folder of a run.

    Raises:
        InputError: neither holds a winner.
    """
    for place in (Path(folder), Path(folder) / "winner"):
        if (place / FILE).is_file():
            return place
    raise InputError(f"no saved winner in {str(folder)!r}: expected {FILE} there, or in its folder 'winner'")


def write_whole(file: Path, data: bytes) -> str:
    """Write a file in one step and give its hash."""
    unfinished = file.with_name(f".{file.name}.part")
    unfinished.write_bytes(data)
    os.replace(unfinished, file)
    return hashlib.sha256(data).hexdigest()


def read_whole(folder: Path, name: str, digest: str) -> bytes:
    """The bytes of a file that was written with this hash.

    Raises:
        InputError: it is not there, or is another.
    """
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise InputError(f"no saved winner in {str(folder)!r}: cannot read {name}: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise InputError(f"the saved winner in {str(folder)!r} is not whole: {name} is not the file of its {FILE}")
    return data


def _built(told: WinnerFacts, state: dict[str, Tensor]) -> tuple[nn.Module, Objective]:
    """The network and objective that the facts describe, with these tensors.

    What is built in is built within the memory that the tensors themselves take: a number in a file buys nothing.
    """
    named = told.network
    assert named is not None
    largest = max((tensor.numel() for tensor in state.values()), default=0)
    with torch.random.fork_rng(devices=[]), nullcontext() if named.own else Bounded(max(SMALL, largest)):
        objective: Objective = named.objective.from_task(named.info, **told.values["hyper"])
        network, objective = build(
            named.backbone, told.values["width"], objective, named.info, backbone_seed=0, head_seed=0
        )
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
    """Refuse the first row for which a model gives no finite number.

    >>> refuse_infinite(Outcome(np.array([1.0, np.inf])))
    Traceback (most recent call last):
    steepest.core.errors.InputError: row 2: the winner gives no finite number; its inputs lie too far ...
    """
    parts = [p for p in (outcome.predicted, outcome.probabilities, outcome.decision) if p is not None]
    finite = np.stack([np.isfinite(values).all(axis=tuple(range(1, values.ndim))) for values in parts]).all(0)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0]) + 1
        raise InputError(f"row {row}: the winner gives no finite number; its inputs lie too far from the training rows")


def said_by(error: Exception) -> str:
    """What an error says, on one line of at most 300 signs, and with its kind where it is not ours."""
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    text = kind + " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."
