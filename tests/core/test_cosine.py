"""Rows on the unit sphere."""

from __future__ import annotations

import pytest
import torch

from steepest.core.cosine import unit_rows


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_unit_length_at_every_size(dtype):
    rows = torch.randn(20, 7, dtype=torch.float64)
    for size in (1e-3, 1.0, 1e3):  # squares of the outer two leave float16
        value = (size * rows).to(dtype)
        found = unit_rows(value)
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        wanted = torch.nn.functional.normalize(value.double(), dim=-1)
        torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_short_rows_have_no_direction(dtype):
    value = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1e-3, 0.0]], dtype=dtype, requires_grad=True)
    found = unit_rows(value, eps=2e-3)
    torch.testing.assert_close(found.double(), torch.tensor([[0.0, 0.0], [0.6, 0.8], [0.0, 0.0]], dtype=torch.float64))
    slope = torch.autograd.grad(found[:, 0].sum(), value)[0]
    assert bool((slope[[0, 2]] == 0).all())
    torch.testing.assert_close(
        slope[1].double(), torch.tensor([0.64, -0.48], dtype=torch.float64) / 5, atol=1e-3, rtol=0
    )


def test_gradient():
    value = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit_rows, value)
    assert torch.autograd.gradgradcheck(unit_rows, value)
