"""The top singular value and its vectors against a full decomposition, followed over a moving matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steepest.core.singular import top_singular


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 4), (4, 1), (40, 60)])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_a_decomposition_in_numpy(shape, size):
    matrix = drawn(*shape)
    matrix = matrix + 8 * torch.ones_like(matrix)  # a gap, so that 30 products are plenty
    s, u, v = top_singular((matrix * size).float())
    left, values, right = np.linalg.svd((matrix * size).float().double().numpy())
    assert s.item() == pytest.approx(values[0], rel=1e-5)
    assert abs(float(v.double() @ torch.tensor(right[0]))) == pytest.approx(1.0, abs=1e-5)
    assert abs(float(u.double() @ torch.tensor(left[:, 0]))) == pytest.approx(1.0, abs=1e-5)
    torch.testing.assert_close((matrix * size).float() @ v, s * u, rtol=1e-4, atol=1e-5 * float(s))


def test_it_follows_a_moving_matrix_with_its_sign():
    matrix = drawn(20, 12) + 3 * torch.outer(drawn(20, seed=1), drawn(12, seed=2))
    _, _, v = top_singular(matrix)
    v = -v  # either sign is kept
    for step in range(30):
        matrix = matrix + 0.1 * drawn(20, 12, seed=10 + step)
        before = v
        s, _, v = top_singular(matrix, v, 3)
        assert float(v @ before) > 0.9
        assert float(s) == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-3)


def test_without_iterations_the_vector_stays():
    v = torch.tensor([0.6, 0.8])
    assert torch.equal(top_singular(torch.diag(torch.tensor([3.0, 1.0])), v, 0)[2], v)


def test_zeros_infinities_and_what_was_not_finite():
    s, u, v = top_singular(torch.zeros(3, 2))
    assert float(s) == 0.0
    assert torch.equal(u, torch.zeros(3))
    assert float(v.norm()) == pytest.approx(1.0)
    assert torch.equal(top_singular(torch.zeros(3, 2), v)[2], v)
    broken = torch.full((3, 2), torch.inf)
    for start in (None, v):
        assert bool(top_singular(broken, start)[0].isnan())
    again = top_singular(torch.diag(torch.tensor([5.0, 1.0])), torch.full((2,), torch.nan), 20)
    torch.testing.assert_close(again[2].abs(), torch.tensor([1.0, 0.0]))


def test_half_is_widened_and_no_graph_is_kept():
    matrix = drawn(4, 3, dtype=torch.float32).bfloat16().requires_grad_()
    s, _, v = top_singular(matrix)
    assert s.dtype == v.dtype == torch.float32
    assert not s.requires_grad
    assert top_singular(drawn(4, 3))[2].dtype == torch.float64
