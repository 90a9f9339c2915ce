"""Adam's ratio: closed forms, a simulation, torch's own steps, statistics in scipy, and the monitor's alarm."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats as scipy_stats
from torch import nn

from steepest.core.probe import Moment
from steepest.watch.stability import AdamUpdateMonitor, time_domain_correlation, update_ratio_stats
from steepest.watch.stability.adam_instability import is_bimodal, stationary_ratio_sd, update_ratio


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.holds("adam-instability", 1)
@pytest.mark.parametrize(("rho", "sd"), [(0.0, 0.229416), (0.5, 0.372500), (0.99, 0.955555)])
def test_the_spread_of_correlated_gradients(rho, sd):
    assert stationary_ratio_sd(rho) == pytest.approx(sd, abs=5e-7)
    beta1, beta2, steps = 0.9, 0.999, 3_000
    noise = drawn(steps, 400)
    g, m, v = noise[0], torch.zeros(400).double(), torch.zeros(400).double()
    variances = []
    for step in range(1, steps + 1):
        g = rho * g + math.sqrt(1 - rho**2) * noise[step - 1]
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        if step > 1_500 and step % 20 == 0:
            variances.append(update_ratio_stats(m, v, step)["sd"] ** 2)
    assert float(torch.stack(variances).mean().sqrt()) == pytest.approx(sd, rel=0.03)


@pytest.mark.holds("adam-instability", 2)
@pytest.mark.parametrize("size", [1e-10, 1e-8, 1e-3, 10.0])
def test_a_constant_gradient(size):
    g = size * torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0]).double()
    m = v = torch.zeros(5).double()
    for step in range(1, 40):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        r = update_ratio(m, v, step)
        torch.testing.assert_close(r, g.sign() / (1 + 1e-8 / size), rtol=1e-9, atol=0.0)
        assert float(update_ratio_stats(m, v, step)["bimodality"]) == pytest.approx(1.0, rel=1e-9)


def trained(optimizer_class, **options):
    """Two steps of a layer; the weight before the last of them."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 8)
    optimizer = optimizer_class(layer.parameters(), lr=0.01, **options)
    for _ in range(2):
        before = layer.weight.detach().clone()
        optimizer.zero_grad()
        layer(drawn(16, 6).float()).square().mean().backward()
        optimizer.step()
    return layer, optimizer, before


@pytest.mark.holds("adam-instability", 3)
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"maximize": True}, {"eps": 1e-2, "betas": (0.5, 0.7)}])
def test_the_ratio_of_the_state_is_the_step_over_the_rate(options):
    layer, optimizer, before = trained(torch.optim.Adam, **options)
    state, group = optimizer.state[layer.weight], optimizer.param_groups[0]
    v = state.get("max_exp_avg_sq", state["exp_avg_sq"])
    r = update_ratio(state["exp_avg"], v, state["step"], group["betas"], group["eps"])
    # weights are below 1, so that half a unit of rounding of each is at most 2^-24; two of them over the rate
    torch.testing.assert_close(r, (before - layer.weight.detach()) / 0.01, rtol=1e-5, atol=2**-23 / 0.01)
    reading = AdamUpdateMonitor().measure(Moment(2, "stepped", layer, optimizer=optimizer))
    assert float(reading.numbers["update_norm"]) == pytest.approx(
        float((before - layer.weight.detach()).norm()), rel=1e-3
    )
    assert reading.arrays["sd"].axes == {"parameter": ["weight"]}
    assert float(reading.arrays["sd"].values) == pytest.approx(float(r.std(correction=0)), rel=1e-4)


@pytest.mark.holds("adam-instability", 4)
def test_adam_and_adamw_alone():
    for optimizer_class in (torch.optim.Adam, torch.optim.AdamW):
        layer, optimizer, _ = trained(optimizer_class)
        monitor = AdamUpdateMonitor()
        monitor.check(layer, optimizer)
        monitor.check(layer, optimizer_class(layer.parameters()))  # before its first step
        assert (
            "weight" in monitor.measure(Moment(2, "stepped", layer, optimizer=optimizer)).arrays["sd"].axes["parameter"]
        )
    for optimizer_class in (torch.optim.SGD, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax):
        with pytest.raises(ValueError, match="optimizer: expected Adam or AdamW"):
            AdamUpdateMonitor().check(layer, optimizer_class(layer.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="optimizer: expected Adam or AdamW"):
        AdamUpdateMonitor().check(layer, None)


@pytest.mark.holds("adam-instability", 5)
def test_the_monitor_never_changes_the_run():
    def weights(watched):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 32), nn.Dropout(), nn.Linear(32, 8))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        monitor = AdamUpdateMonitor()
        for step in range(1, 6):
            optimizer.zero_grad()
            model(drawn(16, 6, seed=step).float()).square().mean().backward()
            optimizer.step()
            if watched:
                monitor.measure(Moment(step, "stepped", model, optimizer=optimizer))
        return model.state_dict()

    for plain, watched in zip(weights(False).values(), weights(True).values()):
        assert torch.equal(plain, watched)


def test_statistics_in_scipy():
    m, v = 0.03 * drawn(7, 9) + 0.01, drawn(7, 9, seed=1).square()
    g = drawn(7, 9, seed=2)
    got = update_ratio_stats(m, v, 12, (0.8, 0.99), 1e-3, gradient=g)
    hat, second = (m / (1 - 0.8**12)).flatten(), (v / (1 - 0.99**12)).flatten()
    r = hat / (second.sqrt() + 1e-3)
    skew, kurtosis = scipy_stats.skew(r), scipy_stats.kurtosis(r, fisher=False)
    assert float(got["bimodality"]) == pytest.approx((skew**2 + 1) / kurtosis, rel=1e-9)
    assert float(got["sd"]) == pytest.approx(r.std(correction=0).item(), rel=1e-9)
    assert float(got["near_one"]) == pytest.approx((r.abs() > 0.9).double().mean().item())
    assert float(got["over_eps"]) == pytest.approx(second.sqrt().median().item() / 1e-3, rel=1e-9)
    assert float(got["norm"]) == pytest.approx(r.norm().item(), rel=1e-9)
    wanted = torch.nn.functional.cosine_similarity(r, g.flatten(), dim=0)
    assert float(got["descent_cosine"]) == pytest.approx(wanted.item(), rel=1e-9)


def test_reference_values_of_the_coefficient():
    count = 200_001
    even = (torch.arange(count).double() + 0.5) / count
    for values, coefficient in ((2 * even - 1, 5 / 9), (torch.special.ndtri(even), 1 / 3)):
        # at step 1 with betas of 0 the ratio of (m, 1) is m, up to eps
        got = update_ratio_stats(values, torch.ones_like(values), 1, (0.0, 0.0), 0.0)["bimodality"]
        assert float(got) == pytest.approx(coefficient, abs=5e-4)


def test_elements_without_a_gradient_are_left_out():
    m, v = drawn(10, 4), drawn(10, 4, seed=1).square()
    rows = torch.cat([m, torch.zeros(5, 4)]), torch.cat([v, torch.zeros(5, 4)])
    whole, alone = update_ratio_stats(*rows, 3), update_ratio_stats(m, v, 3)
    for name, value in alone.items():
        torch.testing.assert_close(whole[name], value)
    assert int(alone["touched"]) == 40


@pytest.mark.parametrize("values", [torch.zeros(3, 4), torch.zeros(0, 4), torch.full((4,), torch.nan)])
def test_nothing_and_nan_are_numbers(values):
    got = update_ratio_stats(values, values, 1)
    assert math.isnan(float(got["sd"]))
    assert not bool(is_bimodal(got))


def test_correlation_over_time():
    alternating = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None] * torch.tensor([1.0, 1e-30, 0.0])
    assert float(time_domain_correlation(alternating)) == pytest.approx(-1.0)
    assert float(time_domain_correlation(alternating, lag=2)) == pytest.approx(1.0)
    g, rho = [drawn(400)], 0.7
    for step in range(300):
        g.append(rho * g[-1] + math.sqrt(1 - rho**2) * drawn(400, seed=1 + step))
    series = torch.stack(g)
    # of 400 independent series of 300: biased by -2 rho / 300, and a standard deviation of .041 / 20
    assert float(time_domain_correlation(series)) == pytest.approx(rho, abs=0.012)
    assert float(time_domain_correlation(series, lag=3)) == pytest.approx(rho**3, abs=0.03)
    assert math.isnan(float(time_domain_correlation(torch.zeros(3, 2))))
    with pytest.raises(ValueError, match="gradients: expected more than 1 steps"):
        time_domain_correlation(torch.ones(1, 4))


def stepped(signs):
    """A layer whose Adam has stepped along the same signs, or over the same noise, twenty times."""
    layer = nn.Linear(8, 8, bias=False)
    optimizer = torch.optim.Adam(layer.parameters(), betas=(0.9, 0.95))
    for step in range(20):
        layer.weight.grad = (signs if signs is not None else drawn(8, 8, seed=step)).float()
        optimizer.step()
    return Moment(20, "stepped", layer, optimizer=optimizer)


def test_the_alarm_after_three_readings_and_its_state():
    bimodal, bell = stepped(drawn(8, 8).sign()), stepped(None)
    monitor = AdamUpdateMonitor()
    alarms = [float(monitor.measure(moment).numbers["alarm"]) for moment in (bimodal, bimodal)]
    again = AdamUpdateMonitor()
    again.load_state_dict(monitor.state_dict())
    assert monitor.state_dict() == {"in_a_row": {"weight": 2}}
    for one in (monitor, again):
        alarms.append(float(one.measure(bimodal).numbers["alarm"]))
    assert alarms == [0.0, 0.0, 1.0, 1.0]
    reading = monitor.measure(bell)
    assert float(reading.numbers["alarm"]) == 0.0
    assert float(reading.numbers["largest_bimodality"]) < 0.555
    monitor.reset()
    assert monitor.state_dict() == {"in_a_row": {}}
    assert monitor.measure(Moment(1, "stepped", nn.Linear(2, 2), optimizer=bell.optimizer)).numbers["alarm"] == 0.0


def test_what_it_refuses():
    one = torch.ones(3)
    with pytest.raises(ValueError, match="v: expected shape"):
        update_ratio(one, torch.ones(4), 1)
    with pytest.raises(ValueError, match="betas: expected a number"):
        update_ratio(one, one, 1, (0.9, 1.0))
    with pytest.raises(ValueError, match="step: expected a number >= 1"):
        update_ratio(one, one, 0)
    with pytest.raises(ValueError, match="reports: expected an integer >= 1"):
        AdamUpdateMonitor(reports=0)
    with pytest.raises(ValueError, match="rho: expected a number"):
        stationary_ratio_sd(1.5)


def test_complex_weights_are_read_as_their_parts():
    parts = drawn(8, 4, 2)
    whole, real = nn.Module(), nn.Module()
    whole.w, real.w = nn.Parameter(torch.view_as_complex(parts).clone()), nn.Parameter(parts.clone())
    readings = []
    for module in (whole, real):
        adam = torch.optim.Adam(module.parameters(), lr=0.01)
        for step in range(3):
            module.w.grad = module.w.detach() * (1.0 - step)
            adam.step()
        readings.append(AdamUpdateMonitor(elements=1).measure(Moment(3, "stepped", module, optimizer=adam)).numbers)
    assert float(readings[0]["update_norm"]) > 0
    for name, value in readings[0].items():
        assert float(value) == pytest.approx(float(readings[1][name]), rel=1e-6), name


def test_the_ratio_of_amsgrad_is_that_of_its_steps():
    layer = nn.Linear(8, 8, dtype=torch.float64)
    adam = torch.optim.Adam(layer.parameters(), lr=0.01, amsgrad=True)
    for size in (10.0, 1.0, 0.1):
        before = [p.detach().clone() for p in layer.parameters()]
        for seed, p in enumerate(layer.parameters()):
            p.grad = size * drawn(*p.shape, seed=seed)
        adam.step()
    moved = torch.cat([(p.detach() - old).flatten() for p, old in zip(layer.parameters(), before)]).norm()
    numbers = AdamUpdateMonitor(elements=1).measure(Moment(3, "stepped", layer, optimizer=adam)).numbers
    assert float(numbers["update_norm"]) == pytest.approx(float(moved), rel=1e-6)


def test_from_nine_tenths_on_a_ratio_is_near_one():
    r = torch.tensor([0.85, -0.89, 0.91, -0.95])
    stats = update_ratio_stats(0.1 * r, torch.full((4,), 1e-3), step=1)
    assert float(stats["near_one"]) == 0.5
