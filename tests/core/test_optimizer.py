"""Optimizers of ours: shares, states, scaled gradients, steps that use the loss. The members of the catalogue are in
``tests/test_conformance.py``."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from steepest.core.optimizer import ListOptimizer, LossAware, check_loss, flat, inner, momentum_step, total
from steepest.core.torch_private import foreach_add_, foreach_mul_
from steepest.optim import SGDW
from steepest.testing import optimizer_checks


class HeavyBall(ListOptimizer):
    """Momentum, to see what is done for every member.

    Example:
        none
    """

    name = "heavy_ball"
    ranges = {"lr": {"low": 0.0}, "momentum": {"low": 0.0, "high": 1.0, "open_high": True}}

    def __init__(self, params, lr=0.01, momentum=0.9, *, foreach=None, maximize=False, generator=None):
        options = {"lr": lr, "momentum": momentum, "maximize": maximize}
        super().__init__(params, options, foreach=foreach, generator=generator)
        self.seen = []

    def _start(self, group, parameter):
        return {"velocity": torch.zeros_like(parameter)}

    def _move(self, share):
        self.seen.append(len(share.weights))
        velocity = share.state("velocity")
        foreach_mul_(velocity, share.group["momentum"])
        foreach_add_(velocity, share.slopes)
        foreach_add_(share.weights, velocity, alpha=-share.group["lr"])

    @classmethod
    def builders(cls):
        return [cls]


class Polyak(LossAware):
    """The step to where the linear model is zero, at most ``lr`` long.

    Example:
        none
    """

    name = "polyak"

    def __init__(self, params, lr=0.01, *, foreach=None):
        super().__init__(params, {"lr": lr}, foreach=foreach)

    def _advance_with(self, loss, shares):
        check_loss(loss, 0.0)
        squares = total(slope.double().square().sum() for share in shares for slope in share.slopes)
        reach = torch.where(squares > 0, loss.double() / squares, 0.0)
        for share in shares:
            length = reach.clamp(max=share.group["lr"]).to(share.weights[0].dtype)
            for p, slope in zip(share.weights, share.slopes):
                p.sub_(slope * length)

    @classmethod
    def builders(cls):
        return [cls]


DEAR = ("minimum", "ranks", "compile")


@pytest.mark.parametrize("cls", [HeavyBall, Polyak])
def test_the_suite(cls):
    for title, check in optimizer_checks(cls):
        if title not in DEAR:
            torch.manual_seed(0)
            check()


def test_a_scaled_closure_moves_by_the_gradient_itself():
    """p = 1, L = p^2 / 2, rate 0.1, scale 1024: torch's own goes to -101.4."""
    p = nn.Parameter(torch.ones(()))
    optimizer = HeavyBall([p], 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def closure():
        optimizer.zero_grad()
        scaler.scale(p * p / 2).backward()

    closure()
    scaler.step(optimizer, closure)
    assert float(p.detach()) == pytest.approx(0.9)


def test_lists_are_cut_where_temporaries_would_grow(monkeypatch):
    monkeypatch.setattr(HeavyBall, "most", (10, 10))
    parameters = [nn.Parameter(torch.ones(n)) for n in (4, 4, 4, 20, 1, 2)]
    parameters.insert(1, nn.Parameter(torch.ones(3, dtype=torch.float64)))
    optimizer = HeavyBall(parameters)
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.seen == [2, 1, 1, 2, 1]
    assert all(torch.equal(p.detach(), torch.full_like(p, 0.99)) for p in parameters)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_loaded_state_keeps_its_type(dtype):
    class Wide(HeavyBall):
        def _start(self, group, parameter):
            return {"velocity": torch.zeros_like(parameter), "mean": torch.full((), 1 / 3)}

    p = nn.Parameter(torch.ones(2, dtype=dtype))
    optimizer = Wide([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    twin = Wide([nn.Parameter(torch.ones(2, dtype=dtype))])
    twin.load_state_dict(optimizer.state_dict())
    (state,) = twin.state.values()
    assert state["mean"].dtype == torch.float32
    assert float(state["mean"]) == float(torch.tensor(1 / 3))
    assert state["velocity"].dtype == dtype


def test_a_state_that_lacks_an_option_takes_the_default():
    optimizer = SGDW([torch.ones(2, requires_grad=True)], 0.1, momentum=0.5)
    state = optimizer.state_dict()
    del state["param_groups"][0]["foreach"], state["param_groups"][0]["momentum"]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["foreach"] is None
    assert optimizer.param_groups[0]["momentum"] == 0.5


def test_a_generator_is_saved_loaded_copied():
    optimizer = HeavyBall([nn.Parameter(torch.ones(2))], generator=torch.Generator().manual_seed(3))
    torch.rand(5, generator=optimizer.generator)
    twin = HeavyBall([nn.Parameter(torch.ones(2))], generator=torch.Generator())
    twin.load_state_dict(optimizer.state_dict())
    third = copy.deepcopy(optimizer)
    wanted = torch.rand(4, generator=optimizer.generator)
    assert torch.equal(torch.rand(4, generator=twin.generator), wanted)
    assert torch.equal(torch.rand(4, generator=third.generator), wanted)
    assert "optimizer" not in HeavyBall([nn.Parameter(torch.ones(2))]).state_dict()


def test_complex_parameters_move_as_pairs():
    p = nn.Parameter(torch.tensor([1 + 2j, -3j]))
    pair = nn.Parameter(torch.view_as_real(p.detach()).clone())
    for parameter in (p, pair):
        optimizer = HeavyBall([parameter], 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (parameter.abs().square().sum()).backward()
            optimizer.step()
    assert torch.equal(torch.view_as_real(p.detach()), pair.detach())


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"momentum": 1.0}, {"lr": float("nan")}])
def test_options_out_of_range_are_refused_also_those_of_a_group(options):
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=next(iter(options))):
        HeavyBall([p], **options)
    with pytest.raises(ValueError, match=next(iter(options))):
        HeavyBall([{"params": [p], **options}])
    with pytest.raises(ValueError, match=next(iter(options))):
        HeavyBall([nn.Parameter(torch.ones(1))]).add_param_group({"params": [p], **options})
    for wrong in ({"foreach": 1}, {"maximize": "yes"}, {"generator": 3}, {"lr": "fast"}):
        with pytest.raises(TypeError, match=next(iter(wrong))):
            HeavyBall([p], **wrong)


def test_a_refused_gradient_leaves_no_state():
    rows = nn.Embedding(3, 2, sparse=True)
    p = nn.Parameter(torch.ones(2))
    optimizer = HeavyBall([p, *rows.parameters()])
    (rows(torch.tensor([1])).sum() + p.sum()).backward()
    with pytest.raises(TypeError, match="params: expected dense gradients"):
        optimizer.step()
    assert not optimizer.state
    assert torch.equal(p.detach(), torch.ones(2))


def test_a_loss_of_many_forms():
    def at(**given):
        p = nn.Parameter(torch.tensor([3.0, 4.0]))
        optimizer = Polyak([p], lr=9.0)
        if "backward" in given:
            p.square().sum().backward()
            del given["backward"]
        return optimizer.step(**{k: v(p) if callable(v) and k == "loss" else v for k, v in given.items()}), p.detach()

    wanted = torch.tensor([1.5, 2.0])
    for given in ({"backward": 1, "loss": torch.tensor(25.0)}, {"backward": 1, "loss": 25}):
        _, p = at(**given)
        assert torch.equal(p, wanted)
    loss, p = at(loss=lambda p: p.square().sum())  # differentiated here
    assert torch.equal(p, wanted)
    assert float(loss.detach()) == 25.0
    for wrong, error in (
        ({}, TypeError),
        ({"loss": torch.ones(2)}, ValueError),
        ({"loss": torch.tensor(1)}, TypeError),
        ({"closure": lambda: torch.ones(()), "loss": torch.ones(())}, TypeError),
        ({"closure": lambda: None}, TypeError),
        ({"backward": 1, "loss": torch.tensor(-1.0)}, ValueError),
        ({"backward": 1, "loss": torch.tensor(torch.nan)}, ValueError),
    ):
        with pytest.raises(error, match="loss"):
            at(**wrong)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [7, 100])
def test_a_step_along_momenta(momentum, dtype, size):
    generator = torch.Generator().manual_seed(0)
    w, g, m = (torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3))
    wanted = momentum * m.double() + 0.3 * (g.double() + 0.1 * w.double())
    moved, momenta = w.clone(), m.clone()
    momentum_step([moved], [g], [momenta], 0.5, momentum, gain=0.3, decay=0.1)
    close = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(momenta.double(), wanted, rtol=close, atol=2 * close)
    torch.testing.assert_close(moved.double(), w.double() - 0.5 * wanted, rtol=close, atol=2 * close)
    plain = w.clone()
    momentum_step([plain], [g], [], 0.5, momentum, decay=0.1)
    away = w.double() - 0.5 * (g.double() + 0.1 * w.double())
    torch.testing.assert_close(plain.double(), away, rtol=close, atol=2 * close)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_a_step_along_momenta_that_shrinks_weights(momentum):
    generator = torch.Generator().manual_seed(0)

    def own(dtype):
        w, g, m = ([torch.randn(4, 6, generator=generator.manual_seed(k)) for k in (i, i + 1)] for i in (0, 10, 20))
        lists = [[t.to(dtype) for t in values] for values in (w, g, m if momentum else [])]
        lists[1][1] = lists[1][1].T.contiguous().T  # in another order
        return lists

    wide, kinds = own(torch.float64), (torch.float64, torch.float32, torch.bfloat16)
    ways = [momentum * m + 0.3 * g for g, m in zip(wide[1], wide[2])] if momentum else wide[1]
    wanted = [0.9 * w - 0.5 * way for w, way in zip(wide[0], ways)]
    for dtype in kinds:
        together, close = own(dtype), 8 * torch.finfo(dtype).eps
        momentum_step(*together, 0.5, momentum, gain=0.3, shrink=0.9)
        for moved, away in zip(together[0], wanted):
            torch.testing.assert_close(moved.double(), away, rtol=close, atol=2 * close)
        alone = own(dtype)
        for i in range(2):
            momentum_step(*(values[i : i + 1] for values in alone), 0.5, momentum, gain=0.3, shrink=0.9)
        assert all(torch.equal(a, b) for pair in zip(together, alone) for a, b in zip(*pair))


def test_a_step_along_momenta_goes_by_place_whatever_lies_between():
    generator = torch.Generator().manual_seed(0)
    w, g, m = (torch.randn(2, 3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    wanted = w - 0.5 * (0.8 * m + g)
    stores = [torch.full((*w.shape, 2), 7.0, dtype=torch.float64) for _ in range(3)]
    gapped = []
    for store, tensor in zip(stores, (w, g, m)):
        store[..., 0] = tensor
        gapped.append(store[..., 0])
    orders = (torch.contiguous_format, torch.channels_last)
    for order in orders:
        for other in orders:
            turned = w.clone(memory_format=order)
            momentum_step([turned], [g.clone(memory_format=other)], [m.clone(memory_format=order)], 0.5, 0.8)
            torch.testing.assert_close(turned, wanted, rtol=1e-14, atol=1e-14)
    momentum_step(*([tensor] for tensor in gapped), 0.5, 0.8)
    torch.testing.assert_close(gapped[0], wanted, rtol=1e-14, atol=1e-14)
    assert all(bool((store[..., 1] == 7.0).all()) for store in stores)


def test_a_step_along_momenta_of_wider_gradients():
    w, m = torch.ones(3, dtype=torch.float16), torch.zeros(3, dtype=torch.float16)
    momentum_step([w], [torch.full((3,), 0.5)], [m], 1.0, 0.9)
    assert torch.equal(w, torch.full((3,), 0.5, dtype=torch.float16))


def test_inner_products_of_lists():
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (), (5,), (200, 200), (2,)]
    kinds = [torch.float32, torch.float64, torch.bfloat16, torch.float32, torch.float32]
    a, b = ([torch.randn(s, generator=generator).to(k) for s, k in zip(shapes, kinds)] for _ in range(2))
    wanted = sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b))
    assert float(inner(flat(a), flat(b))) == pytest.approx(wanted, rel=1e-5)
    wide = [y.float() if y.dtype == torch.bfloat16 else y for y in b]
    assert float(inner(flat(a), flat(wide))) == pytest.approx(wanted, rel=1e-5)
    assert len(flat(a)) == 3  # the large one, those of float32 (and half types), that of float64
