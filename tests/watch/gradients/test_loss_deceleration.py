"""Broken power laws: the card's numbers, those that were published for OLMo, scipy's own fit; sums that cancel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import curve_fit
from torch import nn

from steepest.core.probe import Moment
from steepest.watch import Recorder
from steepest.watch.gradients import (
    BNSLFit,
    ZeroSumMonitor,
    destructive_interference,
    fit_broken_power_law,
    loss_deceleration,
)

CARD = BNSLFit(b=12.0, c0=0.13, c1=-0.09, d1=5000.0, f1=0.3)
# parameters that code mirandrom/zsl prints for its runs, with L_d, r_d, and the predicted last loss at step 262,153;
# it rounds d1 down to whole steps before it takes L_d, a difference of less than 0.2 / 6000 in the loss
PUBLISHED = {
    "37M": (
        BNSLFit(19.635245615933666, 0.1952969906236095, -0.1789559309290872, math.exp(8.68396913256745), 0.235373492),
        (3.601635167409666, 0.016341059694522292, 3.385189016366656),
    ),
    "144M": (
        BNSLFit(20.305585521154264, 0.210461014211553, -0.18744568318780858, math.exp(8.711803493751379), 0.344016016),
        (3.2459481337474463, 0.023015331023744423, 2.9765112793451998),
    ),
    "285M": (
        BNSLFit(20.846519614518566, 0.22075583062607831, -0.19571308584906016, math.exp(8.56873284677596), 0.4449655),
        (3.1443536107612666, 0.02504274477701815, 2.851120038445916),
    ),
}
FITS = {"card": CARD, **{name: fit for name, (fit, _) in PUBLISHED.items()}}
NAMES = ("b", "c0", "c1", "d1", "f1")


def parameters(fit):
    return [getattr(fit, name) for name in NAMES]


def naive(fit, t):
    """The curve in the form of the publication, one step at a time."""
    return fit.b * t**-fit.c0 * (1 + (t / fit.d1) ** (1 / fit.f1)) ** (-fit.c1 * fit.f1)


def noisy(fit, steps, size=0.01, seed=0):
    return fit.predict(steps) * np.exp(size * np.random.default_rng(seed).standard_normal(len(steps)))


@pytest.mark.holds("loss-deceleration", 1)
def test_readings_of_a_curve():
    assert pytest.approx(3.965657, abs=5e-7) == CARD.L_d
    assert pytest.approx(0.04, abs=1e-12) == CARD.r_d
    assert CARD.t_d == 5000.0
    assert float(CARD.predict(5000.0)) == pytest.approx(4.040573, abs=5e-7)
    assert float(CARD.predict(5000.0)) == pytest.approx(CARD.L_d * 2 ** (-CARD.c1 * CARD.f1), rel=1e-12)
    assert float(CARD.predict(1e5)) == pytest.approx(3.517827, abs=5e-7)
    assert float(CARD.extrapolate(1e5)) == pytest.approx(3.517823, abs=5e-7)
    steps = [1.0, 150.0, 5000.0, 1e5]
    np.testing.assert_allclose(CARD.predict(steps), [naive(CARD, t) for t in steps], rtol=1e-12)
    assert np.isfinite(BNSLFit(b=12.0, c0=0.13, c1=-0.09, d1=5000.0, f1=0.05).predict([1e-12, 1e25])).all()


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_readings_that_were_published(name):
    fit, (level, slope, last) = PUBLISHED[name]
    assert pytest.approx(level, rel=5e-5) == fit.L_d
    assert fit.r_d == pytest.approx(slope, rel=1e-9)
    assert float(fit.extrapolate(262_153)) == pytest.approx(last, rel=5e-5)


@pytest.mark.holds("loss-deceleration", 2)
@pytest.mark.parametrize("name", list(FITS))
@pytest.mark.parametrize("guess", [None, 6000.0])
def test_parameters_of_a_curve_without_noise(name, guess):
    steps = np.geomspace(101, 2.6e5, 300)
    fit = fit_broken_power_law(steps, [naive(FITS[name], t) for t in steps], guess)
    assert parameters(fit) == pytest.approx(parameters(FITS[name]), rel=1e-4)
    assert fit.rsle < 1e-6 < fit.straight
    assert fit.decelerates
    assert (fit.first, fit.last) == pytest.approx((101, 2.6e5))


def test_scipy_fits_the_same_to_noise():
    def log_loss(x, b, c0, c1, d1, f1):
        return b - c0 * x - c1 * f1 * np.log(1 + np.exp((x - d1) / f1))

    steps = np.geomspace(101, 1e5, 250)
    losses = noisy(CARD, steps)
    x, y = np.log(steps), np.log(losses)
    theirs, _ = curve_fit(log_loss, x, y, p0=[2.5, 0.15, -0.1, math.log(6000), 0.3], method="dogbox", xtol=1e-12)
    fit = fit_broken_power_law(torch.tensor(steps), torch.tensor(losses))
    ours = [math.log(fit.b), fit.c0, fit.c1, math.log(fit.d1), fit.f1]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert fit.rsle == pytest.approx(float(np.sqrt(np.mean((log_loss(x, *theirs) - y) ** 2))), rel=1e-6)
    slope, level = np.polyfit(x, y, 1)
    assert fit.straight == pytest.approx(float(np.sqrt(np.mean((slope * x + level - y) ** 2))), rel=1e-9)


@pytest.mark.holds("loss-deceleration", 5)
@pytest.mark.parametrize("size", [0.0, 0.003, 0.03])
def test_a_power_law_does_not_decelerate(size):
    steps = np.geomspace(101, 1e5, 200)
    fit = fit_broken_power_law(steps, noisy(BNSLFit(b=12.0, c0=0.13, c1=0.0, d1=1.0, f1=1.0), steps, size))
    assert not fit.decelerates
    if size == 0:
        assert abs(fit.c1) < 1e-8
        assert fit.c0 == pytest.approx(0.13, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "decelerates"),
    [
        ({}, True),
        ({"c1": -0.014}, True),
        ({"c1": -0.012}, False),  # it keeps more than 0.9 of its slope
        ({"c1": 0.09}, False),
        ({"c0": -0.13}, False),
        ({"d1": 100.05}, False),  # at an end of the range
        ({"d1": 99_950.0}, False),
        ({"rsle": 0.091}, False),  # hardly better than a straight line
        ({"rsle": 0.089}, True),
    ],
)
def test_when_a_curve_decelerates(change, decelerates):
    own = {"b": 12.0, "c0": 0.13, "c1": -0.09, "d1": 5000.0, "f1": 0.3, "rsle": 0.01, "straight": 0.1}
    assert BNSLFit(**{**own, "first": 100.0, "last": 1e5, **change}).decelerates is decelerates


def test_bounds_of_the_break():
    steps = np.geomspace(101, 1e5, 200)
    for f1, bound in ((0.01, 0.05), (4.0, 2.0)):
        curve = BNSLFit(b=12.0, c0=0.3, c1=-0.25, d1=3000.0, f1=f1).predict(steps)
        assert fit_broken_power_law(steps, curve).f1 == pytest.approx(bound, rel=1e-3)
    for d1 in (5.0, 1e7):
        fit = fit_broken_power_law(steps, BNSLFit(b=12.0, c0=0.13, c1=-0.09, d1=d1, f1=0.3).predict(steps))
        assert 101 * (1 - 1e-9) <= fit.d1 <= 1e5 * (1 + 1e-9)
        assert not fit.decelerates


def test_the_transient_is_left_out():
    steps = np.geomspace(10, 1e5, 300)
    losses = np.where(steps <= 100, 50.0, CARD.predict(steps))
    assert parameters(fit_broken_power_law(steps, losses)) == pytest.approx(parameters(CARD), rel=1e-4)
    assert fit_broken_power_law(steps, losses, transient=0).d1 < 1000
    later = fit_broken_power_law(np.arange(100.0, 108.0), np.arange(8.0, 0.0, -1.0))
    assert later.first == 101  # step 100 itself is left out


def test_a_guess_chooses_between_two_breaks():
    steps = np.geomspace(101, 1e8, 500)
    flatter = BNSLFit(b=12.0, c0=0.1, c1=-0.2, d1=1000.0, f1=0.1)
    steeper = BNSLFit(b=1.0, c0=0.0, c1=0.2, d1=1e6, f1=0.1)
    losses = flatter.predict(steps) * steeper.predict(steps)
    early, late = (fit_broken_power_law(steps, losses, guess) for guess in (1e3, 1e6))
    assert early.d1 < 1e4 < 1e5 < late.d1
    assert late.rsle < early.rsle
    best = fit_broken_power_law(steps, losses)  # without one, the better of the two
    assert parameters(best) == pytest.approx(parameters(late), rel=1e-4)
    for guess in (1e-3, 1e12):  # one outside the range starts at its end
        fit_broken_power_law(steps, losses, guess)


def published_steps(steps):
    """Which steps are taken, in the words of the publication's code."""
    numbers = [i for i, s in enumerate(steps) if s >= 10 and s % 10 ** min(math.floor(math.log10(s) - 1), 3) == 0]
    return [*numbers, len(steps) - 1]


@pytest.mark.parametrize(("step", "count", "window"), [(1, 1_507, 1.2), (1, 1_507, 1.5), (100, 1_501, 1.2)])
def test_smoothed_and_thinned_as_published(step, count, window):
    steps = np.arange(1, count + 1) * step
    losses = noisy(BNSLFit(b=12.0, c0=0.13, c1=-0.09, d1=600.0 * step, f1=0.3), steps, 0.05)
    smooth = np.array([np.mean(losses[int(j // window) : j + 1]) for j in range(count)])
    chosen = sorted(set(published_steps(steps.tolist())))
    theirs = fit_broken_power_law(steps[chosen], smooth[chosen])
    ours = loss_deceleration(steps, losses, window)
    assert parameters(ours) == pytest.approx(parameters(theirs), rel=1e-6)
    assert (ours.first, ours.last) == (theirs.first, steps[-1])


def test_thinned_where_no_step_is_a_multiple():
    steps = np.arange(3, 60_000, 70)
    fit = loss_deceleration(steps, CARD.predict(steps), 1.0, guess=6000, transient=200)
    assert parameters(fit) == pytest.approx(parameters(CARD), rel=1e-4)
    assert fit.first == 213  # 143 is the last of the transient
    losses = noisy(CARD, steps, 0.02)
    raw = fit_broken_power_law(steps, losses, 6000)
    assert loss_deceleration(steps, losses, 1.0, guess=6000).d1 != pytest.approx(raw.d1, rel=1e-4)


def test_a_smoothed_curve_lags_behind():
    steps = np.arange(1, 20_001)
    plain, smooth = (loss_deceleration(steps, CARD.predict(steps), window, guess=6000) for window in (1.0, 1.2))
    assert parameters(plain) == pytest.approx(parameters(CARD), rel=1e-4)
    assert smooth.b > plain.b
    assert smooth.d1 > plain.d1


STEPS, LOSSES = list(range(101, 111)), [float(10 - k) for k in range(10)]


@pytest.mark.parametrize("function", [fit_broken_power_law, loss_deceleration])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": STEPS[:-1]}, "loss: expected one for each"),
        ({"steps": [STEPS]}, "steps: expected finite numbers in one dimension"),
        ({"steps": STEPS[::-1]}, "steps: expected steps >= 0 that rise"),
        ({"steps": [-5, *STEPS[1:]]}, "steps: expected steps >= 0 that rise"),
        ({"steps": [101, 101, *STEPS[2:]]}, "steps: expected steps >= 0 that rise"),
        ({"steps": [math.nan, *STEPS[1:]]}, "steps: expected finite"),
        ({"loss": [*LOSSES[:-1], 0.0]}, "loss: expected losses > 0"),
        ({"loss": [*LOSSES[:-1], math.inf]}, "loss: expected finite"),
        ({"guess": 0.0}, "guess: expected a number > 0"),
        ({"guess": math.inf}, "guess: expected"),
        ({"transient": -1.0}, "transient: expected a number >= 0"),
        ({"transient": 105}, "steps: expected at least 6 of them after step 105, got"),
        ({"steps": [], "loss": []}, "steps: expected at least 6"),
    ],
)
def test_wrong_arguments(function, change, named):
    own = {"steps": STEPS, "loss": LOSSES, **change}
    steps, loss = own.pop("steps"), own.pop("loss")
    with pytest.raises(ValueError, match=f"^{named}"):
        function(steps, loss, **own)


def test_wrong_windows_and_changes():
    with pytest.raises(ValueError, match=r"^window: expected a number >= 1"):
        loss_deceleration(STEPS, LOSSES, 0.9)
    with pytest.raises(TypeError, match=r"^delta: expected a floating tensor"):
        destructive_interference(torch.tensor([1, 2]))
    with pytest.raises(ValueError, match=r"^delta: expected at least one dimension"):
        destructive_interference(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"^dim: expected an integer >= -2 and <= 1"):
        destructive_interference(torch.ones(2, 2), 2)
    with pytest.raises(ValueError, match=r"^dim: expected an integer >= -2 and <= 1"):
        destructive_interference(torch.ones(2, 2), (0, -3))


@pytest.mark.holds("loss-deceleration", 3)
def test_changes_that_cancel():
    values = {
        (-0.5, 0.2, -0.1, 0.3): 0.909091,
        (0.5, 0.2, 0.1): 0.0,
        (-0.5, -0.2, -0.1): 0.0,
        (0.5, -0.2, -0.3): 1.0,
    }
    for delta, wanted in values.items():
        assert float(destructive_interference(torch.tensor(delta).double())) == pytest.approx(wanted, abs=5e-7)
    assert destructive_interference(torch.zeros(3)).isnan()
    assert destructive_interference(torch.zeros(0)).isnan()
    for wrong in (math.nan, math.inf):
        assert destructive_interference(torch.tensor([1.0, wrong])).isnan()


@pytest.mark.holds("loss-deceleration", 4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neither_scale_nor_order_matters(dtype):
    delta = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=dtype)
    plain = destructive_interference(delta)
    assert plain.dtype == dtype
    for scale in (1e-37, 2.0, -5e37):  # sums of the largest leave float32
        torch.testing.assert_close(destructive_interference(scale * delta), plain, rtol=0.0, atol=1e-5)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(destructive_interference(delta[order]), plain)
    whole = destructive_interference(delta, (0, 1))
    torch.testing.assert_close(destructive_interference(delta.flatten()), whole)
    torch.testing.assert_close(destructive_interference(delta.T, dim=1), plain)
    loop = [1 - abs(sum(column)) / sum(abs(value) for value in column) for column in delta.double().T.tolist()]
    torch.testing.assert_close(plain.double(), torch.tensor(loop).double(), rtol=0.0, atol=1e-6)
    assert destructive_interference(delta.bfloat16()).dtype == torch.float32


class Reader(nn.Module):
    """Embedding, dropout and a head; noise of torch's own generator in every pass."""

    def __init__(self, noise=1.0):
        super().__init__()
        self.embedding, self.dropout, self.head = nn.Embedding(7, 4), nn.Dropout(0.5), nn.Linear(4, 7)
        self.noise = noise

    def forward(self, ids):
        return self.head(self.dropout(self.embedding(ids))) + self.noise * torch.rand(7)


def stepped(noise=0.0, rate=0.5):
    """A reader after a step of gradient descent, its batch, and its weights before."""
    torch.manual_seed(0)
    model, ids = Reader(noise), torch.randint(7, (5, 6))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    x, y = ids[:, :-1].clone(), ids[:, 1:].clone()
    nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= rate * p.grad
    return model, x, y, before


def moment_of(model, x, y, before, **more):
    return Moment(1, "stepped", model, inputs=x, targets=y, before=before, **more)


def losses_by_hand(weights, x, y):
    """Of each token, in float64, by logits of an embedding and a head."""
    e, w, b = (weights[name].double() for name in ("embedding.weight", "head.weight", "head.bias"))
    logits = e[x] @ w.T + b
    return logits.exp().sum(-1).log() - logits.gather(-1, y[..., None])[..., 0]


def test_the_monitor_compares_tokens():
    model, x, y, before = stepped()
    y[0, :3] = -1
    counted = y != -1
    after = {name: p.detach() for name, p in model.named_parameters()}
    labels = y.clamp(min=0)
    delta = (losses_by_hand(after, x, labels) - losses_by_hand(before, x, labels))[counted]
    numbers = ZeroSumMonitor(ignore_index=-1).measure(moment_of(model, x, y, before)).numbers
    assert numbers["count"] == delta.numel() == 22
    assert float(numbers["change"]) == pytest.approx(float(delta.mean()), rel=1e-5)
    assert float(numbers["magnitude"]) == pytest.approx(float(delta.abs().mean()), rel=1e-5)
    assert float(numbers["falling"]) == pytest.approx(float((delta < 0).double().mean()), rel=1e-6)
    d = 1 - abs(float(delta.sum())) / float(delta.abs().sum())
    assert float(numbers["interference"]) == pytest.approx(d, rel=1e-4)
    assert 0 < d < 1
    assert abs(float(numbers["change"])) == pytest.approx((1 - d) * float(numbers["magnitude"]), rel=1e-4)


def test_both_passes_draw_the_same_without_dropout():
    model, x, y, _ = stepped(noise=1.0)
    model.train()
    same = {name: p.detach().clone() for name, p in model.named_parameters()}
    for per in ("token", "sample"):
        own = moment_of(model, x, y, same, objective=token_loss)
        assert float(ZeroSumMonitor(per=per).measure(own).numbers["magnitude"]) == 0.0
    assert model.training


def token_loss(outputs, targets):
    return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def test_the_monitor_compares_samples():
    model, x, y, before = stepped()
    after = {name: p.detach() for name, p in model.named_parameters()}
    delta = (losses_by_hand(after, x, y) - losses_by_hand(before, x, y)).mean(1)
    monitor = ZeroSumMonitor(per="sample")
    numbers = monitor.measure(moment_of(model, x, y, before, objective=token_loss)).numbers
    assert numbers["count"] == 5
    assert float(numbers["change"]) == pytest.approx(float(delta.mean()), rel=1e-5)
    assert float(numbers["magnitude"]) == pytest.approx(float(delta.abs().mean()), rel=1e-5)


def test_a_fixed_batch_beside_a_run():
    model, x, y, _ = stepped()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    readings = {}

    def sink(event, facts):
        if event == "reading":
            readings[facts["step"]] = facts["numbers"]

    with Recorder(model, token_loss, optimizer, [ZeroSumMonitor((x[:2], y[:2]), every=2)], sinks=[sink]) as recorder:
        for _ in range(3):
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            loss = token_loss(model(x), y)
            recorder.observe(loss)  # the batch itself is not told
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    after = {name: p.detach() for name, p in model.named_parameters()}
    delta = losses_by_hand(after, x[:2], y[:2]) - losses_by_hand(before, x[:2], y[:2])
    assert set(readings) == {1, 3}
    wanted = 1 - abs(float(delta.sum())) / float(delta.abs().sum())
    assert readings[3]["interference"] == pytest.approx(wanted, rel=1e-4)
    assert readings[3]["count"] == 10


def test_nothing_to_compare():
    model, x, y, before = stepped()
    for own, per in (((x[:0], y[:0]), "token"), ((x[:0], y[:0]), "sample"), ((x, torch.full_like(y, -100)), "token")):
        numbers = ZeroSumMonitor(per=per).measure(moment_of(model, *own, before, objective=token_loss)).numbers
        assert numbers["count"] == 0
        for name in ("interference", "magnitude", "change", "falling"):
            assert math.isnan(float(numbers[name]))


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"per": "batch"}, ValueError, "per: expected one of 'token', 'sample'"),
        ({"every": 0}, ValueError, "every: expected an integer >= 1"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index: expected an integer"),
        ({"data": torch.ones(2)}, TypeError, "data: expected a pair"),
        ({"data": (1, 2, 3)}, TypeError, "data: expected a pair"),
    ],
)
def test_wrong_monitors(change, error, named):
    with pytest.raises(error, match=f"^{named}"):
        ZeroSumMonitor(**change)


def test_what_the_monitor_cannot_measure():
    model, x, y, before = stepped()
    with pytest.raises(ValueError, match=r"^before: expected the weights before the step, got None"):
        ZeroSumMonitor().measure(moment_of(model, x, y, None))
    for targets in (y[:, :2], y.double(), None):
        with pytest.raises(ValueError, match=r"^per: expected 'sample'"):
            ZeroSumMonitor().measure(moment_of(model, x, targets, before))
