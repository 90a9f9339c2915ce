"""Log-cosh loss against numpy and its two limits."""

import numpy as np
import pytest
import torch

from steepest.losses.regression.log_cosh import LogCoshLoss

F, Y = 3 * torch.randn(2, 15, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.holds("log-cosh")
def test_agrees_with_numpy():
    wanted = np.log(np.cosh((Y - F).numpy()))
    np.testing.assert_allclose(LogCoshLoss("none")(F, Y).numpy(), wanted, rtol=1e-12, atol=1e-14)
    assert LogCoshLoss()(F, Y).item() == pytest.approx(wanted.mean())


@pytest.mark.holds("log-cosh")
def test_square_near_zero_and_absolute_far_off():
    near, far = torch.tensor([1e-3], dtype=torch.float64), torch.tensor([50.0], dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    assert LogCoshLoss()(near, zero).item() == pytest.approx(0.5e-6, rel=1e-5)
    assert LogCoshLoss()(far, zero).item() == pytest.approx(50 - np.log(2), rel=1e-14)
