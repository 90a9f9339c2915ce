"""Diffusion spectral entropy: numbers of the card, and those of the authors' package dse-dsmi 1.1 on equal vectors."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from steepest.core.probe import Moment
from steepest.watch.representations import (
    DSE,
    DSMI,
    diffusion_spectral_entropy,
    diffusion_spectral_mutual_information,
)
from steepest.watch.representations.diffusion_spectral_entropy import _labels

STEPS = np.arange(120.0)
X = torch.tensor(2 * np.sin(1.7 * STEPS + 0.013 * STEPS**2).reshape(40, 3))
Y = torch.arange(40) % 4
Z = torch.tensor(np.cos(0.9 * np.arange(40.0)))


def entropy(*arguments, **options):
    return float(diffusion_spectral_entropy(*arguments, **options))


@pytest.mark.holds("diffusion-spectral-entropy", 1)
def test_two_points():
    two = torch.tensor([[0.0], [2.0]]).double()
    assert entropy(two, 1.0) == pytest.approx(0.986747, abs=5e-7)
    assert entropy(two, 1.0, 2) == pytest.approx(0.948418, abs=5e-7)
    small = math.tanh(1.0)  # (1 - e^-2) / (1 + e^-2), the second eigenvalue
    p = np.array([1, small]) / (1 + small)
    assert entropy(two, 1.0) == pytest.approx(-(p * np.log2(p)).sum(), abs=1e-14)


@pytest.mark.holds("diffusion-spectral-entropy", 2)
def test_three_points():
    assert entropy(torch.tensor([[0.0, 0], [3, 0], [0, 4]]).double(), 2.0) == pytest.approx(1.521421, abs=5e-7)


@pytest.mark.holds("diffusion-spectral-entropy", 3)
def test_bounds_and_time():
    for sigma in (1.0, "median"):
        assert entropy(torch.ones(6, 2), sigma) == pytest.approx(0.0, abs=1e-10)
        assert entropy(torch.ones(1, 2), sigma) == 0.0
    assert entropy(1e6 * torch.arange(8.0)[:, None], 1.0) == pytest.approx(3.0, abs=1e-12)
    falling = [entropy(X, 1.0, t) for t in (0.5, 1, 2, 5, 20)]
    assert math.log2(40) > falling[0]
    assert all(later < sooner for sooner, later in pairwise(falling))
    assert falling[-1] > 0


@pytest.mark.holds("diffusion-spectral-entropy", 4)
def test_rotation_translation_and_scale():
    turned, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert entropy(X @ turned + 5, 1.0) == pytest.approx(entropy(X, 1.0), abs=1e-10)
    assert entropy(7 * X, 1.0) == pytest.approx(entropy(X, 1 / 7), abs=1e-10)
    assert entropy(7 * X, "median") == pytest.approx(entropy(X, "median"), abs=1e-10)
    assert entropy(X, "median") == pytest.approx(entropy(X, float(torch.pdist(X).median()) / 4), abs=1e-12)


@pytest.mark.holds("diffusion-spectral-entropy", 5)
def test_the_package_of_the_authors():
    """dse-dsmi 1.1: diffusion_spectral_entropy(x, gaussian_kernel_sigma=sigma, t=t), without a file of eigenvalues."""
    for sigma, t, wanted in (
        (10.0, 1, 0.3978456359425793),
        (1.0, 1, 3.9833327109279226),
        (0.5, 3, 4.103540417414858),
        (2.0, 2, 1.5870220243864919),
    ):
        assert entropy(X, sigma, t) == pytest.approx(wanted, abs=1e-6)
    assert entropy(X, 1.0, max_n=25) == pytest.approx(3.7418461473573816, abs=1e-6)  # max_N=25, random_seed=0


@pytest.mark.parametrize(
    ("sigma", "labels", "numbers"),
    [
        (10.0, 0.002393908556624677, 0.00014345403834270867),
        (1.0, -0.10257294582042498, -0.12315766104639432),
        (0.5, -0.02958788218742847, -0.06735626581740138),
    ],
)
def test_information_in_the_package_of_the_authors(sigma, labels, numbers):
    """dse-dsmi 1.1: diffusion_spectral_mutual_information(x, reference, gaussian_kernel_sigma=sigma), random_seed=0."""
    information = diffusion_spectral_mutual_information
    assert float(information(X, Y, sigma)) == pytest.approx(labels, abs=1e-6)
    assert float(information(X, Z, sigma)) == pytest.approx(numbers, abs=1e-6)
    assert float(information(X, Z[:, None], sigma)) == pytest.approx(numbers, abs=1e-6)


def test_vectors_as_the_reference_are_clustered():
    """dse-dsmi 1.1: the same with x[:, :2] as the reference and n_clusters=3."""
    got = diffusion_spectral_mutual_information(X, X[:, :2], 1.0, clusters=3)
    assert float(got) == pytest.approx(0.5304524331361925, abs=1e-6)


@pytest.mark.holds("diffusion-spectral-entropy", 6)
def test_labels_at_random_and_labels_that_are_told():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 4, generator=generator, dtype=torch.float64)
    values = []
    for _ in range(4):
        labels = torch.randint(3, (300,), generator=generator)
        values.append(float(diffusion_spectral_mutual_information(x, labels, "median")))
    assert abs(np.mean(values)) < 0.05
    told = torch.arange(300) % 3
    apart = x + 20 * torch.eye(3, 4).double()[told]
    assert float(diffusion_spectral_mutual_information(apart, told, 5.0)) > 1.0


def test_nothing_random_is_left_behind_and_values_that_are_not_finite():
    import random

    random.seed(1)
    wanted = random.random()
    random.seed(1)
    diffusion_spectral_mutual_information(X, Y)
    entropy(X, max_n=10)
    assert random.random() == wanted
    for wrong in (math.nan, math.inf):
        broken = X.clone()
        broken[0, 0] = wrong
        assert math.isnan(entropy(broken, 1.0))
        assert diffusion_spectral_mutual_information(broken, Y, 1.0).isnan()
    assert diffusion_spectral_entropy(X.half()).dtype == torch.float32
    assert diffusion_spectral_entropy(X).dtype == torch.float64


def test_what_it_refuses():
    with pytest.raises(ValueError, match="x: expected at least one row"):
        diffusion_spectral_entropy(X[:0])
    with pytest.raises(ValueError, match="sigma: expected a number > 0"):
        diffusion_spectral_entropy(X, 0.0)
    with pytest.raises(ValueError, match="t: expected a number > 0"):
        diffusion_spectral_entropy(X, t=0.0)
    with pytest.raises(ValueError, match="reference: expected 40 rows"):
        diffusion_spectral_mutual_information(X, Y[:5])
    with pytest.raises(ValueError, match="clusters: expected an integer >= 2"):
        diffusion_spectral_mutual_information(X, Z, clusters=1)


def test_probes_read_what_the_classifier_reads():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    moment = Moment(1, "gradients", model, inputs=X, targets=torch.where(Y == 0, -100, Y))
    features = model[:2](X).detach()
    numbers = DSE().measure(moment).numbers
    assert float(numbers["dse"]) == entropy(features, "median")
    assert float(numbers["sigma"]) == float(torch.pdist(features).median()) / 4
    numbers = DSMI(sigma=2.0).measure(moment).numbers
    wanted = diffusion_spectral_mutual_information(features[Y > 0], Y[Y > 0], 2.0)
    assert (float(numbers["dsmi"]), numbers["samples"]) == (float(wanted), 30.0)
    fixed = DSMI("0", data=(X, Y), sigma=1.0).measure(moment).numbers
    assert float(fixed["dsmi"]) == float(diffusion_spectral_mutual_information(X, Y, 1.0))
    few = DSE("0", max_n=25, sigma=1.0).measure(moment).numbers
    assert float(few["dse"]) == pytest.approx(3.7418461473573816, abs=1e-6)
    with pytest.raises(ValueError, match="layer: expected the name of a module"):
        DSE().check(nn.ReLU(), None)
    with pytest.raises(ValueError, match="layer: expected the name of a module of the model, got 'head'"):
        DSMI("head").check(model, None)


def test_a_number_on_an_edge_lies_in_the_upper_interval():
    assert _labels(torch.tensor([0.0, 0.5, 1.0]), 2).tolist() == [0, 1, 1]
