"""Cosines with the top singular direction: the card's numbers, invariances, the growth of s_1, the monitor's alarm."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.core.probe import Moment
from steepest.core.singular import top_singular
from steepest.watch.stability import SpectralAlignmentMonitor, sign_diversity, spectral_alignment
from steepest.watch.stability.spectral_alignment import layers_by_type


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.holds("spectral-alignment", 1)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_cards_cosines(sign):
    h = torch.tensor([[1.0, 0.0], [-1.0, 1.0], [0.0, 2.0], [0.6, -0.8]])
    v = torch.tensor([sign, 0.0])
    sa, v = spectral_alignment(h, torch.diag(torch.tensor([3.0, 1.0])), v)
    torch.testing.assert_close(sa, sign * torch.tensor([1.0, -0.707107, 0.0, 0.6]), rtol=0.0, atol=1e-6)
    got = sign_diversity(sa)
    assert float(got["majority"]) == pytest.approx(2 / 3)
    assert float(got["count"]) == 3
    assert float(got["entropy"]) == pytest.approx(-(2 * math.log2(2 / 3) + math.log2(1 / 3)) / 3)
    fresh, _ = spectral_alignment(h, torch.diag(torch.tensor([3.0, 1.0])))
    torch.testing.assert_close(fresh.abs(), sa.abs(), rtol=0.0, atol=1e-4)


@pytest.mark.holds("spectral-alignment", 2)
def test_scales_and_rotations():
    h, weight = drawn(9, 6), drawn(4, 6, seed=1)
    sa, _ = spectral_alignment(h, weight)
    sizes = 10.0 ** torch.arange(-40, 50, 10).double()
    for other in (
        spectral_alignment(sizes[:, None] * h, weight)[0],
        spectral_alignment(h, 1e-30 * weight)[0],
        spectral_alignment(h, 1e30 * weight)[0],
    ):
        torch.testing.assert_close(other, sa)
    turn, _ = torch.linalg.qr(drawn(6, 6, seed=2))
    turned, _ = spectral_alignment(h @ turn, weight @ turn)
    torch.testing.assert_close(turned.abs(), sa.abs())
    assert sign_diversity(turned)["majority"] == sign_diversity(sa)["majority"]


@pytest.mark.holds("spectral-alignment", 3)
def test_the_sign_of_the_direction_does_not_matter():
    sa, _ = spectral_alignment(drawn(50, 6), drawn(4, 6, seed=1))
    one, two = sign_diversity(sa), sign_diversity(-sa)
    assert one["majority"] == two["majority"]
    assert one["entropy"] == two["entropy"]
    assert one["mean"] == -two["mean"]


@pytest.mark.holds("spectral-alignment", 4)
def test_the_growth_of_the_singular_value_is_that_of_the_cosines():
    """After a small step of gradient descent s_1 has moved by -eta sum_i <u, delta_i> |h_i| SA_i."""
    h, weight = drawn(12, 5), drawn(4, 5, seed=1)
    outputs = (h @ weight.T).requires_grad_()
    (outputs - drawn(12, 4, seed=2)).square().sum().backward()
    delta = outputs.grad
    s, u, v = top_singular(weight)
    sa, v = spectral_alignment(h, weight, v)
    slope = float(((delta @ u) * h.norm(dim=1) * sa).sum())
    eta = 1e-6
    moved = np.linalg.svd((weight - eta * delta.T @ h).numpy(), compute_uv=False)[0]
    # the rest is of second order: eta^2 |dW|^2 over the gap
    assert (moved - float(s)) / eta == pytest.approx(-slope, rel=1e-3)
    assert float(u @ (delta.T @ h) @ v) == pytest.approx(slope, rel=1e-6)


@pytest.mark.holds("spectral-alignment", 5)
def test_equal_inputs_and_rows_of_zeros():
    h = drawn(6).expand(10, 6).clone()
    sa, _ = spectral_alignment(h, drawn(4, 6, seed=1))
    assert float(sign_diversity(sa)["majority"]) == 1.0
    assert float(sign_diversity(sa)["entropy"]) == 0.0
    h[3] = 0.0
    sa, _ = spectral_alignment(h, drawn(4, 6, seed=1))
    assert float(sa[3]) == 0.0
    assert float(sign_diversity(sa)["majority"]) == 1.0
    assert int(sign_diversity(sa)["count"]) == 9


def test_cosines_of_a_decomposition_in_numpy():
    h, weight = drawn(3, 7, 6), drawn(4, 6, seed=1)
    sa, _ = spectral_alignment(h, weight)
    v = np.linalg.svd(weight.numpy())[2][0]
    wanted = h.numpy() @ v / np.linalg.norm(h.numpy(), axis=-1)
    np.testing.assert_allclose(np.abs(sa.numpy()), np.abs(wanted), rtol=1e-6)
    got = sign_diversity(sa)
    share = (wanted > 0).mean()
    assert float(got["majority"]) == pytest.approx(max(share, 1 - share))
    assert abs(float(got["mean"])) == pytest.approx(abs(wanted.mean()), rel=1e-6)
    assert float(got["sd"]) == pytest.approx(wanted.std(), rel=1e-6)


def test_nothing_and_nan_are_numbers():
    for sa in (torch.zeros(3), torch.zeros(0), torch.tensor([0.5, torch.nan])):
        assert all(math.isnan(float(value)) for name, value in sign_diversity(sa).items() if name != "count")
    sa, _ = spectral_alignment(torch.ones(3, 2), torch.full((2, 2), torch.nan))
    assert bool(sa.isnan().all())


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 16), nn.Linear(16, 4)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(Block(), Block(), Block()))


def moment(model, step=1, seed=0):
    return Moment(step, "gradients", model, inputs=drawn(8, 5, 3, seed=seed).float())


def test_readings_of_layers_and_types():
    model = network()
    assert layers_by_type(model)["*.*.down (16 to 4)"] == [f"1.{k}.down" for k in range(3)]
    layers = {"down": ["1.0.down", "1.2.down"], "first": ["0"]}
    monitor = SpectralAlignmentMonitor(layers)
    now = moment(model)
    reading = monitor.measure(now)
    inputs = now.activations(["1.2.down"])["1.2.down"][0][0].flatten(0, 1)
    sa, _ = spectral_alignment(inputs, model[1][2].down.weight)
    place = reading.arrays["majority"].axes["layer"].index("1.2.down")
    assert float(reading.arrays["majority"].values[place]) == float(sign_diversity(sa)["majority"])
    torch.testing.assert_close(reading.arrays["cosines"].values.sum(1), torch.ones(3))
    of_types = dict(zip(reading.arrays["majority_of_type"].axes["type"], reading.arrays["majority_of_type"].values))
    rows = dict(zip(reading.arrays["majority"].axes["layer"], reading.arrays["majority"].values))
    torch.testing.assert_close(of_types["down"], (rows["1.0.down"] + rows["1.2.down"]) / 2)
    top = torch.linalg.matrix_norm(model[1][2].down.weight.detach(), 2)
    torch.testing.assert_close(reading.arrays["singular_value"].values[place], top)


def test_few_tokens_are_evenly_spaced():
    model = nn.Linear(3, 2)
    x = drawn(100, 3).float()
    reading = SpectralAlignmentMonitor(tokens=30).measure(Moment(1, "gradients", model, inputs=x))
    sa, _ = spectral_alignment(x[::4], model.weight)
    assert float(reading.arrays["majority"].values) == pytest.approx(float(sign_diversity(sa)["majority"]))


def test_the_alarm_after_readings_in_a_row_and_its_state():
    model = network()
    alike = Moment(3, "gradients", model, inputs=torch.ones(6, 3))
    early = Moment(2, "gradients", model, inputs=torch.ones(6, 3))
    monitor = SpectralAlignmentMonitor(reports=3, after=2)
    assert float(monitor.measure(early).numbers["alarm"]) == 0.0
    assert monitor.state_dict()["in_a_row"] == {}
    for _ in range(2):
        assert float(monitor.measure(alike).numbers["alarm"]) == 0.0
    again = SpectralAlignmentMonitor(reports=3, after=2)
    again.load_state_dict(monitor.state_dict())
    assert float(again.measure(alike).numbers["alarm"]) == 2.0, "up and down; the first layer is alone"
    assert float(monitor.measure(alike).numbers["alarm"]) == 2.0
    assert torch.equal(monitor.state_dict()["directions"]["0"], again.state_dict()["directions"]["0"])
    monitor.reset()
    assert monitor.state_dict() == {"directions": {}, "in_a_row": {}}


def test_it_leaves_no_trace_and_refuses_what_it_cannot_read():
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    SpectralAlignmentMonitor().measure(moment(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks for module in model.modules())
    SpectralAlignmentMonitor().check(model, None)
    with pytest.raises(ValueError, match="model: expected linear layers"):
        SpectralAlignmentMonitor().check(nn.ReLU(), None)
    with pytest.raises(ValueError, match="layers: expected names of linear layers"):
        SpectralAlignmentMonitor({"all": ["1"]}).check(model, None)
    with pytest.raises(ValueError, match="threshold: expected a number"):
        SpectralAlignmentMonitor(threshold=0.2)
    with pytest.raises(ValueError, match="h: expected shape"):
        spectral_alignment(torch.ones(2, 3), torch.ones(4, 2))
    with pytest.raises(ValueError, match="v: expected shape"):
        spectral_alignment(torch.ones(2, 3), torch.ones(4, 3), torch.ones(4))


def test_cosines_are_counted_in_the_middle_of_bins():
    model = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    x = torch.tensor([[0.33, math.sqrt(1 - 0.33**2)]])
    array = SpectralAlignmentMonitor().measure(Moment(1, "gradients", model, inputs=x)).arrays["cosines"]
    place = array.axes["cosine"][int(array.values[0].argmax())]
    assert abs(place) == pytest.approx(0.35, abs=1e-9)
