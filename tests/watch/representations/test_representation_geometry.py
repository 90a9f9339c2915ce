"""Effective rank and power law of spectra: numbers of the card, NumPy in float64, what changes nothing, phases."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from steepest.core.probe import Moment
from steepest.watch.representations import (
    DSE,
    NeuralCollapseMonitor,
    RepresentationGeometry,
    alpha_req,
    geometry_phases,
    rankme,
)


def normal(rows=40, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, width + 1, dtype=torch.float64)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64) / scales + 3


def rotation(width, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64))[0]


@pytest.mark.holds("representation-geometry", 1)
def test_ranks_of_the_card():
    left, _ = torch.linalg.qr(torch.randn(9, 4, dtype=torch.float64))
    features = left @ torch.diag(torch.tensor([4.0, 2, 1, 1], dtype=torch.float64)) @ rotation(4).T
    assert float(rankme(features, center=False)) == pytest.approx(3.363586, abs=5e-7)
    assert float(rankme(features, "covariance", center=False)) == pytest.approx(2.276322, abs=5e-7)


@pytest.mark.holds("representation-geometry", 2)
def test_a_power_law_is_told_exactly():
    spectrum = torch.arange(1, 101, dtype=torch.float64) ** -1.3
    for lo, hi in ((None, None), (1, 100), (5, 6), (30, 90)):
        alpha, r2 = alpha_req(7 * spectrum, lo, hi)
        assert float(alpha) == pytest.approx(1.3, abs=1e-12)
        assert float(r2) == pytest.approx(1.0, abs=1e-12)
    assert float(alpha_req(spectrum[torch.randperm(100)])[0]) == pytest.approx(1.3, abs=1e-12)


@pytest.mark.holds("representation-geometry", 3)
@pytest.mark.parametrize("on", ["singular", "covariance"])
def test_one_direction_all_directions_rotation_and_scale(on):
    one = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None] * torch.tensor([1.0, 2, -1]).double()
    assert float(rankme(one, on)) == pytest.approx(1.0, abs=1e-6)
    even = torch.cat([torch.eye(5), -torch.eye(5)]).double()
    assert float(rankme(even, on)) == pytest.approx(5.0, abs=1e-12)
    features = normal()
    torch.testing.assert_close(rankme(1e-6 * features @ rotation(6), on), rankme(features, on))
    torch.testing.assert_close(alpha_req(50 * features @ rotation(6)), alpha_req(features))


@pytest.mark.holds("representation-geometry", 4)
def test_singular_values_give_the_larger_rank():
    for seed in range(20):
        features = normal(seed=seed)
        assert float(rankme(features)) >= float(rankme(features, "covariance")) > 1


@pytest.mark.holds("representation-geometry", 5)
def test_few_rows_warn_and_one_is_refused():
    with pytest.warns(UserWarning, match="6 samples of width 6 truncate the spectrum: at least 7 are needed"):
        rankme(normal(6))
    with pytest.warns(UserWarning, match="truncate"):
        alpha_req(normal(3))
    with warnings.catch_warnings(action="error"):
        rankme(normal(7))
    for function in (rankme, alpha_req):
        with pytest.raises(ValueError, match="features: expected at least 2 samples"):
            function(normal(1))


def test_numpy_in_float64():
    features, weight = normal(), torch.linspace(0, 2, 40, dtype=torch.float64)
    x, w = features.numpy(), weight.numpy() / weight.numpy().sum()
    for center in (True, False):
        for given, share in ((None, np.full(40, 1 / 40)), (weight, w)):
            off = x - share @ x if center else x
            eigenvalues = np.linalg.eigvalsh(off.T @ (share[:, None] * off))[::-1]
            for on, power in (("singular", 0.5), ("covariance", 1.0)):
                p = eigenvalues**power / (eigenvalues**power).sum()
                wanted = np.exp(-(p * np.log(p)).sum())
                assert float(rankme(features, on, center, weight=given)) == pytest.approx(wanted, rel=1e-9)
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    slope, cut = np.polyfit(np.log(np.arange(2, 6)), np.log(eigenvalues[1:5]), 1)
    alpha, r2 = alpha_req(features, 2, 5)
    assert float(alpha) == pytest.approx(-slope, rel=1e-9)
    fitted = slope * np.log(np.arange(2, 6)) + cut
    residual = np.log(eigenvalues[1:5]) - fitted
    assert float(r2) == pytest.approx(1 - residual.var() / np.log(eigenvalues[1:5]).var(), rel=1e-9)


def test_the_default_range_and_eigenvalues_that_are_rounding():
    spectrum = torch.cat([torch.ones(4), torch.arange(5, 15).double() ** -2, torch.full((6,), 1e-3)]).double()
    assert float(alpha_req(spectrum)[0]) == pytest.approx(2.0, abs=1e-12)  # ranks 5 to 14
    broken = torch.where(torch.arange(1, 101) > 20, 1e-12, torch.arange(1, 101.0).double() ** -1.5)
    assert float(alpha_req(broken)[0]) == pytest.approx(1.5, abs=1e-12)
    assert float(alpha_req(torch.arange(1, 6.0).double() ** -0.5)[0]) == pytest.approx(0.5, abs=1e-12)
    assert all(value.isnan() for value in alpha_req(torch.tensor([1.0, 0, 0, 0, 0, 0])))


def test_values_without_a_rank():
    assert rankme(torch.ones(9, 3)).isnan()
    for rows in (3, 7, 33):  # means that are rounded
        assert rankme(torch.full((rows, 2), 1.7)).isnan()
        assert rankme(torch.full((rows, 2), 0.1), "covariance").isnan()
    assert rankme(torch.full((9, 3), math.inf)).isnan()
    features = normal().clone()
    features[0, 0] = math.nan
    assert rankme(features).isnan()
    assert all(value.isnan() for value in alpha_req(features))
    features = normal().clone()
    features[:, 0] = math.inf
    assert rankme(features).isnan()
    assert rankme(normal().half()).dtype == torch.float32
    assert rankme(normal()).dtype == torch.float64


@pytest.mark.parametrize("scale", [1e20, 1e-25])
def test_the_exponent_does_not_depend_on_the_scale(scale):
    features = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    for own, scaled in zip(alpha_req(features), alpha_req(features * scale)):
        assert float(scaled) == pytest.approx(float(own), rel=1e-4)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="on: expected one of"):
        rankme(normal(), "eigen")
    with pytest.raises(ValueError, match="weight: expected shape"):
        rankme(normal(), weight=torch.ones(3))
    with pytest.raises(ValueError, match="hi: expected an integer >= 5"):
        alpha_req(torch.ones(20), 5, 4)
    with pytest.raises(ValueError, match="series: expected a column 'rankme'"):
        geometry_phases({"step": [1, 2]})
    with pytest.raises(ValueError, match="series: expected columns of one length"):
        geometry_phases({"step": [1, 2], "rankme": [1.0]})
    with pytest.raises(ValueError, match="series: expected steps that rise"):
        geometry_phases({"step": [1, 1], "rankme": [1.0, 2.0]})
    with pytest.raises(ValueError, match="series: expected ranks without NaN"):
        geometry_phases({"step": [1, 2], "rankme": [1.0, math.nan]})


def test_phases():
    step = [1, 2, 4, 8, 16, 32, 64]
    names = [
        (name, first, last) for name, first, last in geometry_phases({"step": step, "rankme": [9, 5, 3, 3.01, 6, 8, 7]})
    ]
    assert names == [("warm-up", 1, 4), ("entropy-seeking", 4, 32), ("compression-seeking", 32, 64)]
    rising = {"step": step, "rankme": [1, 2, 3, 2.99, 4, 5, 6]}
    assert geometry_phases(rising) == [("entropy-seeking", 1, 64)]
    assert geometry_phases(rising, tolerance=0.001)[1] == ("compression-seeking", 4, 8)
    assert geometry_phases({"step": step, "rankme": [5, 5.01, 5, 4.99, 5, 5, 5]}) == []
    last = {"step": step, "rankme": [1, 2, 3, 4, 5, 6, 4], "alpha": [2, 2, 2, 2, 2, 1, 0.5]}
    assert geometry_phases(last)[-1] == ("", 32, 64)


class TestProbe:
    def test_it_reads_what_the_last_linear_layer_reads(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
        x = torch.randn(30, 3)
        reading = RepresentationGeometry().measure(Moment(1, "gradients", model, inputs=x))
        features = model[:2](x)
        assert float(reading.numbers["rankme"]) == float(rankme(features))
        assert float(reading.numbers["rankme_covariance"]) == float(rankme(features, "covariance"))
        assert float(reading.numbers["alpha"]) == pytest.approx(float(alpha_req(features)[0]), rel=1e-5)
        spectrum = reading.arrays["eigenvalues"].values.detach().numpy()
        np.testing.assert_allclose(
            spectrum, np.linalg.eigvalsh(np.cov(features.detach().T, bias=True))[::-1], rtol=1e-4
        )
        first = RepresentationGeometry("0", data=x).measure(Moment(1, "gradients", model))
        assert float(first.numbers["rankme"]) == float(rankme(x))

    def test_tokens_of_sequences(self):
        x = torch.randn(30, 4, 3)
        last, every = (
            RepresentationGeometry(tokens=tokens).measure(Moment(1, "gradients", nn.Linear(3, 2), inputs=x)).numbers
            for tokens in ("last", "all")
        )
        assert float(last["rankme"]) == float(rankme(x[:, -1]))
        assert float(every["rankme"]) == float(rankme(x.flatten(0, 1)))
        assert (last["samples"], every["samples"]) == (30.0, 120.0)

    def test_one_sample_has_no_rank_and_a_missing_layer_is_refused(self):
        moment = Moment(1, "gradients", nn.Linear(3, 2), inputs=torch.randn(1, 3))
        assert math.isnan(RepresentationGeometry().measure(moment).numbers["rankme"])
        with pytest.raises(ValueError, match="layer: expected the name of a module of the model, got 'head'"):
            RepresentationGeometry("head").check(nn.Linear(3, 2), None)
        with pytest.raises(ValueError, match="layer: expected the name of a module, because"):
            RepresentationGeometry().check(nn.ReLU(), None)


class Attending(nn.Module):
    """A head that is made before the attention, whose output projection is never called as a module."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0].mean(1))


@pytest.mark.parametrize("kind", [RepresentationGeometry, DSE, NeuralCollapseMonitor])
def test_the_layer_that_is_meant_is_called(kind):
    model, x = Attending(), torch.randn(9, 5, 4, generator=torch.Generator().manual_seed(0))
    moment = Moment(1, "gradients", model, inputs=x, targets=torch.arange(9) % 3)
    assert float(kind().measure(moment).numbers["samples"]) == 9.0
    model.spare = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="layer: expected the name of a module that the model calls, got 'spare'"):
        kind().measure(Moment(1, "gradients", model, inputs=x, targets=moment.targets))


def test_small_eigenvalues_count_and_turns_are_relative():
    spectrum = torch.cat([torch.full((4,), 1e6), torch.arange(5, 15).double() ** -2])  # down to 5e-9 of the largest
    assert float(alpha_req(spectrum)[0]) == pytest.approx(2.0, abs=1e-12)
    assert geometry_phases({"step": [1, 2, 3], "rankme": [100.0, 100.5, 100.1]}) == []
