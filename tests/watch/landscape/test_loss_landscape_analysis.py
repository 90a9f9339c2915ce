"""Criteria of Hessian spectra and planes of chosen axes: numbers of the card, full Hessians, closed forms."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.core.probe import Moment
from steepest.watch.landscape import HessianCriteria, hessian_criteria, hessian_spectrum, loss_landscape

NODES, WEIGHTS = torch.tensor([-1.0, 0.0, 2.0, 4.0]).double(), torch.tensor([0.1, 0.4, 0.3, 0.2]).double()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def net(classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, classes)).double()


def rows(n=30, classes=3):
    generator = seeded(1)
    return torch.randn(n, 4, generator=generator).double(), torch.randint(classes, (n,), generator=generator)


def full_hessian(model, loss):
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    class Moved:
        def __init__(self, own):
            self.own = own

        def __call__(self, x):
            return torch.func.functional_call(model, self.own, (x,))

    def of_vector(flat):
        pieces = flat.split([s.numel() for s in shapes])
        return loss(Moved({name: piece.view(s) for name, piece, s in zip(names, pieces, shapes)}))

    return torch.func.hessian(of_vector)(torch.cat([p.detach().flatten() for p in model.parameters()]))


@pytest.mark.holds("loss-landscape-analysis", 1)
def test_numbers_of_the_card():
    r_e, k = hessian_criteria(NODES, WEIGHTS)
    assert float(r_e) == pytest.approx(0.25)
    assert float(k) == pytest.approx(0.189469, abs=5e-7)
    by_hand = math.sqrt(0.1) / (math.sqrt(0.6) + math.sqrt(0.8))
    assert float(k) == pytest.approx(by_hand)
    assert float(hessian_criteria(NODES, WEIGHTS, 1.0)[1]) == pytest.approx(0.1 / 1.4)
    assert float(hessian_criteria(NODES, WEIGHTS, 0.0)[1]) == pytest.approx(1 / 2)
    two = torch.stack([NODES, torch.tensor([1.0, 2.0, 3.0, 3.0]).double()])
    weights = torch.stack([WEIGHTS, torch.tensor([0.2, 0.3, 0.5, 0.0]).double()])
    r_e, k = hessian_criteria(two, weights)
    assert float(r_e) == pytest.approx(0.125)
    assert float(k) == pytest.approx(by_hand / 2)


def official(nodes, weights, n):
    """The official formula, run by run, in NumPy."""
    r_e, k = [], []
    for run_nodes, run_weights in zip(nodes.double().numpy(), weights.double().numpy()):
        t = run_nodes * run_weights
        r_e.append(abs(run_nodes.min() / run_nodes.max()))
        k.append((np.abs(t[run_nodes < 0]) ** n).sum() / (t[run_nodes > 0] ** n).sum())
    return np.mean(r_e), np.mean(k)


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("n", [0.0, 0.5, 2.0])
def test_the_official_formula(dtype, digits, n):
    nodes = torch.randn(4, 30, generator=seeded()).to(dtype) + 1
    weights = torch.rand(4, 30, generator=seeded(1)).to(dtype)
    for clamp in (True, False):  # runs have negative nodes
        got = hessian_criteria(nodes, weights, n, clamp)
        assert [float(value) for value in got] == pytest.approx(official(nodes, weights, n), rel=digits)
    half = hessian_criteria(nodes.bfloat16(), weights.bfloat16(), n)
    assert half[0].dtype == half[1].dtype == torch.float32
    assert float(half[1]) == pytest.approx(official(nodes.bfloat16(), weights.bfloat16(), n)[1], rel=1e-5)


def test_numbers_at_the_ends_of_the_range():
    for factor in (1e-36, 1e36):
        nodes = (factor * NODES).float()
        assert float(hessian_criteria(nodes, WEIGHTS.float(), 2.0)[1]) == pytest.approx(0.01 / (0.36 + 0.64), rel=1e-5)


@pytest.mark.holds("loss-landscape-analysis", 2)
def test_a_convex_loss_has_none():
    x = torch.randn(20, 6, generator=seeded()).double()
    x[:, 5] = x[:, 4]
    y = torch.randn(20, generator=seeded(1)).double()
    w = torch.randn(6, generator=seeded(2)).double().requires_grad_()
    nodes, weights = hessian_spectrum(lambda: (x @ w - y).square().mean(), [w], 6)
    r_e, k = hessian_criteria(nodes, weights)
    assert float(r_e) < 1e-14
    assert float(k) < 1e-6
    one_two = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5])
    assert float(hessian_criteria(*one_two)[0]) == 0.0
    assert float(hessian_criteria(*one_two, clamp=False)[0]) == pytest.approx(0.5)


@pytest.mark.holds("loss-landscape-analysis", 3)
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_a_multiple_of_the_loss_has_the_same(factor):
    model, (x, y) = net(), rows()

    def criteria(c):
        loss = lambda: c * nn.functional.cross_entropy(model(x), y)  # noqa: E731
        return hessian_criteria(*hessian_spectrum(loss, model.parameters(), 12, runs=2))

    one, other = criteria(1.0), criteria(factor)
    assert float(one[0]) > 1e-3
    torch.testing.assert_close(torch.stack(one), torch.stack(other), rtol=1e-6, atol=0.0)


@pytest.mark.holds("loss-landscape-analysis", 4)
def test_all_steps_give_the_eigenvalues():
    model, (x, y) = net(), rows()
    count = sum(p.numel() for p in model.parameters())
    loss = lambda m=model: nn.functional.cross_entropy(m(x), y)  # noqa: E731
    nodes, weights = hessian_spectrum(loss, model.parameters(), count, runs=2, generator=seeded())
    exact = np.linalg.eigvalsh(full_hessian(model, loss).numpy())
    used = nodes[0][weights[0] > 0].numpy()
    for value in exact:
        assert np.abs(used - value).min() < 1e-7
    for value in used:
        assert np.abs(exact - value).min() < 1e-7
    torch.testing.assert_close(weights.sum(1), torch.ones(2).double())
    # distinct eigenvalues: three of four that are equal come once
    w = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    curved = torch.tensor([1.0, 1.0, 1.0, 2.0, 4.0]).double()
    nodes, weights = hessian_spectrum(lambda: (curved * w**2).sum() / 2, [w], 5)
    torch.testing.assert_close(nodes[weights > 0], torch.tensor([1.0, 2.0, 4.0]).double())
    torch.testing.assert_close(weights[weights > 0], torch.tensor([0.6, 0.2, 0.2]).double())


@pytest.mark.holds("loss-landscape-analysis", 5)
def test_what_criteria_refuse():
    with pytest.raises(ValueError, match="n: expected a number >= 0"):
        hessian_criteria(NODES, WEIGHTS, n=-0.5)
    with pytest.raises(ValueError, match="nodes: expected one that is positive"):
        hessian_criteria(-NODES.abs(), WEIGHTS)
    with pytest.raises(ValueError, match="nodes: expected one that is positive"):
        hessian_criteria(NODES, torch.tensor([0.5, 0.5, 0.0, 0.0]).double())
    with pytest.raises(ValueError, match="nodes: expected one that is positive"):
        hessian_criteria(torch.stack([NODES, -NODES.abs()]), torch.stack([WEIGHTS, WEIGHTS]))
    with pytest.raises(ValueError, match="weights: expected values >= 0"):
        hessian_criteria(NODES, torch.tensor([0.4, -0.1, 0.4, 0.3]).double())
    with pytest.raises(ValueError, match="nodes: expected at least one node"):
        hessian_criteria(NODES[:0], WEIGHTS[:0])
    with pytest.raises(TypeError, match="nodes: expected a floating tensor"):
        hessian_criteria(torch.arange(4), WEIGHTS)
    with pytest.raises(ValueError, match="weights: expected shape"):
        hessian_criteria(NODES, WEIGHTS[:3])
    with pytest.raises(TypeError, match="clamp: expected True or False"):
        hessian_criteria(NODES, WEIGHTS, clamp=1.0)


def test_curvature_along_hessian_axes_is_the_eigenvalue():
    model, (x, y) = net(), rows()
    loss = lambda m: nn.functional.cross_entropy(m(x), y)  # noqa: E731
    exact, vectors = np.linalg.eigh(full_hessian(model, loss).numpy())
    before = [p.detach().clone() for p in model.parameters()]
    plane = loss_landscape(model, loss, steps=3, span=1e-3, tol=1e-9)
    np.testing.assert_allclose(plane.eigenvalues, exact[[-1, -2]], rtol=1e-6)
    for axis, place in zip(plane.axes, (-1, -2)):
        flat = torch.cat([d.flatten() for d in axis]).numpy()
        assert abs(flat @ vectors[:, place]) == pytest.approx(1.0, abs=1e-5)
    v = plane.values
    assert float(v[0, 1] - 2 * v[1, 1] + v[2, 1]) / 1e-6 == pytest.approx(exact[-1], rel=1e-3)
    assert float(v[1, 0] - 2 * v[1, 1] + v[1, 2]) / 1e-6 == pytest.approx(exact[-2], rel=1e-3)
    torch.testing.assert_close(v[1, 1], loss(model).detach())
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("order", [1, 2])
def test_axes_and_normalisations(order):
    model, (x, y) = net(), rows()
    loss = lambda m: nn.functional.cross_entropy(m(x), y)  # noqa: E731
    optimizer = torch.optim.Adam(model.parameters())
    loss(model).backward()
    optimizer.step()
    params = [p.detach() for p in model.parameters()]
    plain = loss_landscape(model, loss, "random", None, 3, generator=seeded())
    for normalize in ("weight", "layer", "model", "filter"):
        plane = loss_landscape(model, loss, "random", normalize, 3, order=order, generator=seeded())
        for d, p, bare in zip(plane.axes[0], params, plain.axes[0]):
            if normalize == "weight":
                torch.testing.assert_close(d, bare * p.abs())
            elif normalize == "layer":
                torch.testing.assert_close(d.flatten().norm(order), p.flatten().norm(order))
            elif normalize == "filter" and p.ndim > 1:
                torch.testing.assert_close(d.norm(order, dim=1), p.norm(order, dim=1))
        if normalize == "model":
            joined = [torch.cat([t.flatten() for t in ts]).norm(order) for ts in (plane.axes[0], params)]
            torch.testing.assert_close(*joined)
    adam = loss_landscape(model, loss, "adam", steps=2, span=0.5, optimizer=optimizer)
    assert all(torch.equal(d, optimizer.state[p]["exp_avg"]) for d, p in zip(adam.axes[0], model.parameters()))
    assert all(torch.equal(d, optimizer.state[p]["exp_avg_sq"]) for d, p in zip(adam.axes[1], model.parameters()))
    assert adam.places.tolist() == [-0.5, 0.5]
    given = loss_landscape(model, loss, adam.axes, steps=2, span=0.5)
    assert torch.equal(given.values, adam.values)


def test_what_landscapes_refuse():
    model, (x, _) = net(), rows()
    loss = lambda m: m(x).square().mean()  # noqa: E731
    for wrong, message in (
        ({"axes": "pca"}, "axes: expected one of"),
        ({"normalize": "dfilter"}, "normalize: expected one of"),
        ({"axes": "adam"}, "optimizer: expected one with exp_avg"),
        ({"steps": 1}, "steps: expected an integer >= 2"),
        ({"axes": ([torch.ones(3)], [torch.ones(3)])}, "axes: expected two lists of tensors of the shapes"),
        ({"axes": ([p.detach() for p in model.parameters()],)}, "axes: expected two lists"),
        ({"axes": "adam", "optimizer": torch.optim.SGD(model.parameters(), 0.1)}, "optimizer: expected one with"),
        ({"span": 0.0}, "span: expected a number > 0"),
        ({"order": 3}, "order: expected one of"),
    ):
        with pytest.raises(ValueError, match=message):
            loss_landscape(model, loss, **wrong)
    w = torch.ones(2, requires_grad=True)
    for wrong, message in (
        ({"steps": 0}, "steps: expected an integer >= 1"),
        ({"runs": 0}, "runs: expected an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            hessian_spectrum(lambda: w.square().sum(), [w], **wrong)
    with pytest.raises(ValueError, match="params: expected tensors that need gradients"):
        hessian_spectrum(lambda: w.square().sum(), [])
    with pytest.raises(ValueError, match="finite products"):
        hessian_spectrum(lambda: w.square().sum() * torch.inf, [w])


def test_more_steps_than_parameters_and_runs_of_their_own():
    model, (x, y) = net(), rows()
    loss = lambda: nn.functional.cross_entropy(model(x), y)  # noqa: E731
    nodes, weights = hessian_spectrum(loss, model.parameters(), 5, 3, generator=seeded(4))
    assert nodes.shape == weights.shape == (3, 5)
    assert not torch.equal(weights[0], weights[1])
    again = hessian_spectrum(loss, model.parameters(), 5, 3, generator=seeded(4))
    assert torch.equal(again[0], nodes)
    other = hessian_spectrum(loss, model.parameters(), 5, 3, generator=seeded(5))
    assert not torch.equal(other[0], nodes)
    w = torch.zeros(3, requires_grad=True)
    assert hessian_spectrum(lambda: w.square().sum(), [w], 50)[0].shape == (1, 1)


def test_training_mode_is_that_of_the_plot():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)).double()
    x, y = rows()
    loss = lambda m: nn.functional.cross_entropy(m(x), y)  # noqa: E731
    buffers = [b.clone() for b in model.buffers()]
    for training in (True, False):
        plane = loss_landscape(model, loss, "random", steps=3, generator=seeded(), training=training)
        with torch.no_grad():
            assert float(plane.values[1, 1]) == pytest.approx(float(loss(copy.deepcopy(model).train(training))))
    first, second = (loss_landscape(model, loss, steps=2, training=t).values for t in (True, False))
    assert not torch.allclose(first, second)
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers()))


def test_a_search_that_is_cut_short_and_one_parameter():
    model, (x, y) = net(), rows()
    loss = lambda m: nn.functional.cross_entropy(m(x), y)  # noqa: E731
    whole = loss_landscape(model, loss, steps=2, tol=1e-9).eigenvalues
    short = loss_landscape(model, loss, steps=2, iters=3).eigenvalues
    assert float(short[0]) < float(whole[0]) * (1 - 1e-6)
    loose = loss_landscape(model, loss, steps=2, tol=0.5, generator=seeded(3)).eigenvalues
    assert 1e-6 < abs(float(loose[1] / whole[1]) - 1) < 0.5
    one = nn.Linear(1, 1, bias=False)
    plane = loss_landscape(one, lambda m: m(torch.ones(1, 1)).square().sum(), steps=3)
    assert plane.eigenvalues.tolist() == pytest.approx([2.0])
    assert torch.equal(plane.values[:, 0], plane.values[:, 2])


def test_points_one_by_one_are_the_same():
    model, (x, y) = net(), rows()
    loss = lambda m: nn.functional.cross_entropy(m(x), y)  # noqa: E731
    quick = loss_landscape(model, loss, "random", steps=4, span=2.0, generator=seeded())
    slow = loss_landscape(model, loss, "random", steps=4, span=2.0, generator=seeded(), chunk=1)
    torch.testing.assert_close(quick.values, slow.values, rtol=1e-12, atol=0.0)
    a, b = float(quick.places[3]), float(quick.places[0])
    assert (a, b) == (2.0, -2.0)
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for p, d, e in zip(moved.parameters(), *quick.axes):
            p.add_(a * d + b * e)
    assert float(quick.values[3, 0]) == pytest.approx(float(loss(moved).detach()), rel=1e-12)


def test_the_probe_reads_what_the_functions_give():
    model, (x, y) = net(), rows()
    torch.manual_seed(1)
    deep = nn.Sequential(model, nn.Dropout(0.5))
    moment = Moment(3, "gradients", deep, objective=nn.functional.cross_entropy, inputs=x, targets=y)
    reading = HessianCriteria(n=1.0, lanczos=8, runs=2).measure(moment)
    loss = lambda: nn.functional.cross_entropy(model(x), y)  # noqa: E731
    nodes, weights = hessian_spectrum(loss, model.parameters(), 8, 2)
    r_e, k = hessian_criteria(nodes, weights, 1.0)
    assert reading.numbers == pytest.approx(
        {"r_e": float(r_e), "k": float(k), "largest": float(nodes.max()), "smallest": float(nodes.min())}
    )
    torch.testing.assert_close(reading.arrays["nodes"].values, nodes)
    assert deep.training
    straight = nn.Linear(4, 1).double()
    concave = Moment(1, "gradients", straight, objective=lambda z, _: -z.square().sum(), inputs=x, targets=y)
    flat = Moment(1, "gradients", model, objective=lambda z, _: z.sum() * torch.nan, inputs=x, targets=y)
    assert math.isnan(HessianCriteria().measure(flat).numbers["k"])
    below = HessianCriteria(lanczos=4).measure(concave)
    assert below.numbers["largest"] < 1e-9
    assert math.isnan(below.numbers["k"])
    assert math.isnan(below.numbers["r_e"])
    assert below.numbers["smallest"] < -1
    assert below.arrays["weights"].values.shape == (1, 4)
    still = nn.Linear(2, 1).requires_grad_(False)
    frozen = Moment(1, "gradients", still, objective=nn.functional.mse_loss, inputs=x[:, :2].float(), targets=y)
    assert all(math.isnan(value) for value in HessianCriteria().measure(frozen).numbers.values())


def test_what_the_probe_refuses():
    for wrong, message in (
        ({"n": -1.0}, "n: expected a number >= 0"),
        ({"lanczos": 0}, "lanczos: expected an integer >= 1"),
        ({"runs": 0}, "runs: expected an integer >= 1"),
        ({"every": 0}, "every: expected an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            HessianCriteria(**wrong)
    probe = HessianCriteria()
    probe.check(nn.Linear(2, 1), None)
    with pytest.raises(ValueError, match="model: expected a parameter that is trained"):
        probe.check(nn.Linear(2, 1).requires_grad_(False), None)
    assert (probe.n, probe.lanczos, probe.runs, probe.every) == (0.5, 40, 1, 1000)


def test_nodes_of_no_weight_do_not_count():
    nodes = torch.tensor([-9.0, -1.0, 0.0, 2.0, 4.0, 9.0]).double()
    weights = torch.tensor([0.0, 0.1, 0.4, 0.3, 0.2, 0.0]).double()
    assert [float(v) for v in hessian_criteria(nodes, weights)] == pytest.approx([0.25, 0.189469], abs=5e-7)


def test_what_is_given_stays_and_scales_are_those_of_their_kind():
    model, (x, y) = net(), rows()
    loss = lambda m: nn.functional.cross_entropy(m(x), y)  # noqa: E731
    optimizer = torch.optim.Adam(model.parameters())
    loss(model).backward()
    optimizer.step()
    generator = seeded(2)
    drawn = [[torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in model.parameters()] for _ in "ab"]
    plain = loss_landscape(model, loss, "random", steps=2, generator=seeded(2))
    for axis, own in zip(plain.axes, drawn):
        assert all(torch.equal(d, e) for d, e in zip(axis, own))
    before = [[d.clone() for d in axis] for axis in plain.axes]
    moments = [optimizer.state[p]["exp_avg"].clone() for p in model.parameters()]
    for normalize in ("layer", "model"):
        loss_landscape(model, loss, "adam", normalize, 2, optimizer=optimizer)
        plane = loss_landscape(model, loss, plain.axes, normalize, 2)
        assert all(torch.equal(d, e) for axis, own in zip(plain.axes, before) for d, e in zip(axis, own))
        factors = [d / e for d, e in zip(plane.axes[0], before[0])]
        for factor in factors:
            torch.testing.assert_close(factor, factor.flatten()[0].expand_as(factor))
        same = torch.stack([factor.flatten()[0] for factor in factors])
        assert torch.allclose(same, same[0].expand_as(same)) == (normalize == "model")
    assert all(torch.equal(optimizer.state[p]["exp_avg"], own) for p, own in zip(model.parameters(), moments))


def test_axes_are_of_the_largest_eigenvalues_in_the_mode_of_the_plot():
    model = nn.Linear(3, 1, bias=False).double()
    curved = torch.tensor([-9.0, 1.0, 2.0]).double()
    plane = loss_landscape(model, lambda m: (curved * m.weight[0] ** 2).sum(), steps=2)
    assert plane.eigenvalues.tolist() == pytest.approx([4.0, 2.0])
    torch.manual_seed(0)
    normed = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)).double()
    x, y = rows()
    loss = lambda m: nn.functional.cross_entropy(m(3 * x), y)  # noqa: E731
    ends = [loss_landscape(normed, loss, steps=2, training=t).eigenvalues for t in (True, False)]
    assert abs(float(ends[0][0] / ends[1][0]) - 1) > 1e-3
    model, loss = net(), lambda m: nn.functional.cross_entropy(m(x), y)
    starts = [loss_landscape(model, loss, steps=2, iters=3, generator=seeded(s)).eigenvalues for s in (3, 4)]
    assert abs(float(starts[0][0] / starts[1][0]) - 1) > 1e-6
