"""Coherence of gradients and robust means of them: the numbers of the card, loops over pairs, NumPy's percentiles."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats.mstats import winsorize
from torch import nn
from torch.nn.functional import cross_entropy

from steepest.core.probe import Moment
from steepest.watch.gradients import (
    GradientCoherenceMonitor,
    gradient_coherence,
    m_coherence,
    median_of_means_gradient,
    winsorized_gradient,
)

CARD = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)


def total(outputs, _):
    """A loss whose gradients in the weights of a line are its inputs."""
    return outputs.sum()


def line(width):
    return nn.Linear(width, 1, bias=False).double()


def network():
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def data(count=7):
    return torch.randn(count, 4, dtype=torch.float64), torch.arange(count) % 3


def by_pairs(rows, unbiased=False):
    """The publication's double sum, in a loop."""
    rows = rows.numpy()
    m, inner, squares = len(rows), 0.0, 0.0
    for i in range(m):
        squares += rows[i] @ rows[i]
        for j in range(m):
            inner += rows[i] @ rows[j] if i != j or not unbiased else 0.0
    return inner / (m * (m - 1)) / (squares / m) if unbiased else inner / squares


@pytest.mark.holds("gradient-coherence", 1)
def test_numbers_of_the_card():
    assert float(m_coherence(CARD)) == pytest.approx(2.0, rel=1e-12)
    of_model = gradient_coherence(line(2), total, CARD)
    assert float(of_model["alpha"]) == pytest.approx(2 / 3, rel=1e-12)
    assert float(of_model["m_coherence"]) == pytest.approx(2.0, rel=1e-12)
    assert of_model["m"] == 3


@pytest.mark.holds("gradient-coherence", 2)
@pytest.mark.parametrize("scale", [1e-30, -3.0, 1e15])
def test_copies_and_multiples(scale):
    one = torch.randn(1, 6)
    for k in (1, 2, 9):
        assert float(m_coherence(scale * one.expand(k, 6))) == pytest.approx(k, rel=1e-5)
    rows = torch.randn(8, 3, 2)
    torch.testing.assert_close(m_coherence(scale * rows), m_coherence(rows))


@pytest.mark.holds("gradient-coherence", 3)
def test_bounds_and_loops_over_pairs():
    model, (x, y) = network(), data()
    for rows in (CARD, torch.randn(5, 4).double(), torch.tensor([[1.0], [-1.0]]).double(), torch.eye(4).double()):
        value, wanted = float(m_coherence(rows)), by_pairs(rows)
        assert value == pytest.approx(wanted, rel=1e-12, abs=1e-12)
        assert -1e-12 <= value <= len(rows) * (1 + 1e-12)
        unbiased = float(gradient_coherence(line(rows.shape[1]), total, rows, unbiased=True)["alpha"])
        assert unbiased == pytest.approx(by_pairs(rows, True), rel=1e-12, abs=1e-12)
        assert -1 / (len(rows) - 1) - 1e-12 <= unbiased <= 1
    # gradients that sum to 0 reach both lower bounds, orthogonal ones are 1 and without pairs 0
    cancel = torch.tensor([[1.0, 0.0], [-0.5, math.sqrt(0.75)], [-0.5, -math.sqrt(0.75)]], dtype=torch.float64)
    assert float(gradient_coherence(line(2), total, cancel, unbiased=True)["alpha"]) == pytest.approx(-0.5)
    assert float(m_coherence(cancel)) == pytest.approx(0.0, abs=1e-12)
    assert float(m_coherence(torch.eye(4))) == 1.0
    assert float(gradient_coherence(model, cross_entropy, x, y)["alpha"]) > 0


@pytest.mark.holds("gradient-coherence", 4)
def test_winsorized_ends():
    rows = torch.randn(6, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(winsorized_gradient(rows, 0.0), rows.mean(0))
    torch.testing.assert_close(winsorized_gradient(rows[:3], 50.0), rows[:3].median(0).values)
    torch.testing.assert_close(winsorized_gradient(rows[:1], 30.0), rows[0])


@pytest.mark.holds("gradient-coherence", 5)
def test_gradients_of_0_have_no_coherence():
    with pytest.warns(UserWarning, match="all gradients are 0"):
        assert math.isnan(m_coherence(torch.zeros(3, 2)))
    with pytest.warns(UserWarning, match="all gradients are 0"):
        of_layers = gradient_coherence(network(), lambda outputs, _: 0.0 * outputs.sum(), data()[0], per="layer")
    assert all(math.isnan(of_layer["alpha"]) for of_layer in of_layers.values())
    # a layer on which the loss does not depend, beside one on which it does
    unused = nn.ModuleDict({"used": line(4), "unused": line(4)})
    unused.forward = lambda x: unused["used"](x) + 0.0 * unused["unused"](x)
    with pytest.warns(UserWarning, match="all gradients are 0"):
        of_layers = gradient_coherence(unused, total, data()[0], per="layer")
    assert math.isnan(of_layers["unused"]["alpha"])
    assert 0 < float(of_layers["used"]["alpha"]) < 1


@pytest.mark.parametrize("c", [0.0, 3.0, 8.0, 25.0, 49.0, 50.0])
def test_winsorized_is_numpys_percentiles(c):
    rows = torch.randn(11, 7, dtype=torch.float64)
    low, high = np.percentile(rows.numpy(), [c, 100 - c], axis=0)
    np.testing.assert_allclose(
        winsorized_gradient(rows, c).numpy(), np.clip(rows.numpy(), low, high).mean(0), rtol=1e-12
    )


def test_winsorized_is_scipys_where_percentiles_are_values():
    """Eleven values: the tenth percentile is the second value, and one value at each end is pulled in."""
    rows = torch.randn(11, 7, dtype=torch.float64)
    wanted = winsorize(rows.numpy(), limits=(1 / 11, 1 / 11), axis=0).mean(0)
    np.testing.assert_allclose(winsorized_gradient(rows, 10.0).numpy(), np.asarray(wanted), rtol=1e-12)


def test_a_nan_is_not_clipped_away():
    rows = torch.tensor([[1.0, 1.0], [math.nan, 2.0], [3.0, 3.0]])
    for c in (0.0, 8.0, 50.0):
        gradient = winsorized_gradient(rows, c)
        assert math.isnan(gradient[0])
        assert float(gradient[1]) == 2.0
    assert math.isnan(m_coherence(rows))


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7])
def test_the_median_of_means_is_numpys(parts):
    rows = torch.randn(7, 2, 3, dtype=torch.float64)
    wanted = np.median([piece.mean(0) for piece in np.array_split(rows.numpy(), parts)], axis=0)
    np.testing.assert_allclose(median_of_means_gradient(rows, parts).numpy(), wanted, rtol=1e-12)
    outlier = torch.cat([rows, 1e9 * torch.ones(1, 2, 3, dtype=torch.float64)])
    assert median_of_means_gradient(outlier, 8).abs().max() < 10


def test_the_model_and_its_layers_by_a_loop():
    model, (x, y) = network(), data()
    rows = {name: [] for name, _ in model.named_parameters()}
    for i in range(len(x)):
        model.zero_grad()
        cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        for name, p in model.named_parameters():
            rows[name].append(p.grad.flatten().clone())
    model.zero_grad()
    rows = {name: torch.stack(values) for name, values in rows.items()}
    for chunk in (1, 3, 64):
        of_model = gradient_coherence(model, cross_entropy, x, y, chunk=chunk)
        assert float(of_model["m_coherence"]) == pytest.approx(by_pairs(torch.cat(list(rows.values()), 1)), rel=1e-10)
    of_layers = gradient_coherence(model, cross_entropy, x, y, per="layer")
    assert list(of_layers) == ["0", "2"]
    for layer, numbers in of_layers.items():
        own = torch.cat([rows[f"{layer}.weight"], rows[f"{layer}.bias"]], 1)
        assert float(numbers["alpha"]) == pytest.approx(by_pairs(own) / 7, rel=1e-10)
    assert all(p.grad is None for p in model.parameters())


def test_the_monitor_reads_what_the_function_computes():
    model, (x, y) = network(), data(9)
    before = torch.get_rng_state()
    dropped = nn.Sequential(model, nn.BatchNorm1d(3), nn.Dropout()).double().train()
    moment = Moment(1, "gradients", dropped, objective=nn.CrossEntropyLoss(), inputs=x, targets=y)
    reading = GradientCoherenceMonitor(6, unbiased=True).measure(moment)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in dropped.modules())
    assert float(dropped[1].num_batches_tracked) == 0
    dropped.eval()
    wanted = gradient_coherence(dropped, cross_entropy, x[:6], y[:6], unbiased=True)
    assert float(reading.numbers["alpha"]) == pytest.approx(float(wanted["alpha"]), rel=1e-12)
    assert float(reading.numbers["m_coherence"]) == pytest.approx(float(wanted["m_coherence"]), rel=1e-12)
    assert reading.numbers["samples"] == 6.0
    by_module = reading.arrays["m_coherence by module"]
    assert by_module.axes == {"module": ["0.0", "0.2", "1"]}
    of_layers = gradient_coherence(dropped, cross_entropy, x[:6], y[:6], per="layer")
    np.testing.assert_allclose(by_module.values, [float(of_layers[name]["m_coherence"]) for name in of_layers], 1e-12)
    plain = GradientCoherenceMonitor(6).measure(moment)
    assert float(plain.numbers["alpha"]) == pytest.approx(float(wanted["m_coherence"]) / 6, rel=1e-12)


def test_the_monitor_at_few_samples():
    """One sample has no pairs, and an empty batch no samples."""
    model, (x, y) = network(), data()
    for count in (1, 0):
        moment = Moment(1, "gradients", model, objective=cross_entropy, inputs=x[:count], targets=y[:count])
        reading = GradientCoherenceMonitor(unbiased=True).measure(moment)
        assert reading.numbers["samples"] == float(count)
        assert float(reading.numbers["alpha"]) == pytest.approx(1.0 if count else math.nan, nan_ok=True)
        assert reading.arrays["m_coherence by module"].values.isnan().all() == (count == 0)


def test_what_it_refuses():
    model, (x, y) = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).double(), data()
    with pytest.raises(ValueError, match="model: expected no layer that joins samples"):
        gradient_coherence(model, cross_entropy, x, y)
    with pytest.raises(ValueError, match="per: expected one of 'model', 'layer'"):
        gradient_coherence(network(), cross_entropy, x, y, per="parameter")
    with pytest.raises(ValueError, match="x: expected at least two samples"):
        gradient_coherence(network(), cross_entropy, x[:1], y[:1], unbiased=True)
    for function in (m_coherence, winsorized_gradient, median_of_means_gradient):
        with pytest.raises(ValueError, match="per_example: expected gradients"):
            function(torch.ones(0, 2))
        with pytest.raises(ValueError, match="per_example: expected gradients"):
            function(torch.tensor(1.0))
    with pytest.raises(ValueError, match="chunk: expected an integer >= 1"):
        gradient_coherence(network(), cross_entropy, x, y, chunk=0)
    for c in (-0.5, 51.0):
        with pytest.raises(ValueError, match="c: expected a number >= 0 and <= 50"):
            winsorized_gradient(torch.ones(2, 2), c)
    for parts in (0, 3):
        with pytest.raises(ValueError, match="parts: expected an integer >= 1 and <= 2"):
            median_of_means_gradient(torch.ones(2, 2), parts)
    with pytest.raises(ValueError, match="samples: expected an integer >= 2"):
        GradientCoherenceMonitor(1)
    with pytest.raises(ValueError, match="every: expected an integer >= 1"):
        GradientCoherenceMonitor(every=0)
    with pytest.raises(TypeError, match="unbiased: expected"):
        GradientCoherenceMonitor(unbiased=1)
    with pytest.raises(TypeError, match="unbiased: expected"):
        gradient_coherence(line(4), total, x, unbiased=1)
    with pytest.raises(ValueError, match="model: expected a parameter that is trained"):
        GradientCoherenceMonitor().check(line(2).requires_grad_(False), None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_types_of_numbers(dtype):
    """Half gradients count in float32, where their squares and sums have room."""
    rows = 200 * torch.ones(9, 300, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert m_coherence(rows).dtype == wide
    assert float(m_coherence(rows)) == pytest.approx(9.0, rel=1e-6)
    for function in (winsorized_gradient, median_of_means_gradient):
        assert function(rows).dtype == wide
        assert torch.equal(function(rows), rows[0].to(wide))
    # 400 gradients of 200: their sum leaves half precision
    of_model = gradient_coherence(line(1).to(dtype), total, 200 * torch.ones(400, 1, dtype=dtype))
    assert float(of_model["m_coherence"]) == pytest.approx(400.0, rel=1e-6)


def test_several_sets_of_gradients_by_vmap():
    rows = torch.stack([CARD, torch.eye(3, 2).double()])
    assert torch.vmap(m_coherence)(rows).tolist() == pytest.approx([2.0, 1.0])


def test_random_states_and_modes_stay():
    model, (x, y) = nn.Sequential(network(), nn.Dropout()).train(), data()
    before = torch.get_rng_state()
    gradient_coherence(model, cross_entropy, x, y)
    assert torch.equal(torch.get_rng_state(), before)
    assert model[1].training
