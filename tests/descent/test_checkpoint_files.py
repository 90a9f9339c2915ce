"""A checkpoint from anywhere: refused in one line, or taken exactly as it is; never half, never in silence."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from steepest.core.errors import InputError
from steepest.descent import ArrayBatches, Descent, EarlyStopping
from steepest.losses import PSKDLoss

VALUES = [
    None, True, "", "x", -1, 1, 10**12, 1e308, math.nan, [], {}, ["a"], {"a": 1}, torch.zeros(()), torch.zeros(3),
    torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, 3, 1), torch.zeros(6, dtype=torch.float16), torch.tensor(3),
]  # fmt: skip
Change = Callable[..., None]


TAKEN = ("model", "objective", "random", "method", "epoch", "step", "stop", "sum", "history")
"""What a resumed run holds as the file says it; the optimizer's own loading converts."""


def run() -> Descent:
    torch.manual_seed(3)
    x = torch.randn(12, 3)
    model = nn.Linear(3, 2)
    objective = PSKDLoss(num_samples=12, num_classes=2, total_epochs=4)
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    return Descent(
        model, objective, ArrayBatches(x, (x[:, 0] > 0).long(), batch_size=5), optimizer=optimizer,
        schedule=torch.optim.lr_scheduler.StepLR(optimizer, 3), hooks=[EarlyStopping(lambda _: 0.5)],
    )  # fmt: skip


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape
        return same and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and (a == b or a != a)


def outcomes(numbers: range, folder: Path, change: Change) -> dict[str, int]:
    counts = {"refused": 0, "taken": 0}
    state = run().fit(1).state_dict()
    for number in numbers:
        rng, changed, path = random.Random(number), copy.deepcopy(state), folder / "run.pt"
        change(changed if rng.random() < 0.5 else changed[rng.choice(list(TAKEN[:3]))], rng, VALUES)
        torch.save(changed, path)
        if rng.random() < 0.1:
            data = path.read_bytes()
            path.write_bytes(data[: rng.randrange(len(data))])
        again, refusal = run(), ""
        try:
            again.resume(path)
        except InputError as error:
            refusal = str(error)
        if refusal:
            assert refusal.startswith(f"the checkpoint {str(path)!r} cannot be loaded: ")
            assert "\n" not in refusal
            counts["refused"] += 1
            continue
        mine = again.state_dict()
        for name in TAKEN:
            assert equal(mine[name], changed[name]), (number, name)
        counts["taken"] += 1
    return counts


def test_changed_checkpoints_are_refused_or_taken_as_they_are(tmp_path: Path, change: Change) -> None:
    counts = outcomes(range(60), tmp_path, change)
    assert min(counts.values()) > 0, counts


@pytest.mark.slow
def test_two_thousand_changed_checkpoints(tmp_path: Path, change: Change) -> None:
    counts = outcomes(range(2000), tmp_path, change)
    print(f"\n2,000 changed checkpoints: {counts}")
    assert min(counts.values()) > 0, counts


@pytest.mark.parametrize(
    "damage",
    [
        lambda o: o.update(param_groups={}),
        lambda o: o["param_groups"].clear(),
        lambda o: o["param_groups"][0].update(lr="0.1"),
        lambda o: o["param_groups"][0].update(betas=[0.9]),
        lambda o: o["param_groups"][0].update(params=[1, 0]),
        lambda o: o["param_groups"][0].update(amsgrad="yes"),
        lambda o: o.update(state=[]),
        lambda o: o["state"].update({7: {}}),
        lambda o: o["state"].update({0: 3}),
        lambda o: o["state"][0].update(exp_avg="x"),
        lambda o: o.pop("state"),
    ],
)
def test_an_optimizer_of_another_kind_is_refused(damage: Callable) -> None:
    state = copy.deepcopy(run().fit(1).state_dict())
    damage(state["optimizer"])
    with pytest.raises(ValueError, match=r"^optimizer"):
        run().load_state_dict(state)


@pytest.mark.parametrize("data", [b"", b"no", b"PK\x03\x04", bytes(range(256)) * 9])
def test_what_is_no_checkpoint_is_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "run.pt").write_bytes(data)
    with pytest.raises(InputError, match=r"the checkpoint '.*run.pt' cannot be loaded: ") as caught:
        run().resume(tmp_path / "run.pt")
    assert "\n" not in str(caught.value)


def test_tensors_of_another_type_are_not_converted_in_silence() -> None:
    state = run().fit(1).state_dict()
    state["model"] = {name: tensor.double() for name, tensor in state["model"].items()}
    with pytest.raises(ValueError, match=r"model: weight: expected a float32 tensor .*got 'a float64 tensor"):
        run().load_state_dict(state)


def test_a_schedule_is_not_dropped_in_silence() -> None:
    state, other = run().fit(1).state_dict(), run()
    other.schedule = None
    with pytest.raises(ValueError, match="schedule: expected none, as in this run"):
        other.load_state_dict(state)
