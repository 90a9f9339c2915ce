"""Delta L normalisation: weights, their variance under the model, aggregation against loops, empty answers, parts."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.core.group_policy import clipped_policy_loss
from steepest.losses import DeltaLNormalization, aggregate_policy_loss, delta_l_weights

L = torch.tensor([2, 4, 8])


def drawn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    losses = torch.randn(5, 7, generator=generator, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([7, 2, 0, 5, 1])[:, None]
    mask[0, 3] = False
    return losses, mask


def own_options(mode, alpha=None):
    return (
        {"max_length": 9.0} | ({"alpha": alpha} if alpha is not None else {}) if mode in ("delta_l", "dr_grpo") else {}
    )


@pytest.mark.holds("delta-l-normalization", 1)
@pytest.mark.parametrize(
    ("alpha", "weights"),
    [(1.0, [0.571429, 0.285714, 0.142857]), (0.75, [0.513306, 0.305213, 0.181481]), (0.0, [1 / 3] * 3)],
)
def test_weights_of_the_paper(alpha, weights):
    assert delta_l_weights(L, alpha).tolist() == pytest.approx(weights, abs=6e-7)
    assert delta_l_weights(L, alpha, max_length=5.0).tolist() == pytest.approx([w / 5 for w in weights], abs=2e-7)


@pytest.mark.holds("delta-l-normalization", 2)
def test_variance_under_the_model():
    variances = [float((delta_l_weights(L.double(), a).square() * L).sum()) for a in (0.0, 0.75, 1.0)]
    assert variances == pytest.approx([1.555556, 1.163069, 1.142857], abs=6e-7)
    assert variances[2] == pytest.approx(1 / float((1 / L).sum()), rel=1e-12)
    generator = torch.Generator().manual_seed(0)
    simplex = torch.rand(2000, 3, generator=generator, dtype=torch.float64)
    simplex = simplex / simplex.sum(1, keepdim=True)
    assert (simplex.square() * L).sum(1).min() >= variances[2]
    for alpha in torch.linspace(0, 0.99, 34).tolist():
        assert (delta_l_weights(L.double(), alpha).square() * L).sum() > variances[2]


@pytest.mark.holds("delta-l-normalization", 3)
def test_equal_lengths_make_all_modes_one():
    losses, _ = drawn()
    mask = torch.ones(5, 7, dtype=torch.bool)
    by_mode = {
        m: aggregate_policy_loss(losses, mask, m, **own_options(m)) for m in ("delta_l", "grpo", "dapo", "dr_grpo")
    }
    torch.testing.assert_close(by_mode["grpo"], by_mode["dapo"], rtol=1e-12, atol=0)
    torch.testing.assert_close(by_mode["delta_l"], by_mode["dr_grpo"], rtol=1e-12, atol=0)
    torch.testing.assert_close(by_mode["grpo"] * 7 / 9, by_mode["dr_grpo"], rtol=1e-12, atol=0)


@pytest.mark.holds("delta-l-normalization", 3)
def test_alpha_1_is_the_mean_of_means_times_a_constant():
    losses, mask = drawn()
    lengths = torch.tensor([6.0, 2.0, 5.0, 1.0], dtype=torch.float64)
    grpo = aggregate_policy_loss(losses, mask, "grpo")
    delta = aggregate_policy_loss(losses, mask, "delta_l", 1.0, 9.0)
    torch.testing.assert_close(9 * delta, grpo * 4 / (1 / lengths).sum(), rtol=1e-12, atol=0)


@pytest.mark.holds("delta-l-normalization", 4)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.75, 1.0])
def test_the_sum_of_weights_is_a_constant(alpha):
    generator = torch.Generator().manual_seed(1)
    for _ in range(10):
        lengths = torch.randint(1, 3000, (16,), generator=generator).double()
        weights = delta_l_weights(lengths, alpha, 2000.0)
        assert float(weights.sum()) == pytest.approx(1 / 2000, rel=1e-12)
        torch.testing.assert_close(delta_l_weights(37 * lengths, alpha, 2000.0), weights, rtol=1e-12, atol=0)


@pytest.mark.holds("delta-l-normalization", 5)
def test_weights_carry_no_gradient_and_empty_answers_none():
    weights = delta_l_weights(torch.tensor([3.0, 0.0, 6.0], requires_grad=True))
    assert not weights.requires_grad
    assert weights.tolist() == pytest.approx([2 / 3, 0.0, 1 / 3], rel=1e-6)
    losses, mask = drawn()
    filled = [0, 1, 3, 4]
    for mode in ("delta_l", "grpo", "dapo", "dr_grpo"):
        whole = aggregate_policy_loss(losses, mask, mode, **own_options(mode))
        without = aggregate_policy_loss(losses[filled], mask[filled], mode, **own_options(mode))
        torch.testing.assert_close(whole, without, rtol=1e-13, atol=0)
    leaf = losses.clone().requires_grad_()
    (slope,) = torch.autograd.grad(aggregate_policy_loss(leaf, mask, "delta_l", 0.75, 9.0), leaf)
    counts = torch.tensor([6, 2, 0, 5, 1])
    torch.testing.assert_close(slope, delta_l_weights(counts.double(), 0.75, 9.0)[:, None] * mask, rtol=1e-12, atol=0)


@pytest.mark.holds("delta-l-normalization", 5)
def test_lengths_of_nothing_are_refused_and_a_loss_of_nothing_is_zero():
    with pytest.raises(ValueError, match="lengths: expected an answer with a token"):
        delta_l_weights(torch.zeros(3))
    losses, mask = drawn()
    leaf = losses.clone().requires_grad_()
    value = aggregate_policy_loss(leaf, torch.zeros_like(mask), "delta_l", max_length=9.0)
    assert value == 0
    assert not torch.autograd.grad(value, leaf)[0].any()


@pytest.mark.parametrize(
    ("mode", "alpha"),
    [("delta_l", None), ("delta_l", 1.0), ("delta_l", 0.2), ("grpo", None), ("dapo", None), ("dr_grpo", None)],
)
def test_against_a_loop(mode, alpha):
    losses, mask = drawn()
    rows = [[float(v) for v, m in zip(*row) if m] for row in zip(losses, mask)]
    rows = [row for row in rows if row]
    power = 0.75 if alpha is None else alpha
    total = sum(len(row) ** -power for row in rows)
    weight = {
        "delta_l": lambda row: len(row) ** -power / total / 9,
        "grpo": lambda row: 1 / len(rows) / len(row),
        "dapo": lambda row: 1 / sum(map(len, rows)),
        "dr_grpo": lambda row: 1 / len(rows) / 9,
    }[mode]
    own = aggregate_policy_loss(losses, mask, mode, **own_options(mode, alpha))
    assert float(own) == pytest.approx(sum(weight(row) * sum(row) for row in rows), rel=1e-12)


def test_the_released_factors_are_the_same_weights():
    """Advantages times (L / mean L)^-alpha over its mean, then summed: as in the publication's code, in its words."""
    losses, mask = drawn()
    mask[2, 0] = True  # an empty answer makes it divide by zero
    lengths = mask.sum(1).double()
    factor = (lengths / lengths.mean()) ** -0.75
    factor = factor / factor.mean()
    released = (factor[:, None] * losses * mask).sum() / len(lengths) / 9
    own = aggregate_policy_loss(losses, mask, "delta_l", 0.75, 9.0)
    torch.testing.assert_close(own, released, rtol=1e-12, atol=0)


@pytest.mark.parametrize("mode", ["delta_l", "grpo", "dapo", "dr_grpo"])
def test_the_module_is_the_clipped_surrogate_averaged(mode):
    generator = torch.Generator().manual_seed(3)
    logp, shift = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    advantages, (_, mask) = torch.randn(5, generator=generator, dtype=torch.float64), drawn()
    old = logp + 0.5 * shift
    ratio = (logp - old).exp()
    losses = -torch.minimum(ratio * advantages[:, None], ratio.clamp(0.9, 1.3) * advantages[:, None])
    loss = DeltaLNormalization(**own_options(mode), mode=mode, epsilon=0.1, epsilon_high=0.3)
    expected = aggregate_policy_loss(losses, mask, mode, **own_options(mode))
    torch.testing.assert_close(loss(logp, old, advantages, mask), expected, rtol=1e-12, atol=0)
    if mode == "grpo":
        same = clipped_policy_loss(logp, old, advantages, mask, "grpo", epsilon=0.1, epsilon_high=0.3)
        torch.testing.assert_close(expected, same, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "mean"}, "mode: expected one of"),
        ({"mode": "delta_l"}, "max_length: expected a number with"),
        ({"mode": "dr_grpo"}, "max_length: expected a number with"),
        ({"mode": "grpo", "max_length": 5.0}, "max_length: expected a number with"),
        ({"max_length": 0.0}, "max_length: expected a number > 0"),
        ({"max_length": 5.0, "alpha": 1.1}, "alpha: expected a number >= 0 and <= 1"),
        ({"mode": "dapo", "alpha": 0.5}, "alpha: expected None"),
    ],
)
def test_refused(options, words):
    with pytest.raises(ValueError, match=words):
        DeltaLNormalization(**options)
    with pytest.raises(ValueError, match=words):
        aggregate_policy_loss(*drawn(), **options)


def test_refused_bounds_and_lengths():
    for options in ({"epsilon": 1.5}, {"epsilon_high": -0.1}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: expected a number"):
            DeltaLNormalization(5.0, **options)
    with pytest.raises(ValueError, match="lengths: expected values >= 0"):
        delta_l_weights(torch.tensor([2.0, -1.0]))
    with pytest.raises(ValueError, match="max_length: expected a number > 0"):
        delta_l_weights(L, 1.0, 0.0)
    with pytest.raises(ValueError, match="alpha: expected"):
        delta_l_weights(L, math.nan)
    with pytest.raises(ValueError, match="mask: expected shape"):
        aggregate_policy_loss(drawn()[0], drawn()[1][:2], "grpo")
