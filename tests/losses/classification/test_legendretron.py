"""LegendreTron: the link's numbers, its convex blocks, and the whole thing in a training loop."""

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_wine
from sklearn.linear_model import LogisticRegression
from torch import nn

from steepest.core.objective import TaskInfo
from steepest.descent import ArrayBatches, Descent, stackable
from steepest.losses.classification.legendretron import (
    ActNorm,
    ConvexBlock,
    InputConvexNet,
    LegendreLink,
    LegendreTron,
    log_softmax_plus,
)
from steepest.nn.networks import Network

POINT = torch.tensor([[1.0, -0.5]], dtype=torch.float64)
ROWS = torch.tensor([[1.0, 2.0], [0.0, -1.0], [0.5, 0.5]], dtype=torch.float64)
ONE = math.log(math.e - 1)
"""softplus(ONE) = 1."""


def scaling_link(scores: int, w0: float) -> LegendreLink:
    """One block whose network is off: z -> softplus(w0) z."""
    link = LegendreLink(scores, blocks=1).double().eval()
    with torch.no_grad():
        link.blocks[0].w1.fill_(-1e4)
        link.blocks[0].w0.fill_(w0)
    return link


def card_block() -> ConvexBlock:
    """The gradient of sum softplus(A x) + |x|^2 / 2 as a block of the library: a fourth unit is idle."""
    block = ConvexBlock(2, hidden=4, depth=1).double()
    net = block.net
    with torch.no_grad():
        net.first.weight.zero_()[:3] = ROWS
        net.first.bias.zero_()
        net.last_positive.weight.fill_(math.log(math.expm1(4.0)))  # softplus(.) / 4 inputs = 1
        net.last_direct.weight.zero_()
        net.last_norm.log_scale.fill_(math.log(1 - 1e-3))
        block.w0.fill_(ONE)
        block.w1.fill_(ONE)
    return block


def wild_block(scores: int, seed: int, hidden: int = 4, depth: int = 4) -> ConvexBlock:
    torch.manual_seed(seed)
    block = ConvexBlock(scores, hidden, depth).double()
    with torch.no_grad():
        for p in block.parameters():
            p.add_(torch.randn_like(p))
    return block


@pytest.mark.holds("legendretron", 1)
def test_softmax_plus_by_hand_and_as_a_loop():
    p = log_softmax_plus(POINT).exp()
    torch.testing.assert_close(p, p.new_tensor([[0.6285, 0.1402, 0.2312]]), atol=5e-5, rtol=0)
    z = 3 * torch.randn(6, 4, dtype=torch.float64)
    for row, found in zip(z.tolist(), log_softmax_plus(z).tolist()):
        total = 1 + sum(map(math.exp, row))
        np.testing.assert_allclose(found, [*(v - math.log(total) for v in row), -math.log(total)], rtol=1e-12)


@pytest.mark.holds("legendretron", 1)
@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_softmax_plus_is_stable_at_both_ends(value):
    z = torch.full((1, 2), value, requires_grad=True)
    log_p = log_softmax_plus(z)
    assert torch.isfinite(log_p).all()
    assert log_p[0, -1] == (0 if value < 0 else -1e4 - math.log(2))
    assert torch.isfinite(torch.autograd.grad(log_p.sum(), z)[0]).all()


@pytest.mark.holds("legendretron", 2)
def test_network_off_scales_the_scores():
    link = scaling_link(2, 0.0)
    wanted = POINT.new_tensor([[0.5395, 0.1907, 0.2698]])
    torch.testing.assert_close(link(POINT).exp(), wanted, atol=5e-5, rtol=0)
    torch.testing.assert_close(link.blocks[0](POINT), 0.693147 * POINT, atol=1e-6, rtol=0)


@pytest.mark.holds("legendretron", 3)
def test_a_block_by_hand():
    block = card_block()
    x = POINT.tolist()[0]
    slope = list(x)
    for row in ROWS.tolist():
        unit = 1 / (1 + math.exp(-sum(a * v for a, v in zip(row, x))))
        slope = [s + unit * a for s, a in zip(slope, row)]
    found = block(POINT)
    torch.testing.assert_close(found, found.new_tensor([slope]))
    torch.testing.assert_close(found, found.new_tensor([[1.7811, 0.1586]]), atol=5e-5, rtol=0)
    p = log_softmax_plus(found).exp()
    torch.testing.assert_close(p, p.new_tensor([[0.7321, 0.1445, 0.1233]]), atol=5e-5, rtol=0)


@pytest.mark.holds("legendretron", 4)
@pytest.mark.parametrize(("scores", "hidden", "depth"), [(1, 2, 4), (3, 2, 4), (4, 6, 2), (2, 4, 1)])
def test_jacobian_of_a_block_is_symmetric_and_bounded_below(scores, hidden, depth):
    for seed in range(3):
        block = wild_block(scores, seed, hidden, depth)
        floor = nn.functional.softplus(block.w0)
        for z in 3 * torch.randn(4, scores, dtype=torch.float64):
            jacobian = torch.autograd.functional.jacobian(lambda v, b=block: b(v[None])[0], z)
            torch.testing.assert_close(jacobian, jacobian.mT, atol=1e-10, rtol=1e-10)
            assert torch.linalg.eigvalsh(jacobian).min() >= floor - 1e-10


@pytest.mark.holds("legendretron", 4)
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_closed_gradient_is_that_of_the_potential(depth):
    net = wild_block(3, 5, 4, depth).net
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    torch.testing.assert_close(net.gradient(x), wanted)
    loss, other = (g.cos().sum() for g in (net.gradient(x), wanted))
    for p, q in zip(*(torch.autograd.grad(v, list(net.parameters()), allow_unused=True) for v in (loss, other))):
        zero = torch.zeros((), dtype=torch.float64)  # what a gradient does not reach counts as 0
        torch.testing.assert_close(*torch.broadcast_tensors(zero if p is None else p, zero if q is None else q))
    with torch.inference_mode():
        torch.testing.assert_close(net.gradient(x.detach()), wanted.detach())
    torch.testing.assert_close(torch.func.vmap(net.gradient)(x.detach()[None])[0], wanted.detach())


@pytest.mark.holds("legendretron", 5)
def test_identity_blocks_are_multinomial_regression():
    """The fit of linear layer, identity link and likelihood agrees with scikit-learn on data of three classes."""
    x, y = load_wine(return_X_y=True)
    x = ((x - x.mean(0)) / x.std(0))[:, :2]
    inputs, target = torch.tensor(x), torch.tensor(y)
    inner = nn.Linear(2, 2).double()
    link, loss = scaling_link(2, ONE), LegendreTron()
    options = {"max_iter": 500, "tolerance_grad": 1e-9, "tolerance_change": 0, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(inner.parameters(), **options)

    def closure():
        optimizer.zero_grad()
        value = loss(link(inner(inputs)), target)
        value.backward()
        return value

    optimizer.step(closure)
    peer = LogisticRegression(C=np.inf, solver="newton-cg", tol=1e-9, max_iter=1000).fit(x, y)
    found = link(inner(inputs)).exp().detach().numpy()
    np.testing.assert_allclose(found, peer.predict_proba(x), atol=1e-5)
    slopes = np.stack([peer.coef_[k] - peer.coef_[2] for k in range(2)])
    np.testing.assert_allclose(inner.weight.detach().numpy(), slopes, atol=1e-4)


@pytest.mark.holds("legendretron", 6)
@pytest.mark.parametrize("blocks", [1, 3])
def test_probabilities_are_rows_of_a_simplex(blocks):
    link = LegendreLink(4, blocks=blocks, hidden=4)
    p = LegendreTron().probabilities(link(20 * torch.randn(50, 4)))
    torch.testing.assert_close(p.sum(-1), torch.ones(50))
    assert (p >= 0).all()


@pytest.mark.holds("legendretron", 6)
def test_the_link_can_change_the_argmax():
    z = torch.tensor([[-0.1, -0.1]], dtype=torch.float64)
    assert log_softmax_plus(z).argmax().item() == 2
    assert log_softmax_plus(card_block()(z)).argmax().item() == 0


def test_first_training_batch_sets_the_norms():
    link = LegendreLink(3, hidden=4).double()
    z = 5 + 4 * torch.randn(64, 3, dtype=torch.float64)
    link.eval()(z)
    assert not link.started
    seen = {}
    for block in link.blocks:
        for norm in (*block.net.norms, block.net.last_norm):
            norm.register_forward_hook(lambda module, _, out: seen.__setitem__(module, out))
    link.train()(z)
    assert link.started
    assert len(seen) == 8
    for out in seen.values():
        torch.testing.assert_close(out.mean(0), torch.zeros_like(out[0]), atol=1e-9, rtol=0)
        torch.testing.assert_close(out.std(0, correction=0), torch.ones_like(out[0]), atol=1e-2, rtol=0)
    kept = copy.deepcopy(link.state_dict())
    link(-9 * z)
    assert all(torch.equal(kept[k], v) for k, v in link.state_dict().items())


def test_start_is_saved():
    first, second = LegendreLink(3), LegendreLink(3)
    z = torch.randn(16, 3)
    first(z)
    second.load_state_dict(first.state_dict())
    assert second.started
    assert torch.equal(second.train()(5 * z), first(5 * z))


def test_start_survives_constant_and_single_rows():
    for z in (torch.zeros(8, 3), torch.ones(1, 3)):
        link = LegendreLink(3)
        assert link(z).abs().max() < 100
    norm = ActNorm(1)
    norm.start(torch.full((4, 1), 3.0))
    assert norm.log_scale.item() == 0


def test_last_shift_is_frozen_and_everything_else_trains():
    link = LegendreLink(2)
    names = {name for name, _ in link.named_parameters()}
    assert not any("last_norm.shift" in name for name in names)
    link(torch.randn(8, 2)).sum().backward()
    assert all(p.grad is not None for p in link.parameters())


@pytest.mark.parametrize("classes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_trains_in_the_plain_loop_and_resumes(classes, tmp_path):
    torch.manual_seed(1)
    x = torch.randn(96, 5)
    y = (x @ torch.randn(5, classes)).argmax(-1)
    info = TaskInfo("multiclass" if classes > 2 else "binary", 96, classes, feature_dim=5)

    def build():
        torch.manual_seed(3)
        objective = LegendreTron.from_task(info)
        model = Network(nn.Identity(), objective.head(5, info))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        return Descent(model, objective, ArrayBatches(x, y, batch_size=32), optimizer=optimizer)

    run = build()
    assert not stackable(run.model)
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.fit(8).save(tmp_path / "run")
    assert run.model.head[1].started
    moved = [k for k, v in run.model.state_dict().items() if "w1" in k and not torch.equal(v, before[k])]
    assert len(moved) == 2
    resumed = build().resume(tmp_path / "run")
    for step in (run, resumed):
        step.fit(20)
    assert run.history[-1]["loss"] < 0.85 * run.history[0]["loss"]
    assert run.history == resumed.history
    chance = y.bincount().max() / 96
    assert (run.objective.predict(run.model(x)) == y).float().mean() > chance + 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_scores_and_autocast(dtype):
    link = LegendreLink(3)
    assert link(torch.randn(8, 3).to(dtype)).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert link(torch.randn(8, 3)).dtype == torch.float32


def test_making_the_objective_draws_nothing():
    torch.manual_seed(0)
    wanted = torch.rand(())
    torch.manual_seed(0)
    LegendreTron()
    assert torch.rand(()) == wanted


@pytest.mark.parametrize(
    "call",
    [
        lambda: LegendreTron(hidden=3),
        lambda: LegendreTron(blocks=0),
        lambda: LegendreTron(depth=0),
        lambda: InputConvexNet(0),
        lambda: LegendreLink(0),
        lambda: LegendreLink(2)(torch.zeros(3, 4)),
    ],
)
def test_refused(call):
    with pytest.raises(ValueError, match=": expected "):
        call()


def test_logits_are_no_log_probabilities():
    with pytest.raises(ValueError, match=r"outputs: expected log-probabilities <= 0, got 0\.5"):
        LegendreTron()(torch.tensor([[0.5, -1.0]]), torch.tensor([0]))
