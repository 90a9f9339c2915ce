"""One cycle at the points of its card, against a naive loop of the formulas and torch's own; the range test."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from steepest.optim.schedules import OneCycle, cyclical_momentum, lr_range_test, one_cycle_rate

POINTS = (0, 20, 45, 70, 90, 95, 100)
RATES = (0.1, 0.5, 1, 0.5, 0.1, 0.0505, 0.001)
MOMENTA = (0.95, 0.905556, 0.85, 0.905556, 0.95, 0.95, 0.95)


def sgd(rate=0.1, **settings):
    return torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=rate, **{"momentum": 0.9, **settings})


def optax_rate(t, steps, peak, pct_start=0.45, pct_final=0.9, div=10.0, final=100.0):
    """``optax.linear_onecycle_schedule``: linear between values that are multiplied at whole-numbered boundaries."""
    bounds = [0, int(pct_start * steps), int(pct_final * steps), steps]
    values = [peak / div]
    for scale in (div, 1 / div, 1 / final):
        values.append(values[-1] * scale)
    for a, b, low, high in zip(bounds, bounds[1:], values, values[1:]):
        if a <= t < b:
            return low + (high - low) * (t - a) / (b - a)
    return values[-1]


@pytest.mark.holds("one-cycle", 1)
def test_points_of_the_card():
    for t, rate, momentum in zip(POINTS, RATES, MOMENTA):
        value, beta = one_cycle_rate(t, 100, 1.0)
        assert value == pytest.approx(rate, abs=1e-12)
        assert beta == cyclical_momentum(t, 100) == pytest.approx(momentum, abs=5e-7)
    optimizer = sgd()
    schedule = OneCycle(optimizer, 1.0, 100)
    seen = []
    for _ in range(101):
        seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        schedule.step()
    assert seen == [one_cycle_rate(t, 100, 1.0) for t in range(101)]


@pytest.mark.holds("one-cycle", 1)
@pytest.mark.parametrize("steps", [20, 100, 2000])
def test_it_is_that_of_optax(steps):
    for t in range(steps + 5):
        assert one_cycle_rate(t, steps, 0.3)[0] == pytest.approx(optax_rate(t, steps, 0.3), rel=1e-12)


@pytest.mark.holds("one-cycle", 2)
@pytest.mark.parametrize(("steps", "anneal"), [(100, 0.1), (97, 0.25), (13, 0.0)])
def test_continuous_in_straight_lines_and_symmetric(steps, anneal):
    top = (1 - anneal) * steps
    rates = [one_cycle_rate(t, steps, 1.0, anneal=anneal)[0] for t in range(steps + 1)]
    assert max(abs(np.diff(rates))) <= 0.9 / (top / 2) + 1e-12
    knots = (top / 2, top, steps)
    for t in range(1, steps):
        if not any(t - 1 < knot < t + 1 for knot in knots):
            assert rates[t] == pytest.approx((rates[t - 1] + rates[t + 1]) / 2, abs=1e-12)
    for t in range(int(top) + 1):
        if (top - t).is_integer():
            assert rates[t] == pytest.approx(rates[int(top - t)], abs=1e-12)


def test_torch_differs_by_what_the_card_says():
    optimizer = sgd()
    theirs = OneCycleLR(
        optimizer, 1.0, total_steps=101, pct_start=0.45, anneal_strategy="linear", div_factor=10, final_div_factor=100,
        three_phase=True,
    )  # fmt: skip
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if theirs.last_epoch < 100:
            theirs.step()
    ours = [one_cycle_rate(t, 100, 1.0)[0] for t in range(101)]
    assert rates != pytest.approx(ours, abs=1e-3)
    assert rates == pytest.approx(ours, abs=0.03)  # a step and a half of 0.02 at the peak


@pytest.mark.holds("one-cycle", 4)
def test_the_first_beta_of_adam_is_cycled():
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(1))], betas=(0.9, 0.99))
    schedule = OneCycle(optimizer, 1e-2, 100)
    for t in range(101):
        assert optimizer.param_groups[0]["betas"] == (cyclical_momentum(t, 100), 0.99)
        optimizer.step()
        schedule.step()


@pytest.mark.holds("one-cycle", 5)
def test_the_last_rate_is_held_and_no_annealing_is_a_triangle():
    assert one_cycle_rate(10**6, 100, 1.0)[0] == one_cycle_rate(100, 100, 1.0)[0] == 0.1 / 100
    assert cyclical_momentum(10**6, 100) == 0.95
    triangle = [one_cycle_rate(t, 20, 1.0, anneal=0.0)[0] for t in range(20)]
    assert triangle == pytest.approx([0.1 + 0.09 * min(t, 20 - t) for t in range(20)])


def test_a_peak_for_groups_with_their_own_rates():
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in (0.03, 0.01)]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    OneCycle(optimizer, 0.6, 100, last_epoch=44)
    assert [group["lr"] for group in optimizer.param_groups] == [0.6, pytest.approx(0.2)]
    with pytest.raises(ValueError, match="a rate above 0 in some group"):
        OneCycle(torch.optim.SGD([{"params": [nn.Parameter(torch.ones(1))]} for _ in "ab"], lr=0.0), 0.6, 100)


def test_arguments():
    for wrong in ({"anneal": 1.0}, {"div": 0.5}, {"final_div": 0}, {"high": 1.0}, {"low": -0.1}, {"lr_max": 0.0}):
        with pytest.raises(ValueError, match=": expected"):
            OneCycle(sgd(), **{"lr_max": 1.0, "total_steps": 10, **wrong})
    with pytest.raises(ValueError, match="t: expected"):
        one_cycle_rate(-1, 10, 1.0)


class Counting(nn.Module):
    """Dropout, running statistics, a memory in its extra state; it may fail after some passes."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 2))
        self.passes, self.fails_at = 0, fails_at

    def forward(self, x):
        self.passes += 1
        if self.passes == self.fails_at:
            raise ZeroDivisionError
        return self.layers(x)

    def get_extra_state(self):
        return {"passes": self.passes}

    def set_extra_state(self, state):
        self.passes = state["passes"]


def set_up(batches=12, fails_at=None, **settings):
    torch.manual_seed(0)
    x = torch.randn(4 * batches, 3)
    data = torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())
    loader = torch.utils.data.DataLoader(data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(3))
    model = Counting(fails_at)
    optimizer = torch.optim.SGD(
        [{"params": model.layers[0].parameters(), "lr": 0.2}, {"params": model.layers[3].parameters(), "lr": 0.05}],
        momentum=0.9, **settings,
    )  # fmt: skip
    inputs, target = data[:4]
    nn.functional.cross_entropy(model(inputs), target).backward()
    optimizer.step()
    return model, optimizer, loader


def everything(model, optimizer, loader):
    _, words, *rest = np.random.get_state()  # noqa: NPY002
    return copy.deepcopy(
        [
            model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()],
            [module.training for module in model.modules()], torch.get_rng_state(), random.getstate(), words.tolist(),
            rest, loader.generator.get_state(),
        ]
    )  # fmt: skip


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.holds("one-cycle", 3)
def test_the_rate_rises_with_steps_and_not_with_the_batches_they_accumulate():
    """holocron#504, pytorch-lr-finder#11: 12 batches of which a step takes 4 are 3 points, each a mean loss of 4."""
    model, optimizer, loader = set_up()
    before = everything(model, optimizer, loader)
    test = lr_range_test(
        model, nn.functional.cross_entropy, loader, 1e-3, 1e-1, 3, optimizer=optimizer, accumulation_steps=4
    )
    assert same(everything(model, optimizer, loader), before)
    assert test.lrs == pytest.approx([1e-3, 1e-2, 1e-1])
    assert len(test.losses) == 3
    # the same by hand, from the same random state, with the groups at their ratio of 4
    losses = []
    batches = iter(loader)
    for rate in test.lrs:
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = rate, rate / 4
        optimizer.zero_grad()
        window = [nn.functional.cross_entropy(model(x), y) for x, y in (next(batches) for _ in range(4))]
        (sum(window) / 4).backward()
        optimizer.step()
        losses.append(float(sum(window).detach()) / 4)
    assert test.losses == pytest.approx(losses, rel=1e-6)


@pytest.mark.holds("one-cycle", 3)
def test_an_exception_leaves_everything_as_it_was():
    model, optimizer, loader = set_up(fails_at=6)
    before = everything(model, optimizer, loader)
    with pytest.raises(ZeroDivisionError):
        lr_range_test(model, nn.functional.cross_entropy, loader, num_iter=20, optimizer=optimizer)
    assert same(everything(model, optimizer, loader), before)


@pytest.mark.holds("one-cycle", 3)
def test_reset_goes_back_after_what_came_later():
    model, optimizer, loader = set_up()
    before = everything(model, optimizer, loader)
    test = lr_range_test(model, nn.functional.cross_entropy, loader, 1e-3, 1.0, 5, optimizer=optimizer)
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    test.reset()
    after = everything(model, optimizer, loader)
    assert same(after[:4], before[:4])


def test_a_step_that_a_scaler_skips_moves_no_rate():
    model, optimizer, loader = set_up()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, growth_interval=10**6)
    before = scaler.state_dict()
    scales = []

    def loss(outputs, target):
        scales.append(scaler.get_scale())
        return 10 * nn.functional.cross_entropy(outputs, target)

    test = lr_range_test(model, loss, loader, 1e-3, 1e-1, 4, optimizer=optimizer, scaler=scaler)
    assert len(scales) > 4
    assert scales[0] > scales[-1]  # it has skipped steps
    assert model.passes == 1  # the extra state went back too
    assert test.lrs == pytest.approx(np.geomspace(1e-3, 1e-1, 4).tolist())
    assert scaler.state_dict() == before


@pytest.mark.holds("one-cycle", 3)
def test_it_stops_where_the_loss_diverges_and_suggests_a_rate_below():
    """A quadratic of curvature 1 is stable up to a rate of 2 without momentum."""
    weight = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(weight.parameters(), lr=0.1)
    batch = (torch.ones(1, 1), torch.zeros(1, 1))
    test = lr_range_test(
        weight, lambda out, y: 0.5 * (out - y).square().mean() + 1.0, [batch], 1e-3, 1e3, 200, optimizer=optimizer,
        smoothing=0.5,
    )  # fmt: skip
    assert test.diverged
    assert test.lrs[-1] < 1e3
    assert test.lrs[-1] > 2.0
    assert test.smoothed[-1] > 4 * min(test.smoothed)
    assert all(value <= 4 * min(test.smoothed[: i + 1]) for i, value in enumerate(test.smoothed[:-1]))
    assert test.suggestion == pytest.approx(test.lrs[int(np.argmin(test.smoothed))] / 10)
    assert test.suggestion < 0.25
    assert test.history == {"lr": test.lrs, "loss": test.smoothed}
    average, wanted = 0.0, []
    for t, value in enumerate(test.losses):
        average = 0.5 * average + 0.5 * value
        wanted.append(average / (1 - 0.5 ** (t + 1)))
    assert test.smoothed == pytest.approx(wanted)


def test_arguments_of_the_range_test():
    model, _, loader = set_up()
    loss = nn.functional.cross_entropy
    for wrong, match in (
        ({"start_lr": 0.0}, "start_lr"), ({"end_lr": 1e-9}, "end_lr"), ({"num_iter": 0}, "num_iter"),
        ({"step_mode": "cosine"}, "step_mode"), ({"accumulation_steps": 0}, "accumulation_steps"),
        ({"smoothing": 1.0}, "smoothing"), ({"divergence": 1.0}, "divergence"), ({"divide": 0.5}, "divide"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            lr_range_test(model, loss, loader, **wrong)
    with pytest.raises(ValueError, match="loader: expected at least one batch"):
        lr_range_test(model, loss, [])
    with pytest.raises(ValueError, match="loss: expected a number at the first step"):
        lr_range_test(model, lambda out, y: loss(out, y) * float("nan"), loader)
    with pytest.raises(TypeError, match="model: expected a module"):
        lr_range_test(torch.sin, loss, loader)
    assert len(lr_range_test(model, loss, loader, 1e-3, 2e-3, 5, step_mode="linear").lrs) == 5
