"""Traces by random probes: on closed forms, and whether their standard errors tell the truth."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steepest.core.curvature import GaussNewton, Hessian, MatrixOperator, trace
from steepest.core.lanczos import random_signs


def decaying(n=80, seed=0, power=1.0):
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return (q / torch.arange(1, n + 1).double() ** power) @ q.T


def generators(count):
    return [torch.Generator().manual_seed(1000 + seed) for seed in range(count)]


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
@pytest.mark.parametrize("seed", [0, 1])
def test_estimates_are_unbiased_and_their_errors_are_those_of_repeats(method, seed):
    matrix = decaying(seed=seed)
    estimates = [trace(MatrixOperator(matrix), 30, method, generator=g) for g in generators(60)]
    values = torch.tensor([e.estimate for e in estimates])
    error = values.std().item()
    assert abs(values.mean().item() - matrix.trace().item()) < 4 * error / math.sqrt(60)
    told = math.sqrt(sum(e.stderr**2 for e in estimates) / 60)
    assert 0.5 < told / error < 2
    assert all(e.products <= 30 for e in estimates)
    assert all(e.samples.mean().item() == pytest.approx(e.estimate) for e in estimates)


def test_a_decaying_spectrum_ranks_the_methods():
    matrix = decaying(power=2.0)
    errors = {}
    for method in ("hutchinson", "hutch++", "xtrace"):
        values = [trace(MatrixOperator(matrix), 36, method, generator=g).estimate for g in generators(40)]
        errors[method] = (torch.tensor(values) - matrix.trace()).square().mean().sqrt().item()
    assert errors["xtrace"] < errors["hutch++"] < errors["hutchinson"]


def test_two_equal_samples_do_not_end_it():
    """Each sample of [[0, 1], [1, 0]] is 2 or -2: the trace 0 lies within what the standard error says."""
    swap = MatrixOperator(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    for generator in generators(20):
        estimate = trace(swap, 40, generator=generator)
        assert estimate.samples.abs().tolist() == [2.0] * 40
        assert abs(estimate.estimate) < 4 * estimate.stderr
    for method in ("hutch++", "xtrace"):
        assert trace(swap, 4, method).estimate == 0.0


def test_signs_give_the_trace_of_a_diagonal_at_once():
    diagonal = MatrixOperator(torch.diag(torch.linspace(1, 5, 50, dtype=torch.float64)))
    one = trace(diagonal, 1)
    assert one.estimate == pytest.approx(150)
    assert math.isnan(one.stderr)
    assert trace(diagonal, 5).stderr == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
@pytest.mark.parametrize("rank", [0, 1, 5])
def test_a_low_rank_is_exact(method, rank):
    factor = torch.randn(40, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for scale in (1e-12, 1.0, 1e12):
        matrix = scale * factor @ factor.T
        estimate = trace(MatrixOperator(matrix), 30, method)
        assert estimate.estimate == pytest.approx(matrix.trace().item(), rel=1e-9, abs=0)
        assert estimate.stderr <= 1e-9 * matrix.trace().item()


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_as_many_products_as_columns_are_exact(method):
    matrix = decaying(9)
    estimate = trace(MatrixOperator(matrix), 9, method)
    assert (estimate.stderr, estimate.products) == (0.0, 9)
    assert estimate.estimate == pytest.approx(matrix.trace().item(), rel=1e-12)


def test_of_a_network_in_float32_within_its_error_and_the_same_for_the_same_seed():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    pair = torch.randn(20, 6), torch.arange(20) % 3
    for build in (Hessian.of_model, GaussNewton):
        operator = build(model, nn.CrossEntropyLoss(), pair)
        expected = operator.matrix().trace().item()
        for method in ("hutchinson", "hutch++", "xtrace"):
            estimate = trace(operator, 45, method)
            assert abs(estimate.estimate - expected) < 4 * estimate.stderr + 1e-5 * abs(expected)
            assert torch.equal(estimate.samples, trace(operator, 45, method).samples)


@pytest.mark.parametrize(("products", "method"), [(0, "hutchinson"), (2, "hutch++"), (3, "xtrace"), (9, "power")])
def test_wrong_questions_are_refused(products, method):
    with pytest.raises(ValueError, match="expected"):
        trace(MatrixOperator(torch.eye(3)), products, method)


def test_signs_are_balanced_independent_and_the_same_in_any_order_of_chunks():
    operator = MatrixOperator(torch.eye(1003))
    signs = random_signs(operator, torch.Generator().manual_seed(0), 400)
    assert signs.abs().eq(1).all()
    assert signs.mean(1).abs().max() < 5 / math.sqrt(1003)
    assert signs.mean(0).abs().max() < 5 / math.sqrt(400)
    gram = signs.T @ signs / 400 - torch.eye(1003)
    assert gram.abs().max() < 6 / math.sqrt(400)
    generator = torch.Generator().manual_seed(0)
    again = torch.cat([random_signs(operator, generator, count) for count in (1, 7, 392)])
    assert torch.equal(signs, again)


def test_a_probe_outside_the_subspace_counts_by_its_direction_alone():
    """So that a multiple of the identity is exact, whatever lengths the probes have."""
    estimate = trace(MatrixOperator(3 * torch.eye(40, dtype=torch.float64)), 20, "xtrace")
    assert estimate.estimate == pytest.approx(120, rel=1e-10)
    assert estimate.stderr < 1e-8
