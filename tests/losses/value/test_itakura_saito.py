"""Itakura-Saito loss: values of the card, its minimiser, small and large differences; certainty equivalents; EMSE."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import pytest
import torch
from scipy import integrate, optimize

from steepest.losses.value.itakura_saito import (
    EMSELoss,
    ItakuraSaitoLoss,
    certainty_equivalent,
    emse_loss,
    itakura_saito_loss,
)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


VALUE, TARGET = numbers(1.0, 2.0, 0.0), numbers(1.5, 0.0, 0.0)


def exact(difference, alpha, cap=None):
    """The loss in 60 decimal digits."""
    with localcontext() as context:
        context.prec = 60
        a, d = Decimal(alpha), Decimal(difference)
        x, c = a * d, None if cap is None else Decimal(cap)
        grown = x.exp() if c is None or x <= c else c.exp() * (1 + x - c)
        return float((grown - x - 1) / a**2)


@pytest.mark.holds("itakura-saito", 1)
def test_card_values_and_gradients():
    value = VALUE.clone().requires_grad_()
    single = itakura_saito_loss(value, TARGET, 0.5, reduction="none")
    assert single.tolist() == pytest.approx([0.1152, 2.8731, 0.0], abs=5e-5)
    assert itakura_saito_loss(VALUE, TARGET, 0.5).item() == pytest.approx(0.996110, abs=5e-7)
    single.sum().backward()
    assert value.grad.tolist() == pytest.approx([-0.4424, 3.4366, 0.0], abs=5e-5)


def test_values_in_a_column_are_refused():
    """As (3, 1) against (3,) they would be regressed on every target: .897422 in place of .996110."""
    broadcast = itakura_saito_loss(VALUE[:, None].expand(3, 3), TARGET.expand(3, 3), 0.5)
    assert broadcast.item() == pytest.approx(0.897422, abs=5e-7)
    for loss in (ItakuraSaitoLoss(0.5), EMSELoss(0.5)):
        with pytest.raises(ValueError, match=r"^target: expected shape \(3, 1\), got a float64 tensor of shape"):
            loss(VALUE[:, None], TARGET)
    assert ItakuraSaitoLoss(0.5)(VALUE[:, None], TARGET[:, None]).item() == pytest.approx(0.996110, abs=5e-7)


@pytest.mark.parametrize("alpha", [0.5, -2.0, 1e-4, 3.0])
@pytest.mark.parametrize("cap", [None, 0.2, 2.0])
def test_sixty_digits(alpha, cap):
    """Through the series, where it ends, on both sides of the cap; to a few roundings of either type."""
    x = [-30.0, -1.0, -0.5001, -0.5, -3e-3, -1e-9, 1e-9, 3e-3, 0.1999, 0.2001, 0.4999, 0.5, 0.5001, 1.9, 2.1, 30.0]
    for dtype, tolerance in ((torch.float64, 2e-15), (torch.float32, 1e-6)):
        d = (torch.tensor(x, dtype=torch.float64) / alpha).to(dtype)
        wanted = [exact(float(v), alpha, cap) for v in d]
        loss = itakura_saito_loss(d, torch.zeros_like(d), alpha, cap=cap, reduction="none").double()
        # x itself is rounded: its relative error comes back |x| times in the exponential
        rounding = tolerance * (1 + (d.double() * alpha).abs())
        assert bool(((loss - torch.tensor(wanted, dtype=torch.float64)).abs() <= rounding * loss).all())


def test_divergence_of_exponentials():
    """d(x, m) = x/m - log(x/m) - 1 of the exponentials, at values that float64 holds, and its mean with weights."""
    weight = numbers(1.0, 3.0, 2.0)
    ratio = [math.exp(-0.5 * y) / math.exp(-0.5 * v) for v, y in zip(VALUE.tolist(), TARGET.tolist())]
    single = [(r - math.log(r) - 1) / 0.25 for r in ratio]
    wanted = sum(w * s for w, s in zip(weight.tolist(), single)) / 6
    assert ItakuraSaitoLoss(0.5)(VALUE, TARGET, weight=weight).item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.holds("itakura-saito", 2)
def test_least_at_the_certainty_equivalent():
    y = numbers(0.0, 4.0)
    assert certainty_equivalent(y, 0.5).item() == pytest.approx(1.132438, abs=5e-7)
    for loss in (itakura_saito_loss, emse_loss):
        value = certainty_equivalent(y, 0.5).requires_grad_()
        (slope,) = torch.autograd.grad(loss(value.expand(2), y, 0.5), value)
        assert slope.item() == pytest.approx(0.0, abs=1e-15)

        def mean(v, loss=loss):
            return loss(numbers(v, v), y, 0.5).item()

        assert optimize.minimize_scalar(mean, bounds=(-2, 5), method="bounded").x == pytest.approx(1.132438, abs=1e-4)


@pytest.mark.holds("itakura-saito", 3)
def test_small_alpha_is_half_the_squared_error():
    assert itakura_saito_loss(numbers(1.3), numbers(0.0), 1e-4).item() == pytest.approx(0.845037, abs=5e-7)
    value, target = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    half = torch.nn.functional.mse_loss(value, target) / 2
    for loss in (itakura_saito_loss, emse_loss):
        for alpha in (0.0, 1e-12, -1e-12, 1e-200):
            assert loss(value, target, alpha).item() == pytest.approx(half.item(), rel=1e-10)
        assert loss(value, target, 0.0).item() == half.item()
    assert itakura_saito_loss(value.float(), target.float(), 1e-5).item() == pytest.approx(half.item(), rel=1e-4)


@pytest.mark.holds("itakura-saito", 4)
def test_differences_alone_count_and_convex():
    value, target = torch.randn(2, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for alpha, cap in ((0.7, None), (-1.5, None), (2.0, 0.5), (0.0, None)):

        def single(v, y, a=alpha, c=cap):
            return itakura_saito_loss(v, y, a, cap=c, reduction="none")

        loss = single(value, target)
        assert torch.allclose(single(value + 8, target + 8), loss, rtol=1e-12, atol=1e-13)
        assert bool((loss > 0).all())
        assert not single(target, target).any()
        # below the chord, between any two values
        other = value.flip(0)
        for share in (0.25, 0.5, 0.9):
            chord = share * loss + (1 - share) * single(other, target)
            assert bool((single(share * value + (1 - share) * other, target) <= chord + 1e-14).all())


@pytest.mark.holds("itakura-saito", 5)
def test_the_sign_of_alpha_turns_values_round():
    assert itakura_saito_loss(numbers(1.3), numbers(0.0), -0.5).item() == pytest.approx(0.688183, abs=5e-7)
    value, target = torch.randn(2, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for cap in (None, 0.3):
        a, b = ItakuraSaitoLoss(-0.8, cap, "none")(value, target), ItakuraSaitoLoss(0.8, cap, "none")(-value, -target)
        assert torch.equal(a, b)


@pytest.mark.holds("itakura-saito", 6)
@pytest.mark.parametrize(
    "loss", [ItakuraSaitoLoss(0.5), ItakuraSaitoLoss(0.5, 0.1), ItakuraSaitoLoss(0.0), EMSELoss(1.0)]
)
def test_the_target_gets_no_gradient(loss):
    value, target = VALUE.clone().requires_grad_(), TARGET.clone().requires_grad_()
    loss(value, target).backward()
    assert target.grad is None
    assert value.grad.any()


def test_a_step_on_a_table_is_the_rule():
    value = VALUE.clone().requires_grad_()
    ItakuraSaitoLoss(0.5, reduction="sum")(value, TARGET).backward()
    stepped = [v - 0.1 * (math.exp(0.5 * (v - y)) - 1) / 0.5 for v, y in zip(VALUE.tolist(), TARGET.tolist())]
    assert (VALUE - 0.1 * value.grad).tolist() == pytest.approx(stepped, rel=1e-12)


def test_the_cap_goes_on_along_the_tangent():
    value = numbers(3.0, 12.0).requires_grad_()
    loss = itakura_saito_loss(value, numbers(0.0, 0.0), 0.5, cap=2.0, reduction="none")
    loss.sum().backward()
    assert loss.tolist()[0] == pytest.approx((math.exp(1.5) - 2.5) / 0.25)
    assert loss.tolist()[1] == pytest.approx((math.exp(2.0) * (1 + 6 - 2) - 7) / 0.25)
    assert value.grad.tolist() == pytest.approx([(math.exp(1.5) - 1) / 0.5, (math.exp(2.0) - 1) / 0.5])
    far = torch.full((4,), 1e4, requires_grad=True)
    assert ItakuraSaitoLoss(0.5)(far, -far).isinf()
    (slope,) = torch.autograd.grad(ItakuraSaitoLoss(0.5, 5.0, "sum")(far, -far), far)
    assert slope.tolist() == pytest.approx([2 * math.expm1(5)] * 4)
    assert ItakuraSaitoLoss(0.5)(-far, far).item() == pytest.approx((1e4 - 1) / 0.25)


def test_certainty_equivalents():
    """Of a normal variable: m - a s^2 / 2, by quadrature; of shifted and of extreme samples; gradients are weights."""
    samples = torch.randn(4, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for alpha in (-3.0, -1e-3, 0.0, 1e-9, 0.7, 40.0):
        naive = [
            math.fsum(row) / 1000 if alpha == 0 else
            row[0] - math.log1p(math.fsum(math.expm1(-alpha * (x - row[0])) for x in row) / 1000) / alpha
            for row in samples.tolist()
        ]  # fmt: skip
        tolerance = 1e-6 if alpha == 1e-9 else 1e-12  # of the naive sum
        assert certainty_equivalent(samples, alpha).tolist() == pytest.approx(naive, abs=tolerance)
        assert torch.allclose(certainty_equivalent(samples.T, alpha, 0), certainty_equivalent(samples, alpha))
        shifted = certainty_equivalent(samples + 300, alpha) - 300
        assert torch.allclose(shifted, certainty_equivalent(samples, alpha), atol=1e-11)
    grid = torch.linspace(-9, 9, 20001, dtype=torch.float64)
    density = torch.exp(-grid.square() / 2).numpy() / math.sqrt(2 * math.pi)
    wanted = -math.log(integrate.trapezoid(density * torch.exp(-grid).numpy(), grid.numpy()))
    assert wanted == pytest.approx(-0.5, abs=1e-9)
    many = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)
    assert certainty_equivalent(many, 1.0).item() == pytest.approx(wanted, abs=1e-4)
    assert certainty_equivalent(torch.tensor([1e4, -1e4]), 1.0).item() == pytest.approx(-1e4 + math.log(2))
    assert certainty_equivalent(torch.tensor([1e4, -1e4]), -1.0).item() == pytest.approx(1e4 - math.log(2))
    wide = torch.tensor([100.0, -100.0])
    assert certainty_equivalent(wide, 1.0).item() == pytest.approx(-100 + math.log(2))
    wanted = certainty_equivalent(samples[0].float().double(), 0.01).item()
    assert certainty_equivalent(samples[0].float(), 0.01).item() == pytest.approx(wanted, abs=1e-6)
    x = numbers(0.0, 1.0, 3.0).requires_grad_()
    for alpha in (0.5, 1e-7, 20.0, 1e4):
        (slope,) = torch.autograd.grad(certainty_equivalent(x, alpha), x)
        assert slope.tolist() == pytest.approx((-alpha * x.detach()).softmax(0).tolist(), abs=1e-9)
    assert certainty_equivalent(torch.ones(2, 3, dtype=torch.bfloat16), 0.5).dtype == torch.float32


def test_squared_error_of_exponentials():
    for alpha in (0.5, -0.5, 2.0):
        wanted = [
            (math.exp(-alpha * v) - math.exp(-alpha * y)) ** 2 / (2 * alpha**2)
            for v, y in zip(VALUE.tolist(), TARGET.tolist())
        ]
        assert emse_loss(VALUE, TARGET, alpha, reduction="none").tolist() == pytest.approx(wanted, rel=1e-12)
        value = VALUE.clone().requires_grad_()
        emse_loss(value, TARGET, alpha, reduction="sum").backward()
        slopes = [
            -math.exp(-alpha * v) * (math.exp(-alpha * v) - math.exp(-alpha * y)) / alpha
            for v, y in zip(VALUE.tolist(), TARGET.tolist())
        ]
        assert value.grad.tolist() == pytest.approx(slopes, rel=1e-12, abs=1e-15)
    far = torch.tensor([100.0])
    assert emse_loss(-far, far, 1.0).isinf()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ItakuraSaitoLoss(math.inf), "alpha: expected a finite number"),
        (lambda: ItakuraSaitoLoss(math.nan), "alpha: expected a "),
        (lambda: EMSELoss(math.inf), "alpha: expected a finite number"),
        (lambda: ItakuraSaitoLoss(1.0, 0.0), "cap: expected a number > 0"),
        (lambda: ItakuraSaitoLoss(1.0, 89.0), "cap: expected a number > 0 and <= 88.7"),
        (lambda: ItakuraSaitoLoss(0.0, 1.0), "cap: expected None with alpha = 0"),
        (lambda: itakura_saito_loss(VALUE, TARGET, 0.5, weight=numbers(1, 1, -1)), "weight: expected values >= 0"),
        (lambda: itakura_saito_loss(VALUE, TARGET, 0.5, reduction="median"), "reduction: expected one of"),
        (lambda: certainty_equivalent(torch.empty(2, 0), 0.5), "samples: expected at least one along dimension -1"),
        (lambda: certainty_equivalent(VALUE, 0.5, 1), "dim: expected an integer >= -1 and <= 0"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_stated_bounds():
    assert ItakuraSaitoLoss(0.0).largest == EMSELoss(0.0).largest == ItakuraSaitoLoss(1.0, 5.0).largest == math.inf
    assert ItakuraSaitoLoss(-1.0).largest == pytest.approx(44.36, abs=0.01)
    assert ItakuraSaitoLoss(0.1).largest == pytest.approx((88.72 - 2 * math.log(10)) / 0.2, abs=0.1)
    assert EMSELoss(2.0).largest == pytest.approx(22.18, abs=0.01)


def test_samples_far_apart_lose_nothing():
    for far in (1e5, 1e7, 1e8, math.inf):
        assert certainty_equivalent(torch.tensor([0.0, far]), 1.0).item() == pytest.approx(math.log(2), rel=1e-6)
    samples = torch.tensor([0.0, 3.0, 1e5], requires_grad=True)
    certainty_equivalent(samples, 1.0).backward()
    weights = [1.0, math.exp(-3.0), 0.0]
    assert samples.grad.tolist() == pytest.approx([w / sum(weights) for w in weights], rel=1e-5)
