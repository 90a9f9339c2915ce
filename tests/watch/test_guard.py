"""A guard skips steps without a trace, judges what was told and nothing else, and can be loaded to the bit."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import nn

from steepest.optim import SAM, GhostStepController
from steepest.watch import Guard, GuardStop, read_run
from steepest.watch.guard import NonFinite, spike_score
from steepest.watch.guard.rules import logit_sizes
from steepest.watch.guard.skips import innermost, reads_found_inf

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "sgd_fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, foreach=False),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=False),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, foreach=True),
    "adamw_fused": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "adam_capturable_rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
}
LOSS = nn.CrossEntropyLoss()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def batches(count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(16, 5, generator=generator), torch.randint(3, (16,), generator=generator)) for _ in range(count)
    ]


def train(model, optimizer, data, guard=None, poison=(), factor=math.nan):
    """A loop by hand; at steps of ``poison`` the loss is multiplied by ``factor``."""
    for step, (x, y) in enumerate(data, 1):
        loss = LOSS(model(x), y) * (factor if step in poison else 1.0)
        if guard is not None:
            guard.observe(loss, x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def bits(model, optimizer):
    """All tensors of a model and its optimizer's state."""
    inner = innermost(optimizer)
    moments = [value for p in model.parameters() for _, value in sorted(inner.state[p].items())]
    return [*model.parameters(), *(torch.as_tensor(math.nan if v is None else v) for v in moments)]


def equal(left, right):
    return len(left) == len(right) and all(
        a.dtype == b.dtype and torch.equal(a.detach().nan_to_num(-7), b.detach().nan_to_num(-7))
        for a, b in zip(left, right)
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("poison", [1, 5])
def test_a_skipped_step_is_as_if_its_batch_had_not_been(name, poison):
    data = batches(8)
    model, plain = network(), network()
    optimizer, reference = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](plain.parameters())
    guard = Guard(model, optimizer, every=0)
    train(model, optimizer, data, guard, poison={poison})
    train(plain, reference, data[: poison - 1] + data[poison:])
    guard.close()
    assert equal(bits(model, optimizer), bits(plain, reference))
    assert all(bool(value.isfinite().all()) for value in bits(model, optimizer) if value.ndim != 0)
    assert "found_inf" not in vars(optimizer)
    if name != "adamw_fused":  # told a step later, when the loop has zeroed them
        assert [line["step"] for line in guard.actions] == [poison]


def test_skips_are_told_where_the_device_decides():
    model = network()
    optimizer = OPTIMIZERS["adamw_fused"](model.parameters())
    guard = Guard(model, optimizer, every=0)
    train(model, optimizer, batches(8), guard, poison={5})
    assert [(line["step"], line["cause"]) for line in guard.actions] == [(5, ["non_finite"])]
    assert guard.skipped == 1


@pytest.mark.parametrize(("name", "reads"), [("adamw_fused", 0), ("sgd_fused", 1), ("adamw_foreach", 10)])
def test_host_reads_are_counted_and_none_where_the_device_decides(name, reads):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    guard = Guard(model, optimizer, every=0)
    train(model, optimizer, batches(10), guard)
    assert reads_found_inf(optimizer) == (reads < 10)
    assert guard.host_reads == reads


def test_a_quiet_guard_changes_no_bit():
    data = batches(30)
    for name in OPTIMIZERS:
        model, plain = network(), network()
        optimizer, reference = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](plain.parameters())
        with Guard(model, optimizer, LOSS, every=10) as guard:
            train(model, optimizer, data, guard)
        train(plain, reference, data)
        assert equal(bits(model, optimizer), bits(plain, reference)), name
        assert guard.actions == []


def test_gradients_and_rates_are_given_back_after_a_skip():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    guard = Guard(model, optimizer)
    guard.rate = 0.5
    ((x, y),) = batches(1)
    (LOSS(model(x), y) * math.nan).backward()
    slopes = [p.grad for p in model.parameters()]
    optimizer.step()
    assert all(p.grad is slope for p, slope in zip(model.parameters(), slopes))
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_the_factor_of_the_rate_is_that_of_the_step():
    model, plain = network(), network()
    optimizer, reference = OPTIMIZERS["sgd"](model.parameters()), torch.optim.SGD(
        plain.parameters(), lr=0.025, momentum=0.9, weight_decay=0.01
    )  # fmt: skip
    guard = Guard(model, optimizer)
    guard.rate = 0.5
    train(model, optimizer, batches(5), guard)
    train(plain, reference, batches(5))
    assert equal(bits(model, optimizer), bits(plain, reference))


class Told:
    """A run of one weight whose losses and gradient lengths are what a test says."""

    def __init__(self, **options):
        self.weight = nn.Parameter(torch.zeros(()))
        self.model = nn.Module()
        self.model.register_parameter("weight", self.weight)
        self.optimizer = torch.optim.SGD([self.weight], lr=1.0)
        self.guard = Guard(self.model, self.optimizer, **options)

    def step(self, loss, slope=1.0):
        """Whether it was taken."""
        before = float(self.weight.detach())
        self.guard.observe(loss)
        self.weight.grad = torch.tensor(float(slope))
        self.optimizer.step()
        return float(self.weight.detach()) != before

    def steps(self, losses):
        return [self.step(loss) for loss in losses]


def test_a_window_of_another_size_alarms_too_and_nan_enters_no_statistic():
    run = Told(window=50, every=0)
    assert all(run.steps([2.0] * 200))
    assert run.steps([math.nan, math.nan, 2.0, 100.0, 100.0, 100.0, 2.0]) == [
        False, False, True, False, False, False, True,
    ]  # fmt: skip
    assert bool(run.guard.windows.logs[0].isfinite().all())
    assert float(run.guard.windows.logs[0].max()) == pytest.approx(math.log(2.0))
    assert run.steps([2.0] * 128) == [True] * 128  # good steps after NaN are taken


def test_the_alarm_comes_after_patience():
    run = Told(window=50, patience=4, every=10)
    run.steps([2.0] * 200)
    run.steps([100.0] * 3)
    assert [line["action"] for line in run.guard.actions] == ["skip"] * 3
    run.step(100.0)
    assert [line["action"] for line in run.guard.actions] == ["skip"] * 4 + ["roll_back"]


def test_patience_counts_new_observations_of_raw_losses():
    run = Told(every=10, patience=3)
    run.steps([2.0] * 40)
    run.step(90.0)
    run.steps([2.0] * 10)
    for _ in range(2):
        run.step(90.0)
    run.steps([2.0] * 10)
    assert [line["action"] for line in run.guard.actions] == ["skip"] * 3
    assert run.guard.step == 63
    assert run.guard.skipped == 3


def test_a_loss_that_is_not_finite_is_judged_at_its_own_step():
    run = Told(every=0)
    taken = [run.step(math.nan if step == 7 else 2.0) for step in range(1, 11)]
    assert taken == [step != 7 for step in range(1, 11)]


def test_scores_are_of_logarithms_with_median_and_deviation():
    torch.manual_seed(0)
    losses = (2 + 0.3 * torch.randn(60).double()).tolist()
    run = Told(window=32, warmup=20, every=0, rules=["non_finite", "loss_spike"])
    run.steps(losses)
    accepted = sorted(math.log(value) for value in losses[-32:])
    middle = accepted[15]  # the lower of the two in the middle, as torch's median
    deviations = sorted(abs(value - middle) for value in accepted)
    z = (math.log(5.0) - middle) / (1.4826 * deviations[15])
    run.guard.observe(5.0)
    run.weight.grad = torch.tensor(1.0)
    run.optimizer.step()
    (line,) = run.guard.actions
    assert z > 6
    assert line["readings"]["loss_score"] == pytest.approx(z, rel=1e-12)


def test_a_loss_that_falls_or_a_small_gradient_is_no_alarm():
    run = Told(every=0)
    run.steps([2.0] * 40)
    assert run.step(1e-3)
    assert run.step(0.0)
    assert run.step(-3.0)
    run.step(2.0, slope=1e-9)
    assert run.guard.actions == []
    assert run.guard.skipped == 0


def test_an_empty_batch_is_skipped_though_its_logits_are_told():
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.weight.detach().clone()
    with Guard(model, optimizer, LOSS) as guard:
        outputs = model(torch.zeros(0, 4))
        loss = LOSS(outputs, torch.zeros(0, dtype=torch.long))
        guard.observe(loss, outputs=outputs)
        loss.backward()
        optimizer.step()
    assert guard.skipped == 1
    assert torch.equal(model.weight, before)


def test_logits_of_pixels_have_their_classes_in_the_second_dimension():
    logits = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    peak, partition = logit_sizes(logits, torch.zeros(2, 4, 5, dtype=torch.long))
    assert float(peak) == pytest.approx(1 + float(logits.abs().max()), rel=1e-6)
    pixels = [logits[n, :, i, j].exp().sum().log().square() for n in range(2) for i in range(4) for j in range(5)]
    assert float(partition) == pytest.approx(1 + float(torch.stack(pixels).mean()), rel=1e-6)


def test_a_far_gradient_is_skipped_though_the_loss_is_as_before():
    run = Told(every=0)
    run.steps([2.0] * 40)
    assert not run.step(2.0, slope=50.0)
    assert run.guard.actions[0]["cause"] == ["gradient_spike"]
    assert run.step(2.0)


def decisions(run, losses):
    out = []
    for loss in losses:
        try:
            out.append(run.step(loss))
        except GuardStop:
            out.append("stop")
    return out


@pytest.mark.parametrize("when", [0, 5, 70])
def test_a_loaded_guard_decides_as_one_that_was_not_interrupted(when):
    generator = torch.Generator().manual_seed(3)
    losses = (2 + 0.1 * torch.randn(when + 100, generator=generator)).tolist()
    for place in (when + 3, when + 40, when + 41, when + 60, when + 61, when + 62, when + 80):
        losses[place] = 20.0
    losses[when + 50] = math.nan
    options = {"window": 32, "every": 10}
    whole, first = Told(**options), Told(**options)
    expected = decisions(whole, losses)[when:]
    decisions(first, losses[:when])
    second = Told(**options)
    second.weight.data.copy_(first.weight)
    state = copy.deepcopy(first.guard.state_dict())
    decisions(first, losses[when:])  # what was given is a copy
    second.guard.load_state_dict(state)
    assert decisions(second, losses[when:]) == expected
    assert str(second.guard.actions) == str(whole.guard.actions[-len(second.guard.actions) :])
    assert [line["action"] for line in second.guard.actions].count("roll_back") == 1
    assert torch.equal(second.weight, whole.weight)


def test_the_state_is_plain_and_loads_with_weights_only(tmp_path):
    model = network()
    optimizer = OPTIMIZERS["adamw_fused"](model.parameters())
    guard = Guard(model, optimizer, every=3)
    train(model, optimizer, batches(10), guard)
    torch.save(guard.state_dict(), tmp_path / "guard.pt")
    state = torch.load(tmp_path / "guard.pt", weights_only=True)
    guard.close()
    again = Guard(model, optimizer, every=3)
    again.load_state_dict(state)
    assert str(again.state_dict()) == str(guard.state_dict())


@pytest.mark.parametrize("fused", [False, True])
def test_norms_are_of_unscaled_gradients_and_an_overflow_is_a_note(fused):
    weight = nn.Parameter(torch.ones(1))
    model = nn.Module()
    model.register_parameter("weight", weight)
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
    guard = Guard(model, optimizer, every=0, rules=[_Norm()])
    for step in range(1, 5):
        optimizer.zero_grad()
        loss = (weight * 1e-3).sum()
        guard.observe(loss)
        scaler.scale(loss * (math.inf if step == 3 else 1.0)).backward()
        before = weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(before, weight) == (step == 3)
    guard.observe(loss)
    assert guard.rules[0].norms[0] == pytest.approx(1e-3, rel=1e-6)
    assert all(line["action"] == "note" for line in guard.actions)
    assert len(guard.actions) == 1
    assert guard.skipped == 0
    assert scaler.get_scale() == 32768.0


class _Norm(NonFinite):
    name = "norm"

    def __init__(self):
        self.norms = []

    def suspicious(self, signals):
        self.norms.append(float(signals.norm))
        return super().suspicious(signals)


def test_a_skip_under_a_fused_optimizer_leaves_what_a_scaler_said():
    weight = nn.Parameter(torch.ones(1))
    model = nn.Module()
    model.register_parameter("weight", weight)
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    guard = Guard(model, optimizer, every=0)
    guard.observe(math.nan)  # the gradient is finite: the scaler says nothing
    scaler.scale((weight * 2).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight.item() == 1.0
    assert "found_inf" not in vars(optimizer)
    guard.observe(1.0)
    scaler.scale((weight * 2).sum()).backward()
    scaler.step(optimizer)
    assert weight.item() < 1.0


def test_wrappers_of_the_house():
    data = batches(30)
    for wrap in (
        lambda p, m: SAM(torch.optim.SGD(p, lr=0.05, momentum=0.9), rho=0.05),
        lambda p, m: GhostStepController(torch.optim.Adam(p, lr=0.01), m, samples=data[0][0]),
    ):
        model, plain = network(), network()
        optimizer, reference = wrap(model.parameters(), model), wrap(plain.parameters(), plain)
        guard = Guard(model, optimizer, LOSS, every=5)
        _closures(model, optimizer, data, guard, poison=24)
        _closures(plain, reference, data[:24] + data[25:])
        assert [line["step"] for line in guard.actions] == [25]
        assert equal(bits(model, optimizer), bits(plain, reference))


def _closures(model, optimizer, data, guard=None, poison=-1):
    for step, (x, y) in enumerate(data):

        def closure(x=x, y=y, factor=1000.0 if step == poison else 1.0):
            optimizer.zero_grad()
            loss = LOSS(model(x), y) * factor
            if guard is not None:
                guard.observe(loss, x, y)
            loss.backward()
            return loss

        optimizer.step(closure)


def test_a_closure_of_a_plain_optimizer_is_judged_by_its_own_gradients():
    data = batches(6)
    for name in ("adamw", "adamw_fused"):
        model, plain = network(), network()
        optimizer, reference = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](plain.parameters())
        guard = Guard(model, optimizer, every=0)
        broken = [(x * math.nan if step == 3 else x, y) for step, (x, y) in enumerate(data)]
        _closures(model, optimizer, broken, guard)
        _closures(plain, reference, data[:3] + data[4:])
        assert guard.step == 6
        assert equal(bits(model, optimizer), bits(plain, reference))


def test_several_micro_batches_are_one_step():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    losses = []
    guard = Guard(model, optimizer, every=0, accumulation=2, log=lambda event, facts: losses.append(facts))
    for step, (x, y) in enumerate(batches(6)):
        loss = LOSS(model(x), y) * (math.nan if step == 3 else 1.0)
        guard.observe(loss, x, y)
        (loss / 2).backward()
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()
    assert guard.step == 3
    assert [(line["step"], line["action"]) for line in losses] == [(2, "skip")]


class Broken(nn.Module):
    def forward(self, x):
        return x / 0 if self.training else x


def test_the_first_module_that_is_not_finite_is_named(tmp_path):
    model = nn.Sequential(nn.Linear(5, 4), Broken(), nn.Linear(4, 3))
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with Guard(model, optimizer, every=0, log=tmp_path / "guard.jsonl") as guard:
        train(model, optimizer, batches(1), guard)
        model[1].eval()
        x, y = batches(1)[0]
        loss = LOSS(model(x), y)
        guard.observe(loss, x, y)
        optimizer.zero_grad()
        loss.backward()
        model[2].weight.grad[0, 0] = math.inf
        optimizer.step()
        with torch.no_grad():
            model[0].bias[1] = math.nan
        optimizer.step()
    assert [line["module"] for line in guard.actions] == ["1", "2.weight.grad", "0.bias"]
    lines = [json.loads(line) for line in (tmp_path / "guard.jsonl").read_text().splitlines()]
    assert [(line["event"], line["step"], line["cause"]) for line in lines] == [
        ("action", step, ["non_finite"]) for step in (1, 2, 3)
    ]
    assert lines[0]["readings"]["loss"] == "NaN"
    assert len(read_run(tmp_path / "guard.jsonl").notes) == 3


def test_spike_score_is_a_share_of_steps():
    torch.manual_seed(0)
    values = 2 + 0.1 * torch.randn(500).double()
    values[[150, 300, 450]] = 9.0
    values[200] = math.nan
    beyond = judged = 0
    accepted = []
    for value in values.tolist():
        window = torch.tensor(accepted[-128:], dtype=torch.float64)
        if len(window) == 128:
            judged += 1
            beyond += not abs(value - float(window.mean())) <= 6 * float(window.std())
        if math.isfinite(value):
            accepted.append(value)
    assert spike_score(values) == beyond / judged > 0
    assert math.isnan(spike_score(values[:100]))


def test_what_is_refused():
    model = network()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    guard = Guard(model, optimizer)
    with pytest.raises(ValueError, match="without a guard"):
        Guard(model, SAM(optimizer, rho=0.1))
    guard.close()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    for options in ({"budget": -1}, {"window": 3}, {"rules": ["nothing"]}, {"log": "guard.txt"}, {"cut": 0.0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Guard(model, optimizer, **options)
    with pytest.raises(ValueError, match="each rule once"):
        Guard(model, optimizer, rules=["non_finite", NonFinite()])
    with pytest.raises(TypeError, match="rules"):
        Guard(model, optimizer, rules="everything")
    with pytest.raises(ValueError, match="one gradient a step"):
        Guard(model, torch.optim.LBFGS(model.parameters()))
    Guard(model, optimizer)
