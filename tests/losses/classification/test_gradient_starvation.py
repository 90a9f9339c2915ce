"""Gradient starvation: spectral decoupling, its rest points, and the linearised model of two samples."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as nnf
from scipy.optimize import brentq
from torch import nn

from steepest.core.objective import TaskInfo, WithPenalty
from steepest.losses.classification.cross_entropy import CrossEntropyLoss
from steepest.losses.classification.gradient_starvation import (
    SpectralDecoupling,
    SpectralDecouplingLoss,
    feature_responses,
    gradient_starvation_experiment,
    spectral_decoupling,
)

H = torch.tensor([2.0, 1.0, -0.5], dtype=torch.float64)
T = torch.tensor([1, 0, 1])
LOGITS = 2 * torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TARGET = torch.arange(7) % 4
RESTS = [(1.0, 0.401058), (0.1, 1.633506), (0.01, 3.359275)]
TABLE = [(1.0, 2.2314, 0.5979), (2.0, 3.6529, 0.5349), (4.0, 5.3728, 0.3564), (8.0, 7.4571, 0.1678)]


def minimised(loss, start, steps=60):
    """The minimum of a smooth convex function of a tensor, by torch's L-BFGS."""
    point = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [point], max_iter=steps, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss(point)
        value.backward()
        return value

    optimizer.step(closure)
    return point.detach()


def rest(lam):
    """r with 1 / (1 + e^r) = lambda r, by bisection."""
    return brentq(lambda r: 1 / (1 + math.exp(r)) - lam * r, 0.0, 50.0, xtol=1e-14)


@pytest.mark.holds("gradient-starvation", 1)
@pytest.mark.parametrize(("lam", "wanted"), RESTS)
def test_rest_point(lam, wanted):
    assert rest(lam) == pytest.approx(wanted, abs=5e-7)
    loss = SpectralDecouplingLoss(lam)
    target = torch.tensor([0, 1, 1])
    for start in (torch.zeros(3), torch.tensor([5.0, -5.0, 9.0])):
        found = minimised(lambda h: loss(h, target), start.double())
        torch.testing.assert_close(found, rest(lam) * torch.tensor([-1.0, 1.0, 1.0]).double(), atol=1e-6, rtol=0)
    alone = gradient_starvation_experiment(3.0, delta=0.0, lam=lam, penalty="decoupling")
    assert alone.tolist() == pytest.approx([wanted, wanted], abs=5e-7)


@pytest.mark.holds("gradient-starvation", 2)
def test_values_by_hand():
    logistic = sum(math.log(1 + math.exp(-m)) for m in (2.0, -1.0, -0.5)) / 3
    assert logistic == pytest.approx(0.804756, abs=5e-7)
    square = (4 + 1 + 0.25) / 3
    for lam, wanted in ((0.0, 0.804756), (0.1, 0.892256)):
        found = SpectralDecouplingLoss(lam)(H, T).item()
        assert found == pytest.approx(wanted, abs=5e-7)
        assert found == pytest.approx(logistic + lam / 2 * square)


@pytest.mark.holds("gradient-starvation", 3)
@pytest.mark.parametrize(("s1", "z1", "z2"), TABLE)
def test_table(s1, z1, z2):
    found = gradient_starvation_experiment(s1, 0.5, 0.1)
    assert found.tolist() == pytest.approx([z1, z2], abs=1e-4)
    decoupled = gradient_starvation_experiment(s1, 0.5, 0.1, "decoupling")
    assert decoupled.tolist() == pytest.approx([2.2314, 0.5979], abs=1e-4)
    c, r = math.sqrt(0.75), rest(0.1)
    assert decoupled.tolist() == pytest.approx([(c + 0.5) * r, (c - 0.5) * r], abs=1e-10)


@pytest.mark.holds("gradient-starvation", 3)
@pytest.mark.parametrize("delta", [0.0, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("lam", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("s1", [0.3, 1.0, 5.0, 1e3])
def test_rest_point_solves_the_dual_equation(delta, lam, s1):
    """log((1 - a) / a) = U S^2 U' a / lambda and z = S^2 U' a / lambda, at a = sigmoid(-U z)."""
    z = gradient_starvation_experiment(s1, delta, lam)
    c = math.sqrt(1 - delta**2)
    u = torch.tensor([[c, -delta], [delta, c]], dtype=torch.float64)
    s = torch.tensor([s1, 1.0], dtype=torch.float64)
    alpha = torch.sigmoid(-(u @ z))
    assert bool(((alpha > 0) & (alpha < 1)).all())
    torch.testing.assert_close(s**2 * (u.T @ alpha) / lam, z, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(torch.log((1 - alpha) / alpha), u @ (s**2 * (u.T @ alpha)) / lam, rtol=1e-8, atol=1e-9)


@pytest.mark.holds("gradient-starvation", 3)
def test_a_model_with_these_features_ends_there():
    """A linear model trained on summed losses with weight decay or with decoupling, for s1 = 4."""
    u = torch.tensor([[math.sqrt(0.75), -0.5], [0.5, math.sqrt(0.75)]], dtype=torch.float64)
    y = torch.tensor([1, -1])
    phi = y.unsqueeze(1) * (u * torch.tensor([4.0, 1.0], dtype=torch.float64))
    start = torch.zeros(2, dtype=torch.float64)
    labels = (y > 0).long()
    plain, decoupled = SpectralDecouplingLoss(0.0, reduction="sum"), SpectralDecouplingLoss(0.1, reduction="sum")
    decayed = minimised(lambda w: plain(phi @ w, labels) + 0.05 * w.square().sum(), start)
    wanted = gradient_starvation_experiment(4.0)
    torch.testing.assert_close(feature_responses(phi, phi @ decayed, y), wanted, atol=1e-6, rtol=0)
    free = minimised(lambda w: decoupled(phi @ w, labels), start)
    wanted = gradient_starvation_experiment(4.0, penalty="decoupling")
    torch.testing.assert_close(feature_responses(phi, phi @ free, y), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("delta", [0.2, 0.5, 0.65])
def test_stronger_first_feature_starves_the_second(delta):
    second = torch.stack([gradient_starvation_experiment(s, delta)[1] for s in (1.0, 1.5, 2.0, 4.0, 8.0, 16.0)])
    assert bool((second.diff() < 0).all())
    apart = torch.stack([gradient_starvation_experiment(s, 0.0)[1] for s in (1.0, 4.0, 16.0)])
    torch.testing.assert_close(apart, apart[0].expand(3), atol=1e-9, rtol=0)


@pytest.mark.holds("gradient-starvation", 4)
def test_without_a_penalty_it_is_the_logistic_loss():
    for h in (H, 1e3 * H):
        wanted = nnf.binary_cross_entropy_with_logits(h, T.double(), reduction="none")
        torch.testing.assert_close(SpectralDecouplingLoss(0.0, reduction="none")(h, T), wanted)
    torch.testing.assert_close(SpectralDecouplingLoss(0.0)(LOGITS, TARGET), nnf.cross_entropy(LOGITS, TARGET))


@pytest.mark.holds("gradient-starvation", 4)
@pytest.mark.parametrize(("outputs", "target"), [(H, T), (LOGITS, TARGET)], ids=["scores", "logits"])
def test_strictly_convex_with_one_minimum(outputs, target):
    loss = SpectralDecouplingLoss(0.1, reduction="sum")
    curvature = torch.autograd.functional.hessian(lambda h: loss(h, target), outputs)
    values = torch.linalg.eigvalsh(curvature.reshape(outputs.numel(), -1))
    assert values.min().item() >= 0.1 - 1e-9
    ends = [minimised(lambda h: loss(h, target), start) for start in (outputs, -3 * outputs)]
    torch.testing.assert_close(ends[0], ends[1], atol=1e-6, rtol=0)
    assert bool(torch.isfinite(ends[0]).all())


@pytest.mark.holds("gradient-starvation", 5)
@pytest.mark.parametrize("delta", [0.0, 0.4, 0.6])
@pytest.mark.parametrize("lam", [0.05, 1.0])
def test_equal_strengths_make_both_penalties_one(delta, lam):
    both = [gradient_starvation_experiment(1.0, delta, lam, p) for p in ("weight_decay", "decoupling")]
    torch.testing.assert_close(both[0], both[1], atol=1e-9, rtol=0)
    c, r = math.sqrt(1 - delta**2), rest(lam)
    assert both[0].tolist() == pytest.approx([(c + delta) * r, (c - delta) * r], abs=1e-10)


@pytest.mark.holds("gradient-starvation", 6)
def test_penalty_is_on_raw_logits_with_their_bias():
    shifted = LOGITS + 3.0  # the same softmax
    found = SpectralDecouplingLoss(0.2)(shifted, TARGET)
    square = sum(x * x for row in shifted.tolist() for x in row) / 7
    torch.testing.assert_close(found.item(), nnf.cross_entropy(LOGITS, TARGET).item() + 0.1 * square)

    head = nn.Linear(3, 4, dtype=torch.float64)
    features = torch.randn(7, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    outputs = head(features)
    (slope,) = torch.autograd.grad(spectral_decoupling(outputs, lam=0.2), head.bias)
    torch.testing.assert_close(slope, 0.2 * outputs.detach().mean(0))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_values_a_class(reduction):
    lam, gamma = (0.1, 0.7), (-1.0, 2.0)
    cells = [lam[t] / 2 * (h - gamma[t]) ** 2 for h, t in zip(H.tolist(), T.tolist())]
    wanted = {"none": torch.tensor(cells), "mean": torch.tensor(sum(cells) / 3), "sum": torch.tensor(sum(cells))}
    as_tensors = {"lam": torch.tensor(lam).double(), "gamma": torch.tensor(gamma).double()}
    found = spectral_decoupling(H, T, **as_tensors, reduction=reduction)
    torch.testing.assert_close(found, wanted[reduction].double())
    logistic = nnf.binary_cross_entropy_with_logits(H, T.double(), reduction="none")
    whole = SpectralDecouplingLoss(lam, gamma, reduction="none")(H, T)
    torch.testing.assert_close(whole, logistic + torch.tensor(cells).double())

    lam, gamma = [0.1, 0.2, 0.3, 0.4], [1.0, 0.0, -1.0, 2.0]
    cells = [lam[t] / 2 * sum((h - gamma[t]) ** 2 for h in row) for row, t in zip(LOGITS.tolist(), TARGET.tolist())]
    penalty = SpectralDecoupling(lam, gamma)
    torch.testing.assert_close(penalty(LOGITS, TARGET).item(), sum(cells) / 7)
    assert set(penalty.state_dict()) == {"lam", "gamma"}


def test_penalty_beside_any_objective_and_objective_from_a_task():
    joined = WithPenalty(CrossEntropyLoss(), SpectralDecoupling(0.3), weight=2.0)
    info = TaskInfo("multiclass", 7, 4, (2, 2, 2, 1))
    own = SpectralDecouplingLoss.from_task(info, lam=0.6)
    torch.testing.assert_close(joined(LOGITS, TARGET), own(LOGITS, TARGET))
    torch.testing.assert_close(own.terms["cross_entropy"], nnf.cross_entropy(LOGITS, TARGET))
    torch.testing.assert_close(own.terms["spectral_decoupling"], 0.3 * LOGITS.square().sum(-1).mean())


def test_weight_is_of_samples():
    weight = torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64)
    once = SpectralDecouplingLoss(0.1, reduction="none")(H, T)
    torch.testing.assert_close(SpectralDecouplingLoss(0.1)(H, T, weight=weight), (weight * once).sum() / 3)
    found = spectral_decoupling(H, lam=0.1, weight=weight)
    assert found.item() == pytest.approx(0.05 * (2 * 1 + 0.25) / 3)


def test_scores_have_exact_gradients_and_probabilities():
    loss = SpectralDecouplingLoss((0.1, 0.3), (-1.0, 1.0))
    assert torch.autograd.gradcheck(lambda h: loss(h, T), H.clone().requires_grad_())
    p = loss.probabilities(H)
    torch.testing.assert_close(p[:, 1], torch.sigmoid(H))
    assert torch.equal(p.argmax(-1), loss.predict(H))
    half = SpectralDecouplingLoss(0.1)(torch.tensor([300.0], dtype=torch.float16), torch.tensor([1]))
    assert half.item() == pytest.approx(4500.0)


# --- responses -----------------------------------------------------------------------------------------------------


def test_responses_by_a_known_decomposition():
    """Features built from U, S and V: the responses are U' Y h in that basis, whatever the sign that svd picks."""
    generator = torch.Generator().manual_seed(5)
    u = torch.linalg.qr(torch.randn(6, 3, generator=generator, dtype=torch.float64))[0]
    u = u * torch.sign(u.sum(0))
    v = torch.linalg.qr(torch.randn(4, 3, generator=generator, dtype=torch.float64))[0]
    y = torch.tensor([1, -1, -1, 1, 1, -1])
    s = torch.tensor([5.0, 2.0, 0.5], dtype=torch.float64)
    theta = torch.randn(4, generator=generator, dtype=torch.float64)
    features = y.unsqueeze(1) * ((u * s) @ v.T)
    z = feature_responses(features, features @ theta, y)
    assert z.shape == (4,)
    torch.testing.assert_close(z[:3], s * (v.T @ theta))


def test_equal_margins_never_answer_negatively():
    features = torch.randn(5, 3, generator=torch.Generator().manual_seed(6))
    y = torch.tensor([1, -1, 1, 1, -1])
    assert bool((feature_responses(features, y.float(), y) >= 0).all())


@pytest.mark.parametrize(
    "call",
    [
        lambda: SpectralDecouplingLoss(-0.1),
        lambda: SpectralDecouplingLoss((0.1, -0.1)),
        lambda: SpectralDecouplingLoss((0.1, 0.2))(LOGITS, TARGET),
        lambda: SpectralDecouplingLoss()(H, T + 1),
        lambda: SpectralDecouplingLoss()(LOGITS, TARGET + 1),
        lambda: spectral_decoupling(H, lam=-1.0),
        lambda: spectral_decoupling(H, T, lam=torch.tensor([0.1, -0.1])),
        lambda: spectral_decoupling(H, lam=torch.tensor([0.1, 0.2])),
        lambda: spectral_decoupling(H.reshape(1, 1, 3)),
        lambda: feature_responses(LOGITS, LOGITS[:, 0], TARGET % 2),
        lambda: feature_responses(LOGITS, LOGITS[:3, 0], torch.ones(7)),
        lambda: gradient_starvation_experiment(0.0),
        lambda: gradient_starvation_experiment(1.0, delta=1.0),
        lambda: gradient_starvation_experiment(1.0, lam=0.0),
        lambda: gradient_starvation_experiment(1.0, penalty="dropout"),
    ],
)
def test_refused(call):
    with pytest.raises(ValueError, match=": expected "):
        call()
