"""Rules with a theory: an update is made shorter that leaves the ghost radius; logits that grow are an alarm."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steepest.core.probe import Reading
from steepest.optim import GhostRadius, GhostStepController
from steepest.watch import AdamUpdateMonitor, Guard, SpectralAlignmentMonitor
from steepest.watch.guard import AdamInstability, GhostCap, LogitGrowth, SpectralAlignment

LOSS = nn.CrossEntropyLoss()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 5, generator=generator), torch.randint(3, (16,), generator=generator)) for _ in range(count)
    ]


def train(model, optimizer, data, guard=None, jump=None, **arguments):
    for step, (x, y) in enumerate(data, 1):
        if jump is not None:
            optimizer.param_groups[0]["lr"] = jump(step)
        logits = model(x)
        loss = LOSS(logits, y)
        if guard is not None:
            guard.observe(loss, x, y, outputs=logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(**({"inputs": x} if arguments else {}))


@pytest.mark.parametrize("rate", [0.5, 1e-4])
def test_updates_are_shortened_as_by_the_controller_and_keep_their_bits_within(rate):
    model, plain = network(), network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, foreach=False)
    reference = GhostStepController(torch.optim.AdamW(plain.parameters(), lr=rate, foreach=False), plain)
    guard = Guard(model, optimizer, LOSS, rules=[GhostCap(slack=1.0, usual=0, look=1e-9, memory=0)], every=0)
    train(model, optimizer, batches(6), guard)
    train(plain, reference, batches(6), controlled=True)
    for mine, theirs in zip(model.parameters(), plain.parameters()):
        assert torch.equal(mine, theirs)
    assert {line["action"] for line in guard.actions} == ({"shorten"} if rate == 0.5 else set())
    if rate == 0.5:
        line = guard.actions[-1]
        assert line["readings"]["scale"] * line["readings"]["r"] == pytest.approx(1.0, rel=1e-12)
        assert line["readings"]["r"] == pytest.approx(float(reference.r), rel=1e-6)


def test_the_radius_is_computed_only_where_the_length_asks_for_it(monkeypatch):
    asked = []
    own = GhostRadius.ratio
    monkeypatch.setattr(GhostRadius, "ratio", lambda self, *a, **k: asked.append(1) or own(self, *a, **k))
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = Guard(model, optimizer, LOSS, rules=[GhostCap(every=10)], every=0)
    counts = []
    for data in batches(24):
        train(model, optimizer, [data], guard)
        counts.append(len(asked))
    assert counts[0] == 1
    assert counts[-1] == 3  # at 1, 12 and 23: ten steps without lie between
    train(model, optimizer, batches(1), guard, jump=lambda step: 1e3)
    assert len(asked) == 4
    assert guard.actions[-1]["action"] == "shorten"


def test_a_rate_that_is_too_high_in_most_steps_is_cut_for_good():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=100.0)
    guard = Guard(model, optimizer, LOSS, rules=["ghost_radius"], every=0)
    train(model, optimizer, batches(60), guard)
    cuts = [line for line in guard.actions if line["action"] == "cut"]
    scales = sorted(line["readings"]["scale"] for line in guard.actions[: guard.actions.index(cuts[0])])
    assert cuts[0]["step"] == 10
    assert cuts[0]["rate"] == scales[len(scales) // 2] / 2
    assert optimizer.param_groups[0]["lr"] == 100.0
    assert guard.rate <= cuts[0]["rate"] < 1.0


def test_the_state_of_the_ghost_rule_goes_on():
    data = batches(40)
    model, again = network(), network()
    optimizer, other = (torch.optim.SGD(m.parameters(), lr=40.0) for m in (model, again))
    guard = Guard(model, optimizer, LOSS)
    train(model, optimizer, data[:5], guard)
    again.load_state_dict(model.state_dict())
    second = Guard(again, other, LOSS)
    second.load_state_dict(guard.state_dict())
    before = len(guard.actions)
    train(model, optimizer, data[5:], guard)
    train(again, other, data[5:], second)
    assert second.actions == guard.actions[before:]
    assert len(second.actions) > 0
    assert torch.equal(model[0].weight, again[0].weight)


def test_growing_logits_are_an_alarm_though_loss_and_gradient_are_as_before():
    model = nn.Linear(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    guard = Guard(model, optimizer, rules=[LogitGrowth()], window=32, every=0)
    generator = torch.Generator().manual_seed(0)

    def step(shift):
        logits = torch.randn(8, 4, generator=generator) + shift
        guard.observe(1.0, outputs=logits)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        before = model.bias.detach().clone()
        optimizer.step()
        return not torch.equal(before, model.bias)

    assert all(step(0.0) for _ in range(40))
    assert not step(100.0)
    assert guard.actions[0]["cause"] == ["logit_growth"]
    assert guard.actions[0]["readings"]["peak"] == pytest.approx(101.0, abs=3.0)
    assert step(0.0)
    guard.observe(1.0)  # nobody tells the outputs
    optimizer.step()
    assert len(guard.actions) == 1


def test_what_is_told_of_logits_is_their_peak_and_log_partition():
    model = nn.Linear(1, 1)
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.1), rules=[LogitGrowth()])
    logits = torch.tensor([[0.0, 0.0], [-3.0, 3.0]])
    guard.observe(1.0, outputs=logits)
    guard.optimizer.step()
    logs = guard.windows.logs[2:, 0].exp().tolist()
    squares = [math.log(2.0) ** 2, math.log(math.exp(-3) + math.exp(3)) ** 2]
    assert logs == pytest.approx([4.0, 1 + sum(squares) / 2], rel=1e-6)


def test_the_ghost_radius_is_a_default_rule_of_cross_entropy_alone():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for objective, has in ((LOSS, True), (nn.functional.cross_entropy, True), (nn.MSELoss(), False), (None, False)):
        with Guard(model, optimizer, objective) as guard:
            assert any(isinstance(rule, GhostCap) for rule in guard.rules) == has


def test_after_a_jump_of_the_rate_updates_have_the_usual_length():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = Guard(model, optimizer, LOSS, every=0)
    lengths = []
    for step, data in enumerate(batches(40)):
        before = [p.detach().clone() for p in model.parameters()]
        train(model, optimizer, [data], guard, jump=lambda _, step=step: 1e4 if step == 35 else 0.01)
        lengths.append(sum(float((p.detach() - b).square().sum()) for p, b in zip(model.parameters(), before)) ** 0.5)
    assert lengths[35] == pytest.approx(sorted(lengths[3:35])[15], rel=0.02)
    assert [line["step"] for line in guard.actions] == [36]


def test_bad_data_are_skipped_on_while_the_weights_are_sound():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    guard = Guard(model, optimizer, LOSS, every=10, window=64)
    train(model, optimizer, batches(45), guard)
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, [(x * math.nan, y) for x, y in batches(15)], guard)
    assert [line["action"] for line in guard.actions] == ["skip"] * 15
    assert all(torch.equal(p, value) for p, value in zip(model.parameters(), before))
    train(model, optimizer, [(x * math.nan, y) for x, y in batches(1)], guard)
    assert guard.actions[-1]["action"] == "roll_back"  # 16 are too many
    train(model, optimizer, batches(5), guard)
    assert len(guard.actions) == 17


class Loud(AdamUpdateMonitor):
    """Gives the alarm at steps of a test."""

    def __init__(self, loud, every):
        self.loud, self.every, self.asked = loud, every, []

    def measure(self, moment):
        self.asked.append((moment.step, moment.phase))
        return Reading({"alarm": float(moment.step in self.loud)})

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_an_alarm_of_a_probe_cuts_the_rate_once():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    guard = Guard(model, optimizer, LOSS, rules=["non_finite", AdamInstability(Loud({9, 11, 15}, every=2))], every=0)
    train(model, optimizer, batches(20), guard)
    assert guard.rules[1].probe.asked == [(step, "stepped") for step in range(1, 20, 2)]
    cuts = [(line["step"], line["action"], line["cause"], line["rate"]) for line in guard.actions]
    assert cuts == [(9, "cut", ["adam_instability"], 0.5), (15, "cut", ["adam_instability"], 0.25)]
    state = guard.state_dict()
    assert state["rules"]["adam_instability"]["high"] is False
    assert guard.rate == 0.25


def test_adam_whose_components_move_in_step_is_an_alarm():
    model = nn.Linear(40, 40, bias=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    rule = AdamInstability(AdamUpdateMonitor(reports=2, every=5))
    guard = Guard(model, optimizer, rules=[rule], every=0)
    torch.manual_seed(0)
    signs = torch.randn(40, 40).sign()
    for step in range(40):
        guard.observe(1.0)
        model.weight.grad = torch.randn(40, 40) if step < 20 else signs * 3
        optimizer.step()
    assert [line["step"] > 20 for line in guard.actions] == [True]


def test_inputs_that_lie_along_the_top_direction_are_an_alarm():
    for aligned in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
        with torch.no_grad():
            for layer in model:
                layer.weight.copy_(torch.eye(6) * 0.1 + 5.0 * torch.ones(6, 6) / 6 * aligned)
                layer.bias.zero_()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
        rule = SpectralAlignment(SpectralAlignmentMonitor({"all": ["0", "1"]}, reports=2, every=2))
        guard = Guard(model, optimizer, rules=[rule], every=0)
        for _ in range(8):
            x = torch.randn(16, 6) + (3.0 if aligned else 0.0)
            loss = model(x).square().mean()
            guard.observe(loss, x)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert [line["step"] for line in guard.actions] == ([3] if aligned else [])


def test_the_ghost_cap_by_hand():
    cap = GhostCap(r_max=1.0, slack=2.0, usual=32, memory=4)
    assert cap.measured(1.5, 1.0) == 1.0, "a little beyond the radius"
    assert cap.measured(4.0, 1.0) == 0.25
    assert [cap.cut(0.5, 100.0) for _ in range(5)] == [1.0, 1.0, 1.0, 0.25, 1.0], "it is forgotten after a cut"
    for _ in range(8):
        cap.cut(1.0, 1.0)
    assert cap.measured(4.0, 8.0) == 0.125, "the usual length is that of updates that were not shortened"
