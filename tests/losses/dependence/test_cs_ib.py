"""The bottleneck's two kernel estimates against naive loops, closed forms of Gaussians, and their invariances."""

from __future__ import annotations

import math

import pytest
import torch

from steepest.losses.dependence.cs_ib import CauchySchwarzIBLoss, conditional_cs_divergence, cs_mutual_information

X, Y, YHAT = (
    torch.tensor([v], dtype=torch.float64).T for v in ((0.0, 1.0, 2.0), (0.0, 1.0, 1.0), (0.0, 0.5, 1.5))
)  # fmt: skip


def gram(u, v, sigma=1.0):
    """The kernels, element by element."""
    return [[math.exp(-(math.dist(p, q) ** 2) / (2 * sigma**2)) for q in v.tolist()] for p in u.tolist()]


def naive_divergence(x, y, yhat, sigma=1.0):
    n, k = len(x), gram(x, x, sigma)

    def g(first, second):
        cells = gram(first, second, sigma)
        return sum(sum(k[j][i] * cells[j][i] for i in range(n)) / sum(k[j]) ** 2 for j in range(n))

    return math.log(g(y, y)) + math.log(g(yhat, yhat)) - 2 * math.log(g(yhat, y))


def naive_information(x, t, sigma=1.0):
    n, k, q = len(x), gram(x, x, sigma), gram(t, t, sigma)
    joint = sum(k[i][j] * q[i][j] for i in range(n) for j in range(n)) / n**2
    product = sum(map(sum, k)) * sum(map(sum, q)) / n**4
    cross = sum(sum(k[i][j] for i in range(n)) * sum(q[i][j] for i in range(n)) for j in range(n)) / n**3
    return math.log(joint) + math.log(product) - 2 * math.log(cross)


def draws(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.holds("cs-ib", 1)
def test_card_values():
    found = cs_mutual_information(X, Y).item()
    assert found == pytest.approx(0.0754, abs=5e-5)
    assert found / math.log(2) == pytest.approx(0.1087, abs=5e-5)
    assert cs_mutual_information(X, Y, normalized=True).item() == pytest.approx(0.8165, abs=5e-5)
    assert conditional_cs_divergence(X, Y, YHAT).item() == pytest.approx(0.0683, abs=5e-5)


@pytest.mark.holds("cs-ib", 1)
@pytest.mark.parametrize("sigma", [0.4, 1.0, 3.0])
@pytest.mark.parametrize(("d", "k", "p"), [(1, 1, 1), (3, 2, 2), (20, 33, 18)])
def test_against_naive_loops(sigma, d, k, p):
    x, t, y, yhat = draws((8, d), (8, k), (8, p), (8, p))
    x, t = x + 50, t - 20
    information = naive_information(x, t, sigma)
    assert cs_mutual_information(x, t, sigma).item() == pytest.approx(information, abs=1e-9)
    divergence = naive_divergence(x, y, yhat, sigma)
    assert conditional_cs_divergence(x, y, yhat, sigma).item() == pytest.approx(divergence, abs=1e-9)
    scale = math.sqrt(naive_information(x, x, sigma) * naive_information(t, t, sigma))
    loss = CauchySchwarzIBLoss(beta=0.3, sigma=sigma)
    assert loss(x, t, yhat, y).item() == pytest.approx(divergence + 0.3 * information / scale, abs=1e-8)
    assert loss.terms["divergence"].item() == pytest.approx(divergence, abs=1e-9)
    raw = CauchySchwarzIBLoss(beta=0.3, sigma=sigma, normalized=False)
    assert raw(x, t, yhat, y).item() == pytest.approx(divergence + 0.3 * information, abs=1e-8)


@pytest.mark.holds("cs-ib", 2)
@pytest.mark.parametrize("seed", range(5))
def test_signs_zeros_and_symmetry(seed):
    """Rows on a circle, at equal steps, have equal kernel sums: there the estimate has all the divergence's signs."""
    x, t, y, noise = draws((9, 3), (9, 4), (9, 1), (9, 1), seed=seed)
    angles = 2 * math.pi * torch.arange(9, dtype=torch.float64) / 9
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    assert conditional_cs_divergence(x, y, y).item() == pytest.approx(0, abs=1e-12)
    for size in (1.0, 1e-2):
        found = conditional_cs_divergence(circle, y, y + size * noise).item()
        assert found > 1e-7
        assert conditional_cs_divergence(circle, y + size * noise, y).item() == pytest.approx(found, abs=1e-12)
    assert cs_mutual_information(x, t).item() > 1e-3
    assert cs_mutual_information(x, t).item() == pytest.approx(cs_mutual_information(t, x).item(), abs=1e-12)
    assert cs_mutual_information(x, x, normalized=True).item() == pytest.approx(1.0, abs=1e-12)


def test_unequal_kernel_sums_break_the_signs():
    """What the documentation says of the estimate, by the naive loop as well: on the card's own rows it is lopsided."""
    assert conditional_cs_divergence(X, YHAT, Y).item() == pytest.approx(naive_divergence(X, YHAT, Y), abs=1e-12)
    assert naive_divergence(X, YHAT, Y) == pytest.approx(0.0377, abs=5e-5)
    target = Y.clone().requires_grad_()
    (slope,) = torch.autograd.grad(conditional_cs_divergence(X, Y, target), target)
    assert slope.norm() > 1e-3
    downhill = Y - 0.1 * slope
    assert naive_divergence(X, Y, downhill) < -1e-4


@pytest.mark.holds("cs-ib", 2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [2, 40])
def test_a_constant_representation_has_no_information(dtype, width):
    (x,) = draws((9, 3))
    t = torch.full((9, width), 0.7, dtype=dtype, requires_grad=True)
    assert cs_mutual_information(x.to(dtype), t).item() == pytest.approx(0, abs=20 * torch.finfo(dtype).eps)
    found = cs_mutual_information(x.to(dtype), t, normalized=True)
    (slope,) = torch.autograd.grad(found, t)
    assert found.item() == 0
    assert torch.equal(slope, torch.zeros_like(t))
    # nearly constant: what is left of its self-information is rounding, which must not be divided by
    for noise in draws(*[(9, width)] * 5):
        nearly = 0.7 + (torch.finfo(dtype).eps ** 0.5 * noise).to(dtype)
        assert cs_mutual_information(x.to(dtype), nearly, normalized=True).item() == 0


@pytest.mark.holds("cs-ib", 3)
@pytest.mark.parametrize(("mean", "scale", "exact"), [(1.0, 1.0, 0.5), (0.0, 2.0, 0.223144)])
def test_closed_forms_of_gaussians(mean, scale, exact):
    """Where x is constant the divergence is that of two kernel density estimates of width sigma / sqrt(2)."""

    def closed(extra):
        p, q = 1 + extra, scale**2 + extra
        return mean**2 / (p + q) + math.log((p + q) / (2 * math.sqrt(p * q)))

    assert closed(0.0) == pytest.approx(exact, abs=5e-7)
    levels = (torch.arange(1500, dtype=torch.float64) + 0.5) / 1500
    normal = torch.special.ndtri(levels).unsqueeze(1)
    x = torch.zeros_like(normal)
    for sigma in (0.3, 1.0):
        found = conditional_cs_divergence(x, normal, mean + scale * normal, sigma).item()
        assert found == pytest.approx(closed(sigma**2 / 2), abs=2e-3)
    p, q = draws((1500, 1), (1500, 1))
    assert conditional_cs_divergence(x, p, mean + scale * q, 0.3).item() == pytest.approx(exact, abs=0.06)


@pytest.mark.holds("cs-ib", 4)
@pytest.mark.parametrize("normalized", [True, False])
def test_order_and_common_shifts_change_nothing(normalized):
    x, t, y, yhat = draws((9, 3), (9, 20), (9, 2), (9, 2))
    loss = CauchySchwarzIBLoss(beta=0.5, normalized=normalized)
    found = loss(x, t, yhat, y).item()
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    assert loss(x[order], t[order], yhat[order], y[order]).item() == pytest.approx(found, abs=1e-12)
    assert loss(x, t, yhat + 3, y + 3).item() == pytest.approx(found, abs=1e-10)
    # what must not be without effect: one of them alone
    assert loss(x, t, yhat[order], y).item() != pytest.approx(found, abs=1e-3)
    assert loss(x, t, yhat + 3, y).item() != pytest.approx(found, abs=1e-3)


@pytest.mark.holds("cs-ib", 5)
def test_gradient_reaches_the_encoder_on_both_ways():
    x, y = draws((9, 3), (9, 1))
    torch.manual_seed(0)
    encoder, decoder = torch.nn.Linear(3, 2).double(), torch.nn.Linear(2, 1).double()

    def slope(beta, *, cut):
        t = encoder(x)
        pred = decoder(t.detach() if cut == "pred" else t)
        loss = CauchySchwarzIBLoss(beta)(x, t.detach() if cut == "t" else t, pred, y)
        found = torch.autograd.grad(loss, encoder.weight, allow_unused=True)[0]
        return torch.zeros_like(encoder.weight) if found is None else found

    through_t, through_pred = slope(0.5, cut="pred"), slope(0.5, cut="t")
    assert through_t.norm() > 1e-3
    assert through_pred.norm() > 1e-3
    assert torch.allclose(slope(0.5, cut=None), through_t + through_pred, atol=1e-12)
    assert torch.equal(slope(0.0, cut="pred"), torch.zeros_like(encoder.weight))


@pytest.mark.holds("cs-ib", 6)
def test_one_dimension_is_refused():
    """Vectors would broadcast to one number for each batch in place of a kernel for each pair."""
    x, t, pred, target = draws((5, 2), (5, 3), (5, 1), (5, 1))
    loss = CauchySchwarzIBLoss()
    assert math.isfinite(loss(x, t, pred, target).item())
    for place in range(4):
        given = [x, t, pred, target]
        given[place] = given[place][:, 0]
        with pytest.raises(ValueError, match=f"{('x', 't', 'pred', 'target')[place]}: expected 2 dimensions"):
            loss(*given)
    with pytest.raises(ValueError, match="y: expected 2 dimensions"):
        conditional_cs_divergence(x, target[:, 0], pred[:, 0])


def test_far_predictions_and_far_rows_stay_finite():
    """Kernels that are 0 in float32 keep a value and a gradient."""
    x = torch.tensor([[0.0], [100.0], [-250.0]])
    y, pred = torch.zeros(3, 1), torch.full((3, 1), 60.0, requires_grad=True)
    found = conditional_cs_divergence(x, y, pred)
    (slope,) = torch.autograd.grad(found, pred)
    # alone in their neighbourhoods, all rows are 60 away from their targets: two halves of the squared distance
    assert found.item() == pytest.approx(60**2, rel=1e-6)
    assert slope.flatten().tolist() == pytest.approx([2 * 60 / 3] * 3, rel=1e-4)
    assert cs_mutual_information(x, x).item() == pytest.approx(math.log(3), rel=1e-6)


def test_refusals():
    x, y = draws((4, 2), (4, 1))
    with pytest.raises(ValueError, match="yhat: expected 4 rows, as x"):
        conditional_cs_divergence(x, y, y[:3])
    with pytest.raises(ValueError, match=r"yhat: expected shape \(4, 1\), as y"):
        conditional_cs_divergence(x, y, x)
    with pytest.raises(ValueError, match=r"pred: expected shape \(4, 1\), as target"):
        CauchySchwarzIBLoss()(x, x, x, y)
    with pytest.raises(ValueError, match="x: expected at least one row"):
        cs_mutual_information(x[:0], y[:0])
    for bad, message in (({"beta": -1.0}, "beta: expected a number >= 0"), ({"sigma": 0.0}, "sigma: expected")):
        with pytest.raises(ValueError, match=message):
            CauchySchwarzIBLoss(**bad)
    with pytest.raises(TypeError, match="t: expected a floating tensor"):
        cs_mutual_information(x, y.long())


def test_nan_is_not_independent():
    x = torch.randn(6, 2, dtype=torch.float64)
    t = torch.full((6, 2), torch.nan, dtype=torch.float64)
    assert cs_mutual_information(x, t, normalized=True).isnan()
