"""The learned optimizer: counts and numbers of the card, naive loops in float64, the estimator in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from steepest.core.errors import InputError
from steepest.optim.learned import AdafacMLPLOpt, MetaTrainer, MLPTask, PersistentES, SmallFCLOpt
from steepest.optim.learned._network import (
    SIZE,
    change,
    decays,
    factored_dims,
    initial,
    network,
    normaliser,
    time_features,
)  # fmt: skip
from steepest.optim.learned.learned_optimizers import Unroll
from steepest.testing import optimizer_checks


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def with_outputs(a, b):
    """Meta-parameters of a network that gives (a, b) whatever it sees."""
    theta = torch.zeros(SIZE, dtype=torch.float64)
    theta[188], theta[189] = a, b
    return theta


@pytest.mark.holds("learned-optimizers", 1)
def test_the_number_of_meta_parameters():
    assert SIZE == 39 * 4 + 4 + 4 * 4 + 4 + 4 * 2 + 2 + 7 == 197
    net = network(torch.arange(197.0)[None] / 1e4)
    assert [tuple(w.shape[1:]) for w in net.weights] == [(39, 4), (4, 4), (4, 2)]
    assert [tuple(b.shape[1:]) for b in net.biases] == [(4,), (4,), (2,)]
    assert net.momentum.shape[1] + net.rms.shape[1] + net.factored.shape[1] == 7
    placed = torch.cat([net.weights[0].flatten(), net.biases[0].flatten(), net.weights[1].flatten()])
    assert torch.equal(placed, torch.arange(176.0) / 1e4)
    assert SmallFCLOpt([nn.Parameter(torch.ones(2))]).theta.shape == (197,)
    assert AdafacMLPLOpt is SmallFCLOpt


@pytest.mark.holds("learned-optimizers", 2)
def test_the_features_of_time():
    values = time_features(10, numbers(0.0))
    assert values[:4].tolist() == pytest.approx([1.0, 0.981368, 0.0, -0.582783], abs=1e-6)
    scales = [1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000]
    assert values.tolist() == pytest.approx([math.tanh(10 / s - 1) for s in scales], abs=1e-15)


@pytest.mark.holds("learned-optimizers", 3)
def test_a_step_and_decays():
    p = nn.Parameter(numbers(1.0, 2.0))
    optimizer = SmallFCLOpt([p], with_outputs(2.0, 3.0))
    p.grad = numbers(0.3, -5.0)
    optimizer.step()
    assert (numbers(1.0, 2.0) - p.data).tolist() == pytest.approx([0.002006009] * 2, abs=1e-9)
    shifted = decays((0.9, 0.9, 0.9), numbers(0.05, -0.05, 0.0))
    assert shifted.tolist() == pytest.approx([0.835128, 0.939347, 0.9], abs=1e-6)
    theta = torch.zeros(SIZE, dtype=torch.float64)
    theta[190:] = 1.5  # far below 0: of squares the decay ends there
    net = network(theta[None])
    assert bool((net.momentum < 0).all())
    assert not bool(net.rms.any())
    assert not bool(net.factored.any())


@pytest.mark.holds("learned-optimizers", 4)
def test_normalising():
    values = numbers(3.0, 4.0)[None, None]
    assert (values * normaliser(values)[..., None])[0, 0].tolist() == pytest.approx([0.848528, 1.131370], abs=1e-6)


def by_hand(gradients, weights, theta):
    """Weights after each gradient, features of the last: the formulas entry by entry."""
    layers, start = [], 0
    for wide, out in ((39, 4), (4, 4), (4, 2)):
        layers.append((theta[start : start + wide * out].reshape(wide, out), theta[start + wide * out :][:out]))
        start += wide * out + out
    betas = [1 - math.exp(10 * (math.log(1 - b) / 10 + o)) for b, o in zip((0.9, 0.99, 0.999, 0.999), theta[190:194])]
    squares = [1 - math.exp(10 * (math.log(1 - b) / 10 + o)) for b, o in zip((0.9, 0.99, 0.999), theta[194:])]
    shape = weights.shape
    m, v = np.zeros((3, *shape)), np.zeros(shape)
    order = np.argsort(shape, kind="stable")
    first, second = (order[-1], order[-2]) if len(shape) > 1 else (None, None)
    r = c = s = None
    p = weights.copy()
    for t, g in enumerate(gradients):
        for k in range(3):
            m[k] = betas[k] * m[k] + (1 - betas[k]) * g
        v = betas[3] * v + (1 - betas[3]) * g * g
        features = [g, p, m[0], m[1], m[2], v, *(m[k] / np.sqrt(v + 1e-6) for k in range(3)), 1 / np.sqrt(v + 1e-6)]
        scaled, rows, cols, row_roots, col_roots, momenta = [], [], [], [], [], []
        for k, beta in enumerate(squares):
            if first is None:
                s = np.zeros((3, *shape)) if s is None else s
                s[k] = beta * s[k] + (1 - beta) * (g * g + 1e-30)
                scaled.append(g / np.sqrt(np.maximum(s[k] + 1e-9, 1e-9)))
                rows.append(s[k])
                cols.append(s[k])
                momenta.append(m[k] / np.sqrt(s[k] + 1e-6))
            else:
                row = (g * g + 1e-30).mean(first, keepdims=True)
                col = (g * g + 1e-30).mean(second, keepdims=True)
                r = [np.zeros_like(row)] * 3 if r is None else r
                c = [np.zeros_like(col)] * 3 if c is None else c
                r[k], c[k] = beta * r[k] + (1 - beta) * row, beta * c[k] + (1 - beta) * col
                share = r[k] / (r[k].mean(second, keepdims=True) + 1e-9)
                factor = 1 / np.sqrt(np.maximum(share, 1e-9)) / np.sqrt(np.maximum(c[k], 1e-9))
                scaled.append(g * factor)
                rows.append(r[k] + 0 * g)
                cols.append(c[k] + 0 * g)
                momenta.append(m[k] * factor)
            row_roots.append(1 / np.sqrt(rows[k] + 1e-8))
            col_roots.append(1 / np.sqrt(cols[k] + 1e-8))
        features += [*scaled, *rows, *cols, *row_roots, *col_roots, *momenta]
        features = [x / np.sqrt(1e-5 + np.mean(x * x)) for x in features]
        time = [math.tanh(t / scale - 1) for scale in (1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5)]
        new = p.copy()
        for place in np.ndindex(*shape):
            x = np.array([feature[place] for feature in features] + time)
            for number, (w, b) in enumerate(layers):
                x = x @ w + b
                if number < 2:
                    x = np.maximum(x, 0)
            new[place] = p[place] - 0.001 * x[0] * math.exp(0.001 * x[1])
        p = new
    return p, np.stack(features)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (3, 3), (5,), (), (2, 3, 2, 2)])
def test_steps_are_those_of_a_naive_loop(shape):
    rng = np.random.default_rng(sum(shape))
    theta = initial(torch.Generator().manual_seed(1)).double()
    theta += 0.02 * torch.as_tensor(rng.standard_normal(SIZE))
    theta[180:188] *= 100  # so that the exponent of the second output counts
    start = rng.standard_normal(shape)
    size = 1e-6 if shape == (4, 3) else 1.0  # averages of squares below 1e-9 count as that
    gradients = [size * rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 2) for _ in range(4)]
    wanted, last = by_hand(gradients, np.asarray(start), theta.numpy())
    p = nn.Parameter(torch.as_tensor(start).clone())
    optimizer = SmallFCLOpt([p], theta)
    for number, g in enumerate(gradients):
        p.grad = torch.as_tensor(g).clone()
        if number == len(gradients) - 1:
            before = dict(optimizer.state[p])
            seen = optimizer.features(p)
            assert all(before[name] is value for name, value in optimizer.state[p].items())
            assert seen.shape == (28, *shape)
        optimizer.step()
    np.testing.assert_allclose(p.detach().numpy(), wanted, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(seen.numpy(), last, rtol=1e-9, atol=1e-12)


def test_which_dimensions_are_factored():
    assert factored_dims((3, 4)) == (0, 1)
    assert factored_dims((4, 3)) == (1, 0)
    assert factored_dims((3, 3)) == (0, 1)
    assert factored_dims((8, 2, 3, 3)) == (3, 0)
    assert factored_dims((5,)) is None


@pytest.mark.holds("learned-optimizers", 5)
@pytest.mark.parametrize("shape", [(6, 7), (9,)])
def test_the_scale_of_the_loss_leaves_its_features_alone(shape):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    gradients = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    seen = []
    for scale in (1.0, 100.0):
        p = nn.Parameter(start.clone())
        optimizer = SmallFCLOpt([p], with_outputs(0.0, 0.0))
        for g in gradients:
            p.grad = 1e6 * scale * g
            value = optimizer.features(p)
            optimizer.step()
        seen.append(value)
    alike = [0, 1, 2, 3, 4, 6, 7, 8, 10, 11, 12]  # g, p, m, m / sqrt v, g over rows and columns
    torch.testing.assert_close(seen[0][alike], seen[1][alike], rtol=1e-6, atol=1e-9)


@pytest.mark.holds("learned-optimizers", 6)
def test_what_is_kept_of_a_parameter():
    matrix, vector = nn.Parameter(torch.ones(5, 7)), nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = SmallFCLOpt([matrix, vector])
    (matrix.sum() + vector.sum()).backward()
    optimizer.step()
    kept = optimizer.state[matrix]
    assert sum(x.numel() for x in (kept["momentum"], kept["rms"])) == (3 + 1) * 35
    assert (tuple(kept["row"].shape), tuple(kept["col"].shape)) == ((3, 5), (3, 7))
    assert set(kept) == {"step", "momentum", "rms", "row", "col"}
    kept = optimizer.state[vector]
    assert sum(x.numel() for x in (kept["momentum"], kept["rms"])) == (3 + 1) * 4
    assert kept["square"].shape == (3, 4)
    assert kept["momentum"].dtype == torch.float32


def test_a_stack_of_particles_is_each_alone():
    generator = torch.Generator().manual_seed(3)
    thetas = torch.stack([initial(generator) for _ in range(3)]).double()
    features = torch.randn(3, 28, 10, generator=generator, dtype=torch.float64)
    together = change(network(thetas), features, 7)
    for i in range(3):
        alone = change(network(thetas[i : i + 1]), features[i : i + 1], 7)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=0)


def test_the_default_network_is_a_conforming_optimizer():
    reason = "the network was trained on other tasks, and looks at weights and time"
    exempt = dict.fromkeys(("convergence", "zero_gradient", "dtypes", "minimum", "compile", "ranks"), reason)
    for _, check in optimizer_checks(SmallFCLOpt, [SmallFCLOpt], exempt):
        check()


def test_the_estimator_sums_up_perturbations():
    """x grows by theta in each piece, and its loss is x^2 / 2: pieces have the gradients k^2 theta."""

    def piece(theta, x):
        x = x + theta[:, 0]
        return x.square() / 2, x

    generator = torch.Generator().manual_seed(0)
    begun = []

    def begin():
        begun.append(1)
        return torch.zeros(2 * 40_000, dtype=torch.float64)

    es = PersistentES(begin, piece, pieces=3, pairs=40_000, sigma=0.1, generator=generator)
    for number in range(6):
        gradient, loss = es.gradient(numbers(1.5))
        k = number % 3 + 1
        # of one pair: k^2 theta times a squared deviate of variance 2
        assert gradient.item() == pytest.approx(1.5 * k**2, abs=5 * 1.5 * k**2 * 2 / math.sqrt(40_000))
        assert loss == pytest.approx((1.5 * k) ** 2 / 2, rel=0.05)
    assert len(begun) == 2


def test_the_estimator_in_plain_numbers():
    shifts = 0.2 * torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64).numpy()
    theta = np.array([0.5, -1.0, 2.0])

    def piece(theta, state):
        return (theta.sin().sum(1) + state), state + theta[:, 0]

    es = PersistentES(
        lambda: torch.zeros(4).double(), piece, pieces=2, pairs=2, sigma=0.2, generator=torch.Generator().manual_seed(4)
    )
    state, summed = np.zeros(4), np.zeros((2, 3))
    for k in range(2):
        at = theta + np.concatenate([shifts[k], -shifts[k]])
        loss, state, summed = np.sin(at).sum(1) + state, state + at[:, 0], summed + shifts[k]
        wanted = sum((loss[i] - loss[2 + i]) * summed[i] for i in range(2)) / (2 * 0.2**2 * 2)
        gradient, mean = es.gradient(torch.as_tensor(theta))
        np.testing.assert_allclose(gradient.numpy(), wanted, rtol=1e-12)
        assert mean == pytest.approx(loss.mean())


def blobs():
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(60) % 3
    return torch.eye(3)[y] * 2 + 0.3 * torch.randn(60, 3, generator=generator), y


def test_a_stack_of_trainings_is_the_optimizer_on_each():
    x, y = blobs()
    task = MLPTask(x.double(), y, width=4, rows=5)
    theta = initial(torch.Generator().manual_seed(6)).double()
    unroll = Unroll(task, 2, 1, torch.Generator().manual_seed(7))
    losses = unroll.train(theta.expand(2, -1), 3)
    generator = torch.Generator().manual_seed(7)
    starts = task.begin(2, generator)
    rows = [task.batch(2, generator) for _ in range(3)]
    for i in range(2):
        parameters = [nn.Parameter(p[i].clone()) for p in starts]
        optimizer = SmallFCLOpt(parameters, theta)
        for step in range(3):
            first, first_bias, second, second_bias = parameters
            hidden = (x.double()[rows[step][i]] @ first + first_bias).relu()
            loss = nn.functional.cross_entropy(hidden @ second + second_bias, y[rows[step][i]])
            assert losses[step, i].item() == pytest.approx(loss.item(), rel=1e-12)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        for p, own in zip(parameters, unroll.parameters):
            torch.testing.assert_close(p.detach(), own[i], rtol=1e-11, atol=1e-13)


def test_meta_training_lowers_the_loss_and_repeats():
    x, y = blobs()
    tasks = [MLPTask(x, y, width=3, rows=10), MLPTask(x, y, width=5, rows=10)]
    ends = []
    for steps in (40, 3, 3):
        generator = torch.Generator().manual_seed(0)
        trainer = MetaTrainer(tasks, truncation=5, total=10, pairs=8, lr=0.05, sigma=0.05, generator=generator)
        begun = trainer.theta
        ends.append(trainer.fit(steps))
        assert len(trainer.losses) == steps
    assert torch.equal(ends[1], ends[2])
    losses = []
    for theta in (begun, ends[0]):
        unroll = Unroll(tasks[0], 20, 1, torch.Generator().manual_seed(1))
        losses.append(float(unroll.train(theta.expand(20, -1), 10).log().mean()))
    assert losses[1] < losses[0] - 0.01


def test_the_first_computation_may_be_shorter():
    begun = []

    def begin():
        begun.append(1)
        return torch.zeros(2)

    es = PersistentES(begin, lambda theta, x: (theta[:, 0], x), pieces=3, pairs=1, first=1)
    for times in (1, 2, 2, 2, 3):
        es.gradient(torch.ones(1))
        assert len(begun) == times
    with pytest.raises(ValueError, match="first"):
        PersistentES(begin, lambda theta, x: (theta[:, 0], x), pieces=3, pairs=1, first=0)


def test_losses_that_are_not_finite_count_as_the_highest():
    x, y = blobs()
    trainer = MetaTrainer([MLPTask(x, y, width=3)], truncation=2, total=2, pairs=1, log=False)
    (estimator,) = trainer.estimators

    class Broken:
        def train(self, theta, steps):
            return torch.tensor([[math.nan, 1.0], [math.inf, 0.0]])

    assert trainer._piece(torch.zeros(2, SIZE), Broken())[0].tolist() == pytest.approx([1e3, 0.5], rel=1e-5)
    trainer.log = True
    assert trainer._piece(torch.zeros(2, SIZE), Broken())[0][1].item() == pytest.approx(math.log(1e-6) / 2)
    assert estimator.pieces == 1


def test_meta_parameters_in_a_file(tmp_path):
    theta = initial(torch.Generator().manual_seed(0)).double()
    SmallFCLOpt.save(theta, tmp_path / "theta.json")
    assert torch.equal(SmallFCLOpt.load(tmp_path / "theta.json"), theta)
    for text in ("[1, 2]", '{"a": 1}', "[" + ", ".join(["1e300"] * 197) + "]", "[" + ", ".join(["true"] * 197) + "]"):
        (tmp_path / "theta.json").write_text(text)
        with pytest.raises(ValueError, match="theta: expected 197 numbers"):
            SmallFCLOpt.load(tmp_path / "theta.json")
    with pytest.raises(InputError, match="cannot read"):
        SmallFCLOpt.load(tmp_path / "another.json")


def test_meta_parameters_are_part_of_the_state():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = SmallFCLOpt([p], with_outputs(1.0, 0.0))
    twin = SmallFCLOpt([q])
    twin.load_state_dict(optimizer.state_dict())
    assert torch.equal(twin.theta, optimizer.theta)


def test_what_it_refuses():
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"theta: expected shape \(197\)"):
        SmallFCLOpt([p], torch.ones(3))
    with pytest.raises(ValueError, match="theta: expected finite numbers"):
        SmallFCLOpt([p], torch.full((197,), math.nan))
    optimizer = SmallFCLOpt([p])
    with pytest.raises(ValueError, match="p: expected a parameter of this optimizer that has a gradient"):
        optimizer.features(p)
    x, y = blobs()
    task = MLPTask(x, y, width=3)
    with pytest.raises(ValueError, match="tasks: expected at least one"):
        MetaTrainer([])
    with pytest.raises(TypeError, match="tasks: expected a list"):
        MetaTrainer(task)
    with pytest.raises(ValueError, match="total: expected a multiple of truncation, 20"):
        MetaTrainer([task], truncation=20, total=30)
    with pytest.raises(ValueError, match="sigma: expected a number > 0"):
        MetaTrainer([task], sigma=0.0)
    with pytest.raises(ValueError, match="steps: expected an integer >= 0"):
        MetaTrainer([task]).fit(-1)
    with pytest.raises(ValueError, match="pairs: expected an integer >= 1"):
        PersistentES(lambda: None, lambda theta, state: (theta, state), pieces=1, pairs=0)
    with pytest.raises(ValueError, match="y: expected shape"):
        MLPTask(x, y[:3], width=3)
    with pytest.raises(ValueError, match="width: expected an integer >= 1"):
        MLPTask(x, y, width=0)
