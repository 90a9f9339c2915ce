"""Shapes of the cooldown at the points of the card and as official code has them; cooldowns from checkpoints."""

from __future__ import annotations

import io
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from steepest.optim.schedules import WSD, CooldownStudy, bias_variance_of_cooldown, cooldown_shape
from steepest.optim.schedules.wsd_cooldown import SHAPES

POINTS = {
    "linear": (0.75, 0.5, 0.25),
    "cosine": (0.853553, 0.5, 0.146447),
    "mirror_cosine": (0.646447, 0.5, 0.353553),
    "sqrt": (0.5, 0.292893, 0.133975),
    "square": (0.9375, 0.75, 0.4375),
    "lowered_linear": (0.525, 0.35, 0.175),
}
LOWERED = ("lowered_linear", "lowered_sqrt", "piecewise")


def sgd(rate=1.0):
    return torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=rate)


@pytest.mark.holds("wsd-cooldown", 1)
@pytest.mark.parametrize("shape", POINTS)
def test_points_of_the_card(shape):
    assert [cooldown_shape(shape, u) for u in (0.25, 0.5, 0.75)] == pytest.approx(POINTS[shape], abs=5e-7)


def official(kind, step, hold, anneal, final, power=0.5, start=1.0, levels=()):
    """The decay of the authors' code, written out from its branches."""
    u = (step - hold) / anneal
    cosine = final + (1 - final) * (1 + math.cos(math.pi * u)) * 0.5
    if kind == "linear":
        ends = [start, *levels, final]
        number = min(int(u * (len(ends) - 1)), len(ends) - 2)
        return ends[number] + (ends[number + 1] - ends[number]) * (u * (len(ends) - 1) - number)
    return {
        "exp": final**u if final else 0.0,
        "cosine": cosine,
        "mirror": 2 * (final + (1 - final) * (1 - u)) - cosine,
        "square": final + (1 - final) * (1 - u**2),
        "sqrt": final + (start - final) * (1 - u**power),
    }[kind]


@pytest.mark.holds("wsd-cooldown", 1)
@pytest.mark.parametrize(
    ("shape", "kind", "ours", "theirs"),
    [
        ("linear", "linear", {}, {}),
        ("cosine", "cosine", {}, {}),
        ("mirror_cosine", "mirror", {}, {}),
        ("square", "square", {}, {}),
        ("sqrt", "sqrt", {"power": 0.3}, {"power": 0.3}),
        ("exponential", "exp", {}, {}),
        ("lowered_linear", "linear", {"alpha": 0.6}, {"start": 0.6}),
        ("lowered_sqrt", "sqrt", {"alpha": 0.6}, {"start": 0.6}),
        ("piecewise", "linear", {"alpha": 0.6, "levels": [0.3, 0.2]}, {"start": 0.6, "levels": [0.3, 0.2]}),
    ],
)
def test_a_whole_run_is_that_of_the_official_code(shape, kind, ours, theirs):
    schedule = WSD(sgd(), 30, 50, 40, shape, 0.05, **ours)
    for step in range(125):
        if step < 30:
            wanted = step / 30 + (1 - step / 30) / 100
        elif step < 80:
            wanted = 1.0
        else:
            wanted = official(kind, step, 80, 40, 0.05, **theirs) if step < 120 else 0.05
        assert schedule.factor(step) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.holds("wsd-cooldown", 2)
@pytest.mark.parametrize("shape", SHAPES)
def test_ends_and_no_way_up(shape):
    own = {"levels": [0.5, 0.3]} if shape == "piecewise" else {}
    values = [cooldown_shape(shape, k / 200, final=0.1, **own) for k in range(201)]
    assert values[0] == (0.7 if shape in LOWERED else 1.0)
    assert values[-1] == 0.1
    assert all(a >= b for a, b in pairwise(values))


@pytest.mark.holds("wsd-cooldown", 2)
def test_lowered_to_a_tenth_and_the_first_step_of_the_warm_up():
    assert cooldown_shape("lowered_linear", 0.5, final=0.1) == pytest.approx(0.4)
    assert WSD(sgd(3.0), 300, 500, 200).get_last_lr() == [0.03]
    assert WSD(sgd(), 300, 500, 200).factor(0) == 0.01


@pytest.mark.holds("wsd-cooldown", 3)
def test_cosine_and_its_mirror_are_twice_linear():
    for k in range(101):
        pair = cooldown_shape("cosine", k / 100, final=0.2) + cooldown_shape("mirror_cosine", k / 100, final=0.2)
        assert pair == pytest.approx(2 * cooldown_shape("linear", k / 100, final=0.2), abs=1e-15)


def trained(stable, shape, *, stop=None, saved=None):
    """A small net with AdamW under WSD; ``stop`` saves after so many steps, ``saved`` goes on from there."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 5, generator=generator), torch.randn(64, 1, generator=generator)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    begin = 0
    if saved is not None:
        loaded = torch.load(io.BytesIO(saved), weights_only=True)
        model.load_state_dict(loaded["model"])
        optimizer.load_state_dict(loaded["optimizer"])
        begin = loaded["steps"]
    schedule = WSD(optimizer, 4, stable, 10, shape)
    for step in range(begin, stop if stop is not None else 4 + stable + 10):
        rows = [(8 * step + k) % 64 for k in range(8)]
        optimizer.zero_grad()
        (model(x[rows]) - y[rows]).square().mean().backward()
        optimizer.step()
        schedule.step()
    if stop is not None:
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "steps": stop}, file)
        return file.getvalue()
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.holds("wsd-cooldown", 4)
@pytest.mark.parametrize("shape", ["sqrt", "lowered_linear"])
def test_a_cooldown_from_a_checkpoint_is_the_uninterrupted_run_to_the_bit(shape):
    """Also from a checkpoint of a run that was to be stable for longer, and in mid-cooldown."""
    whole = trained(16, shape)
    longer = trained(50, "linear", stop=20)
    assert torch.equal(trained(16, shape, saved=longer), whole)
    assert torch.equal(trained(16, shape, saved=trained(16, shape, stop=25)), whole)


def test_unknown_shapes_are_refused_and_no_cooldown_is_flat():
    with pytest.raises(ValueError, match="shape: expected one of"):
        WSD(sgd(), 1, 1, 1, "sine")
    with pytest.raises(ValueError, match="shape: expected one of"):
        cooldown_shape("1-sqrt", 0.5)
    flat = WSD(sgd(), 10, 20, 0)
    assert [flat.factor(t) for t in (10, 30, 31, 10**6)] == [1.0] * 4
    for wrong, match in (
        ({"stable": None}, "stable: expected its steps, or those of the whole run"),
        ({"stable": None, "total_steps": 5}, "total_steps: expected at least 15"),
        ({"cooldown": -1}, "cooldown"), ({"warmup": 1.5}, "warmup"), ({"start": 2.0}, "start"),
        ({"shape": "exponential"}, "final: expected a number > 0"),
        ({"shape": "lowered_linear", "alpha": 1.5}, "alpha"),
        ({"shape": "piecewise", "levels": [0.9]}, "levels that fall"), ({"warmup_shape": "square"}, "warmup_shape"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=match):
            WSD(sgd(), **{"warmup": 5, "stable": 5, "cooldown": 10, **wrong})
    for u in (-0.1, 1.1):
        with pytest.raises(ValueError, match="u: expected"):
            cooldown_shape("linear", u)


def test_stable_steps_are_inferred():
    inferred = WSD(sgd(), 10, None, 30, total_steps=100)
    assert [inferred.factor(t) for t in range(105)] == [WSD(sgd(), 10, 60, 30).factor(t) for t in range(105)]


def quadratic(weights):
    return float((torch.tensor([3.0, 1.0]) * weights.square()).sum())


def test_bias_and_variance_by_hand():
    ends = {"a": torch.tensor([[1.0, 0.0], [0.0, 2.0]]), "b": torch.tensor([[1.0, 1.0], [1.0, 1.0]])}
    a, b = bias_variance_of_cooldown(ends, quadratic).values()
    # a: losses 3 and 4, mean (.5, 1) of loss 1.75; b: loss 4
    assert (a.loss, a.bias, a.variance, a.spread) == pytest.approx((3.5, 0.0, 1.75, 1.25))
    assert (b.loss, b.bias, b.variance, b.spread) == pytest.approx((4.0, 2.25, 0.0, 0.0))
    with pytest.raises(ValueError, match="at least two cooldowns"):
        bias_variance_of_cooldown({"a": torch.ones(1, 2)}, quadratic)
    with pytest.raises(ValueError, match="at least one shape"):
        bias_variance_of_cooldown({}, quadratic)


def test_a_study_runs_each_shape_from_the_checkpoint_and_draws_the_plane():
    calls = []

    def train(checkpoint, shape, repeat, **changes):
        calls.append((shape, repeat, changes))
        return checkpoint["weights"] + torch.tensor([1.0, (-1.0) ** repeat])

    study = CooldownStudy(train, {"weights": torch.zeros(2)}, quadratic)
    errors = study.run(["sqrt", "square"], 2, betas=(0.9, 0.99))
    assert errors["sqrt"] == errors["square"]
    assert errors["sqrt"].variance == 1.0
    assert calls == [(shape, repeat, {"betas": (0.9, 0.99)}) for shape in ("sqrt", "square") for repeat in (0, 1)]
    with pytest.raises(ValueError, match="shapes: expected one of"):
        study.run(["sine"], 2)
    axes, grid = study.plane(torch.zeros(2), study.weights["sqrt"].mean(0), torch.tensor([5.0, 2.0]), points=5)
    assert torch.allclose(axes, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert grid[1, 2] == 0.0  # the start: no river, no hill
    assert grid[4, 0] == pytest.approx(3 * 1.5**2 + 1)
    with pytest.raises(ValueError, match="a part across the river"):
        study.plane(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([5.0, 0.0]))
