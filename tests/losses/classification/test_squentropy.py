"""Squentropy: the numbers of its card, its optimum, and its soft and sequence forms."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import root
from torch.nn.functional import cross_entropy as torch_cross_entropy

from steepest.losses.classification.cross_entropy import cross_entropy
from steepest.losses.classification.squentropy import SquentropyLoss, squentropy

HAND = torch.tensor([[2.0, 1.0, -1.0]], dtype=torch.float64)
LOGITS = 2 * torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TARGET = torch.arange(9) % 4


@pytest.mark.holds("squentropy", 1)
@pytest.mark.parametrize(("y", "wanted"), [(0, 1.349012), (1, 3.849012), (2, 5.849012)])
def test_values_by_hand(y, wanted):
    assert squentropy(HAND, torch.tensor([y])).item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.holds("squentropy", 1)
def test_gradient_by_hand():
    logits = HAND.clone().requires_grad_()
    (slope,) = torch.autograd.grad(squentropy(logits, torch.tensor([0])), logits)
    torch.testing.assert_close(slope, slope.new_tensor([[-0.294615, 1.259496, -0.964881]]), atol=1e-6, rtol=0)


@pytest.mark.holds("squentropy", 1, 2)
def test_equals_a_loop():
    for classes in (2, 4):
        logits, target = LOGITS[:, :classes], TARGET % classes
        wanted = []
        for f, y in zip(logits.tolist(), target.tolist()):
            wrong = [v * v for j, v in enumerate(f) if j != y]
            wanted.append(-f[y] + math.log(sum(map(math.exp, f))) + sum(wrong) / (classes - 1))
        torch.testing.assert_close(squentropy(logits, target, reduction="none").tolist(), wanted)


@pytest.mark.holds("squentropy", 2)
def test_two_classes():
    assert squentropy(torch.tensor([[1.0, 0.5]]), torch.tensor([0])).item() == pytest.approx(0.724077, abs=1e-6)


@pytest.mark.holds("squentropy", 3)
def test_square_weight_zero_is_cross_entropy_and_the_loss_is_never_below_it():
    entropy = cross_entropy(LOGITS, TARGET, reduction="none")
    torch.testing.assert_close(entropy, torch_cross_entropy(LOGITS, TARGET, reduction="none"), rtol=1e-14, atol=0)
    plain = squentropy(LOGITS, TARGET, square_weight=0.0, reduction="none")
    torch.testing.assert_close(plain, entropy, rtol=1e-14, atol=0)
    assert (squentropy(LOGITS, TARGET, reduction="none") > entropy).all()
    calm = torch.diag(torch.tensor([3.0, -2.0, 0.5, 7.0]))
    target = torch.arange(4)
    torch.testing.assert_close(squentropy(calm, target), cross_entropy(calm, target))


@pytest.mark.holds("squentropy", 4)
def test_a_shift_of_all_logits_changes_it():
    change = squentropy(LOGITS + 1.0, TARGET) - squentropy(LOGITS, TARGET)
    wrong = LOGITS.sum(-1) - LOGITS.gather(1, TARGET[:, None])[:, 0]
    torch.testing.assert_close(change, (2 * wrong / 3 + 1).mean())


def _population_slope(f: np.ndarray, q: np.ndarray) -> np.ndarray:
    p = np.exp(f) / np.exp(f).sum()
    return p - q + 2 * f * (1 - q) / (len(q) - 1)


@pytest.mark.holds("squentropy", 5)
def test_population_optimum_shrinks_probabilities_and_keeps_the_argmax():
    q = np.array([0.7, 0.2, 0.1])
    f = root(_population_slope, np.zeros(3), args=(q,), tol=1e-12).x
    np.testing.assert_allclose(f, [0.6297, -0.0680, -0.1494], atol=5e-5)
    np.testing.assert_allclose(np.exp(f) / np.exp(f).sum(), [0.511, 0.254, 0.235], atol=5e-4)
    assert abs(((1 - q) * f).sum()) < 1e-10
    logits = torch.tensor(np.tile(f, (3, 1)), requires_grad=True)
    risk = squentropy(logits, torch.arange(3), weight=torch.tensor(q))
    (slope,) = torch.autograd.grad(risk, logits)
    torch.testing.assert_close(slope.sum(0), torch.zeros(3, dtype=torch.float64), atol=1e-10, rtol=0)


@pytest.mark.holds("squentropy", 6)
def test_convex():
    for f, y in zip(LOGITS, TARGET):
        hessian = torch.autograd.functional.hessian(lambda v, y=y: squentropy(v[None], y[None]), f)
        assert torch.linalg.eigvalsh(hessian).min() > -1e-12
    other = LOGITS.flip(0)
    middle = squentropy((LOGITS + other) / 2, TARGET, reduction="none")
    ends = squentropy(LOGITS, TARGET, reduction="none") + squentropy(other, TARGET, reduction="none")
    assert (middle <= ends / 2 + 1e-12).all()


@pytest.mark.holds("squentropy", 6)
def test_one_class_is_refused():
    with pytest.raises(ValueError, match="at least 2 classes"):
        SquentropyLoss()(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))


def test_soft_target_is_the_expectation_over_labels():
    soft = torch.rand(9, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64).softmax(-1)
    wanted = sum(soft[:, k] * squentropy(LOGITS, torch.full((9,), k), reduction="none") for k in range(4))
    torch.testing.assert_close(squentropy(LOGITS, soft, reduction="none"), wanted)


def test_frames_are_averaged_and_ignored_ones_left_out():
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    target = torch.tensor([[0, 1, -100], [3, -100, 2]])
    weight = torch.tensor([1.0, 3.0], dtype=torch.float64)
    rows = [(b, t) for b in range(2) for t in range(3) if target[b, t] >= 0]
    losses = [squentropy(logits[b, :, t][None], target[b, t][None]).item() for b, t in rows]
    assert squentropy(logits, target).item() == pytest.approx(sum(losses) / 4)
    wanted = (losses[0] + losses[1] + 3 * losses[2] + 3 * losses[3]) / 8
    assert squentropy(logits, target, weight=weight).item() == pytest.approx(wanted)
    none = squentropy(logits, target, reduction="none")
    assert none.shape == target.shape
    assert none[0, 2] == 0


def test_half_inputs_are_squared_in_float32():
    found = squentropy(torch.tensor([[0.0, 300.0]], dtype=torch.float16), torch.tensor([0]))
    assert found.item() == pytest.approx(90300.0)
