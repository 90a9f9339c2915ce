"""A milder activation in the softmax loss."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.losses.ranking.pairwise_softmax import ACTIVATIONS, PairwiseSoftmaxLoss, pairwise_softmax_loss

D = torch.tensor([[-0.3, 0.1, 0.4]], dtype=torch.float64)
ZERO = torch.zeros(1, dtype=torch.float64)
SIGMA = {
    "tanh": lambda d: 1 + math.tanh(d),
    "atan": lambda d: 1 + math.atan(d),
    "relu": lambda d: max(0.0, 1 + d),
    "exp": math.exp,
}


@pytest.fixture
def cosines():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1 for shape in ((5,), (5, 7))]


def of_differences(d, **options):
    """The loss of given differences d, by scores that have them."""
    return pairwise_softmax_loss(torch.zeros(len(d), dtype=d.dtype), 2 * d, **options)


@pytest.mark.holds("pairwise-softmax", 1)
@pytest.mark.parametrize(
    ("activation", "value"), [("tanh", 1.285304), ("atan", 1.285673), ("relu", 1.297463), ("exp", 1.385233)]
)
def test_card_values(activation, value):
    assert of_differences(D, tau=0.5, activation=activation).item() == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_naive_sums(activation, cosines):
    pos, neg = cosines
    options = {"tau": 0.3, "activation": activation}
    d = [[0.5 * (n - p) for n in row] for p, row in zip(pos.tolist(), neg.tolist())]
    powers = [[SIGMA[activation](v) ** (1 / 0.3) for v in row] for row in d]
    wanted = [math.log(sum(row)) for row in powers]
    assert pairwise_softmax_loss(pos, neg, **options, reduction="none").tolist() == pytest.approx(wanted)
    assert PairwiseSoftmaxLoss(**options)(pos, neg).item() == pytest.approx(sum(wanted) / 5)
    assert pairwise_softmax_loss(pos, neg, **options, reduction="sum").item() == pytest.approx(sum(wanted))
    pairs = math.log(sum(map(sum, powers)) / 35)
    assert pairwise_softmax_loss(pos, neg, **options, form="pairs").item() == pytest.approx(pairs)


@pytest.mark.holds("pairwise-softmax", 2)
@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_the_exponential_is_the_softmax_loss(tau, cosines):
    pos, neg = cosines
    wanted = (0.5 * (neg - pos.unsqueeze(1)) / tau).logsumexp(1).mean()
    value = pairwise_softmax_loss(pos, neg, tau=tau, activation="exp")
    torch.testing.assert_close(value, wanted, rtol=1e-14, atol=0)


@pytest.mark.holds("pairwise-softmax", 3)
def test_between_the_step_and_the_exponential():
    d = torch.linspace(-1, 1, 401, dtype=torch.float64).unsqueeze(1)
    upper = of_differences(d, tau=1.0, activation="exp", reduction="none").exp()
    for activation in ("tanh", "atan", "relu"):
        values = of_differences(d, tau=1.0, activation=activation, reduction="none").exp()
        assert (values >= (d[:, 0] >= 0).double() - 1e-12).all()
        assert (values <= upper + 1e-12).all()
        for tau in (0.1, 0.7):
            rows = d.view(1, -1)
            mild, plain = (of_differences(rows, tau=tau, activation=name) for name in (activation, "exp"))
            assert mild <= plain


@pytest.mark.holds("pairwise-softmax", 4)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_differences_of_minus_one(dtype):
    pos = torch.ones(2, dtype=dtype, requires_grad=True)
    neg = torch.tensor([[-1.0, 0.5], [-1.0, -1.0 + 1e-3]], dtype=dtype, requires_grad=True)
    value = pairwise_softmax_loss(pos, neg, activation="relu")
    assert value.isfinite()
    slopes = torch.autograd.grad(value, (pos, neg))
    assert all(slope.isfinite().all() for slope in slopes)
    assert not slopes[1][:, 0].any()
    alone = pairwise_softmax_loss(pos, neg[:, 1:], activation="relu")
    torch.testing.assert_close(value, alone)


@pytest.mark.holds("pairwise-softmax", 5)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tau", {"tau": 0.0}),
        ("tau", {"tau": -1.0}),
        ("activation", {"activation": "sigmoid"}),
        ("form", {"form": "rows"}),
        ("score_scale", {"score_scale": 0.0}),
        ("reduction", {"form": "pairs", "reduction": "none"}),
    ],
)
def test_refused(name, options):
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        pairwise_softmax_loss(ZERO, D, **options)
    if name != "reduction":
        with pytest.raises(ValueError, match=rf"^{name}: expected"):
            PairwiseSoftmaxLoss(**options)


def test_differences_beyond_the_reach_of_the_arc_tangent():
    pos, neg = torch.ones(1), torch.tensor([[-1.0, 0.0]])
    with pytest.raises(ValueError, match=r"^neg: expected score differences"):
        pairwise_softmax_loss(pos, neg, activation="atan", score_scale=1.0)
    for activation in ("tanh", "relu", "exp"):
        assert pairwise_softmax_loss(pos, neg, activation=activation, score_scale=1.0).isfinite()


def test_gradient_of_a_negative(cosines):
    """(1 / tau) sigma^(1 / tau - 1) sigma' over the sum, times the factor 1/2 of d."""
    pos, neg = cosines
    neg.requires_grad_()
    (slope,) = torch.autograd.grad(pairwise_softmax_loss(pos, neg, tau=0.2, reduction="sum"), neg)
    d = 0.5 * (neg - pos.unsqueeze(1)).detach()
    sigma = 1 + d.tanh()
    wanted = 5 * sigma**4 * (1 - d.tanh() ** 2) / (sigma**5).sum(1, keepdim=True)
    torch.testing.assert_close(slope, 0.5 * wanted)


@pytest.mark.parametrize("form", ["negatives", "pairs"])
def test_no_pair(form):
    for shape in ((0, 3), (2, 0)):
        pos, neg = torch.zeros(shape[0], requires_grad=True), torch.zeros(shape, requires_grad=True)
        value = pairwise_softmax_loss(pos, neg, form=form)
        assert value == 0
        assert value.requires_grad


@pytest.mark.parametrize("activation", ["tanh", "relu", "exp"])
def test_scores_that_are_no_cosines(activation):
    pos, neg = torch.tensor([50.0], requires_grad=True), torch.tensor([[-1e4, 60.0]])
    value = pairwise_softmax_loss(pos, neg, activation=activation)
    assert value.isfinite()
    assert torch.autograd.grad(value, pos)[0].isfinite().all()
