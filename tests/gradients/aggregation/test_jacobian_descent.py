"""UPGrad, its optimizer and instance-wise risk minimisation, beside TorchJD and closed forms."""

from __future__ import annotations

import copy

import pytest
import torch
import torchjd.aggregation as peers
from torch import nn
from torchjd.autojac import backward as peer_backward
from torchjd.autojac import jac_to_grad, mtl_backward

from steepest.gradients import MGDA, JacobianDescent, Mean, PCGrad, Sum, UPGrad, backward, iwrm, project_dual_cone
from steepest.testing.aggregator import jacobians, stationary


def rows(*values, dtype=torch.float32):
    return torch.tensor(values, dtype=dtype)


@pytest.mark.holds("jacobian-descent", 1)
def test_nothing_conflicts():
    j = rows([1.0, 0.0], [-1.0, 1.0])
    torch.testing.assert_close(UPGrad()(j), torch.tensor([0.25, 0.75]))
    torch.testing.assert_close(UPGrad().weights(j @ j.T), torch.tensor([1.0, 0.75]))
    for jacobian in jacobians().values():
        wide = jacobian.double()
        d = UPGrad()(wide)
        # where rows are dependent, the direction is exact to 1e-6 of the rows
        assert (wide @ d >= -1e-6 * wide.norm(dim=1) * wide.mean(0).norm()).all()


@pytest.mark.holds("jacobian-descent", 2)
def test_without_conflict_it_is_the_mean():
    torch.testing.assert_close(UPGrad()(rows([1.0, 0.0], [1.0, 1.0])), torch.tensor([1.0, 0.5]))
    agreeing = jacobians()["agreeing"]
    torch.testing.assert_close(UPGrad()(agreeing), agreeing.mean(0))


@pytest.mark.holds("jacobian-descent", 3)
def test_linear_in_the_length_of_each_row():
    torch.testing.assert_close(UPGrad()(rows([10.0, 0.0], [-1.0, 1.0])), torch.tensor([2.5, 3.0]))
    j = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lengths = torch.tensor([1e-30, 1e8, 1e-8, 1.0], dtype=torch.float64)
    one_by_one = sum(UPGrad(p)(j) * s for p, s in zip(torch.eye(4, dtype=torch.float64) / 4, lengths))
    torch.testing.assert_close(UPGrad()(lengths.unsqueeze(1) * j), one_by_one, rtol=1e-9, atol=0.0)


@pytest.mark.holds("jacobian-descent", 4)
@pytest.mark.parametrize("name", ["typical 5x3", "typical 9x11", "rank 2", "more losses than parameters"])
def test_in_the_span_and_in_any_order(name):
    j = jacobians()[name].double()
    d = UPGrad()(j)
    rank = int(torch.linalg.matrix_rank(j))  # of "rank 2" not 2: float32 has rounded it
    across = torch.linalg.svd(j, full_matrices=True)[2][rank:]
    inside = d - across.T @ (across @ d)  # the projection onto the span of the rows
    # what cancels does so to a rounding of its size; of dependent rows the direction is exact to 1e-6 of the rows
    cancelled = UPGrad().weights(j @ j.T).abs() @ j.norm(dim=1) * torch.finfo(torch.float64).eps
    torch.testing.assert_close(inside, d, rtol=1e-9, atol=64 * float(cancelled))
    torch.testing.assert_close(UPGrad()(j.flip(0)), d, rtol=1e-7, atol=1e-6 * float(j.norm(dim=1).mean()))


@pytest.mark.holds("jacobian-descent", 5)
def test_one_row_and_rows_of_zeros():
    alone = rows([3.0, -4.0])
    assert torch.equal(UPGrad()(alone), alone[0])
    j = jacobians()["typical 3x7"]
    with_zeros = torch.cat([j, torch.zeros(2, 7)])
    torch.testing.assert_close(UPGrad()(with_zeros), UPGrad()(j) * 3 / 5)


def brought_to_one_length(name):
    """TorchJD takes a Jacobian of a norm below 1e-4 for zero, and weighs its regularisation by the longest row."""
    j = jacobians()[name].double()
    uneven = name in ("scaled by 1e-30", "scaled by 1e-10", "rows of many lengths")
    return j / j.norm(dim=1, keepdim=True) if uneven else j


@pytest.mark.holds("jacobian-descent", 6)
@pytest.mark.parametrize("name", jacobians())
def test_as_torchjd_nearly_without_its_regularisation(name):
    """Its error is in proportion to ``reg_eps``, by a factor of up to 400 where rows are dependent."""
    j = brought_to_one_length(name)
    exact = type(peers.UPGrad().projector)(reg_eps=1e-8)
    wanted = peers.UPGrad(projector=exact)(j)
    assert (UPGrad()(j) - wanted).norm() <= 1e-5 * j.mean(0).norm()


@pytest.mark.holds("jacobian-descent", 6)
@pytest.mark.parametrize("name", ["typical 3x7", "conflicting", "agreeing", "far from agreeing", "two alike"])
def test_as_torchjd(name):
    j = brought_to_one_length(name)
    assert (UPGrad()(j) - peers.UPGrad()(j)).norm() <= 1e-3 * j.mean(0).norm()


@pytest.mark.parametrize("name", jacobians())
def test_with_its_regularisation_it_is_torchjds(name):
    j = brought_to_one_length(name)
    own = UPGrad(reg_eps=1e-4)
    torch.testing.assert_close(own(j), peers.UPGrad()(j), rtol=1e-5, atol=1e-5 * float(j.mean(0).norm()))
    torch.testing.assert_close(own.weights(j @ j.T) @ j, own(j), rtol=1e-9, atol=1e-9 * float(j.mean(0).norm()))


def test_short_rows_bind_unless_regularised():
    """A fitted sample against one that is not: with a regularisation the short row lets the long one go its way."""
    j = rows([1.0, 0.0], [-1e-6, 1e-6], dtype=torch.float64)
    assert j[1] @ UPGrad()(j) >= 0
    torch.testing.assert_close(UPGrad(reg_eps=1e-4)(j), j.mean(0), rtol=1e-3, atol=1e-3)
    tiny, zero = 1e-200 * j, torch.zeros_like(j)
    torch.testing.assert_close(UPGrad(reg_eps=1e-4)(tiny) * 1e200, UPGrad(reg_eps=1e-4)(j))
    assert torch.equal(UPGrad(reg_eps=1e-4)(zero), zero[0])
    with pytest.raises(ValueError, match="reg_eps: expected a number >= 0"):
        UPGrad(reg_eps=-1.0)


def test_two_losses_in_closed_form():
    """w_1 = u_1 + u_2 max(0, -G12 / G11), and alike for w_2."""
    g = torch.Generator().manual_seed(1)
    for _ in range(20):
        j = torch.randn(2, 4, generator=g, dtype=torch.float64)
        gram = j @ j.T
        u = torch.tensor([0.3, 0.9], dtype=torch.float64)
        along = (-gram[0, 1]).clamp_min(0.0)
        wanted = torch.stack([u[0] + u[1] * along / gram[0, 0], u[1] + u[0] * along / gram[1, 1]])
        torch.testing.assert_close(UPGrad(u).weights(gram), wanted, rtol=1e-10, atol=0.0)


@pytest.mark.parametrize("cls", [UPGrad, MGDA])
def test_opposite_gradients_give_zero(cls):
    """A quadratic program without a strictly feasible point; more losses than parameters, duplicates."""
    for j in (rows([1.0, 0.0], [-1.0, 0.0]), rows([1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]), *stationary().values()):
        torch.testing.assert_close(cls()(j), torch.zeros(j.shape[1]), atol=1e-6, rtol=0.0)


def test_tiny_conflicts_are_seen():
    """Squares of a row below 1e-23 underflow in float32."""
    torch.testing.assert_close(
        PCGrad()(rows([1.0, 1.0], [-1e-25, 1e-26])), torch.tensor([0.108911, 1.089109]), rtol=1e-5, atol=0.0
    )


@pytest.mark.holds("mgda")
def test_mgda_is_the_shortest_in_the_hull():
    g = torch.Generator().manual_seed(2)
    for m, n in ((2, 3), (4, 6), (5, 3)):
        j = (
            torch.randn(m, n, generator=g, dtype=torch.float64)
            * torch.tensor([[1e-3], [1.0], [30.0], [1.0], [5.0]])[:m]
        )
        d = MGDA()(j)
        # of the shortest vector: no row's product with it is less than its own square
        assert (j @ d >= d @ d - 1e-9 * j.norm() * d.norm()).all()
        assert min(float((j @ d).min() - d @ d), 0.0) >= -1e-9 * float(j.norm() * d.norm())
    torch.testing.assert_close(MGDA()(rows([2.0, 0.0], [0.0, 1.0])), torch.tensor([0.4, 0.8]))
    assert torch.equal(MGDA()(rows([2.0, 0.0], [0.0, 0.0])), torch.zeros(2))


@pytest.mark.parametrize("name", ["typical 2x9", "conflicting", "two alike"])
def test_pcgrad_as_torchjd_with_two_losses(name):
    j = jacobians()[name].double()
    torch.testing.assert_close(PCGrad()(j), peers.PCGrad()(j))
    torch.testing.assert_close(PCGrad("mean")(j), peers.PCGrad()(j) / 2)


@pytest.mark.holds("pcgrad")
def test_pcgrad_is_the_loop_over_gradients():
    """In its own orders, read from the same generator."""
    j = jacobians()["typical 9x11"].double()
    order = torch.rand(9, 9, generator=torch.Generator().manual_seed(5)).fill_diagonal_(2.0).argsort(1)[:, :8]
    total = torch.zeros(11, dtype=torch.float64)
    for i in range(9):
        own = j[i].clone()
        for k in order[i]:
            if own @ j[k] < 0:
                own -= own @ j[k] / (j[k] @ j[k]) * j[k]
        total += own
    torch.testing.assert_close(PCGrad(generator=torch.Generator().manual_seed(5))(j), total)


def test_projections_are_averaged():
    j = jacobians()["typical 5x3"]
    torch.testing.assert_close(project_dual_cone(j).mean(0), UPGrad()(j))
    assert project_dual_cone(torch.zeros(0, 3)).shape == (0, 3)


def test_preferences():
    j = rows([1.0, 0.0], [-1.0, 1.0])
    torch.testing.assert_close(UPGrad(torch.tensor([1.0, 0.0]))(j), torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match="pref_vector: expected numbers >= 0"):
        UPGrad(torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="jacobian: expected 3 rows, as pref_vector"):
        UPGrad(torch.ones(3))(j)


def two_heads(seed=0):
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    return body, nn.Linear(4, 1), nn.Linear(4, 2)


X = torch.linspace(-1, 1, 15).view(5, 3)


def losses_of(body, first, second):
    features = body(X)
    return features, [first(features).square().mean(), second(features).tanh().sum()]


@pytest.mark.holds("joint-gradients")
@pytest.mark.parametrize("aggregator", [UPGrad, MGDA, PCGrad, Mean, Sum])
def test_heads_get_their_own_gradient(aggregator):
    """And the shared part the aggregated one, as by TorchJD's functions."""
    ours, theirs = two_heads(), two_heads()
    features, losses = losses_of(*ours)
    backward(losses, features=features, aggregator=aggregator())
    features, losses = losses_of(*theirs)
    mtl_backward(losses, features=features)
    shared = list(theirs[0].parameters())
    direction = aggregator()(torch.cat([p.jac.flatten(1) for p in shared], 1))
    own = torch.cat([p.grad.flatten() for p in ours[0].parameters()])
    torch.testing.assert_close(own, direction)
    for a, b in zip(ours[1:], theirs[1:]):
        for p, q in zip(a.parameters(), b.parameters()):
            torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("aggregator", [UPGrad, MGDA, PCGrad, Mean])
def test_ours_in_torchjds_engine(aggregator):
    ours, theirs = two_heads(), two_heads()
    shared = [list(net[0].parameters()) for net in (ours, theirs)]
    backward(losses_of(*ours)[1], shared[0], aggregator=aggregator())
    peer_backward(losses_of(*theirs)[1], inputs=shared[1])
    jac_to_grad(shared[1], aggregator())
    for p, q in zip(*shared):
        torch.testing.assert_close(p.grad, q.grad)


THEIRS = {
    "AlignedMTL": peers.AlignedMTL(), "ConFIG": peers.ConFIG(), "Constant": peers.Constant(torch.tensor([0.3, 0.7])),
    "DualProj": peers.DualProj(), "IMTLG": peers.IMTLG(), "MGDA": peers.MGDA(),
    "Mean": peers.Mean(), "PCGrad": peers.PCGrad(), "GradDrop": peers.GradDrop(), "GradVac": peers.GradVac(),
    "Random": peers.Random(), "Sum": peers.Sum(), "TrimmedMean": peers.TrimmedMean(0), "UPGrad": peers.UPGrad(),
}  # fmt: skip


@pytest.mark.parametrize("name", THEIRS)
def test_theirs_in_our_loop(name):
    ours, theirs = two_heads(), two_heads()
    shared = [list(net[0].parameters()) for net in (ours, theirs)]
    torch.manual_seed(0)
    backward(losses_of(*ours)[1], shared[0], aggregator=copy.deepcopy(THEIRS[name]))
    peer_backward(losses_of(*theirs)[1], inputs=shared[1])
    torch.manual_seed(0)
    jac_to_grad(shared[1], copy.deepcopy(THEIRS[name]))
    for p, q in zip(*shared):
        torch.testing.assert_close(p.grad, q.grad)


def test_gradients_add_up_and_the_graph_is_freed():
    net = two_heads()
    shared = list(net[0].parameters())
    losses = losses_of(*net)[1]
    backward(losses, shared, aggregator=Mean(), retain_graph=True)
    first = [p.grad.clone() for p in shared]
    backward(losses, shared, aggregator=Mean())
    for p, once in zip(shared, first):
        torch.testing.assert_close(p.grad, 2 * once)
    assert all(p.grad is None for head in net[1:] for p in head.parameters())
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        backward(losses, shared, aggregator=Mean())


@pytest.mark.holds("mean-gradient")
def test_a_mean_over_everything_is_a_plain_backward():
    ours, plain = two_heads(), two_heads()
    backward(torch.stack(losses_of(*ours)[1]), aggregator=Sum())
    sum(losses_of(*plain)[1]).backward()
    for a, b in zip(ours, plain):
        for p, q in zip(a.parameters(), b.parameters()):
            torch.testing.assert_close(p.grad, q.grad)


def test_columns_stand_in_the_order_of_the_parameters():
    a, b, unused = (torch.tensor([value], requires_grad=True) for value in (1.0, 2.0, 3.0))
    seen = []

    def aggregator(jacobian):
        seen.append(jacobian)
        return jacobian.sum(0)

    for order in ([a, unused, b], [b, a]):
        backward([(3 * a + 5 * b).sum(), 7 * a.sum()], order, aggregator=aggregator)
    torch.testing.assert_close(seen, [torch.tensor([[3.0, 5.0], [7.0, 0.0]]), torch.tensor([[5.0, 3.0], [0.0, 7.0]])])
    assert unused.grad is None


def test_frozen_and_half_parameters():
    net = two_heads()
    net[0][0].weight.requires_grad_(False)
    backward(losses_of(*net)[1], aggregator=UPGrad())
    assert net[0][0].weight.grad is None
    assert net[0][0].bias.grad is not None
    w = torch.tensor([1.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
    backward([w[0], w[1] - w[0]], [w], aggregator=UPGrad())
    assert w.grad.dtype == torch.bfloat16
    torch.testing.assert_close(w.grad, torch.tensor([0.25, 0.75], dtype=torch.bfloat16))


def test_what_backward_refuses():
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match="losses: expected losses that depend on parameters"):
        backward([torch.zeros(())], aggregator=Mean())
    with pytest.raises(ValueError, match="parameters: expected at least one that the losses depend on"):
        backward([w.sum()], [torch.ones(2, requires_grad=True)], aggregator=Mean())
    with pytest.raises(ValueError, match=r"aggregator: expected shape \(2\)"):
        backward([w.sum(), w[0]], aggregator=lambda jacobian: jacobian)
    body, head, _ = two_heads()
    features = body(X)
    with pytest.raises(ValueError, match="features: expected tensors through which all paths"):
        backward([head(features).sum() + body[0].weight.sum()], features=features, aggregator=Mean())
    with pytest.raises(TypeError, match="losses: expected a tensor"):
        backward([1.0], aggregator=Mean())
    with pytest.raises(ValueError, match="losses: expected 0 dimensions"):
        backward([w], aggregator=Mean())
    with pytest.raises(TypeError, match="parameters: expected tensors"):
        backward([w.sum()], [1.0], aggregator=Mean())


def test_a_step_and_its_state():
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    descent = JacobianDescent(torch.optim.SGD([w], lr=1.0, momentum=0.9))
    assert descent.param_groups is descent.optimizer.param_groups
    descent.step([w[0] * 1.0, w[1] - w[0]])
    torch.testing.assert_close(w.data, torch.tensor([0.75, 1.25]))
    twin = nn.Parameter(w.detach().clone())
    again = JacobianDescent(torch.optim.SGD([twin], lr=1.0, momentum=0.9))
    again.load_state_dict(copy.deepcopy(descent.state_dict()))
    for own, parameter in ((descent, w), (again, twin)):
        own.step([parameter[0] * 1.0, parameter[1] - parameter[0]])
    assert torch.equal(w, twin)
    torch.testing.assert_close(w.data, torch.tensor([0.75 - 1.9 * 0.25, 1.25 - 1.9 * 0.75]))


def test_each_sample_is_an_objective():
    model, x, y = nn.Linear(3, 2), torch.randn(6, 3), torch.arange(6) % 2
    losses = nn.functional.cross_entropy(model(x), y, reduction="none")
    per_sample = [torch.autograd.grad(loss, model.parameters(), retain_graph=True) for loss in losses]
    jacobian = torch.stack([torch.cat([g.flatten() for g in own]) for own in per_sample])
    iwrm(losses)
    own = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(own, peers.UPGrad()(jacobian.double()).float(), rtol=1e-3, atol=1e-4)
