"""Flat multi-task gradients: closed forms, exact restoration, and what splitting changes."""

from __future__ import annotations

import copy

import pytest
import torch
import torchjd.aggregation as peers
from torch import nn

from steepest.gradients import FSMTL, FlatMTL, Mean, PCGrad, UPGrad, task_sharpness_aware

X = torch.linspace(-1, 1, 24, dtype=torch.float64).view(8, 3)


def network(seed=0):
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh())
    return nn.ModuleList([body, nn.Linear(4, 1), nn.Linear(4, 2)]).double()


def closures_of(net):
    body, first, second = net
    return [lambda: first(body(X)).square().mean(), lambda: (second(body(X)).tanh() - 1).square().sum()]


def gradients(net):
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def by_hand(net, rho):
    """Each task's gradient and sharpness-aware gradient over body and own head, on copies."""
    pairs = []
    for task in range(2):
        twin = copy.deepcopy(net)
        own = [*twin[0].parameters(), *twin[1 + task].parameters()]
        g = torch.autograd.grad(closures_of(twin)[task](), own)
        norm = torch.cat([v.flatten() for v in g]).norm()
        with torch.no_grad():
            for p, v in zip(own, g):
                p += rho * v / (norm + 1e-12)
        flat = torch.autograd.grad(closures_of(twin)[task](), own)
        pairs.append((torch.cat([v.flatten() for v in g]), torch.cat([v.flatten() for v in flat])))
    return pairs


SHARED = sum(p.numel() for p in network()[0].parameters())


@pytest.mark.holds("flat-mtl", 1)
def test_with_the_mean_both_forms_are_the_mean_of_sharpness_aware_gradients():
    wanted = torch.stack([flat[:SHARED] for _, flat in by_hand(network(), 0.05)]).mean(0)
    heads = torch.cat([flat[SHARED:] for _, flat in by_hand(network(), 0.05)])
    for split in (True, False):
        net = network()
        FlatMTL(net[0], [net[1], net[2]], Mean(), split=split).backward(closures_of(net))
        torch.testing.assert_close(gradients(net), torch.cat([wanted, heads]), rtol=1e-9, atol=1e-12)


@pytest.mark.holds("flat-mtl", 2)
@pytest.mark.parametrize("aggregator", [UPGrad(), PCGrad(), peers.MGDA()])
def test_at_radius_zero_the_aggregator_alone_is_left(aggregator):
    net = network()
    jacobian = torch.stack([g[:SHARED] for g, _ in by_hand(net, 0.0)])
    FlatMTL(net[0], [net[1], net[2]], aggregator, rho=0.0).backward(closures_of(net))
    torch.testing.assert_close(gradients(net[0]), aggregator(jacobian))
    distances = []
    for rho in (1e-2, 1e-3, 1e-4):
        near = network()
        FlatMTL(near[0], [near[1], near[2]], aggregator, rho=rho).backward(closures_of(near))
        distances.append(float((gradients(near[0]) - aggregator(jacobian)).norm()))
    assert distances[0] > distances[1] > distances[2], "it goes to the aggregator as the radius goes to 0"


@pytest.mark.holds("flat-mtl", 3)
def test_one_task_is_sharpness_aware_minimisation():
    net = network()
    FlatMTL(net[0], [net[1]], Mean(), rho=0.1).backward(closures_of(net)[:1])
    _, flat = by_hand(network(), 0.1)[0]
    torch.testing.assert_close(torch.cat([gradients(net[0]), gradients(net[1])]), flat)


@pytest.mark.holds("flat-mtl", 4)
def test_a_quadratic():
    s = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def loss():
        return 0.5 * (torch.tensor([1.0, 10.0]) * s * s).sum()

    g, flat = task_sharpness_aware(loss, [s], rho=0.1)
    torch.testing.assert_close(flat[0], torch.tensor([1.009950, 10.995037], dtype=torch.float64), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(
        flat[0] - g[0], torch.tensor([0.009950, 0.995037], dtype=torch.float64), rtol=1e-4, atol=0.0
    )
    FlatMTL([s], [[]], Mean(), rho=0.1).backward([loss])
    torch.testing.assert_close(s.grad, flat[0])


@pytest.mark.holds("flat-mtl", 5)
def test_apart_and_together_differ_where_the_aggregator_is_not_additive():
    """Losses conflict along the first axis; both are flatter along the second."""
    s = nn.Parameter(torch.tensor([0.3, 1.0], dtype=torch.float64))
    tasks = [lambda: s[0] + s[1] ** 4, lambda: -s[0] + 0.5 * s[1] ** 4]
    results, g, f = [], [], []
    for task in tasks:
        own, flat = task_sharpness_aware(task, [s], rho=0.2)
        g.append(own[0])
        f.append(flat[0] - own[0])
    assert torch.stack(f)[0] @ torch.stack(f)[1] > 0
    for split in (True, False):
        s.grad = None
        FlatMTL([s], [[], []], PCGrad(), rho=0.2, split=split).backward(tasks)
        results.append(s.grad)
    apart = peers.PCGrad()(torch.stack(g)) + peers.PCGrad()(torch.stack(f))
    together = peers.PCGrad()(torch.stack(g) + torch.stack(f))
    torch.testing.assert_close(results, [apart, together])
    conflicting = nn.Parameter(torch.tensor([0.3, 0.1], dtype=torch.float64))
    both = [
        lambda: conflicting[0] ** 2 + conflicting[1] ** 2,
        lambda: -(conflicting[0] ** 2) * 0.5 + 8 * conflicting[1] ** 4,
    ]
    results = []
    for split in (True, False):
        conflicting.grad = None
        FlatMTL([conflicting], [[], []], PCGrad(), rho=0.2, split=split).backward(both)
        results.append(conflicting.grad)
    assert (results[0] - results[1]).abs().max() > 1e-3


@pytest.mark.holds("flat-mtl", 6)
def test_parameters_and_statistics_are_as_after_one_pass_of_each_task():
    net, plain = network(), network()
    before = copy.deepcopy([p.data for p in net.parameters()])
    losses = FlatMTL(net[0], [net[1], net[2]], UPGrad()).backward(closures_of(net))
    assert all(torch.equal(p, b) for p, b in zip(net.parameters(), before))
    wanted = torch.stack([closure().detach() for closure in closures_of(plain)])
    assert torch.equal(losses, wanted)
    for own, once in zip(net.buffers(), plain.buffers()):
        assert torch.equal(own, once)


def test_dropout_masks_are_those_of_the_first_pass():
    torch.manual_seed(0)
    body, head = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5)).double(), nn.Linear(8, 1).double()
    masks = []

    def closure():
        features = body(X)
        masks.append(features == 0)
        return head(features).square().mean()

    FlatMTL(body, [head], Mean()).backward([closure])
    assert torch.equal(*masks)


def test_the_adaptive_radius_and_parameters_for_modules():
    net, twin = network(), network()
    FlatMTL(net[0], [net[1], net[2]], Mean(), adaptive=True).backward(closures_of(net))
    FSMTL(
        twin[0].parameters(), [twin[1].parameters(), twin[2].parameters()], Mean(), adaptive=True, modules=[twin]
    ).backward(closures_of(twin))
    assert torch.equal(gradients(net), gradients(twin))
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), twin.buffers()))
    plain = network()
    FlatMTL(plain[0], [plain[1], plain[2]], Mean()).backward(closures_of(plain))
    assert not torch.equal(gradients(net), gradients(plain))


def test_what_it_refuses():
    net = network()
    flat = FlatMTL(net[0], [net[1], net[2]], Mean())
    with pytest.raises(ValueError, match="closures: expected 2 functions, one a task"):
        flat.backward(closures_of(net)[:1])
    with pytest.raises(ValueError, match="closures: expected 0 dimensions"):
        flat.backward([lambda: net[0](X), lambda: net[0](X)])
    with pytest.raises(ValueError, match="rho: expected a number >= 0"):
        FlatMTL(net[0], [net[1]], Mean(), rho=-0.1)
    with pytest.raises(TypeError, match="aggregator: expected a callable"):
        FlatMTL(net[0], [net[1]], None)
    with pytest.raises(ValueError, match="shared: expected at least one parameter"):
        FlatMTL([], [net[1]], Mean())
    with pytest.raises(TypeError, match="heads: expected a module or parameters"):
        FlatMTL(net[0], [[1.0]], Mean())
    with pytest.raises(ValueError, match=r"aggregator: expected shape"):
        FlatMTL(net[0], [net[1], net[2]], lambda jacobian: jacobian.sum(1)).backward(closures_of(net))
