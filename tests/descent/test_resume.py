"""A killed run that is resumed ends with the bits of one that was never killed; checkpoints are whole or old."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from steepest.core.objective import Batch
from steepest.descent import ArrayBatches, Checkpoint, Descent
from steepest.losses import CompSumLoss

PROGRAM = Path(__file__).with_name("resumed_run.py")


def same(a, b, where=""):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (one, other) in enumerate(zip(a, b)):
            same(one, other, f"{where}[{i}]")
    else:
        assert a == b, where


SOURCES = ("arrays", "plain-loader", "loader-with-generator")
MARKS = {
    source: random.Random(source).choice([n for n in range(9, 40) if n % 8 not in (0, 1, 2, 3)]) for source in SOURCES
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with three runs a source: one that is killed at its mark, the same resumed, one that goes through."""
    root, words = tmp_path_factory.mktemp("runs"), []
    for source in SOURCES:
        for kind, mark in (("killed", MARKS[source]), ("killed", 0), ("whole", 0)):
            folder = root / source / kind
            folder.mkdir(parents=True, exist_ok=True)
            words += [str(folder), source, str(mark)]
    done = subprocess.run([sys.executable, str(PROGRAM), *words], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(-signal.SIGKILL), "0", "0"] * len(SOURCES), done.stderr
    return root


@pytest.mark.parametrize("source", SOURCES)
def test_killed_and_resumed_is_bit_identical(source, runs):
    a, b = (torch.load(runs / source / kind / "done.pt", weights_only=True) for kind in ("whole", "killed"))
    assert a["start"] == (0, 0)
    assert b["start"][0] == MARKS[source] // 8
    assert 0 < b["start"][1] < 8, "killed in mid-epoch"
    same(a["state"], b["state"])


def small(path=None, **kwargs):
    torch.manual_seed(3)
    x = torch.randn(20, 3)
    hooks = [] if path is None else [Checkpoint(path)]
    return Descent(
        nn.Linear(3, 2), CompSumLoss(), ArrayBatches(x, (x[:, 0] > 0).long(), batch_size=5), hooks=hooks, **kwargs
    )


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    run = small().fit(1)
    run.save(path)
    before = path.read_bytes()

    def half(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="disk full"):
        run.fit(2).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_loading_executes_nothing(tmp_path, capsys):
    run, path = small().fit(1), tmp_path / "run.pt"
    torch.save({**run.state_dict(), "evil": Evil()}, path)
    with pytest.raises(Exception, match=r"[Ww]eights"):
        small().resume(path)
    assert "executed" not in capsys.readouterr().out


SCHEDULES = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 3),
    "multistep": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 5]),
    "cosine": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 12),
    "lambda": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "sequence": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o, [torch.optim.lr_scheduler.ConstantLR(o), torch.optim.lr_scheduler.ExponentialLR(o, 0.9)], [3]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_go_through_a_file(name, tmp_path):
    def scheduled(path):
        run = small(path)
        run.schedule = SCHEDULES[name](run.optimizer)
        return run

    whole = scheduled(tmp_path / "whole.pt").fit(3)
    scheduled(tmp_path / "run.pt").fit(2)
    again = scheduled(tmp_path / "run.pt").resume(tmp_path / "run.pt").fit(3)
    same(whole.state_dict(), again.state_dict())
    assert whole.optimizer.param_groups[0]["lr"] != 1e-3


def test_no_file_is_a_start_and_a_finished_run_stays(tmp_path):
    path = tmp_path / "run.pt"
    run = small(path).resume(path).fit(2)
    again = small(path).resume(path)
    assert (again.epoch, again.step, len(again.history)) == (2, 0, 2)
    before = {k: v.clone() for k, v in again.model.state_dict().items()}
    again.fit(2)
    same(before, again.model.state_dict())
    same(run.model.state_dict(), again.model.state_dict())


def test_other_hooks_are_refused(tmp_path):
    run = small(tmp_path / "run.pt").fit(1)
    with pytest.raises(ValueError, match="hooks: expected 1 hooks, as in the saved run, got 0"):
        small().load_state_dict(run.state_dict())


def test_checkpoints_every_few_steps_and_at_ends(tmp_path):
    saved = []
    run = small()
    hook = Checkpoint(tmp_path / "run.pt", every=3)
    run.hooks = [hook]
    run.save = lambda path: saved.append((run.epoch, run.step))
    run.fit(2)
    assert saved == [(0, 3), (1, 0), (1, 2), (2, 0), (2, 0)]
    with pytest.raises(ValueError, match="every: expected an integer >= 1, got 0"):
        Checkpoint(tmp_path / "run.pt", every=0)
    hook = Checkpoint(tmp_path / "run.pt", seconds=1e6)
    saved.clear()
    run.hooks, run.epoch = [hook], 0
    run.fit(3)
    assert saved == [(1, 0), (3, 0)]


def test_nested_inputs_go_to_the_device():
    moved = small()._to_device(Batch({"a": torch.ones(2), "b": [torch.ones(1), "text"]}, torch.ones(2)))
    assert moved.inputs["b"][1] == "text"
    meta = small(device="meta")._to_device(Batch({"a": (torch.ones(2),)}, torch.ones(2), extra={"mask": torch.ones(2)}))
    assert {meta.inputs["a"][0].device.type, meta.target.device.type, meta.extra["mask"].device.type} == {"meta"}
