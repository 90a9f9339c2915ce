"""Wrappers: one set of groups, the base steps without the closure, scaled gradients, two passes that leave no trace.

The numbers are those of faults that users of other wrappers reported.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steepest.core.displaced import Traces, ascent, length
from steepest.core.wrapper import TwoPassWrapper, Wrapper, base_of


class Climb(TwoPassWrapper):
    """A radius of rho."""

    def __init__(self, optimizer, rho=0.0, modules=()):
        super().__init__(optimizer, modules=modules, rho=rho)

    def _moves(self, parameters, gradients, groups, norm):
        return ascent(parameters, gradients, [self.option(group, "rho") for group in groups], norm=norm)


class Noise(Wrapper):
    """Gradients with 1 added."""

    def _advance(self, closure):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad += 1.0
        super()._advance(closure)


def parameter(*values):
    return nn.Parameter(torch.tensor(values))


def closure_of(optimizer, loss, scale=1.0):
    def closure():
        optimizer.zero_grad()
        value = loss()
        (scale * value).backward()
        return value.detach()

    return closure


def test_a_scaler_that_steps_with_a_closure():
    """p = 1, L = p^2 / 2, rate 0.1, scale 1024: 0.9, where other wrappers go to -101.4."""
    for wrap in (Wrapper, Climb, lambda base: Climb(base, rho=1e-9)):
        p = parameter(1.0)
        optimizer = wrap(torch.optim.SGD([p], lr=0.1))
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        closure = closure_of(optimizer, lambda p=p: (p**2).sum() / 2, scaler.scale(torch.ones(())).item())
        closure()
        scaler.step(optimizer, closure)
        scaler.update()
        torch.testing.assert_close(p.detach(), torch.tensor([0.9]))
        optimizer.step(closure, scaler=scaler)
        scaler.update()
        torch.testing.assert_close(p.detach(), torch.tensor([0.81]))


def test_a_scaler_that_is_off_changes_nothing():
    p = parameter(1.0)
    optimizer = Climb(torch.optim.SGD([p], lr=0.1), rho=1e-9)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizer.step(closure_of(optimizer, lambda: (p**2).sum() / 2), scaler=scaler)
    torch.testing.assert_close(p.detach(), torch.tensor([0.9]))


def test_the_norm_is_that_of_unscaled_gradients():
    """Gradients of another size than the scale says would give another radius where it is relative to them."""

    class Relative(Climb):
        def _moves(self, parameters, gradients, groups, norm):
            return [0.1 * g for g in gradients]

    ends = []
    for scale in (None, 1024.0):
        p = parameter(1.0, 2.0)
        optimizer = Relative(torch.optim.SGD([p], lr=0.1))
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        scaler.scale(torch.ones(()))
        optimizer.step(closure_of(optimizer, lambda p=p: (p**4).sum(), scale or 1.0), scaler=scaler)
        ends.append(p.detach().clone())
    assert torch.equal(*ends)


def test_edited_gradients_are_those_of_the_step():
    """w = 0, gradient 0, 1 added: other wrappers let the base run the closure again, and w stays 0."""
    w = parameter(0.0)
    runs = []

    def closure():
        runs.append(1)
        w.grad = torch.zeros(1)
        return torch.zeros(())

    Noise(torch.optim.SGD([w], lr=0.5)).step(closure)
    assert w.tolist() == [-0.5]
    assert len(runs) == 1


def test_a_warm_up_from_0_moves_what_steps():
    """Wrapped, a schedule from 0, the state loaded, 3 steps: elsewhere the rate stays 0 for ever."""
    w = parameter(1.0)
    optimizer = Climb(torch.optim.SGD([w], lr=0.3), rho=1e-6)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 3)
    optimizer.load_state_dict(optimizer.state_dict())
    rates = []
    for _ in range(3):
        optimizer.step(closure_of(optimizer, lambda: w.sum()))
        schedule.step()
        rates.append(optimizer.base_optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1, 0.2, 0.3])
    assert w.item() == pytest.approx(0.7)


def test_clipping_is_a_hook_of_the_base_optimizer():
    """It sees the gradients that the step uses: those of the second pass, unscaled."""
    w = parameter(3.0, 4.0)
    optimizer = Climb(torch.optim.SGD([w], lr=1.0), rho=1e-6)

    def clip(*_):
        nn.utils.clip_grad_norm_([w], 1.0)

    optimizer.base_optimizer.register_step_pre_hook(clip)
    optimizer.step(closure_of(optimizer, lambda: 50 * (w**2).sum()))
    torch.testing.assert_close(w.detach(), torch.tensor([2.4, 3.2]), rtol=1e-4, atol=0.0)


def test_options_of_groups_come_with_them_or_by_default():
    a, b = parameter(1.0), parameter(1.0)
    optimizer = Climb(torch.optim.SGD([{"params": [a], "rho": 0.5}], lr=0.1), rho=0.1)
    optimizer.add_param_group({"params": [b]})
    assert [group["rho"] for group in optimizer.param_groups] == [0.5, 0.1]
    plain = torch.optim.SGD([{"params": [a]}, {"params": [b]}], lr=0.2).state_dict()
    optimizer.base_optimizer.load_state_dict(plain)
    assert [optimizer.option(group, "rho") for group in optimizer.param_groups] == [0.1, 0.1]
    optimizer.load_state_dict(plain)
    assert [group["rho"] for group in optimizer.param_groups] == [0.1, 0.1]


def test_skipped_steps_are_counted_and_kept():
    w = parameter(1.0)
    optimizer = Climb(torch.optim.SGD([w], lr=0.1), rho=0.1)
    optimizer.step(closure_of(optimizer, lambda: w.sum() * torch.inf))
    optimizer.step(closure_of(optimizer, lambda: w.sum() * torch.nan))
    assert w.tolist() == [1.0]
    assert optimizer.skipped == 2
    fresh = Climb(torch.optim.SGD([w], lr=0.1))
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.skipped == 2


def test_modules_that_are_not_called_are_frozen_where_they_are_given():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def count(self):
            self.calls += 1

    for given in (False, True):
        w, counts = parameter(1.0), Counts()
        optimizer = Climb(torch.optim.SGD([w], lr=0.1), rho=0.1, modules=[counts] if given else ())

        def loss(w=w, counts=counts):
            counts.count()
            return w.sum()

        optimizer.step(closure_of(optimizer, loss))
        assert counts.calls == (1 if given else 2)


def test_traces_restore_buffers_that_were_replaced_and_look_only_while_asked():
    class Replaces(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean", torch.zeros(2))

        def forward(self, x):
            self.mean = self.mean + x
            return x

    module, later = Replaces(), Replaces()
    before = module.mean
    traces = Traces()
    with traces.watching():
        module(torch.ones(2))
        with traces.frozen():
            module(torch.ones(2))
        assert module.mean.tolist() == [1.0, 1.0]
    later(torch.ones(2))
    traces.undo()
    assert module.mean is before
    assert module.mean.tolist() == [0.0, 0.0]
    assert later.mean.tolist() == [1.0, 1.0]
    assert not nn.modules.module._has_any_global_hook()


@pytest.mark.filterwarnings("ignore:Using .torch.compile")
def test_a_compiled_model_is_compiled_once_for_both_passes():
    torch.compiler.reset()
    graphs = []
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    run, x = torch.compile(model, backend=backend), torch.randn(4, 2)
    optimizer = Climb(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.1)
    for _ in range(3):
        optimizer.step(closure_of(optimizer, lambda: run(x).square().mean()))
    assert len(graphs) == 1
    assert model[1].num_batches_tracked == 3


@pytest.mark.parametrize("p", [1.5, 2.0, 3.0, float("inf")])
def test_ascent_in_any_norm_is_the_best_move_of_its_length(p):
    generator = torch.Generator().manual_seed(0)
    g = [torch.randn(3, 2, generator=generator).double(), torch.randn(4, generator=generator).double()]
    move = torch.cat([m.flatten() for m in ascent(g, g, 0.3, p=p)])
    flat = torch.cat([v.flatten() for v in g])
    assert torch.linalg.vector_norm(move, p).item() == pytest.approx(0.3)
    q = 1.0 if p == float("inf") else p / (p - 1)
    assert (move @ flat).item() == pytest.approx(0.3 * torch.linalg.vector_norm(flat, q).item()), "Hoelder's bound"


def test_ascent_of_groups_types_and_complex_numbers():
    w = [torch.ones(2), torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.complex64)]
    g = [torch.tensor([2.0, 0.0]), torch.tensor([1.0]).double(), torch.tensor([2.0 + 0j])]
    moves = ascent(w, g, [3.0, 3.0, 6.0])
    assert [m.dtype for m in moves] == [v.dtype for v in w]
    assert [m.tolist() for m in moves] == [[2.0, 0.0], [1.0], [4.0 + 0j]]
    assert length(g).item() == 3.0
    infinite = ascent(w[:1], [torch.tensor([torch.inf, 1.0])], 1.0)
    assert infinite[0].isnan().all(), "on several ranks all see it"


def test_base_of():
    w = parameter(1.0)
    base = torch.optim.SGD([w], lr=0.1)
    assert base_of(base, torch.optim.Adam, {}) is base
    assert isinstance(base_of([w], torch.optim.Adam, {"lr": 0.1}), torch.optim.Adam)
    with pytest.raises(TypeError, match="lr: expected nothing"):
        base_of(base, torch.optim.SGD, {"lr": 0.1})
    with pytest.raises(TypeError, match="base_optimizer: expected a class of optimizer"):
        base_of([w], base, {})
    with pytest.raises(TypeError, match="base_optimizer: expected an optimizer"):
        Wrapper([w])


class Mixed(Climb):
    """The mean of both gradients."""

    keeps_first = True

    def _joined(self, first, second, groups):
        return [(a + b) / 2 for a, b in zip(first, second)]


@pytest.mark.parametrize("kind", [Climb, Mixed])
@pytest.mark.parametrize("scale", [None, 1024.0])
def test_a_loop_that_clips_between_the_second_pass_and_the_step(kind, scale):
    """Both passes by hand and ``step()``: what the hook of the base optimizer clips, to the last bit."""

    def loss(w):
        return 50 * (w**4).sum()

    by_hook, by_hand = (parameter(0.5, -0.25) for _ in range(2))
    optimizer = kind(torch.optim.SGD([by_hook], lr=0.25, momentum=0.5), rho=0.125)
    optimizer.base_optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_([by_hook], 1.0) and None)
    for _ in range(3):
        optimizer.step(closure_of(optimizer, lambda: loss(by_hook)))

    optimizer = kind(torch.optim.SGD([by_hand], lr=0.25, momentum=0.5), rho=0.125)
    optimizer._step_supports_amp_scaling = False  # as where the loop unscales
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(loss(by_hand)).backward()
        before = by_hand.detach().clone()
        with optimizer.moved(scaler=scaler):
            assert not torch.equal(by_hand, before)
            optimizer.zero_grad()
            scaler.scale(loss(by_hand)).backward()
        assert torch.equal(by_hand, before)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([by_hand], 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(by_hook, by_hand)
    with pytest.raises(TypeError, match="closure"):  # each second pass is for one step
        optimizer.step()


def test_a_closure_that_runs_both_passes_itself():
    w, twin = parameter(0.5, -0.25), parameter(0.5, -0.25)
    optimizer = Climb(torch.optim.SGD([w], lr=0.25), rho=0.125)
    single = closure_of(optimizer, lambda: (w**4).sum())
    calls = []

    def both():
        calls.append(1)
        loss = single()
        with optimizer.moved():
            single()
        return loss

    first = optimizer.step(both)
    other = Climb(torch.optim.SGD([twin], lr=0.25), rho=0.125)
    assert other.step(closure_of(other, lambda: (twin**4).sum())) == first
    assert torch.equal(w, twin)
    assert calls == [1]


def test_a_second_pass_whose_step_is_given_up():
    norm = nn.BatchNorm1d(1, affine=False)
    w = parameter(1.0)
    optimizer = Climb(torch.optim.SGD([w], lr=0.1, momentum=0.9), rho=0.5)
    closure = closure_of(optimizer, lambda: norm(torch.tensor([[1.0], [3.0]]) * w).square().sum() + w.sum())
    traces = Traces()
    with traces.watching():
        closure()
    with optimizer.moved(traces):
        closure()
    assert norm.num_batches_tracked.item() == 1
    assert optimizer.skip()
    assert not optimizer.skip()
    assert (norm.num_batches_tracked.item(), norm.running_mean.item(), w.item(), optimizer.skipped) == (0, 0, 1.0, 1)
    assert not optimizer.state
    with pytest.raises(RuntimeError, match="in the middle"), optimizer.moved():
        raise RuntimeError("in the middle")
    assert w.item() == 1.0
    assert not optimizer.skip()
