import math

import networkx as nx
import numpy as np
import pytest
import torch

from steepest.core.graphs import undirected_edges
from steepest.losses import MetaNodeContrastiveLoss, deep_cluster_kl, pamc_loss
from steepest.losses.contrastive.pamc import influence_graph, student_assignment, target_distribution

Z = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-0.6, 0.8]], dtype=torch.float64)
PATH = undirected_edges(torch.tensor([[0, 1, 2], [1, 2, 3]]), 4)
PAIRS = torch.tensor([0, 0, 1, 1])


def graph_of(order=1, cumulative=True):
    return influence_graph(PATH, 4, order, cumulative=cumulative, dtype=torch.float64)


def by_loops(z, assignment, edges, weight, tau):
    """The equations, an edge and a pair of clusters at a time."""
    z = z.double().numpy()

    def cosine(a, b):
        norm = np.linalg.norm(a) * np.linalg.norm(b)
        return float(a @ b / norm) if norm else 0.0

    positive = np.zeros(len(z))
    for (i, j), w in zip(edges.T.tolist(), weight.tolist()):
        positive[i] += w * math.exp(tau * (cosine(z[i], z[j]) if i != j else 0.0))
    clusters = sorted(set(assignment.tolist()))
    metas = [z[(assignment == k).numpy()].sum(0) for k in clusters]
    negative = [sum(math.exp(tau * (cosine(a, b) if a is not b else 0.0)) for b in metas) for a in metas]
    return -np.mean(np.log(positive)) + np.mean(np.log(negative))


def random_graph(seed=0, nodes=34, dtype=torch.float64):
    edges = torch.tensor(list(nx.karate_club_graph().edges)).T
    index, weight = influence_graph(undirected_edges(edges, nodes), nodes, 3, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(nodes, 5, generator=generator, dtype=torch.float64).to(dtype)
    return z, torch.randint(4, (nodes,), generator=generator), index, weight


@pytest.mark.holds("pamc", 1)
def test_two_clusters_on_a_path():
    assert pamc_loss(Z, PAIRS, *graph_of()).item() == pytest.approx(0.459564, abs=5e-7)
    assert by_loops(Z, PAIRS, *graph_of(), 0.5) == pytest.approx(0.459564, abs=5e-7)


@pytest.mark.holds("pamc", 2)
def test_clusters_of_one_node_are_the_loss_over_all_pairs():
    edges, weight = graph_of()
    ours = pamc_loss(Z, torch.arange(4), edges, weight)
    assert ours.item() == pytest.approx(1.276461, abs=5e-7)
    z, _, edges, weight = random_graph()
    unit = z / z.norm(dim=1, keepdim=True)
    terms = (1.2 * (unit @ unit.T)).fill_diagonal_(0.0).exp()
    dense = torch.zeros(34, 34, dtype=torch.float64).index_put((edges[0], edges[1]), weight)
    full = -((dense * terms).sum(1) / terms.sum(1)).log().mean()
    torch.testing.assert_close(pamc_loss(z, torch.arange(34), edges, weight, tau=1.2), full, atol=1e-12, rtol=0)


@pytest.mark.holds("pamc", 3)
def test_soft_clusters_their_targets_and_the_divergence():
    z = torch.tensor([[0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    near = student_assignment(z[:1], torch.tensor([[0.5, 0.0], [0.0, 2.0]], dtype=torch.float64))
    far = student_assignment(z[:1], torch.tensor([[1.0, 0.0], [0.0, -1.0]], dtype=torch.float64))
    q = torch.cat([near, far])
    torch.testing.assert_close(q, torch.tensor([[0.8, 0.2], [0.5, 0.5]], dtype=torch.float64))
    p = target_distribution(q)
    torch.testing.assert_close(p, torch.tensor([[0.896, 0.104], [0.35, 0.65]], dtype=torch.float64))
    assert deep_cluster_kl(q).item() == pytest.approx(0.039617, abs=5e-7)
    q.requires_grad_()
    assert not target_distribution(q).requires_grad
    (slope,) = torch.autograd.grad(deep_cluster_kl(q), q)
    torch.testing.assert_close(slope, -p / q.detach() / 2)
    wanted = torch.nn.functional.kl_div(q.log(), p.flip(0), reduction="batchmean")
    torch.testing.assert_close(deep_cluster_kl(q, p.flip(0)), wanted)
    constant = p.flip(0).requires_grad_()
    assert torch.autograd.grad(deep_cluster_kl(q, constant), constant, allow_unused=True) == (None,)
    sure = torch.tensor([[1.0, 0.0], [0.5, 0.5]], requires_grad=True)
    value = deep_cluster_kl(sure)
    assert value.isfinite()
    assert torch.autograd.grad(value, sure)[0].isfinite().all()
    assert deep_cluster_kl(torch.tensor([[1.0, 0.0]])).item() == 0


@pytest.mark.holds("pamc", 4)
def test_a_common_scale_changes_nothing_and_that_of_one_node_does():
    z, assignment, edges, weight = random_graph()
    value = pamc_loss(z, assignment, edges, weight)
    torch.testing.assert_close(pamc_loss(1e3 * z, assignment, edges, weight), value)
    one = z.clone()
    one[0] *= 5
    assert abs(float(pamc_loss(one, assignment, edges, weight) - value)) > 1e-3


@pytest.mark.holds("pamc", 5)
def test_empty_clusters_do_not_count_and_isolated_nodes_are_refused():
    edges, weight = graph_of()
    value = pamc_loss(Z, PAIRS, edges, weight)
    for assignment, clusters in ((3 * PAIRS + 1, None), (PAIRS, 7), (2 * PAIRS, 3)):
        torch.testing.assert_close(pamc_loss(Z, assignment, edges, weight, clusters=clusters), value)
    with pytest.raises(
        ValueError, match=r"edge_index: expected an edge of positive weight from every node, got .none from 1"
    ):
        pamc_loss(Z, PAIRS, edges[:, edges[0] != 2], weight[edges[0] != 2])
    with pytest.raises(ValueError, match="an edge of positive weight"):
        pamc_loss(Z, PAIRS, edges, torch.where(edges[0] == 2, 0.0, weight))
    loops = torch.arange(4).expand(2, -1)
    lonely = pamc_loss(Z, PAIRS, loops, torch.ones(4, dtype=torch.float64))  # a self-loop counts e^0
    assert lonely.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("tau", [0.25, 1.5, 30.0])
def test_the_loss_is_that_of_loops(tau):
    z, assignment, edges, weight = random_graph()
    wanted = by_loops(z, assignment, edges, weight, tau)
    assert pamc_loss(z, assignment, edges, weight, tau=tau).item() == pytest.approx(wanted, rel=1e-12)
    assert pamc_loss(z.float(), assignment, edges, weight.float(), tau=tau).item() == pytest.approx(wanted, rel=1e-5)
    shuffled = torch.randperm(edges.shape[1])
    assert pamc_loss(z, assignment.int(), edges[:, shuffled].int(), weight[shuffled], tau=tau).item() == pytest.approx(
        wanted
    )


@pytest.mark.parametrize(("order", "cumulative"), [(1, True), (3, True), (3, False)])
def test_the_influence_graph_sums_powers(order, cumulative):
    a = torch.zeros(4, 4, dtype=torch.float64)
    a[PATH[0], PATH[1]] = 1
    step = (a + torch.eye(4)) / (a.sum(1, keepdim=True) + 1)
    powers = [torch.linalg.matrix_power(step, p) for p in range(1, order + 1)]
    wanted = sum(powers) if cumulative else powers[-1]
    edges, weight = graph_of(order, cumulative)
    ours = torch.zeros(4, 4, dtype=torch.float64).index_put((edges[0], edges[1]), weight)
    torch.testing.assert_close(ours, wanted)
    assert edges.shape[1] == int((wanted > 0).sum())
    assert influence_graph(PATH, 4, 2)[1].dtype == torch.float32


def test_zero_rows_large_taus_and_nothing():
    z, assignment, edges, weight = random_graph(dtype=torch.float32)
    z[assignment == 1] = 0.0  # a meta-node of norm 0, and rows without a direction
    z.requires_grad_()
    for tau in (0.5, 1e4):
        value = pamc_loss(z, assignment, edges, weight, tau=tau)
        assert value.isfinite()
        assert torch.autograd.grad(value, z)[0].isfinite().all()
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    assert pamc_loss(opposite, torch.tensor([0, 0]), torch.arange(2).expand(2, -1), torch.ones(2)).isfinite()
    none = torch.empty(0, 3, requires_grad=True)
    nothing = pamc_loss(none, torch.empty(0).long(), torch.empty(2, 0).long(), torch.empty(0))
    assert nothing.item() == 0
    assert torch.autograd.grad(nothing, none)[0].shape == (0, 3)
    assert deep_cluster_kl(torch.empty(0, 3)).item() == 0


def test_the_module_adds_both_with_hard_clusters_as_constants():
    z, _, edges, weight = random_graph()
    centers = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    z.requires_grad_()
    q = student_assignment(z, centers)
    loss = MetaNodeContrastiveLoss(tau=0.8, alpha=2.0, beta=3.0)
    target = target_distribution(q.flip(0))
    value = loss(z, q, edges, weight, target)
    wanted = 2 * pamc_loss(z, q.argmax(1), edges, weight, tau=0.8) + 3 * deep_cluster_kl(q, target)
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(2 * loss.terms["contrast"] + 3 * loss.terms["divergence"], value.detach())
    slopes = torch.autograd.grad(value, [z, centers], retain_graph=True)
    torch.testing.assert_close(slopes, torch.autograd.grad(wanted, [z, centers], retain_graph=True))
    (alone,) = torch.autograd.grad(MetaNodeContrastiveLoss(beta=0.0)(z, q, edges, weight), centers)
    assert not alone.any()


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("tau: expected", lambda: MetaNodeContrastiveLoss(tau=0.0)),
        ("alpha: expected", lambda: MetaNodeContrastiveLoss(alpha=-1.0)),
        ("beta: expected", lambda: MetaNodeContrastiveLoss(beta=math.inf)),
        ("order: expected", lambda: influence_graph(PATH, 4, 0)),
        ("assignment: expected values in 0..1", lambda: pamc_loss(Z, 2 * PAIRS, *graph_of(), clusters=2)),
        ("assignment: expected shape", lambda: pamc_loss(Z, PAIRS[:3], *graph_of())),
        ("edge_weight: expected values >= 0", lambda: pamc_loss(Z, PAIRS, graph_of()[0], -graph_of()[1])),
        ("edge_weight: expected shape", lambda: pamc_loss(Z, PAIRS, graph_of()[0], graph_of()[1][1:])),
        ("edge_index: expected values in 0..3", lambda: pamc_loss(Z, PAIRS, graph_of()[0] + 1, graph_of()[1])),
        ("centers: expected shape", lambda: student_assignment(Z, torch.zeros(2, 3))),
        ("target: expected shape", lambda: deep_cluster_kl(torch.ones(2, 2), torch.ones(2, 3))),
        ("q: expected", lambda: MetaNodeContrastiveLoss()(Z, torch.ones(3, 2), *graph_of())),
        ("q: expected one cluster", lambda: MetaNodeContrastiveLoss()(Z, torch.ones(4, 0), *graph_of())),
    ],
)
def test_wrong_arguments_are_named(words, call):
    with pytest.raises(ValueError, match=words):
        call()


def test_wrong_types_are_named():
    with pytest.raises(TypeError, match="assignment: expected clusters of an integer type"):
        pamc_loss(Z, PAIRS.bool(), *graph_of())
