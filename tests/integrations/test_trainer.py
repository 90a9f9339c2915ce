"""Steps of this package in the Trainer of Transformers come to what a loop written out comes to."""

from __future__ import annotations

import copy
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import mse_loss

from steepest.gradients import GCond, UPGrad
from steepest.optim import SAM
from steepest.testing._steps import same_bits, snapshot
from steepest.watch import read_run

sys.path.insert(0, str(Path(__file__).parent))
from by_hand import RHO, Net, Polyak, PolyakByHand, adding, batches, data, jointly, same, train, windows

sys.path.pop(0)

SGD = {"lr": 0.25, "momentum": 0.5}


@pytest.fixture(scope="module")
def parts():
    """Imported where these tests run, not where they are collected: a Trainer takes seconds."""
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        return importlib.import_module("trainer_parts")
    finally:
        sys.path.pop(0)


@pytest.fixture(autouse=True)
def fresh_state():
    """accelerate keeps one state a process."""
    state = pytest.importorskip("accelerate.state").AcceleratorState
    state._reset_state(reset_partial_state=True)
    yield
    state._reset_state(reset_partial_state=True)


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_sam_is_that_of_a_loop_written_out(parts, tmp_path, accumulation):
    """Weights, running statistics, loss, length of the clipped gradient, rates; 10 micro-batches an epoch."""
    model, twin = Net(), Net()
    optimizer = parts.sam(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    args = parts.arguments(tmp_path, accumulation=accumulation, max_grad_norm=0.5)
    trainer = parts.Order(model, args, train_dataset=data(), optimizers=(optimizer, schedule))
    trainer.train()
    base = torch.optim.SGD(twin.parameters(), **SGD)
    rates = torch.optim.lr_scheduler.LambdaLR(base, lambda step: 1 / (1 + step))
    log = train(twin, base, windows(data(), 4, accumulation, 6), schedule=rates, clip=0.5)
    same(model, twin)
    assert logged(trainer, "loss") == pytest.approx([loss for loss, _ in log], rel=1e-4)  # rounded for the log
    assert logged(trainer, "grad_norm") == pytest.approx([length for _, length in log], rel=1e-6)
    assert max(length for _, length in log) > 0.5
    assert logged(trainer, "learning_rate") == pytest.approx([0.25 / (1 + step) for step in range(6)])
    assert trainer.calls.names == ["before", "after"] * 6
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.25 / 7)


def test_a_loss_function_that_takes_the_labels_out(parts, tmp_path):
    """The trainer takes labels from the inputs: the second pass has them too, and the number of items."""

    def loss_function(outputs, labels, num_items_in_batch=None):
        return mse_loss(outputs["logits"], labels, reduction="sum") / num_items_in_batch

    def loss_of(model, batch, window):
        count = sum(own["labels"].numel() for own in window)
        return mse_loss(model(**batch)["logits"], batch["labels"], reduction="sum") / count

    model, twin = Net(), Net()
    args = parts.arguments(tmp_path, 3, 4)
    options = {"base_optimizer": torch.optim.SGD, "rho": RHO, **SGD}
    trainer = parts.Order(
        model, args, train_dataset=data(), compute_loss_func=loss_function, optimizer_cls_and_kwargs=(SAM, options)
    )
    trainer.train()
    train(twin, torch.optim.SGD(twin.parameters(), **SGD), windows(data(), 4, 4, 3), loss_of=loss_of)
    same(model, twin)


def test_a_trainer_that_empties_its_inputs(parts, tmp_path):
    """The second pass has its own."""

    class Emptying(parts.Trainer):
        def training_step(self, model, inputs, *args):
            return super().training_step(model, {name: inputs.pop(name) for name in list(inputs)}, *args)

    class Own(parts.Order, Emptying):
        pass

    model, twin = Net(), Net()
    Own(model, parts.arguments(tmp_path, 2, 2), train_dataset=data(), optimizers=(parts.sam(model), None)).train()
    train(twin, torch.optim.SGD(twin.parameters(), **SGD), windows(data(), 4, 2, 2))
    same(model, twin)


def with_scaler(trainer, scale=1024.0):
    """As accelerate does for float16 on a GPU; weights of float64 are not cast."""
    trainer.accelerator.native_amp, trainer.accelerator.state._mixed_precision = True, "fp16"
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
    return trainer.accelerator.scaler


def test_a_scaler(parts, tmp_path):
    """A scale that is a power of two changes no bit; the radius is that of gradients without it."""
    models = [Net(), Net()]
    for model, scale in zip(models, (None, 1024.0)):
        trainer = parts.Order(model, parts.arguments(tmp_path, 4, 2, max_grad_norm=0.5), train_dataset=data(),
                        optimizers=(parts.sam(model), None))  # fmt: skip
        if scale:
            with_scaler(trainer)
        trainer.train()
    same(*models, exact=True)


@pytest.mark.parametrize("call", [2, 3, 4, 5], ids=["first pass", "its end", "second pass", "its end again"])
def test_an_overflow_in_either_pass_skips_the_step(parts, tmp_path, call):
    """Weights, statistics and momenta as before; the schedule waits; the scale halves. Two micro-batches a step."""
    model, twin = Net(), Net()
    step = 4 + call - 2  # of the second step
    model.inf_at = (step,)
    optimizer = parts.sam(model)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda number: 1 / (1 + number))
    trainer = parts.Order(
        model, parts.arguments(tmp_path, 2, 2), train_dataset=data(), optimizers=(optimizer, schedule)
    )
    scaler = with_scaler(trainer)
    trainer.train()
    assert model.calls == 8
    base = torch.optim.SGD(twin.parameters(), **SGD)
    train(twin, base, windows(data(), 4, 2, 1))
    same(model, twin)
    for own, wanted in zip(optimizer.state.values(), base.state.values()):
        torch.testing.assert_close(own["momentum_buffer"], wanted["momentum_buffer"], rtol=1e-9, atol=1e-12)
    assert optimizer.skipped == 1
    assert scaler.get_scale() == 512.0
    assert optimizer.param_groups[0]["lr"] == 0.125


def test_resumed_is_uninterrupted(parts, tmp_path):
    """Momenta, random numbers of dropout, the schedule: to the last bit."""
    ends = []
    for resume in (None, str(tmp_path / "checkpoint-3")):
        model = Net()
        args = parts.arguments(
            tmp_path, 5, 2, save_strategy="steps", save_steps=3, lr_scheduler_type="linear", save_total_limit=3
        )
        trainer = parts.Order(model, args, train_dataset=data(), optimizers=(parts.sam(model), None), seeds=False)
        trainer.train(resume_from_checkpoint=resume)
        ends.append(model)
    assert ends[1].calls == 2 * 2 * 2  # two steps of two micro-batches, twice
    same(*ends, exact=True)


@pytest.mark.slow
def test_half_precision(parts, tmp_path):
    model, twin = Net(dtype=torch.float32), Net(dtype=torch.float32)
    rows = data(dtype=torch.float32)
    args = parts.arguments(tmp_path, 4, 2, bf16=True)
    parts.Order(model, args, train_dataset=rows, optimizers=(parts.sam(model), None)).train()
    base = torch.optim.SGD(twin.parameters(), **SGD)
    train(twin, base, windows(rows, 4, 2, 4), autocast=torch.bfloat16)
    for (name, value), wanted in zip(model.state_dict().items(), twin.state_dict().values()):
        torch.testing.assert_close(value, wanted, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_a_step_that_takes_the_loss(parts, tmp_path, scale):
    """It is that of all micro-batches, without the scale; saved as the optimizer alone."""
    model, twin = Net(), Net()
    optimizer = Polyak(model.parameters(), lr=0.5)
    trainer = parts.Order(model, parts.arguments(tmp_path, 4, 4), train_dataset=data(), optimizers=(optimizer, None))
    if scale:
        with_scaler(trainer)
    trainer.train()
    losses = []
    train(twin, PolyakByHand(twin, losses), windows(data(), 4, 4, 4), sam=False, loss_of=adding(losses))
    same(model, twin)
    assert trainer.optimizer.state_dict().keys() == optimizer.state_dict().keys()


@pytest.mark.parametrize("scale", [None, 1024.0])
@pytest.mark.parametrize("shared", [None, lambda model: list(model.stem.parameters())])
def test_several_losses_are_joined_once_a_step(parts, tmp_path, shared, scale):
    """Jacobians are summed over micro-batches: joined directions would be other ones."""
    model, twin = Net(plain=True), Net(plain=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    trainer = parts.Order(
        model, parts.arguments(tmp_path, 5, 4), train_dataset=data(), optimizers=(optimizer, None),
        aggregator=UPGrad(), shared=None if shared is None else shared(model),
    )  # fmt: skip
    if scale:
        with_scaler(trainer)
    trainer.train()
    assert jointly(twin, windows(data(), 4, 4, 5), shared) > 0
    same(model, twin)
    fresh = Net(plain=True)
    losses = [fresh(**batch)["losses"] for batch in windows(data(), 4, 4, 1)[0]]
    total = sum(float(loss) for own in losses for loss in own.values()) / 4
    assert logged(trainer, "loss")[0] == pytest.approx(total, rel=1e-4)


def test_an_aggregator_with_a_memory_is_resumed(parts, tmp_path):
    class Own(parts.Order):
        def compute_losses(self, model, inputs):
            losses = model(**inputs)["losses"]
            return torch.stack([losses["square"], losses["slope"]])

    ends = []
    for resume in (None, str(tmp_path / "checkpoint-2")):
        model = Net(plain=True)
        args = parts.arguments(tmp_path, 4, save_strategy="steps", save_steps=2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
        trainer = Own(model, args, train_dataset=data(), optimizers=(optimizer, None), aggregator=GCond())
        trainer.train(resume_from_checkpoint=resume)
        ends.append(model)
    same(*ends, exact=True)


def test_an_overflow_leaves_the_aggregator_alone(parts, tmp_path):
    model = Net(plain=True)
    seen = []

    class Own(parts.Order):
        def compute_losses(self, model, inputs):
            losses = list(model(**inputs)["losses"].values())
            return [loss * (torch.inf if len(seen) == 1 else 1.0) for loss in losses]

    def sums(jacobian):
        seen.append(jacobian.clone())
        return jacobian.sum(0)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    trainer = Own(
        model, parts.arguments(tmp_path, 2), train_dataset=data(), optimizers=(optimizer, None), aggregator=sums
    )
    scaler = with_scaler(trainer)
    trainer.train()
    twin = Net(plain=True)
    base = torch.optim.SGD(twin.parameters(), lr=0.25)
    sum(twin(**batches(data(), 4)[0])["losses"].values()).backward()
    base.step()
    same(model, twin)
    assert len(seen) == 1
    assert scaler.get_scale() == 512.0


def test_sam_over_several_losses(parts, tmp_path):
    """Both gradients are joined ones: with the sum as aggregator it is SAM of the sum."""
    model, twin = Net(), Net()
    trainer = parts.Order(
        model, parts.arguments(tmp_path, 3, 2), train_dataset=data(), optimizers=(parts.sam(model), None),
        aggregator=lambda jacobian: jacobian.sum(0),
    )  # fmt: skip
    trainer.train()

    def both(own, batch, window):
        return sum(own(**batch)["losses"].values()) / len(window)

    train(twin, torch.optim.SGD(twin.parameters(), **SGD), windows(data(), 4, 2, 3), loss_of=both)
    same(model, twin)


def test_what_needs_no_help_stays_the_trainers_own(parts, tmp_path):
    ends = []
    for cls in (parts.SteepestTrainer, parts.Trainer):
        model = Net()
        optimizer = torch.optim.SGD(model.parameters(), **SGD)
        cls(model, parts.arguments(tmp_path, 3, 2), train_dataset=data(), optimizers=(optimizer, None)).train()
        ends.append(model)
    same(*ends, exact=True)


def test_refusals(parts, tmp_path):
    args = parts.arguments(tmp_path, 1)
    with pytest.raises(ValueError, match="shared"):
        parts.SteepestTrainer(Net(), args, shared=[])
    with pytest.raises(TypeError, match="aggregator"):
        parts.SteepestTrainer(Net(), args, aggregator=3)

    class NoLosses(Net):
        def forward(self, x, labels):
            return {"loss": super().forward(x, labels)["loss"]}

    with pytest.raises(ValueError, match="compute_losses"):
        parts.SteepestTrainer(NoLosses(), args, train_dataset=data(), aggregator=UPGrad()).train()
    model = Net()
    trainer = parts.SteepestTrainer(model, args, train_dataset=data(), optimizers=(parts.sam(model), None))
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="fsdp"):
        trainer.training_step(model, copy.copy(batches(data(), 4)[0]))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The folder where two ranks left their weights, of all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    worker = Path(__file__).with_name("trainer_ranks.py")
    own = {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(worker), str(folder), "sam", "losses", "loss"]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", ["sam", "losses", "loss"])
def test_two_ranks(ranks, case):
    """Two ranks with micro-batches of 2 come to one with those of 4: rank r has every second micro-batch."""
    twin, steps = Net(plain=True), windows(data(), 4, 2, 4)
    if case == "sam":
        train(twin, torch.optim.SGD(twin.parameters(), **SGD), steps, clip=0.5)
    elif case == "losses":
        jointly(twin, steps)
    else:
        losses = []
        train(twin, PolyakByHand(twin, losses), steps, sam=False, loss_of=adding(losses))
    states = [torch.load(ranks / f"{case}.{rank}.pt", weights_only=True) for rank in range(2)]
    for name, wanted in twin.state_dict().items():
        assert torch.equal(states[0][name], states[1][name]), name
        torch.testing.assert_close(states[0][name], wanted, rtol=1e-9, atol=1e-12, msg=name)


def test_a_recorder_changes_nothing_and_has_every_loss(parts, tmp_path):
    """Ten logging steps, one high row, NaN at step 7: the raw loss of each step, not the log's filtered mean."""
    rows, ends, recorder = data(80), [], None
    rows[48]["labels"].fill_(torch.inf)
    for watched in (False, True):
        model = Net()
        watch = parts.RecorderCallback(every=2, sinks=[tmp_path / "run.jsonl"])
        args = parts.arguments(tmp_path, steps=9, accumulation=2, max_grad_norm=0.5)
        trainer = parts.Order(
            model, args, train_dataset=rows, optimizers=(torch.optim.SGD(model.parameters(), **SGD), None),
            callbacks=[watch] if watched else [],
        )  # fmt: skip
        recorder = watch
        trainer.train()
        ends.append((model, logged(trainer, "loss"), logged(trainer, "grad_norm")))
    same_bits(snapshot(ends[0][0]), snapshot(ends[1][0]), "the recorder left a trace")
    frame = recorder.recorder.frame()
    assert frame.index.tolist() == list(range(1, 10))
    assert frame["loss"].tolist()[:6] == pytest.approx(ends[0][1][:6], rel=1e-4)
    assert not torch.isfinite(torch.tensor(frame["loss"][7]))
    norms = frame["gradient_norms/norm"]
    assert frame["gradient_norms/nonfinite"].dropna().index.tolist() == [1, 3, 5, 7, 9]
    assert frame["gradient_norms/nonfinite"][[5, 7]].tolist() == [0, 4 + 2], "stem, norm and head"
    assert norms[3] == pytest.approx(min(ends[0][2][2], 0.5), rel=1e-5), "as the step uses it, clipped"
    assert read_run(tmp_path / "run.jsonl").ended


def test_a_recorder_goes_on_from_a_checkpoint(parts, tmp_path):
    model = Net()
    file = tmp_path / "run.jsonl"

    def train_to(steps, resume):
        args = parts.arguments(tmp_path, steps=steps, save_strategy="steps", save_steps=3)
        callback = parts.RecorderCallback(every=2, sinks=[file], name="a", guard=True)
        trainer = parts.Order(
            model, args, train_dataset=data(80), optimizers=(torch.optim.SGD(model.parameters(), **SGD), None),
            callbacks=[callback],
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return callback

    train_to(5, None)
    callback = train_to(7, str(tmp_path / "checkpoint-3"))
    record = read_run(file)
    assert record.losses[0] == list(range(1, 8))
    assert callback.recorder.step == callback.guard.step == 7


def test_a_guard_skips_a_step_that_is_not_finite(parts, tmp_path):
    model, rows = Net(), data()
    rows[8]["labels"].fill_(torch.inf)
    callback = parts.RecorderCallback(guard={"every": 0})
    trainer = parts.Order(
        model, parts.arguments(tmp_path, steps=5), train_dataset=rows, callbacks=[callback],
        optimizers=(torch.optim.AdamW(model.parameters(), lr=0.01), None),
    )  # fmt: skip
    trainer.train()
    assert [(a["step"], a["cause"]) for a in callback.guard.actions] == [(3, ["non_finite"])]
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
