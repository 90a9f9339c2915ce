"""Curves of pieces, against formulas written out; what a schedule does with the groups of an optimizer."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

from steepest.core.schedule import SHAPES, STEP, Curve, Piece, Schedule, falling
from steepest.core.undisturbed import Snapshot, same_random_states


class Restarts(Schedule):
    """Cosine that starts again."""

    name = "restarts"

    def __init__(self, optimizer, rounds=2, stretch=2.0, last_epoch=None):
        self.curve = Curve([Piece(rounds, 1.0, 0.0, "cosine")], stretch=stretch)
        super().__init__(optimizer, last_epoch)


def sgd(*rates, **settings):
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, **settings)


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_each_shape_ends_exactly_and_never_rises(shape):
    values = [falling(shape, k / 1000, 0.7, 0.1) for k in range(-5, 1006)]
    assert values[0] == values[5] == 0.7
    assert values[-1] == values[1005] == 0.1
    assert all(a >= b for a, b in pairwise(values))


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_a_way_up_is_the_way_down_backwards(shape):
    up, down = Piece(8, 0.1, 0.7, shape), Piece(8, 0.7, 0.1, shape)
    assert [up.at(k / 8) for k in range(9)] == [down.at(1 - k / 8) for k in range(9)]


def test_shapes_are_their_formulas():
    for k in range(1, 20):
        u, cosine = k / 20, (1 + math.cos(math.pi * k / 20)) / 2
        for shape, left in {
            "linear": 1 - u, "cosine": cosine, "mirror_cosine": 2 - 2 * u - cosine, "square": 1 - u**2,
            "sqrt": 1 - u**0.3,
        }.items():  # fmt: skip
            assert falling(shape, u, 3.0, 0.5, 0.3) == pytest.approx(0.5 + 2.5 * left, rel=1e-14)
        assert falling("inverse", u, 3.0, 0.5) == pytest.approx(1 / ((1 - u) / 3 + u / 0.5), rel=1e-14)
        assert math.log(falling("exponential", u, 3.0, 0.5)) == pytest.approx((1 - u) * math.log(3) + u * math.log(0.5))


def test_a_step_between_two_pieces_belongs_to_the_second_unless_the_first_is_closed():
    for closed, wanted in ((False, [1.0, 0.625, 1.0, 1.0]), (True, [1.0, 0.625, 0.25, 1.0])):
        curve = Curve([Piece(2, 1.0, 0.25, closed=closed), Piece(5, 1.0, 1.0, "constant")])
        assert [curve(t) for t in range(4)] == wanted
    assert Curve([Piece(0, 0.0, 1.0), Piece(0, 0.5, 0.5), Piece(4, 0.4, 0.0)])(0) == 0.4
    assert Curve([Piece(3, 1.0, 0.25)])(10**9) == 0.25


@pytest.mark.parametrize("stretch", [1, 2, 3])
def test_restarts_are_those_of_torch_uninterrupted_and_rebuilt_anywhere(stretch):
    """pytorch#88791: torch's own, rebuilt at step 9, has rate 0.1 in place of 0.05."""
    theirs = sgd(0.1)
    reference = CosineAnnealingWarmRestarts(theirs, T_0=2, T_mult=stretch)
    wanted = []
    for _ in range(40):
        wanted.append(theirs.param_groups[0]["lr"])
        theirs.step()
        reference.step()
    rebuilt = [Restarts(sgd(0.1), stretch=stretch, last_epoch=n - 1).get_last_lr()[0] for n in range(40)]
    assert rebuilt == pytest.approx(wanted, abs=1e-15)
    if stretch == 2:
        assert rebuilt[10] == pytest.approx(0.05)


def test_rounds_that_become_shorter_end_where_one_would_be_shorter_than_a_step():
    curve = Curve([Piece(8, 1.0, 0.0)], stretch=0.5)
    assert [curve(t) for t in (0, 4, 8, 10, 12, 13, 14, 15, 16, 10**6)] == [1, 0.5, 1, 0.5, 1, 0.5, 1, 0, 0, 0]


def test_building_it_on_a_loaded_optimizer_changes_no_rate():
    """pytorch#162591 and #119168: torch's schedulers set the rate of step 0."""
    first = sgd(0.4, 0.1)
    schedule = Restarts(first, rounds=10)
    for _ in range(3):
        first.step()
        schedule.step()
    rates = [group["lr"] for group in first.param_groups]
    loaded = sgd(9.0, 9.0)
    loaded.load_state_dict(first.state_dict())
    again = Restarts(loaded, rounds=10)
    assert [group["lr"] for group in loaded.param_groups] == rates == again.get_last_lr()
    assert again.last_epoch == loaded.param_groups[0][STEP] == 3
    anew = Restarts(loaded, rounds=10, last_epoch=-1)
    assert anew.get_last_lr() == [0.4, 0.1]


def test_what_is_wrong_is_named():
    for wrong, match in (
        (lambda: Curve([]), "at least one piece"),
        (lambda: Curve([Piece(3, 1.0, 0.0), Piece(2, 1.0, 0.0)]), "ends in order"),
        (lambda: Curve([Piece(0, 1.0, 0.0)], stretch=1), "until of the last piece"),
        (lambda: Curve([Piece(1, 1.0, 0.0)], stretch=0), "stretch: expected"),
        (lambda: Piece(-1, 1.0, 0.0), "until: expected"),
        (lambda: Piece(1, 1.0, 0.0, "inverse"), "end: expected a number > 0"),
        (lambda: Piece(1, -1.0, 0.0), "start: expected"),
        (lambda: Piece(1, 1.0, 0.0, "constant"), "end: expected 1"),
        (lambda: Piece(1, 1.0, 0.0, "linaer"), "shape: expected one of"),
        (lambda: Piece(1, 1.0, 0.0, "sqrt", power=0), "power: expected"),
    ):
        with pytest.raises(ValueError, match=match):
            wrong()


def disturb(model, optimizer):
    with same_random_states():
        model.train()
        optimizer.param_groups[0]["lr"].fill_(7.0)
        optimizer.param_groups[0]["new"] = 1
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
        raise KeyError


def test_a_snapshot_goes_back_bit_for_bit_and_keeps_the_objects():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))
    model[2].eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1), capturable=False)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().sum().backward()
        optimizer.step()
    gradient = model[0].weight.grad

    def bits():
        moments = [v for p in model.parameters() for v in optimizer.state[p].values()]
        own = [*model.state_dict().values(), *(p.grad for p in model.parameters()), *moments]
        return [t.clone() for t in own], optimizer.param_groups[0]["lr"].item(), [m.training for m in model.modules()]

    before, groups = bits(), optimizer.param_groups
    snapshot = Snapshot([model], optimizer)
    state = torch.get_rng_state()
    for _ in range(2):  # a snapshot serves more than once
        with pytest.raises(KeyError):
            disturb(model, optimizer)
        snapshot.restore()
        after = bits()
        assert all(torch.equal(a, b) for a, b in zip(before[0], after[0]))
        assert before[1:] == after[1:]
        assert torch.equal(torch.get_rng_state(), state)
        assert model[0].weight.grad is gradient
        assert optimizer.param_groups is groups
        assert "new" not in groups[0]
