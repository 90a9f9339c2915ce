"""Label-distributionally robust losses: one temperature, a temperature for each sample, and the hinge at the limit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.metrics import hinge_loss
from torch.nn.functional import cross_entropy

from steepest.core.objective import TaskInfo
from steepest.losses.classification.ldr import (
    ALDRLoss,
    CrammerSingerLoss,
    LDRLoss,
    adaptive_lambda,
    crammer_singer_loss,
    ldr_kl_loss,
)

EXAMPLE = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
SECOND = torch.tensor([1])
LAMBDAS = (0.1, 0.5, 1.0, 3.0, 50.0)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(12, 5, generator=generator, dtype=torch.float64)
    return logits, torch.randint(5, (12,), generator=generator)


def gaps(f, y, margin):
    return [value - f[y] + (margin if k != y else 0.0) for k, value in enumerate(f)]


def naive(f, y, lam, margin):
    """lam log mean exp(d / lam), as written."""
    return lam * math.log(sum(math.exp(d / lam) for d in gaps(f, y, margin)) / len(f))


def naive_adaptive(f, y, lam, lam0, alpha, margin):
    """One sample through the three lines of the algorithm: the loss and the new temperature."""
    weights = [math.exp(value / lam) for value in f]
    p = [w / sum(weights) for w in weights]
    divergence = sum(q * math.log(q * len(f)) for q in p)
    lam = lam0 * (1 - divergence / (alpha * math.log(len(f))))
    return naive(f, y, lam, margin) - alpha * math.log(len(f)) / (2 * lam0) * (lam - lam0) ** 2, lam


@pytest.mark.holds("ldr", 1)
@pytest.mark.parametrize(
    ("lam", "margin", "wanted"), [(0.5, 0, 0.522160), (1, 0, 0.308994), (2, 0, 0.163315), (1, 1, 1.140932)]
)
def test_card_values(lam, margin, wanted):
    assert ldr_kl_loss(EXAMPLE, SECOND, lam=lam, margin=margin).item() == pytest.approx(wanted, abs=5e-7)


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("margin", [0.0, 0.1, 10.0])
def test_naive_loop(batch, lam, margin):
    logits, target = batch
    wanted = [naive(f, y, lam, margin) for f, y in zip(logits.tolist(), target.tolist())]
    found = ldr_kl_loss(logits, target, lam=lam, margin=margin, reduction="none")
    torch.testing.assert_close(found, logits.new_tensor(wanted), rtol=1e-11, atol=1e-11)
    each = ldr_kl_loss(logits, target, lam=torch.full((12,), lam).double(), margin=margin, reduction="none")
    torch.testing.assert_close(each, found)


@pytest.mark.parametrize("lam", [0.5, 2.0])
def test_it_is_the_worst_weighting_of_the_classes(lam):
    """The maximum over the simplex, found by a general optimiser."""
    d = np.array(gaps([2.0, 1.0, 0.0, -1.5], 2, 0.7))

    def price(free):
        p = np.exp(np.append(free, 0.0))
        p /= p.sum()
        return -(p @ d - lam * (p @ np.log(p * 4)))

    best = minimize(price, np.zeros(3), tol=1e-12)
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.5]], dtype=torch.float64)
    found = ldr_kl_loss(logits, torch.tensor([2]), lam=lam, margin=0.7)
    assert found.item() == pytest.approx(-best.fun, abs=1e-9)


@pytest.mark.holds("ldr", 2)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_limits(dtype, batch):
    f = EXAMPLE.to(dtype)
    assert ldr_kl_loss(f, SECOND, lam=0.01).item() == pytest.approx(0.98901, abs=5e-6)
    assert ldr_kl_loss(f, SECOND, lam=1e-12).item() == pytest.approx(1.0)
    assert ldr_kl_loss(f, SECOND, lam=1e6).item() == pytest.approx(0.0, abs=1e-6)
    logits, target = batch[0].to(dtype), batch[1]
    for margin in (0.0, 2.0):
        d = torch.tensor([gaps(f, y, margin) for f, y in zip(logits.tolist(), target.tolist())], dtype=dtype)
        for lam, limit in ((1e-9, d.amax(-1)), (1e9, d.mean(-1))):
            found = ldr_kl_loss(logits, target, lam=lam, margin=margin, reduction="none")
            torch.testing.assert_close(found, limit, rtol=1e-6, atol=1e-6)
        hinge = crammer_singer_loss(logits, target, margin=margin, reduction="none")
        torch.testing.assert_close(hinge, d.amax(-1))


@pytest.mark.holds("ldr", 3)
def test_cross_entropy_at_one(batch):
    logits, target = batch
    logits.requires_grad_()
    found, wanted = ldr_kl_loss(logits, target), cross_entropy(logits, target) - math.log(5)
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)
    slopes = [torch.autograd.grad(loss, logits)[0] for loss in (found, wanted)]
    torch.testing.assert_close(*slopes, atol=1e-12, rtol=0)


@pytest.mark.holds("ldr", 4)
def test_non_increasing_in_lambda_and_blind_to_a_shift(batch):
    logits, target = batch
    grid = torch.logspace(-2, 3, 60).tolist()
    for margin in (0.0, 1.0):
        table = torch.stack([ldr_kl_loss(logits, target, lam=v, margin=margin, reduction="none") for v in grid])
        assert bool((table.diff(dim=0) <= 1e-13).all())
        shifted = ldr_kl_loss(logits + 40.0, target, lam=0.7, margin=margin)
        torch.testing.assert_close(shifted, ldr_kl_loss(logits, target, lam=0.7, margin=margin))


@pytest.mark.parametrize("lam", [0.05, 1.0, 30.0, 1e5])
def test_gradient_is_the_worst_weighting_less_the_label(batch, lam):
    """On both sides of the switch between its two forms."""
    logits, target = batch
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        leaf = logits.to(dtype).requires_grad_()
        (slope,) = torch.autograd.grad(ldr_kl_loss(leaf, target, lam=lam, margin=0.3, reduction="sum"), leaf)
        d = torch.tensor([gaps(f, y, 0.3) for f, y in zip(logits.tolist(), target.tolist())], dtype=torch.float64)
        wanted = (d / lam).softmax(-1) - torch.eye(5, dtype=torch.float64)[target]
        torch.testing.assert_close(slope.double(), wanted, atol=tolerance, rtol=0)


def test_normalisations(batch):
    logits, target = batch
    l1 = logits / logits.abs().mean(-1, keepdim=True)
    soft = torch.log1p(logits.exp())
    soft = soft / soft.mean(-1, keepdim=True)
    for how, wanted in (("l1", l1), ("softplus", soft)):
        found = ldr_kl_loss(logits, target, lam=0.5, margin=1.0, normalize=how)
        torch.testing.assert_close(found, ldr_kl_loss(wanted, target, lam=0.5, margin=1.0))
    scaled = ldr_kl_loss(100 * logits, target, normalize="l1")
    torch.testing.assert_close(scaled, ldr_kl_loss(logits, target, normalize="l1"))
    zero = torch.zeros(1, 4, requires_grad=True)
    (slope,) = torch.autograd.grad(ldr_kl_loss(zero, torch.tensor([2]), normalize="l1"), zero)
    assert bool((slope == 0).all())
    far = torch.tensor([[-500.0, -501.0, -500.0]])  # softplus e^-500 in proportion 1 : 1/e : 1
    share = 3 * far.softmax(-1)
    found = ldr_kl_loss(far, torch.tensor([1]), normalize="softplus")
    torch.testing.assert_close(found, ldr_kl_loss(share, torch.tensor([1])))


@pytest.mark.holds("ldr", 5)
def test_adaptive_card_values():
    loss = ALDRLoss(num_samples=3, alpha=1.0, margin=0.0)
    assert loss(EXAMPLE, SECOND, index=torch.tensor([1])).item() == pytest.approx(0.3563, abs=5e-5)
    assert loss.memory.values.tolist() == pytest.approx([1.0, 0.7577, 1.0], abs=5e-5)
    assert (1 - loss.memory.values[1].item()) * math.log(3) == pytest.approx(0.2662, abs=5e-5)


@pytest.mark.parametrize(("lam0", "alpha", "margin"), [(1.0, 2.0, 1.0), (0.3, 1.2, 0.1), (5.0, 4.0, 10.0)])
def test_adaptive_naive_loop_over_epochs(batch, lam0, alpha, margin):
    logits, target = batch
    loss = ALDRLoss(20, lam0, alpha, margin, reduction="none").double()
    index = torch.arange(12) + 5
    kept = [lam0] * 12
    for scale in (1.0, 0.5, 1.5):
        rows = list(zip((scale * logits).tolist(), target.tolist(), kept))
        both = [naive_adaptive(f, y, lam, lam0, alpha, margin) for f, y, lam in rows]
        kept = [lam for _, lam in both]
        found = loss(scale * logits, target, index=index)
        torch.testing.assert_close(found, logits.new_tensor([value for value, _ in both]))
        torch.testing.assert_close(loss.memory.values[5:17], logits.new_tensor(kept))
    untouched = torch.cat([loss.memory.values[:5], loss.memory.values[17:]])
    torch.testing.assert_close(untouched, torch.full_like(untouched, lam0), rtol=1e-6, atol=0)
    assert bool((loss.memory.values >= lam0 * (1 - 1 / alpha) - 1e-12).all())


def test_adaptive_gradient_is_stopped_at_the_temperature(batch):
    """The slope is that of the loss at the new temperatures held fixed."""
    logits, target = batch
    index = torch.arange(12)
    loss = ALDRLoss(12, lam0=0.8, alpha=1.5, margin=0.5)
    leaf = logits.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(leaf, target, index=index), leaf)
    lam = adaptive_lambda(logits, torch.full((12,), 0.8), lam0=0.8, alpha=1.5)
    other = logits.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(ldr_kl_loss(other, target, lam=lam, margin=0.5), other)
    torch.testing.assert_close(slope, wanted)


def test_evaluation_uses_what_is_kept_and_writes_nothing(batch):
    logits, target = batch
    index = torch.arange(12)
    loss = ALDRLoss(12, alpha=1.5, margin=0.5).double()
    loss(logits, target, index=index)
    kept = loss.memory.values.clone()
    loss.eval()
    price = 1.5 * math.log(5) / 2 * (kept - 1.0) ** 2
    wanted = ldr_kl_loss(2 * logits, target, lam=kept, margin=0.5, reduction="none") - price
    torch.testing.assert_close(loss(2 * logits, target, index=index), wanted.mean())
    assert torch.equal(loss.memory.values, kept)
    fresh = ALDRLoss(12).eval()
    fresh(logits, target, index=index)
    assert not bool(fresh.memory.seen.any())


@pytest.mark.holds("ldr", 6)
def test_uniform_logits_keep_their_temperature_and_refusals():
    for lam0 in (0.1, 1.0, 7.0):
        loss = ALDRLoss(2, lam0=lam0)
        loss(torch.full((2, 6), 3.3), torch.tensor([0, 5]), index=torch.tensor([0, 1]))
        torch.testing.assert_close(loss.memory.values, torch.full((2,), lam0), rtol=1e-6, atol=0)
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="lam: expected"):
            LDRLoss(lam=bad)
        with pytest.raises(ValueError, match="lam: expected"):
            ldr_kl_loss(EXAMPLE, SECOND, lam=bad)
        with pytest.raises(ValueError, match="lam: expected"):
            ldr_kl_loss(EXAMPLE, SECOND, lam=torch.tensor([bad]))
        with pytest.raises(ValueError, match="lam0: expected"):
            ALDRLoss(4, lam0=bad)
    with pytest.raises(ValueError, match="alpha: expected"):
        ALDRLoss(4, alpha=0.99)
    for call in (lambda: LDRLoss(margin=-1.0), lambda: LDRLoss(normalize="l2"), lambda: CrammerSingerLoss(-0.1)):
        with pytest.raises(ValueError, match=": expected "):
            call()


def test_alpha_one_meets_its_floor():
    loss = ALDRLoss(1, lam0=2.0, alpha=1.0, margin=1.0)
    for _ in range(3):
        value = loss(torch.tensor([[500.0, 0.0, 0.0]]), torch.tensor([1]), index=torch.tensor([0]))
    assert loss.memory.values.item() == pytest.approx(2e-6)
    assert value.item() == pytest.approx(501.0 - math.log(3) / 4 * 4, rel=1e-5)


def test_confident_samples_get_small_temperatures():
    sure, unsure = torch.tensor([[6.0, 0.0, 0.0]]), torch.tensor([[0.5, 0.0, 0.0]])
    ones = torch.ones(1)
    low, high = (adaptive_lambda(f, ones, lam0=1.0, alpha=2.0).item() for f in (sure, unsure))
    assert 0.5 <= low < high < 1.0


def test_probabilities(batch):
    logits, _ = batch
    torch.testing.assert_close(LDRLoss(lam=2.0).probabilities(logits), (logits / 2).softmax(-1))
    q = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    z = (2.0 * q.log()).unsqueeze(0).repeat(3, 1).requires_grad_()  # the minimiser where lam is 2
    (slope,) = torch.autograd.grad(LDRLoss(lam=2.0)(z, torch.arange(3), weight=q), z)
    torch.testing.assert_close(slope.sum(0), torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    assert CrammerSingerLoss().probabilities(logits) is None
    for lam0 in (1.0, 0.4, 3.0):
        fresh = ALDRLoss.from_task(TaskInfo("multiclass", 12, 5), lam0=lam0, alpha=1.5)
        lam = adaptive_lambda(logits, torch.full((12,), lam0), lam0=lam0, alpha=1.5)
        torch.testing.assert_close(fresh.probabilities(logits), (logits / lam[:, None]).softmax(-1))


def test_hinge_against_scikit_learn(batch):
    logits, target = batch
    peer = hinge_loss(target.numpy(), logits.numpy(), labels=range(5))
    assert CrammerSingerLoss()(logits, target).item() == pytest.approx(peer)
