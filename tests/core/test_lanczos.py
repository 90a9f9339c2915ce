"""Eigenpairs and spectral densities by Lanczos's method, against dense spectra and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import nn

from steepest.core import lanczos, native
from steepest.core.curvature import Hessian, MatrixOperator, eigenpairs, extreme_eigenpairs, spectral_density
from steepest.core.lanczos import Krylov
from steepest.core.symmetric import inner


def diagonal(*entries, dtype=torch.float64):
    return MatrixOperator(torch.diag(torch.tensor(entries, dtype=dtype)))


def rotated(values, seed=0, dtype=torch.float64):
    """A symmetric matrix with these eigenvalues."""
    n = len(values)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    return ((q * torch.as_tensor(values, dtype=torch.float64)) @ q.T).to(dtype)


def wishart(n, seed=0):
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a.T @ a / n


@pytest.mark.parametrize("which", ["LM", "LA", "SA"])
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("shift", [0.0, 0.5, 2.5])
def test_k_pairs_of_each_end_against_a_dense_spectrum(which, k, shift):
    matrix = wishart(60, seed=k) - shift * torch.eye(60, dtype=torch.float64)
    pairs = eigenpairs(MatrixOperator(matrix), k, which, tol=1e-9)
    spectrum = np.linalg.eigvalsh(matrix.numpy())
    order = {"LM": -abs(spectrum), "LA": -spectrum, "SA": spectrum}[which]
    expected = torch.from_numpy(spectrum[np.argsort(order)[:k]].copy())
    torch.testing.assert_close(pairs.eigenvalues, expected, rtol=1e-8, atol=1e-8)
    assert pairs.converged
    assert pairs.iterations <= 60
    vectors = pairs.eigenvectors
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(k, dtype=torch.float64), rtol=0, atol=1e-10)
    lengths = torch.linalg.vector_norm(vectors @ matrix - pairs.eigenvalues[:, None] * vectors, dim=1)
    assert (lengths <= pairs.residuals + 1e-10).all()


def test_residuals_are_the_lengths_that_they_stand_for_and_convergence_is_flagged():
    matrix = rotated(torch.linspace(0, 1, 200))
    pairs = eigenpairs(MatrixOperator(matrix), 3, steps=12)
    assert pairs.iterations == 12
    assert not pairs.converged
    lengths = torch.linalg.vector_norm(
        pairs.eigenvectors @ matrix - pairs.eigenvalues[:, None] * pairs.eigenvectors, dim=1
    )
    torch.testing.assert_close(lengths, pairs.residuals, rtol=1e-8, atol=1e-12)
    assert eigenpairs(MatrixOperator(matrix), 3, tol=1e-3).converged
    pairs = eigenpairs(MatrixOperator(matrix), 3, steps=200, tol=0.0)
    torch.testing.assert_close(pairs.eigenvalues, torch.tensor([1, 198 / 199, 197 / 199]).double(), rtol=1e-10, atol=0)


def test_both_ends_of_one_run():
    """The largest modulus alone would call -5 the largest of (1, -5)."""
    calls = []
    matrix = torch.diag(torch.tensor([1.0, -5.0]))
    operator = MatrixOperator(lambda v: (calls.append(1), matrix @ v)[1], size=2)
    largest, smallest = extreme_eigenpairs(operator)
    assert (round(largest.eigenvalues.item(), 5), round(smallest.eigenvalues.item(), 5)) == (1.0, -5.0)
    assert len(calls) == 2
    assert round(eigenpairs(operator, which="LM").eigenvalues.item(), 5) == -5.0


def test_few_steps_do_not_pass_for_many():
    """From a vector of ones two steps find 8.37 as the largest of 1..10."""
    operator = diagonal(*range(1, 11))
    pairs = eigenpairs(operator, start=torch.ones(10).double())
    assert pairs.eigenvalues.item() == pytest.approx(10, abs=1e-9)
    two = eigenpairs(operator, start=torch.ones(10).double(), steps=2)
    assert two.eigenvalues.item() == pytest.approx(8.372, abs=1e-3)
    assert not two.converged


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-12, 2e-6, 1.0, 1e12])
def test_eigenvalues_scale_with_the_loss(scale, dtype):
    """diag(2e-6, 1e-6) has 2e-6; the same pairs, steps and flags at each size of the loss."""
    pairs = eigenpairs(diagonal(scale, scale / 2, dtype=dtype))
    assert pairs.eigenvalues.item() == pytest.approx(scale, rel=4 * torch.finfo(dtype).eps, abs=0.0)
    matrix = rotated(torch.linspace(-1, 3, 50) ** 3, dtype=dtype)
    one, scaled = (eigenpairs(MatrixOperator(factor * matrix), 2, "LM") for factor in (1.0, scale))
    assert (one.iterations, one.converged) == (scaled.iterations, scaled.converged)
    rounding = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(scaled.eigenvalues, scale * one.eigenvalues, rtol=rounding, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_closed_space_ends_at_rounding_of_the_operator_and_copies_of_a_value_are_found(dtype):
    """The identity closes each space after one step: what is left is rounding, whatever the size of the operator."""
    for scale in (1e-12, 1.0, 1e12):
        krylov = Krylov(MatrixOperator(scale * torch.eye(9, dtype=dtype)), torch.arange(1.0, 10.0).to(dtype), 9)
        krylov.step()
        assert krylov.closed
        pairs = eigenpairs(MatrixOperator(scale * torch.eye(9, dtype=dtype)), 3)
        assert pairs.eigenvalues.tolist() == pytest.approx([scale] * 3, rel=1e-6, abs=0)
        assert pairs.converged
        vectors = pairs.eigenvectors
        torch.testing.assert_close(vectors @ vectors.T, torch.eye(3, dtype=dtype), rtol=0, atol=1e-6)
    pairs = eigenpairs(diagonal(5, 5, 1, 5, 0, 0, dtype=dtype), 4)
    assert pairs.eigenvalues.tolist() == pytest.approx([5, 5, 5, 1], abs=1e-5)
    whole = eigenpairs(diagonal(5, 5, 1, 5, dtype=dtype), 4, "SA")
    assert whole.eigenvalues.tolist() == pytest.approx([1, 5, 5, 5], abs=1e-5)
    nothing = eigenpairs(diagonal(0, 0, 0, dtype=dtype), 2)
    assert nothing.eigenvalues.tolist() == [0.0, 0.0]
    assert nothing.converged


def test_a_start_inside_an_eigenspace_does_not_hide_the_others():
    operator = diagonal(1.0, 2.0, 7.0)
    pairs = eigenpairs(operator, start=torch.tensor([0.0, 1.0, 0.0]).double())
    assert pairs.eigenvalues.item() == pytest.approx(7.0)


def test_a_warm_start_saves_products():
    matrix = rotated(torch.linspace(0, 1, 300) ** 2)
    cold = eigenpairs(MatrixOperator(matrix), 3, tol=1e-6, steps=300)
    moved = MatrixOperator(matrix + 1e-5 * wishart(300))
    warm = eigenpairs(moved, 3, tol=1e-6, steps=300, start=cold.eigenvectors)
    again = eigenpairs(moved, 3, tol=1e-6, steps=300)
    assert warm.converged
    assert warm.iterations < again.iterations
    torch.testing.assert_close(warm.eigenvalues, again.eigenvalues, rtol=1e-6, atol=0)


def test_the_same_seed_gives_the_same_bits_and_other_ends_of_scipy_agree():
    matrix = wishart(80, seed=3)
    first, second = (eigenpairs(MatrixOperator(matrix), 2) for _ in range(2))
    assert torch.equal(first.eigenvalues, second.eigenvalues)
    assert torch.equal(first.eigenvectors, second.eigenvectors)
    third = eigenpairs(MatrixOperator(matrix), 2, generator=torch.Generator().manual_seed(5), tol=1e-10)
    theirs = eigsh(MatrixOperator(matrix).to_scipy(), 2, which="LA", v0=np.ones(80))[0][::-1].copy()
    torch.testing.assert_close(third.eigenvalues, torch.from_numpy(theirs), rtol=1e-10, atol=0)


def test_two_batches_frozen_give_one_eigenvalue_however_many_steps():
    """A new batch in each product would let the value wander between steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(10, 3).double(), torch.arange(10) % 2
    pairs = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=5, shuffle=True)
    hessian = Hessian.of_model(model, nn.CrossEntropyLoss(), pairs)
    expected = torch.linalg.eigvalsh(hessian.matrix())[-1]
    for steps in (5, 30, 90):
        values = [eigenpairs(hessian, steps=steps, tol=0.0) for _ in range(2)]
        assert torch.equal(values[0].eigenvalues, values[1].eigenvalues)
        assert values[0].converged == (steps > 5)
        if steps > 5:
            torch.testing.assert_close(values[0].eigenvalues[0], expected, rtol=1e-10, atol=0)


def test_products_that_are_not_finite_are_nan_and_not_converged():
    pairs = eigenpairs(diagonal(1.0, math.nan, 2.0), 2)
    assert pairs.eigenvalues.isnan().all()
    assert pairs.eigenvectors.isnan().all()
    assert not pairs.converged
    with pytest.raises(ValueError, match="operator: expected finite products"):
        spectral_density(diagonal(1.0, math.inf, 2.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k: expected"),
        ({"k": 4}, "k: expected"),
        ({"which": "BE"}, "which: expected"),
        ({"steps": 0}, "steps: expected"),
        ({"start": torch.ones(2)}, r"start: expected shape \[3\]"),
        ({"start": torch.zeros(3)}, "start: expected a vector that is not 0"),
    ],
)
def test_wrong_questions_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        eigenpairs(diagonal(1.0, 2.0, 3.0), **options)


def test_quadrature_of_two_eigenvalues():
    """Squared first components of eigenvectors: one half each; not the whole squared matrix."""
    density = spectral_density(diagonal(1.0, 3.0), steps=2, starts=torch.tensor([[1.0, 1.0]]) / math.sqrt(2))
    assert density.nodes[0].tolist() == pytest.approx([1.0, 3.0], abs=1e-12)
    assert density.weights[0].tolist() == pytest.approx([0.5, 0.5], abs=1e-12)
    tilted = spectral_density(diagonal(1.0, 3.0), starts=torch.tensor([[3.0, 4.0]]))
    assert tilted.weights[0].tolist() == pytest.approx([0.36, 0.64], abs=1e-12)


def test_quadrature_is_exact_for_the_moments_of_each_start():
    """m nodes give w' A^j w up to j = 2 m - 1; weights are positive and sum to 1."""
    matrix = rotated(torch.linspace(-1, 2, 40))
    starts = torch.randn(3, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    density = spectral_density(MatrixOperator(matrix), steps=6, starts=starts)
    assert density.nodes.shape == density.weights.shape == (3, 6)
    assert density.nodes.dtype == density.weights.dtype == torch.float64
    torch.testing.assert_close(density.weights.sum(1), torch.ones(3).double())
    units = starts / torch.linalg.vector_norm(starts, dim=1, keepdim=True)
    for power in range(12):
        moments = torch.einsum("pi,ij,pj->p", units, torch.linalg.matrix_power(matrix, power), units)
        torch.testing.assert_close((density.weights * density.nodes**power).sum(1), moments, rtol=1e-9, atol=1e-10)


def test_density_of_many_probes_has_the_trace_and_a_standard_error():
    matrix = rotated(torch.linspace(0, 1, 100) ** 4)
    density = spectral_density(MatrixOperator(matrix), 20, 30)
    mean, error = density.mean(lambda x: x)
    assert abs(mean - matrix.trace().item() / 100) < 4 * error
    assert 0 < error < 0.02
    # each start is a probe: the error is theirs
    samples = (density.weights * density.nodes).sum(1)
    assert error == pytest.approx(samples.std().item() / math.sqrt(20))
    grid = torch.linspace(-0.5, 1.5, 2001, dtype=torch.float64)
    curve, errors = density.curve(grid, 0.05)
    assert torch.trapezoid(curve, grid).item() == pytest.approx(1, abs=1e-6)
    assert (errors >= 0).all()
    assert math.isnan(spectral_density(MatrixOperator(matrix), 1, 5).mean(torch.exp)[1])
    same = spectral_density(MatrixOperator(matrix), 20, 30)
    assert torch.equal(density.nodes, same.nodes)


def test_two_clusters_have_half_of_the_density_each():
    matrix = rotated([1.0] * 30 + [5.0] * 30)
    density = spectral_density(MatrixOperator(matrix), 20, 50)
    low, error = density.mean(lambda x: (x < 3).double())
    assert abs(low - 0.5) < 4 * error
    real = density.nodes[density.weights > 1e-12]
    assert torch.minimum((real - 1).abs(), (real - 5).abs()).max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bases_stay_orthogonal(dtype):
    """Without orthogonality to all vectors, copies of the large eigenvalue come up."""
    values = torch.cat([torch.linspace(0, 1, 199), torch.tensor([1e4])])
    krylov = Krylov(MatrixOperator(rotated(values, dtype=dtype)), torch.ones(200, dtype=dtype), 60)
    for _ in range(60):
        krylov.step()
    gram = krylov.basis.double() @ krylov.basis.double().T
    assert (gram - torch.eye(60)).abs().max() < 20 * torch.finfo(dtype).eps
    assert (krylov.ritz()[0] > 2).sum() == 1


class Outliers:
    """A product with values in float32 along random reflections, whose matrix is never there."""

    def __init__(self, values, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.values = values.double()
        self.mirror = torch.randn(len(values), generator=generator, dtype=torch.float64)
        self.mirror /= torch.linalg.vector_norm(self.mirror)
        self.calls = 0

    def turned(self, v):
        return v - 2 * self.mirror * (self.mirror @ v)

    def __call__(self, v):
        self.calls += 1
        return self.turned(self.values * self.turned(v.double())).to(v.dtype)


def spectrum(n):
    """Ten outliers over a bulk near 0, some of it negative, as Hessians of classifiers have."""
    bulk = torch.linspace(-0.02, 0.1, n - 10).double() ** 3
    return torch.cat([bulk, 2.0 ** -torch.arange(10).double()])


NATIVE = lanczos._library(native.level()) is not None


@pytest.mark.skipif(not NATIVE, reason="no compiler")
@pytest.mark.parametrize("n", [257, 5003, 40_001])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_half_an_orthogonality_gives_the_same_quadrature(n, scale, monkeypatch):
    values = scale * spectrum(n)
    start = torch.randn(n, generator=torch.Generator().manual_seed(2))
    half = Krylov(Outliers(values), start, 60, half=True)
    full = Krylov(Outliers(values), start.double(), 60)
    for _ in range(60):
        half.step()
        full.step()
    gram = half.basis.double() @ half.basis.double().T
    away = (gram - torch.eye(60)).abs()
    assert away.diagonal().max() < 1e-6
    assert away.max() < 2**-12
    (nodes, vectors), (exact, exact_vectors) = half.ritz(), full.ritz()
    assert (nodes > 0.9 * scale).sum() == 1
    np.testing.assert_allclose(nodes[-8:], exact[-8:], rtol=3e-6)
    for power in range(1, 9):
        moment, expected = (w[0] ** 2 @ (x / scale) ** power for x, w in ((nodes, vectors), (exact, exact_vectors)))
        assert moment == pytest.approx(expected, rel=1e-5)


@pytest.mark.skipif(not NATIVE, reason="no compiler")
def test_a_long_basis_in_large_pages(monkeypatch):
    monkeypatch.setattr(lanczos, "LARGE", 2**12)
    plain = torch.full((300,), 2.0)
    for n in (300, 5003):
        krylov = Krylov(Outliers(spectrum(n)), torch.ones(n), 20, half=True)
        for _ in range(20):
            krylov.step()
        gram = krylov.basis.double() @ krylov.basis.double().T
        assert (gram - torch.eye(20)).abs().max() < 2**-12
    assert plain.eq(2).all()


@pytest.mark.skipif(not NATIVE, reason="no compiler")
def test_most_steps_of_half_an_orthogonality_leave_old_vectors_alone(monkeypatch):
    """Vectors are touched again after a pair has converged, twice in a row; without that copies of it come up."""
    values = torch.cat([torch.linspace(0, 1, 999), torch.tensor([1e3])]).double()
    start = torch.ones(1000)

    def nodes(half):
        krylov = Krylov(Outliers(values), start, 40, half=half)
        changed, product = [], krylov._product
        for _ in range(40):
            krylov.step()
            last = krylov.basis[-1].double()
            image = product(krylov.basis[-1]).double() - krylov.alphas[-1] * last
            if len(krylov.alphas) > 1:
                image -= krylov.betas[-2] * krylov.basis[-2].double()
            following = krylov._basis[len(krylov.alphas)].double() * krylov.betas[-1]
            changed.append(float(torch.linalg.vector_norm(image - following)))
        return krylov.ritz()[0], changed

    own, changed = nodes(True)
    assert (own > 2).sum() == 1
    assert sum(change > 1e-3 for change in changed) <= 20
    np.testing.assert_allclose(own, nodes(False)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not NATIVE, reason="no compiler")
def test_the_recurrence_bounds_the_products_and_two_steps_in_a_row_restore_them():
    """Simon's recurrence for the products w of a new vector, written out; a step that restores them has one value."""
    values = torch.cat([torch.linspace(-1, 1, 2997), torch.tensor([-2.0, 1.5, 3.0])])
    krylov = Krylov(Outliers(values), torch.ones(3000), 60, half=True)
    place, restored = 3 + 3 * (krylov.most + 2), []
    before, now = {}, {0: 1.0}
    for step in range(1, 60):
        krylov.step()
        estimates = krylov._numbers[place : place + step]
        products = (krylov.basis.double() @ krylov._basis[step].double()).abs()
        assert products.max() <= 1.5 * max(map(abs, estimates))
        a, b = krylov.alphas, krylov.betas
        noise = 2 * 2**-24 * max(map(abs, (*a, *b)))
        expected = []
        for k in range(step - 1):
            terms = b[k] * now[k + 1] + (a[k] - a[-1]) * now[k] - b[-2] * before.get(k, 0.0)
            terms += b[k - 1] * now[k - 1] if k else 0.0
            expected.append((terms + math.copysign(noise, terms)) / b[-1])
        restored.append(len(set(estimates)) == 1 and step > 1)
        if not restored[-1]:
            assert estimates == pytest.approx([*expected, noise / b[-1]], rel=1e-6, abs=1e-12)
            assert max(map(abs, estimates)) < 2**-13
        before, now = now, {**dict(enumerate(estimates)), step: 1.0}
    first = [i for i in range(1, 58) if restored[i] and not restored[i - 1]]
    assert 1 <= len(first) <= 15
    assert all(restored[i + 1] for i in first)
    assert sum(restored) < 40


@pytest.mark.skipif(not NATIVE, reason="no compiler")
@pytest.mark.parametrize("half", [False, True])
def test_steps_in_one_call_are_those_of_operations(half, monkeypatch):
    start = torch.randn(2100, generator=torch.Generator().manual_seed(4))
    one = Krylov(Outliers(spectrum(2100)), start, 12, half=half)
    monkeypatch.setattr(lanczos, "_library", lambda level: None)
    many = Krylov(Outliers(spectrum(2100)), start, 12, half=half)
    for _ in range(12):
        one.step()
        many.step()
    assert one._written == 12
    assert many._written == 0
    np.testing.assert_allclose(one.alphas, many.alphas, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one.betas, many.betas, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(one.basis, many.basis, rtol=0, atol=1e-4)


@pytest.mark.parametrize("half", [False, True])
def test_a_product_that_is_the_vector_itself_closes_the_space_and_leaves_it(half):
    start = torch.arange(1.0, 101.0)
    krylov = Krylov(lambda v: v, start, 50, half=half)
    krylov.step()
    assert krylov.closed
    torch.testing.assert_close(krylov.basis[0], start / torch.linalg.vector_norm(start))


@pytest.mark.parametrize("half", [False, True])
def test_products_of_other_forms_take_the_way_of_operations(half):
    """Of every second entry of a longer vector, and from then on."""
    values = torch.linspace(0, 1, 100)

    def product(v):
        image = values * v
        return torch.stack([image, image], 1)[:, 0] if krylov.alphas and len(krylov.alphas) % 2 else image

    krylov = Krylov(product, torch.ones(100), 30, half=half)
    for _ in range(30):
        krylov.step()
    gram = krylov.basis.double() @ krylov.basis.double().T
    assert (gram - torch.eye(30)).abs().max() < 1e-5


def test_longer_spaces_than_there_is_room_for_at_first():
    krylov = Krylov(Outliers(spectrum(600)), torch.ones(600), 150)
    for _ in range(150):
        krylov.step()
    gram = krylov.basis.double() @ krylov.basis.double().T
    assert (gram - torch.eye(150)).abs().max() < 20 * torch.finfo(torch.float32).eps


def test_the_last_step_of_a_quadrature_needs_no_more_than_its_alpha():
    product = Outliers(spectrum(300))
    density = spectral_density(MatrixOperator(product, 300), 1, 25, starts=torch.ones(1, 300))
    assert product.calls == 25
    krylov = Krylov(Outliers(spectrum(300)), torch.ones(300), 25)
    for _ in range(25):
        krylov.step()
    np.testing.assert_allclose(density.nodes[0].numpy(), krylov.ritz()[0], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="operator: expected finite products"):
        spectral_density(MatrixOperator(lambda v: v * math.nan if product.calls else v, 3), 1, 1)


def test_inner_products_of_long_vectors_in_float32():
    """Segments are float32, their sum is float64: 100,000 terms of one sign lose no more than a segment does."""
    a = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    exact = float(a.double() @ a.double())
    assert inner(a, a) == pytest.approx(exact, rel=1e-6, abs=0)
    assert inner(1e-15 * a, 1e-15 * a) == pytest.approx(1e-30 * exact, rel=1e-6, abs=0)
    assert inner(a.double(), a.double()) == pytest.approx(exact, rel=1e-14, abs=0)
