"""The gradient across the weights, and the wrapper that steps along it."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from steepest.optim.optimizers.perp_grad import OrthoGrad, PerpGrad, perpendicular_gradient


def naive(w, g, rescale):
    """By components in float64."""
    w, g = w.double().reshape(-1).tolist(), g.double().reshape(-1).tolist()
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))  # noqa: E731
    along = dot(w, g) / (dot(w, w) + 1e-30)
    across = [b - along * a for a, b in zip(w, g)]
    factor = (dot(g, g) ** 0.5) / (dot(across, across) ** 0.5) if rescale else 1.0
    return [factor * v for v in across]


@pytest.mark.holds("perp-grad")
@pytest.mark.holds("stablemax", 4)
def test_card_values():
    w, g = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])
    (plain,), (scaled,) = (perpendicular_gradient(w, g, rescale=r) for r in (False, True))
    torch.testing.assert_close(plain, torch.tensor([-0.32, 0.24]))
    torch.testing.assert_close(scaled, torch.tensor([-1.788854, 1.341641]))
    assert (w @ plain).item() == pytest.approx(0.0, abs=1e-6)
    assert scaled.norm().item() == pytest.approx(g.norm().item())
    for w, g in ((0.7, -0.3), (1e-3, 7.0), (0.0, 2.0)):
        for rescale in (False, True):
            (found,) = perpendicular_gradient(torch.tensor([w]), torch.tensor([g]), rescale=rescale)
            assert found.tolist() == [0.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rescale", [False, True])
def test_naive_loop(dtype, rescale):
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (5,), (2, 3, 2)]
    ws = [torch.randn(s, generator=generator).to(dtype) for s in shapes]
    gs = [torch.randn(s, generator=generator).to(dtype) for s in shapes]
    mixed_ws, mixed_gs = [*ws, torch.ones(3).double()], [*gs, torch.tensor([1.0, 2.0, 3.0]).double()]
    found = perpendicular_gradient(mixed_ws, mixed_gs, rescale=rescale)
    for w, g, f in zip(mixed_ws, mixed_gs, found):
        assert f.shape == g.shape
        assert f.dtype == (torch.float32 if g.dtype == torch.bfloat16 else g.dtype)
        wanted = torch.tensor(naive(w, g, rescale), dtype=torch.float64).view(g.shape)
        torch.testing.assert_close(f.double(), wanted, rtol=1e-5, atol=1e-5 if g.dtype != torch.float64 else 1e-12)


def test_tiny_gradients_keep_their_direction():
    """Their squares are 0 in float32."""
    w, g = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])
    (found,) = perpendicular_gradient(w, 1e-30 * g)
    torch.testing.assert_close(1e30 * found, torch.tensor([-1.788854, 1.341641]))


def test_degenerate_tensors():
    w = torch.randn(50)
    (parallel,) = perpendicular_gradient(w, -0.37 * w)
    assert bool((parallel == 0).all()), "what rounding leaves is not scaled up"
    (nowhere,) = perpendicular_gradient(torch.zeros(3), torch.tensor([1.0, -2.0, 3.0]))
    assert nowhere.tolist() == [1.0, -2.0, 3.0]
    (still,) = perpendicular_gradient(w, torch.zeros(50))
    assert bool((still == 0).all())
    z, g = torch.randn(3, dtype=torch.complex64), torch.randn(3, dtype=torch.complex64)
    (found,) = perpendicular_gradient(z, g, rescale=False)
    assert float((z.conj() * found).sum().real.abs()) < 1e-5
    assert perpendicular_gradient(torch.ones(0), torch.ones(0))[0].shape == (0,)
    with pytest.raises(ValueError, match="g: expected"):
        perpendicular_gradient([w], [])
    with pytest.raises(ValueError, match="g: expected"):
        perpendicular_gradient(w, w[:3])
    with pytest.raises(TypeError, match="g: expected"):
        perpendicular_gradient(torch.ones(3), torch.eye(3)[0].to_sparse())


@pytest.mark.holds("stablemax", 6)
@pytest.mark.parametrize("rescale", [False, True])
def test_a_small_step_keeps_the_norm(rescale):
    """The norm moves as lr^2; with the whole gradient as lr."""
    generator = torch.Generator().manual_seed(1)
    w, g = (torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(2))

    def growth(make, lr):
        p = nn.Parameter(w.clone())
        p.grad = g.clone()
        make([p], lr).step()
        return abs(p.norm().item() - w.norm().item())

    across = lambda p, lr: PerpGrad(p, torch.optim.SGD, rescale, lr=lr)  # noqa: E731
    plain = lambda p, lr: torch.optim.SGD(p, lr=lr)  # noqa: E731
    for lr in (1e-2, 1e-3, 1e-4):
        assert growth(across, lr / 10) == pytest.approx(growth(across, lr) / 100, rel=0.02)
        assert growth(plain, lr / 10) == pytest.approx(growth(plain, lr) / 10, rel=0.1)


def net_and_batch():
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    x, y = torch.randn(16, 4), torch.randn(16, 1)

    def closure():
        for p in net.parameters():
            p.grad = None
        loss = nn.functional.mse_loss(net(x), y)
        loss.backward()
        return loss

    return net, closure


def test_step_with_and_without_a_closure_is_the_base_step_on_projected_gradients():
    nets = []
    for how in ("closure", "plain", "by hand"):
        net, closure = net_and_batch()
        parameters = list(net.parameters())
        wrapped = PerpGrad(parameters, torch.optim.AdamW, lr=0.05, eps=1e-25)
        base = torch.optim.AdamW(parameters, lr=0.05, eps=1e-25)
        losses = []
        for _ in range(4):
            if how == "closure":
                losses.append(wrapped.step(closure).item())
                continue
            losses.append(closure().item())
            if how == "plain":
                assert wrapped.step() is None
                assert not any(p.grad.requires_grad for p in parameters)
                continue
            for p in parameters:
                if p.numel() > 1:  # the bias of one element keeps its gradient
                    p.grad = torch.tensor(naive(p.detach(), p.grad, True)).view(p.shape).float()
            base.step()
        nets.append((net, losses))
    for net, losses in nets[1:]:
        assert losses == pytest.approx(nets[0][1], rel=1e-4)
        for a, b in zip(net.parameters(), nets[0][0].parameters()):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_group_may_be_left_out():
    a, b, c = (nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(3))
    optimizer = PerpGrad([{"params": [a]}, {"params": [b], "perp": False}], torch.optim.SGD, False, lr=1.0)
    optimizer.add_param_group({"params": [c], "lr": 0.5})
    for p in (a, b, c):
        p.grad = torch.tensor([1.0, 2.0])
    optimizer.step()
    torch.testing.assert_close(a.data, torch.tensor([3.32, 3.76]))
    assert b.tolist() == [2.0, 2.0]
    torch.testing.assert_close(c.data, torch.tensor([3.16, 3.88]))
    assert optimizer.param_groups is optimizer.base_optimizer.param_groups
    assert len(optimizer.param_groups) == 3


def test_the_closure_is_run_once_and_the_base_steps_without_it():
    net, closure = net_and_batch()
    runs = []

    class Base(torch.optim.SGD):
        def step(self, closure=None):
            assert closure is None
            p = self.param_groups[0]["params"][0]
            runs.append((p.detach() * p.grad).sum().item())
            return super().step()

    loss = PerpGrad(net.parameters(), Base, lr=0.1).step(closure)
    assert loss.item() > closure().item()
    assert runs == pytest.approx([0.0], abs=1e-5)


def test_saved_copied_and_resumed_with_the_same_bits():
    net, closure = net_and_batch()
    optimizer = PerpGrad(net.parameters(), lr=0.05)
    for _ in range(3):
        optimizer.step(closure)
    saved = (copy.deepcopy(net.state_dict()), copy.deepcopy(optimizer.state_dict()))
    wanted = [optimizer.step(closure).item() for _ in range(3)]
    other, again = net_and_batch()
    resumed = PerpGrad(other.parameters(), lr=9.0)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    assert [resumed.step(again).item() for _ in range(3)] == wanted
    assert resumed.param_groups[0]["lr"] == 0.05
    for twin in (copy.deepcopy(resumed), pickle.loads(pickle.dumps(resumed))):
        assert twin.rescale
        assert twin.state is twin.base_optimizer.state
        assert twin.param_groups is twin.base_optimizer.param_groups
        assert len(twin.state) == len(resumed.state) == 4


def test_schedules_reach_the_base():
    net, closure = net_and_batch()
    optimizer = PerpGrad(net.parameters(), torch.optim.SGD, lr=0.4)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.step(closure)
    schedule.step()
    assert optimizer.base_optimizer.param_groups[0]["lr"] == 0.2


def test_names_and_refusals():
    assert OrthoGrad is PerpGrad
    for bad in (torch.optim.lr_scheduler.StepLR, "adam", torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=1.0)):
        with pytest.raises(TypeError, match="base: expected"):
            PerpGrad([nn.Parameter(torch.ones(2))], bad)
