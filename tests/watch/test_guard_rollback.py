"""A guard goes back to a snapshot that is older than the cause, and trains on without the suspected batches."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steepest.optim import GhostStepController
from steepest.watch import Guard, GuardStop
from steepest.watch.guard import snapshots
from steepest.watch.guard.skips import innermost

LOSS = nn.CrossEntropyLoss()
CENTRES = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.0]])


def network(wide=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, wide), nn.BatchNorm1d(wide), nn.Tanh(), nn.Linear(wide, 3))


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    labels = [torch.randint(3, (32,), generator=generator) for _ in range(count)]
    return [(CENTRES[y] + 0.5 * torch.randn(32, 2, generator=generator), y) for y in labels]


def train(model, optimizer, data, guard=None, spoil=None):
    """A loop by hand; ``spoil(step)`` is called after each step. The steps that were taken whole."""
    for step, (x, y) in enumerate(data, 1):
        loss = LOSS(model(x), y)
        if guard is not None:
            guard.observe(loss, x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if spoil is not None:
            spoil(step)


def bits(model, optimizer):
    inner = innermost(optimizer)
    moments = [value for p in model.parameters() for _, value in sorted(inner.state[p].items()) if value is not None]
    return [t.detach().clone() for t in (*model.parameters(), *model.buffers(), *moments)]


def equal(left, right):
    return len(left) == len(right) and all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(left, right))


MAKERS = {
    "sgd": lambda p, m: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adamw": lambda p, m: torch.optim.AdamW(p, lr=0.003),
    "adamw_fused": lambda p, m: torch.optim.AdamW(p, lr=0.003, fused=True),
    "ghost": lambda p, m: GhostStepController(torch.optim.AdamW(p, lr=0.003), m, samples=batches(1)[0][0]),
}


@pytest.mark.parametrize("name", MAKERS)
def test_after_going_back_the_run_is_one_without_the_suspected_batches(name):
    data = batches(60)
    model, plain = network(), network()
    optimizer, reference = MAKERS[name](model.parameters(), model), MAKERS[name](plain.parameters(), plain)
    guard = Guard(model, optimizer, LOSS, every=10)
    random = []

    def spoil(step):
        if step == 44:  # between two snapshots
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(30 * torch.sin(torch.arange(p.numel()).float()).reshape(p.shape))
        random.append(torch.get_rng_state())

    train(model, optimizer, data, guard, spoil)
    late = name == "adamw_fused"
    last = 48 if late else 47
    (line,) = [line for line in guard.actions if line["action"] == "roll_back"]
    assert (line["step"], line["snapshot"], line["replayed"]) == (last, 40, 3)
    assert line["excluded"] == list(range(44, last + 1))
    assert line["rate"] == 1.0
    train(plain, reference, data[:43] + data[last:])
    assert equal(bits(model, optimizer), bits(plain, reference))
    assert all(torch.equal(state, random[0]) for state in random)


def test_without_inputs_the_run_goes_on_from_the_snapshot():
    data = batches(60)
    model, plain = network(), network()
    optimizer, reference = MAKERS["adamw"](model.parameters(), model), MAKERS["adamw"](plain.parameters(), plain)
    guard = Guard(model, optimizer, every=10)
    for step, (x, y) in enumerate(data, 1):
        loss = LOSS(model(x), y)
        guard.observe(loss if not 45 <= step <= 47 else loss * 1e3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    train(plain, reference, data[:40] + data[47:])
    assert guard.actions[-1]["replayed"] == 0
    for mine, theirs in zip(model.parameters(), plain.parameters()):
        assert torch.equal(mine, theirs)


def test_rates_of_the_loop_are_replayed_and_stay_as_the_loop_has_set_them():
    data = batches(60)
    model, plain = network(), network()
    optimizer, reference = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(plain.parameters(), lr=0.1)
    guard = Guard(model, optimizer, LOSS, every=10)

    def spoil(step):
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        if step == 44:
            nn.init.constant_(model[3].weight, 1e3)
            with torch.no_grad():
                model[3].weight[1] = -1e3

    train(model, optimizer, data, guard, spoil)
    assert guard.actions[-1]["action"] == "roll_back"
    for step in [*range(1, 44), *range(48, 61)]:
        reference.param_groups[0]["lr"] = 0.1 / step
        train(plain, reference, [data[step - 1]])
    assert equal(bits(model, optimizer), bits(plain, reference))


def test_the_last_good_snapshot_stays_while_there_is_doubt():
    model = network()
    optimizer = MAKERS["adamw"](model.parameters(), model)
    guard = Guard(model, optimizer, every=10, patience=40, stops=False)
    for step, (x, y) in enumerate(batches(200), 1):
        loss = LOSS(model(x), y)
        guard.observe(loss * (1.0 if step <= 45 or step % 3 == 0 else math.nan))  # an alarm at least every second step
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert guard.snapshots.good["step"] == 30
    assert guard.snapshots.pending["step"] == 40


def test_a_snapshot_that_is_not_finite_is_none():
    model = network()
    optimizer = MAKERS["sgd"](model.parameters(), model)
    guard = Guard(model, optimizer, LOSS, every=10)
    train(model, optimizer, batches(15), guard)
    with torch.no_grad():
        model[0].bias[0] = math.inf
    assert not snapshots.finite(snapshots.take(15, model, optimizer, optimizer))
    assert snapshots.finite(guard.snapshots.pending)


def test_a_mask_of_minus_infinity_is_no_reason_against_a_snapshot():
    model = network()
    model.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Guard(model, optimizer, LOSS, every=5) as guard:
        train(model, optimizer, batches(30), guard)
        assert guard.snapshots.good is not None
        assert len(guard._history) <= 10, "batches older than the good snapshot are not held"
        model[1].running_var.fill_(math.inf)
        before = guard.snapshots.pending
        guard._keep()
        assert guard.snapshots.pending is before


@pytest.mark.parametrize("stops", [True, False])
def test_the_budget_of_attempts_ends_in_a_stop_with_good_weights(stops, tmp_path):
    model = network()
    optimizer = MAKERS["adamw"](model.parameters(), model)
    guard = Guard(model, optimizer, every=10, stops=stops, log=tmp_path / "guard.jsonl")
    data = batches(45)
    train(model, optimizer, data, guard)
    good = guard.snapshots.good["step"], [v.clone() for v in guard.snapshots.good["values"]]
    wrong = [(x * math.nan, y) for x, y in batches(40, seed=2)]
    if stops:
        with pytest.raises(GuardStop, match="non_finite; weights are those of step 30"):
            train(model, optimizer, wrong, guard)
    else:
        train(model, optimizer, wrong, guard)
    assert guard.stopped
    assert [line["action"] for line in guard.actions if line["action"] != "skip"] == ["roll_back"] * 3 + ["stop"]
    assert [line["rate"] for line in guard.actions if line["action"] == "roll_back"] == [1.0, 0.5, 0.25]
    assert good[0] == 30
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), good[1]))


def test_quiet_steps_forgive_attempts_and_the_rate_has_a_floor():
    model = network()
    optimizer = MAKERS["adamw"](model.parameters(), model)
    guard = Guard(model, optimizer, every=10, calm=15, budget=9, floor=0.2)
    train(model, optimizer, batches(45), guard)
    wrong = [(x * math.nan, y) for x, y in batches(12, seed=2)]
    train(model, optimizer, wrong, guard)
    assert [line["rate"] for line in guard.actions if line["action"] == "roll_back"] == [1.0, 0.5, 0.25, 0.2]
    train(model, optimizer, batches(20, seed=3), guard)
    train(model, optimizer, wrong[:3], guard)
    assert guard.actions[-1]["attempt"] == 1


def test_moments_keep_their_type_and_bits():
    model = network().bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    x, y = batches(1)[0]
    LOSS(model(x.bfloat16()).float(), y).backward()
    optimizer.step()
    for p in model.parameters():
        for name in ("exp_avg", "exp_avg_sq"):
            optimizer.state[p][name] = torch.randn(p.shape) ** 2 + 1e-3
    before = bits(model, optimizer)
    snapshot = snapshots.take(1, model, optimizer, optimizer)
    with torch.no_grad():
        for value in (*model.parameters(), *(v for own in optimizer.state.values() for v in own.values())):
            value.add_(1)
    assert not equal(bits(model, optimizer), before)
    snapshots.restore(snapshot, model, optimizer, optimizer)
    assert equal(bits(model, optimizer), before)
    assert optimizer.state[model[0].weight]["exp_avg"].dtype == torch.float32
    optimizer.state.clear()  # as of an optimizer that was built anew
    snapshots.restore(snapshot, model, optimizer, optimizer)
    assert equal(bits(model, optimizer), before)


@pytest.mark.parametrize(("fused", "last"), [(False, 47), (True, 48)])
def test_a_replay_under_a_scaler_leaves_its_state(fused, last):
    data = batches(60)
    states = {}
    for guarded in (True, False):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.003, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=25)
        guard = Guard(model, optimizer, LOSS, every=10, scaler=scaler)
        order = range(1, 61) if guarded else [*range(1, 44), *range(last + 1, 61)]
        for step in order:
            x, y = data[step - 1]
            loss = LOSS(model(x), y)
            guard.observe(loss, x, y)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            if guarded and step == 44:
                with torch.no_grad():
                    model[3].weight[0].fill_(1e3)
                    model[3].weight[1].fill_(-1e3)
        states[guarded] = bits(model, optimizer), scaler.get_scale(), [line["action"] for line in guard.actions]
    assert states[True][2][-1] == "roll_back"
    assert states[False][2] == []
    assert states[True][1] == 4096.0
    assert equal(states[True][0], states[False][0])  # scales are powers of two


def test_a_snapshot_that_holds_the_cause_is_not_gone_back_to():
    data = batches(60)
    model, plain = network(), network()
    optimizer, reference = MAKERS["sgd"](model.parameters(), model), MAKERS["sgd"](plain.parameters(), plain)
    guard = Guard(model, optimizer, LOSS, rules=["loss_spike"], every=10)
    for step, (x, y) in enumerate(data, 1):
        optimizer.param_groups[0]["lr"] = 300.0 if step == 50 else 0.05  # at its end a snapshot is due
        train(model, optimizer, [(x, y)], guard)
    (line,) = [line for line in guard.actions if line["action"] == "roll_back"]
    assert (line["snapshot"], line["excluded"], line["replayed"]) == (40, [50, 51, 52, 53], 9)
    train(plain, reference, data[:49] + data[53:])
    assert equal(bits(model, optimizer), bits(plain, reference))
