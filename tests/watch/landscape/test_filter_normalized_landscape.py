"""The loss along directions: numbers of the card, invariance under rescaling, naive loops, exact restoring."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from steepest.core.parameter_directions import closure_values, values_at
from steepest.watch.landscape import (
    convexity_map,
    filter_normalize_,
    loss_curve,
    loss_surface,
    path_coordinates,
    random_direction,
    random_plane,
    trajectory_pca,
)

cross_entropy = nn.functional.cross_entropy


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(n=40, d=5, classes=3):
    generator = seeded(1)
    return torch.randn(n, d, generator=generator), torch.randint(classes, (n,), generator=generator)


def mlp(d=5, width=7, classes=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(d, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))


def by_loading(model, loss, directions, coefficients):
    """The naive way: a copy, its weights written, one point after the other, in float64."""
    values = []
    for row in coefficients:
        moved = copy.deepcopy(model).double().eval()
        with torch.no_grad():
            for place, p in enumerate(moved.parameters()):
                for c, direction in zip(row, directions):
                    p += c * direction[place].double()
        values.append(loss(moved))
    return torch.stack(values)


@pytest.mark.holds("filter-normalized-landscape", 1)
def test_numbers_of_the_card():
    d = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert filter_normalize_(d, torch.tensor([[3.0, 4.0], [0.0, 1.0]])) is d
    torch.testing.assert_close(d, torch.tensor([[5.0, 0.0], [0.707107, 0.707107]]), rtol=0.0, atol=5e-7)


@pytest.mark.holds("filter-normalized-landscape", 2)
def test_each_filter_has_the_length_of_its_weights():
    conv = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        conv.weight[2] = 0.0
    d, bias = random_direction(conv.parameters(), generator=seeded())
    lengths = torch.stack([f.double().norm() for f in conv.weight.detach()])
    torch.testing.assert_close(torch.stack([f.double().norm() for f in d]), lengths, rtol=1e-6, atol=0.0)
    assert not d[2].any()
    assert not bias.any()


def test_other_norms():
    weights = [torch.randn(3, 4, generator=seeded(1)), torch.tensor([3.0, -4.0, 0.0])]

    def drawn(norm, ignore=None):
        return random_direction(weights, norm, ignore, generator=seeded())

    plain = drawn(None)
    for norm in ("filter", "layer", "dlayer"):
        assert float(drawn(norm)[1].norm()) == pytest.approx(1.0 if norm == "dlayer" else 5.0)
    torch.testing.assert_close(drawn("layer")[0].norm(), weights[0].norm())
    torch.testing.assert_close(drawn("dfilter")[0].norm(dim=1), torch.ones(3))
    torch.testing.assert_close(drawn("weight")[0], plain[0] * weights[0])
    joined = torch.cat([d.flatten() for d in drawn("model")])
    torch.testing.assert_close(joined.norm(), torch.cat([w.flatten() for w in weights]).norm())
    for norm in ("filter", "layer", "dlayer", "dfilter", "weight", "model", None):
        assert not drawn(norm, "biasbn")[1].any()
    # with ignore=None the entries of one-dimensional tensors are drawn, not copied from the weights
    assert abs(float(nn.functional.cosine_similarity(drawn("filter")[1], weights[1], dim=0))) < 0.999


def test_entries_have_mean_0_and_two_directions_are_nearly_orthogonal():
    weights = [torch.rand(200, 300, generator=seeded(3)) + 0.5]
    generator = seeded(4)
    d, e = (random_direction(weights, generator=generator)[0] for _ in range(2))
    assert abs(float(d.mean() / d.std())) < 4 / d.numel() ** 0.5
    assert abs(float(nn.functional.cosine_similarity(d.flatten(), e.flatten(), dim=0))) < 5 / d.numel() ** 0.5
    first, bias = random_direction([torch.ones(1, 2), torch.tensor([3.0, -4.0])], generator=seeded())
    assert torch.equal(bias, torch.zeros(2))
    assert torch.equal(first, random_direction([torch.ones(1, 2)], generator=seeded())[0])


def curve_of(model, data, norm="filter", training=False):
    direction = random_direction(model.parameters(), norm, generator=seeded())
    return loss_curve(model, cross_entropy, data, direction, training=training)


@pytest.mark.holds("filter-normalized-landscape", 3)
def test_rescaled_filters_of_a_rectified_net_have_the_same_curve():
    """All filters of a layer by one factor: with one filter alone the rows of the next layer change their form."""
    x, y = rows()
    data = x.double(), y
    model = mlp().double()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.zero_()
        scaled = copy.deepcopy(model)
        scaled[0].weight *= 7.0
        scaled[2].weight /= 7.0
    torch.testing.assert_close(curve_of(model, data), curve_of(scaled, data), rtol=1e-9, atol=0.0)
    assert not torch.allclose(curve_of(model, data, None), curve_of(scaled, data, None), rtol=1e-2)


def test_a_rescaled_filter_before_batch_norm_has_the_same_curve():
    x, y = rows()
    data = x.double(), y
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7, eps=1e-14), nn.ReLU(), nn.Linear(7, 3)).double()
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        scaled[0].weight[3] *= 7.0
        scaled[0].bias[3] *= 7.0
    curves = [curve_of(m, data, training=True) for m in (model, scaled)]
    torch.testing.assert_close(*curves, rtol=1e-9, atol=0.0)


class Flawed(nn.Module):
    """Batch norm, a buffer that counts calls, dropout; it raises at the call that is asked for."""

    def __init__(self, fails_at=None):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
        self.register_buffer("calls", torch.zeros(()))
        self.fails_at, self.number = fails_at, 0

    def forward(self, x):
        self.number += 1
        self.calls += 1
        if self.fails_at is not None and self.number >= self.fails_at:
            raise RuntimeError("that was planted")
        return self.layers(x)


def everything(model):
    tensors = [*model.parameters(), *model.buffers()]
    return (
        [t.detach().clone() for t in tensors],
        [id(t) for t in tensors],
        [p.requires_grad for p in model.parameters()],
        [p.grad for p in model.parameters()],
        [m.training for m in model.modules()],
        torch.get_rng_state(),
    )


def same(before, after):
    return (
        all(torch.equal(a, b) for a, b in zip(before[0], after[0]))
        and before[1:5] == after[1:5]
        and bool(torch.equal(before[5], after[5]))
    )


@pytest.mark.holds("filter-normalized-landscape", 4)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("chunk", [None, 1])
def test_the_middle_is_the_loss_and_nothing_moves(training, chunk):
    x, y = rows()
    model = Flawed()
    model.layers[3].eval()
    next(model.parameters()).requires_grad_(False)
    model(x)
    before = everything(model)
    dirs = [random_direction(model.parameters(), generator=seeded(s)) for s in (0, 1)]
    batches = [(x[:30], y[:30]), (x[30:], y[30:])]
    surface = loss_surface(model, cross_entropy, batches, dirs, (-1, 1, 5), chunk=chunk, training=training)
    assert same(before, everything(model))
    assert surface.shape == (5, 5)
    if not training:
        with torch.no_grad():
            own = cross_entropy(copy.deepcopy(model).eval()(x), y)
        torch.testing.assert_close(surface[2, 2], own)
        naive = by_loading(model, lambda m: cross_entropy(m(x.double()), y), dirs, [(0.5, -1.0)])
        torch.testing.assert_close(surface[3, 0], naive[0].float(), rtol=1e-5, atol=1e-6)


def test_nothing_moves_after_an_exception():
    x, y = rows()
    for chunk, call in ((1, 4), (None, 1)):
        model = Flawed(fails_at=call)
        before = everything(model)
        direction = random_direction(model.parameters(), generator=seeded())
        with pytest.raises(RuntimeError, match="planted"):
            loss_curve(model, cross_entropy, (x, y), direction, (-1, 1, 9), chunk=chunk)
        assert same(before, everything(model))
    w = torch.tensor([0.1], requires_grad=True)
    with pytest.raises(ZeroDivisionError):
        closure_values(lambda: 1 / 0, [w], [torch.ones(1)], [1.0])
    assert torch.equal(w.detach(), torch.tensor([0.1]))


LOSSES = {
    "plain": cross_entropy,
    "weighted": nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0]), label_smoothing=0.1),
    "ignored": nn.CrossEntropyLoss(ignore_index=1, reduction="sum"),
    "another": lambda outputs, _: outputs.square().mean(),
}


@pytest.mark.parametrize("chunk", [2, 7, 64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("loss", LOSSES)
def test_many_points_at_once_are_those_one_by_one(loss, bias, chunk):
    """The first layer from its moves, later ones batched, the loss over few classes: against copies in float64."""
    x, y = rows()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 6, bias=bias), nn.Tanh(), nn.Linear(6, 3, bias=bias))
    dirs = [[torch.randn(p.shape, generator=seeded(s)) for p in model.parameters()] for s in (5, 6)]
    coefficients = torch.randn(9, 2, generator=seeded(7), dtype=torch.float64)
    naive = by_loading(model, lambda m: LOSSES[loss](m(x.double()).float(), y), dirs, coefficients)
    values = values_at(model, lambda m: LOSSES[loss](m(x), y), dirs, coefficients, chunk=chunk)
    torch.testing.assert_close(values, naive, rtol=2e-5, atol=1e-5)


class Rebinding(nn.Module):
    """Counts its passes in a buffer that it replaces, and in one that it writes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("replaced", torch.zeros(()))
        self.register_buffer("written", torch.zeros(()))

    def forward(self, x):
        self.replaced = self.replaced + 1
        self.written.add_(1)
        return x * self.weight * self.replaced * self.written


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_points_one_by_one_see_the_same_buffers_and_leave_memory_alone(dtype):
    model = Rebinding().to(dtype)
    replaced, written, place = model.replaced, model.written, model.weight.data_ptr()
    seen = []

    def measure(m):
        seen.append(m.weight.data_ptr())
        return m(torch.ones(2, dtype=dtype))

    steps = torch.tensor([[0.5, 0.0], [-1.0, 3.0]])
    values = values_at(model, measure, [[torch.ones(2)], [torch.tensor([0.0, 1.0])]], steps, chunk=1)
    assert torch.equal(values, torch.tensor([[1.5, 1.5], [0.0, 3.0]], dtype=dtype))
    weights = values_at(model, lambda m: m.weight, [[torch.ones(2)]], steps[:, :1], chunk=1)
    assert torch.equal(weights, torch.tensor([[1.5, 1.5], [0.0, 0.0]], dtype=dtype)), "values share memory"
    assert model.replaced is replaced
    assert model.written is written
    assert float(written) == float(replaced) == 0.0
    assert model.weight.data_ptr() == place
    assert place not in seen
    assert torch.equal(model.weight.data, torch.ones_like(model.weight))


def test_a_measure_that_differentiates_and_one_that_draws():
    x, _ = rows()
    model = mlp()
    dirs = [[torch.randn(p.shape, generator=seeded(5)) for p in model.parameters()]]
    places = torch.tensor([[0.0], [0.3], [0.6]])

    def slope(model):
        with torch.enable_grad():
            own = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(model(own).square().sum(), own)
        return gradient.square().sum()

    def functional(model):
        return torch.func.grad(lambda x: model(x).square().sum())(x).square().sum()

    one, many = (values_at(model, slope, dirs, places, chunk=chunk) for chunk in (1, 2))
    torch.testing.assert_close(one, many, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(one, values_at(model, functional, dirs, places, chunk=2), rtol=1e-5, atol=0.0)
    drawn = values_at(model, lambda m: torch.rand(()) + 0 * m(x).sum(), dirs, places)
    assert torch.equal(drawn, drawn[:1].expand(3))


def test_two_batches_and_tied_weights_and_convolutions():
    torch.manual_seed(0)
    x, y = torch.randn(12, 2, 6, 6), torch.randint(3, (12,))
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    dirs = [random_direction(model.parameters(), ignore=None, generator=seeded(s)) for s in (0, 1)]
    batches = [(x[:8], y[:8]), (x[8:], y[8:])]
    one = loss_surface(model, cross_entropy, batches, dirs, (-1, 1, 3))
    many = loss_surface(model, cross_entropy, (x, y), dirs, (-1, 1, 3), chunk=4)
    torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-6)
    tied = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    tied[2].weight = tied[0].weight
    x, y = rows()
    dirs = [random_direction(tied.parameters(), generator=seeded())]
    naive = by_loading(tied, lambda m: cross_entropy(m(x.double()), y), dirs, [(0.7,)])
    curve = loss_curve(tied, cross_entropy, (x, y), dirs[0], (0.7, 1.0, 2))
    torch.testing.assert_close(curve[0], naive[0].float())
    # running statistics move with a direction that has tensors for them
    states = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    moved = [torch.zeros_like(t) for t in states]
    moved[-1] += 3.0
    x, y = batches[0]
    curve = loss_curve(model, cross_entropy, (x, y), moved, (0, 1, 2))
    own = copy.deepcopy(model).eval()
    own[1].running_var += 3.0
    torch.testing.assert_close(curve[1], cross_entropy(own(x), y).detach())
    assert abs(float(curve[1] - curve[0])) > 1e-3


def test_random_plane_is_called_as_in_the_package():
    x, y = rows()
    model = mlp()

    class Loss:
        def __call__(self, model):
            return cross_entropy(model.forward(x), y).item()

    before = everything(model)
    plane = random_plane(model, Loss(), 0.5, 5, normalization="filter", deepcopy_model=True, generator=seeded())
    assert isinstance(plane, np.ndarray)
    generator = seeded()
    dirs = tuple(random_direction(model.parameters(), generator=generator) for _ in range(2))
    surface = loss_surface(model, cross_entropy, (x, y), dirs, (-0.5, 0.5, 5))
    torch.testing.assert_close(torch.tensor(plane).float(), surface)
    assert same(before, everything(model))
    loss = cross_entropy(model(x), y)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    for normalization in ("layer", "model", None):
        assert random_plane(model, lambda m: m(x).mean(), steps=2, normalization=normalization).shape == (2, 2)


@pytest.mark.holds("filter-normalized-landscape", 5)
@pytest.mark.parametrize("center", [False, True])
def test_checkpoints_on_a_line(center):
    step = [torch.randn(3, 2, generator=seeded()), torch.randn(3, generator=seeded(1))]
    path = [[c * s for s in step] for c in (5.0, 2.0, 1.0)]
    dirs, coords, explained = trajectory_pca(path, center=center)
    torch.testing.assert_close(explained, torch.tensor([1.0, 0.0]), rtol=0.0, atol=1e-7)
    length = float(torch.cat([s.flatten() for s in step]).norm())
    torch.testing.assert_close(coords[:, 0], length * torch.tensor([4.0, 1.0, 0.0]))
    assert not dirs[1][0].any()


@pytest.mark.holds("filter-normalized-landscape", 6)
def test_axes_through_the_end_and_through_the_mean():
    path = [[torch.tensor([10.0, 1.0])], [torch.tensor([10.0, -1.0])], [torch.zeros(2)]]
    dirs, coords, explained = trajectory_pca(path)
    torch.testing.assert_close(dirs[0][0], torch.tensor([1.0, 0.0]))
    assert float(explained[0]) == pytest.approx(0.990099, abs=5e-7)
    torch.testing.assert_close(coords, torch.tensor([[10.0, 1.0], [10.0, -1.0], [0.0, 0.0]]))
    dirs, coords, explained = trajectory_pca(path, center=True)
    torch.testing.assert_close(dirs[0][0], torch.tensor([0.0, 1.0]))
    assert float(explained[0]) == pytest.approx(1.0)


def test_axes_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA

    path = [[torch.randn(4, 3, generator=seeded(s)), torch.randn(4, generator=seeded(s + 50))] for s in range(6)]
    flat = np.stack([torch.cat([t.flatten() for t in weights]).double().numpy() for weights in path])
    pca = PCA(2).fit(flat[:-1] - flat[-1])
    dirs, coords, explained = trajectory_pca(path, center=True)
    axes = np.stack([torch.cat([t.flatten() for t in d]).numpy() for d in dirs])
    np.testing.assert_allclose(np.abs((axes * pca.components_).sum(1)), 1.0, atol=1e-6)
    np.testing.assert_allclose(explained, pca.explained_variance_ratio_, rtol=1e-5)
    np.testing.assert_allclose(coords, (flat - flat[-1]) @ axes.T, atol=1e-5)
    ignored = trajectory_pca(path, ignore="biasbn")
    assert not ignored.dirs[0][1].any()
    torch.testing.assert_close(path_coordinates(path[0], path[-1], ignored.dirs), ignored.coords[0])


def test_places_along_a_long_direction():
    origin = [torch.zeros(2)]
    got = path_coordinates([torch.tensor([4.0, 0.0])], origin, [[torch.tensor([2.0, 0.0])], [torch.zeros(2)]])
    torch.testing.assert_close(got, torch.tensor([2.0, 0.0]))


def test_interpolation_between_two_solutions():
    x, y = rows()
    one, two = mlp(), mlp()
    with torch.no_grad():
        for p in two.parameters():
            p.add_(torch.randn(p.shape, generator=seeded(9)))
    across = [b.detach() - a.detach() for a, b in zip(one.parameters(), two.parameters())]
    curve = loss_curve(one, cross_entropy, (x, y), across, (-0.5, 1.5, 5))
    torch.testing.assert_close(curve[1], cross_entropy(one(x), y).detach())
    torch.testing.assert_close(curve[3], cross_entropy(two(x), y).detach(), rtol=1e-5, atol=1e-6)


def test_eigenvalues_over_the_plane():
    """Against the Hessian of the displaced net in full, biases included."""
    x, y = rows()
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    dirs = tuple(random_direction(model.parameters(), generator=seeded(s)) for s in (0, 1))
    before = everything(model)
    least, greatest = convexity_map(
        model, cross_entropy, (x.double(), y), dirs, (-1, 1, 2), tol=1e-10, generator=seeded()
    )
    assert same(before, everything(model))
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    moved = torch.cat([(p.detach() + d - e).flatten() for p, d, e in zip(model.parameters(), *dirs)])

    def loss(flat):
        pieces = flat.split([s.numel() for s in shapes])
        own = {name: piece.view(s) for name, piece, s in zip(names, pieces, shapes)}
        return cross_entropy(torch.func.functional_call(model, own, (x.double(),)), y)

    values = np.linalg.eigvalsh(torch.func.hessian(loss)(moved).numpy())
    assert float(greatest[1, 0]) == pytest.approx(values[-1], rel=1e-6)
    assert float(least[1, 0]) == pytest.approx(values[0], rel=1e-6)


def test_what_it_refuses():
    x, y = rows()
    model = mlp()
    with pytest.raises(ValueError, match="norm: expected one of"):
        random_direction(model.parameters(), "filters")
    with pytest.raises(ValueError, match="ignore: expected one of"):
        random_direction(model.parameters(), ignore="bias")
    with pytest.raises(ValueError, match="direction: expected shapes"):
        filter_normalize_(torch.ones(2, 2), torch.ones(2, 3))
    with pytest.raises(ValueError, match="directions: expected tensors of the shapes of the model's parameters"):
        loss_curve(model, cross_entropy, (x, y), [torch.ones(2)])
    with pytest.raises(ValueError, match="grid: expected"):
        loss_curve(model, cross_entropy, (x, y), grid=(-1, 1))
    with pytest.raises(ValueError, match="grid: expected an integer >= 1"):
        loss_surface(model, cross_entropy, (x, y), grid=(-1, 1, 0))
    with pytest.raises(ValueError, match="loader: expected at least one batch"):
        loss_curve(model, cross_entropy, [])
    with pytest.raises(ValueError, match="distance: expected a number > 0"):
        random_plane(model, len, distance=0)
    with pytest.raises(ValueError, match="normalization: expected one of"):
        random_plane(model, len, normalization="weight")
    with pytest.raises(ValueError, match="checkpoints: expected at least 2"):
        trajectory_pca([[torch.ones(2)]])
    with pytest.raises(ValueError, match="checkpoints: expected weights that move"):
        trajectory_pca([[torch.ones(2)]] * 3)
    with pytest.raises(ValueError, match="checkpoints: expected shapes"):
        trajectory_pca([[torch.ones(3)], [torch.ones(2)]])
    with pytest.raises(ValueError, match="k: expected an integer >= 1"):
        trajectory_pca([[torch.ones(2)], [torch.zeros(2)]], k=0)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"):
        values_at(len, len, [], torch.zeros(1, 0))
    with pytest.raises(ValueError, match="coefficients: expected shape"):
        values_at(model, len, [], torch.zeros(1, 2))
