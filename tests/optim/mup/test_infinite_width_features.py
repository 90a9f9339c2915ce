"""Scalings of width: the numbers of the card, NumPy by hand, and the front door against the published table."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LinearLR

from steepest.optim.mup import (
    AbcMLP,
    abc_mlp,
    abc_parametrization,
    classify_parametrization,
    coordinate_check,
    finite_width_run,
    muP_linear_limit,
    ntk_linear_limit,
    parametrize,
)

ONE = torch.ones(1, 1, dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.holds("infinite-width-features", 1)
@pytest.mark.parametrize(
    ("name", "hidden", "c", "r", "regime"),
    [
        ("standard", 2, 0, -1.0, "unstable"),
        ("standard", 3, 1, 0.5, "kernel"),
        ("ntk", 2, None, 0.5, "kernel"),
        ("ntk", 1, None, 0.5, "kernel"),
        ("maximal_update", 1, None, 0.0, "feature learning"),
        ("maximal_update", 4, None, 0.0, "feature learning"),
        ("mean_field", 1, None, 0.0, "feature learning"),
        ("standard", 1, 1, 1.5, "kernel"),
    ],
)
def test_exponents_of_the_named_scalings(name, hidden, c, r, regime):
    scaling = abc_parametrization(name, hidden, c)
    assert (scaling.r, scaling.regime) == (r, regime)
    assert scaling.stable == (regime != "unstable")
    assert scaling.hidden == hidden


def test_what_does_not_move_is_trivial():
    scaling = classify_parametrization((0, 0.5, 0.5), (0, 0, 0), 1)
    assert (scaling.stable, scaling.nontrivial, scaling.regime) == (True, False, "trivial")


def test_a_rate_without_a_power_of_width_makes_the_standard_network_explode():
    x = torch.randn(8, 3, generator=seeded(), dtype=torch.float64)
    ends = [
        finite_width_run(x, x[:, 0], n, abc_parametrization("standard", 2, 0), 0.3, 1, generator=seeded()).outputs[1]
        for n in (64, 512)
    ]
    assert ends[1].abs().mean() > 4 * ends[0].abs().mean()


@pytest.mark.holds("infinite-width-features", 2)
def test_outputs_of_both_limits_as_the_card_has_them():
    limit = muP_linear_limit(ONE, ONE[0], 0.2, 3)
    np.testing.assert_allclose(limit.outputs[1:, 0].numpy(), [0.4, 0.65536, 0.817143], atol=5e-7)
    np.testing.assert_allclose(ntk_linear_limit(ONE, ONE[0], 0.2, 2).outputs[1:, 0].numpy(), [0.4, 0.64], atol=1e-12)


@pytest.mark.holds("infinite-width-features", 3)
def test_wide_networks_come_to_the_limit_with_the_root_of_the_width():
    limit = muP_linear_limit(ONE, ONE[0], 0.2, 3)
    maximal = abc_parametrization("maximal_update")
    wide = finite_width_run(ONE, ONE[0], 10**6, maximal, 0.2, 3, generator=seeded())
    assert (wide.outputs - limit.outputs).abs().max() < 0.002
    errors = []
    for n in (10**2, 10**4):
        generator = seeded(1)
        runs = [finite_width_run(ONE, ONE[0], n, maximal, 0.2, 3, generator=generator) for _ in range(40)]
        errors.append(math.sqrt(np.mean([float((run.outputs - limit.outputs).square().mean()) for run in runs])))
    assert 6 < errors[0] / errors[1] < 16


@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_features_and_outputs_in_several_dimensions(loss):
    """A network of 200,000 units: outputs are off by a few |x|^2 over the root of that, squares by twice as much."""
    x = torch.randn(6, 3, generator=seeded(2), dtype=torch.float64)
    y = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    limit = muP_linear_limit(x, y, 0.3, 4, loss)
    wide = finite_width_run(x, y, 200_000, abc_parametrization("maximal_update"), 0.3, 4, loss, generator=seeded())
    torch.testing.assert_close(wide.outputs, limit.outputs, rtol=0, atol=0.03)
    torch.testing.assert_close(wide.feature_change, limit.feature_change, rtol=0.06, atol=1e-9)
    torch.testing.assert_close(wide.feature_size, limit.feature_size, rtol=0.03, atol=0)
    assert limit.relative_change[-1] > 0.1
    kernel = finite_width_run(x, y, 200_000, abc_parametrization("ntk"), 0.3, 4, loss, generator=seeded())
    frozen = ntk_linear_limit(x, y, 0.3, 4, loss, start=kernel.outputs[0])
    torch.testing.assert_close(kernel.outputs, frozen.outputs, rtol=0, atol=0.03)
    assert kernel.relative_change[-1] < 0.02


def test_a_network_is_the_mean_over_its_units():
    """In NumPy: f = mean of v_i (u_i x), steps of v and u along the derivatives without any power of the width."""
    n, rate = 50, 0.4
    x = torch.randn(5, 2, generator=seeded(3), dtype=torch.float64)
    y = x[:, 0] - 0.5
    run = finite_width_run(x, y, n, abc_parametrization("maximal_update"), rate, 3, generator=seeded(4))
    generator = seeded(4)
    u = torch.randn(n, 2, generator=generator, dtype=torch.float64).numpy()
    v = torch.randn(1, n, generator=generator, dtype=torch.float64).numpy()[0]
    points, targets = x.numpy(), y.numpy()
    for step in range(4):
        f = points @ u.T @ v / n
        np.testing.assert_allclose(run.outputs[step].numpy(), f, rtol=1e-10, atol=1e-13)
        chi = (f - targets) / len(f)
        u, v = u - rate * np.outer(v, chi @ points), v - rate * u @ (chi @ points)


@pytest.mark.holds("infinite-width-features", 4)
def test_the_limit_begins_at_zero_and_shifts_change_nothing_in_the_classification():
    x = torch.randn(4, 3, generator=seeded(5))
    assert torch.equal(muP_linear_limit(x, x[:, 0], 0.1, 1).outputs[0], torch.zeros(4))
    for name in ("standard", "ntk", "maximal_update"):
        scaling = abc_parametrization(name, 3)
        for t in (-0.7, 0.3, 2.0):
            other = scaling.shifted(t)
            assert other.r == pytest.approx(scaling.r, abs=1e-12)
            assert other.regime == scaling.regime


@pytest.mark.holds("infinite-width-features", 5)
@pytest.mark.parametrize("name", ["standard", "ntk", "maximal_update"])
def test_a_shift_is_the_same_training(name):
    x = torch.randn(6, 3, generator=seeded(6), dtype=torch.float64)
    scaling = abc_parametrization(name, 2)
    runs = [
        finite_width_run(x, x[:, 1], 16, p, 0.2, 5, activation="tanh", generator=seeded(7))
        for p in (scaling, scaling.shifted(0.5), scaling.shifted(-1.3))
    ]
    assert runs[0].relative_change[-1] > 1e-3
    for run in runs[1:]:
        torch.testing.assert_close(run.outputs, runs[0].outputs, rtol=1e-9, atol=1e-12)


def test_the_network_and_its_optimizer():
    model, optimizer = abc_mlp((3, 16, 16, 2), (0, 0.5, 1), (0.5, 0, 0), 2.0, lr=0.5, activation="relu")
    assert isinstance(model, AbcMLP)
    assert model.factors == (1.0, 0.25, 0.0625)
    assert optimizer.param_groups[0]["lr"] == 0.5 / 256
    x = torch.ones(1, 3)
    by_hand = torch.relu(x @ model.weights[0].T)
    by_hand = torch.relu(by_hand @ model.weights[1].T / 4) @ model.weights[2].T / 16
    torch.testing.assert_close(model(x), by_hand)


def test_what_the_theory_refuses():
    with pytest.raises(ValueError, match="a: expected exponents of two layers"):
        classify_parametrization((0,), (0,), 0)
    with pytest.raises(ValueError, match="b: expected 2 exponents"):
        classify_parametrization((0, 0), (0,), 0)
    with pytest.raises(ValueError, match="c: expected a number"):
        classify_parametrization((0, 0), (0, 0), math.nan)
    with pytest.raises(ValueError, match="hidden: expected 1 for mean field"):
        abc_parametrization("mean_field", 2)
    with pytest.raises(ValueError, match="name: expected one of"):
        abc_parametrization("spectral")
    with pytest.raises(ValueError, match="widths: expected inputs"):
        abc_mlp((3, 4, 5, 1), (0, 0, 0), (0, 0, 0))
    with pytest.raises(ValueError, match="loss: expected one of"):
        muP_linear_limit(ONE, ONE[0], 0.1, 1, "hinge")
    with pytest.raises(ValueError, match="y: expected"):
        muP_linear_limit(ONE, torch.ones(2), 0.1, 1)


def network(n):
    return nn.Sequential(
        nn.Linear(5, n), nn.ReLU(), nn.LayerNorm(n), nn.Linear(n, 2 * n), nn.ReLU(), nn.Linear(2 * n, 3)
    )


def wide(cls=torch.optim.AdamW, **options):
    torch.manual_seed(0)
    model = network(64)
    return model, parametrize(model, network(16)).optimizer(cls, 0.01, **options)


def test_the_table():
    model, base = network(64), network(16)
    before = copy.deepcopy(model)
    maximal = parametrize(model, base)
    assert {name: role.role for name, role in maximal.roles.items()} == {
        "0.weight": "vector", "0.bias": "vector", "2.weight": "vector", "2.bias": "vector",
        "3.weight": "hidden", "3.bias": "vector", "5.weight": "output", "5.bias": "fixed",
    }  # fmt: skip
    assert maximal.multipliers == {"5": 0.25}
    grown = {"3.bias": 2.0, "5.weight": 2.0, "5.bias": 2.0}
    for (name, now), then in zip(model.named_parameters(), before.parameters()):
        assert torch.equal(now, grown.get(name, 1.0) * then), name
    rates = {name: (role.rate("sgd"), role.rate("adam")) for name, role in maximal.roles.items()}
    assert rates["0.weight"] == rates["3.bias"] == rates["2.weight"] == (4.0, 1.0)
    assert rates["3.weight"] == (1.0, 0.25)
    assert rates["5.weight"] == (4.0, 1.0)
    uneven = parametrize(nn.Linear(32, 24), nn.Linear(8, 12)).roles["weight"]
    assert (uneven.rate("sgd"), uneven.rate("adam")) == (0.5, 0.25)
    assert rates["5.bias"] == (1.0, 1.0)


@pytest.mark.parametrize(("cls", "place"), [(torch.optim.SGD, 0), (torch.optim.AdamW, 1)])
def test_steps_are_those_of_the_table_by_hand(cls, place):
    """The standard network with its output divided by hand, an optimizer with a group a parameter."""
    x, y = torch.randn(7, 5, generator=seeded(8)), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    model, optimizer = wide(cls, weight_decay=0.1)
    torch.manual_seed(0)
    twin = network(64)
    with torch.no_grad():
        for p in (twin[3].bias, twin[5].weight, twin[5].bias):
            p.mul_(2.0)
    factors = {"0": (4, 1), "2": (4, 1), "3.weight": (1, 0.25), "3.bias": (4, 1), "5.weight": (4, 1), "5.bias": (1, 1)}
    by_name = {name: factors.get(name, factors.get(name[0])) for name, _ in twin.named_parameters()}
    plain = cls(
        [
            {"params": [p], "lr": 0.01 * by_name[name][place], "weight_decay": 0.1 / by_name[name][place]}
            for name, p in twin.named_parameters()
        ],
        lr=0.01,
    )
    for _ in range(4):
        for stepper, loss in (
            (optimizer, cross_entropy(model(x), y)),
            (plain, cross_entropy(twin[5](twin[:5](x) / 4), y)),
        ):
            stepper.zero_grad()
            loss.backward()
            stepper.step()
    for a, b in zip(model.parameters(), twin.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_the_base_itself_is_standard():
    model = network(16)
    before = copy.deepcopy(model)
    optimizer = parametrize(model, network(16)).optimizer(torch.optim.SGD, 0.3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3]
    x = torch.randn(2, 5, generator=seeded())
    assert torch.equal(model(x), before(x))


def test_a_schedule_keeps_the_ratio_of_the_groups():
    """Width 64 to 256 at rate 0.01 with a warm-up: the ratio is 4 at every step."""

    def layers(n):
        return nn.Sequential(nn.Linear(5, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 3))

    optimizer = parametrize(layers(256), layers(64)).optimizer(torch.optim.AdamW, 1e-2)
    schedule = LinearLR(optimizer, start_factor=0.1, total_iters=5)
    for step in range(8):
        one, quarter = (group["lr"] for group in optimizer.param_groups)
        assert one / quarter == pytest.approx(4, rel=1e-12)
        assert one == pytest.approx(1e-2 * min(1.0, 0.1 + 0.18 * step), rel=1e-9)
        optimizer.step()
        schedule.step()


class Tied(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.out = nn.Linear(n, 11, bias=False)
        self.embedding = nn.Embedding(11, n)
        self.out.weight = self.embedding.weight

    def forward(self, ids):
        return self.out(self.embedding(ids))


def test_tied_embeddings_keep_their_weights_and_get_the_multiplier():
    model = Tied(32)
    before = model.embedding.weight.detach().clone()
    maximal = parametrize(model, Tied(8))
    assert torch.equal(model.out.weight, before)
    ids = torch.tensor([1, 4])
    torch.testing.assert_close(model(ids), before[ids] @ before.T / 4)
    (role,) = maximal.roles.values()
    assert (role.role, role.rate("sgd"), role.rate("adam")) == ("vector", 4.0, 1.0)


def test_initial_deviations_that_do_not_depend_on_width():
    model = network(64)
    before = copy.deepcopy(model)
    parametrize(model, network(16), init="constant")
    for (name, now), then in zip(model.named_parameters(), before.parameters()):
        assert torch.equal(now, then * (0.5 if name == "3.weight" else 1.0)), name


def test_convolutions():
    def pictures(n):
        return nn.Sequential(nn.Conv2d(1, n, 3), nn.ConvTranspose2d(n, 2 * n, 3), nn.Conv2d(2 * n, 2, 1))

    roles = parametrize(pictures(12), pictures(4)).roles
    assert [(r.role, r.fan_in, r.fan_out) for n, r in roles.items() if n.endswith("weight")] == [
        ("vector", 1.0, 3.0), ("hidden", 3.0, 3.0), ("output", 3.0, 1.0),
    ]  # fmt: skip


def test_copies_and_files_keep_the_multiplier(tmp_path):
    model, _ = wide()
    x = torch.randn(3, 5, generator=seeded())
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    fresh = network(64)
    parametrize(fresh, network(16), rescale=False)
    fresh.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(fresh(x), model(x))


def test_attention_whose_heads_grow_is_refused():
    def attention(n, heads):
        return nn.MultiheadAttention(n, heads)

    with pytest.raises(ValueError, match=r"heads of 4 in .*, got 16"):
        parametrize(attention(32, 2), attention(8, 2))
    roles = parametrize(attention(32, 8), attention(8, 2)).roles
    assert roles["in_proj_weight"].role == "hidden"
    parametrize(attention(32, 2), attention(8, 2), scaled_attention=True)


def test_what_parametrize_refuses():
    model, _ = wide()
    with pytest.raises(ValueError, match="model: expected one that was not parametrized before"):
        parametrize(model, network(16))
    with pytest.raises(TypeError, match="base: expected a module"):
        parametrize(network(64), None)
    with pytest.raises(ValueError, match="base: expected parameters of the same names"):
        parametrize(network(64), network(16)[:4])
    with pytest.raises(ValueError, match="no recurrent layers"):
        parametrize(nn.LSTM(3, 8), nn.LSTM(3, 4))
    with pytest.raises(ValueError, match="as many rows"):
        parametrize(nn.Embedding(8, 4), nn.Embedding(4, 4))
    maximal = parametrize(network(64), network(16))
    with pytest.raises(ValueError, match="weight_decay: expected 0, or an optimizer with decoupled decay"):
        maximal.optimizer(torch.optim.Adam, 0.1, weight_decay=0.1)
    with pytest.raises(TypeError, match="rule: expected 'sgd' or 'adam' for Rprop"):
        maximal.optimizer(torch.optim.Rprop, 0.1)
    with pytest.raises(ValueError, match="lr: expected a number >= 0"):
        maximal.groups(-1.0)


def test_the_coordinate_check_tells_the_scalings_apart(tmp_path):
    x = torch.randn(8, 5, generator=seeded(9))
    state = torch.get_rng_state()
    checks = [
        coordinate_check(network, (32, 128, 512), x, lambda out: out.square().mean(), maximal=flag, seeds=2)
        for flag in (True, False)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    largest = [max(check.slopes("changes").values()) for check in checks]
    assert largest[0] < 0.2
    assert largest[1] > 0.4
    assert checks[0].layers == ("0", "2", "3", "5")
    assert checks[0].sizes.shape == (3, 4, 4)
    assert not checks[0].changes[:, 0].any()
    assert len(checks[0].figure().axes) == 4
    checks[0].write(tmp_path / "check.png")
    assert (tmp_path / "check.png").stat().st_size > 1000


def test_what_the_coordinate_check_refuses():
    x = torch.ones(2, 5)
    with pytest.raises(ValueError, match="widths: expected two or more, in rising order"):
        coordinate_check(network, (64, 32), x, torch.sum)
    with pytest.raises(ValueError, match="lr: expected a rate at which activations stay finite"):
        coordinate_check(network, (8, 16), x, lambda out: out.square().sum(), optimizer=torch.optim.SGD, lr=1e30)
