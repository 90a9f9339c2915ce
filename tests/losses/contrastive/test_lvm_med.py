"""Matching of graphs against known numbers and all permutations, and the gradient through the solver."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from steepest.losses.contrastive import BlackboxMatching, GraphMatchingLoss, graph_matching_loss, match_graphs
from steepest.losses.contrastive.lvm_med import neighbour_edges

C = torch.tensor([[0.9, 0.2, 0.1], [0.3, 0.5, 0.6], [0.2, 0.7, 0.4]], dtype=torch.float64)
EYE = torch.eye(3, dtype=torch.float64)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hamming(v):
    eye = torch.eye(len(v), dtype=v.dtype)
    return (v * (1 - eye) + eye * (1 - v)).sum()


def edges_of(nodes):
    """All directed edges."""
    return torch.tensor([(i, j) for i in range(nodes) for j in range(nodes) if i != j])


def objective(p, c, e, edges_s, edges_t):
    """By the definition, an edge pair after the other."""
    total = sum(float(c[i, a]) for i, a in enumerate(p))
    for row, (i, j) in enumerate(edges_s.tolist()):
        for column, (a, b) in enumerate(edges_t.tolist()):
            total += float(e[row, column]) if p[i] == a and p[j] == b else 0.0
    return total


def random_problem(nodes, seed):
    edges_s, edges_t = (
        neighbour_edges(drawn(nodes, 3, seed=seed), 2),
        neighbour_edges(drawn(nodes, 3, seed=seed + 50), 2),
    )
    return drawn(nodes, nodes, seed=seed + 100), drawn(len(edges_s), len(edges_t), seed=seed + 150), edges_s, edges_t


@pytest.mark.holds("lvm-med", 1)
def test_known_matching_of_nodes():
    p = match_graphs(C)
    assert p.tolist() == [0, 2, 1]
    assert hamming(EYE[p]) == 4
    assert C[range(3), p].sum().item() == pytest.approx(2.2)
    assert C.trace().item() == pytest.approx(1.8)
    assert hamming(BlackboxMatching()(C)) == 4


@pytest.mark.holds("lvm-med", 2)
def test_known_gradients():
    wanted = torch.tensor([[0.0, 0.0, 0.0], [0.0, -1.0, 1.0], [0.0, 1.0, -1.0]], dtype=torch.float64)
    for lam, moved in ((0.2, wanted), (0.05, torch.zeros_like(wanted))):
        leaf = C.clone().requires_grad_()
        (slope,) = torch.autograd.grad(hamming(BlackboxMatching(lam)(leaf)), leaf)
        torch.testing.assert_close(lam * slope, moved)


@pytest.mark.holds("lvm-med", 3)
def test_edges_tell_the_identity():
    u_s = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    u_t = torch.tensor([[0.9, 0.1], [0.1, 0.8], [-0.7, 0.3]], dtype=torch.float64)
    edges = edges_of(3)
    apart = [u[edges[:, 0]] - u[edges[:, 1]] for u in (u_s, u_t)]
    e = torch.nn.functional.cosine_similarity(apart[0][:, None], apart[1][None], dim=-1)
    for solver in ("faq", "exact", None):
        assert match_graphs(C, e, edges, edges, solver).tolist() == [0, 1, 2]
    assert objective([0, 1, 2], C, e, edges, edges) == pytest.approx(7.728909, abs=1e-6)
    assert objective([0, 2, 1], C, e, edges, edges) == pytest.approx(3.335075, abs=1e-6)


@pytest.mark.holds("lvm-med", 4)
def test_a_correct_matching_has_no_gradient_and_a_step_never_lowers_true_affinities():
    u = drawn(6, 4).requires_grad_()
    near = (u + 0.01 * drawn(6, 4, seed=1)).detach()
    for knn in (0, 3):
        loss = graph_matching_loss(u, near, knn=knn, lam=1e-3)
        assert loss == 0
        assert not torch.autograd.grad(loss, u)[0].any()
    for seed in range(20):
        leaf = drawn(6, 6, seed=seed).requires_grad_()
        for lam in (0.3, 3.0):
            (slope,) = torch.autograd.grad(hamming(BlackboxMatching(lam)(leaf)), leaf)
            assert slope.trace() <= 0
            c, e, *edges = random_problem(5, seed)
            c.requires_grad_()
            v, _ = BlackboxMatching(lam, "exact")(c, e, *edges)
            assert torch.autograd.grad(hamming(v), c)[0].trace() <= 0


@pytest.mark.holds("lvm-med", 5)
def test_exact_is_the_best_and_permutations_carry_over():
    missed = 0
    for seed in range(6):
        c, e, *edges = random_problem(5, seed)
        best = max(itertools.permutations(range(5)), key=lambda p: objective(p, c, e, *edges))
        exact, faq = (match_graphs(c, e, *edges, solver=s).tolist() for s in ("exact", "faq"))
        assert exact == list(best)
        value = objective(faq, c, e, *edges)
        assert objective(best, c, e, *edges) >= value
        assert value >= objective(match_graphs(c).tolist(), c, e, *edges)
        missed += exact != faq
        order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
        place = order.argsort()  # node i of the new problem is order[i] of the old one
        for solver, old in (("exact", exact), ("faq", faq)):
            rows = match_graphs(c[order], e, place[edges[0]], edges[1], solver).tolist()
            assert rows == [old[i] for i in order.tolist()]
            columns = match_graphs(c[:, order], e, edges[0], place[edges[1]], solver).tolist()
            assert columns == [int(place[a]) for a in old]
    assert missed <= 3


def test_the_loss_is_the_layers_and_its_chain_rule():
    u_s, u_t, local = drawn(5, 3).requires_grad_(), drawn(5, 3, seed=1).requires_grad_(), drawn(5, 5, seed=2)
    unit_s, unit_t = (torch.nn.functional.normalize(u) for u in (u_s, u_t))
    edges = [neighbour_edges(u, 2) for u in (u_s, u_t)]
    apart = [torch.nn.functional.normalize(u[g[:, 0]] - u[g[:, 1]]) for u, g in zip((u_s, u_t), edges)]
    c, e = 0.6 * unit_s @ unit_t.T + 0.4 * local, apart[0] @ apart[1].T
    v, y = BlackboxMatching(0.7, "exact")(c, e, *edges)
    true = torch.tensor([[a == b for b in edges[1].tolist()] for a in edges[0].tolist()]).double()
    whole = hamming(v) + (y * (1 - true) + true * (1 - y)).sum()
    loss = graph_matching_loss(u_s, u_t, local, 2, 0.6, 0.7, solver="exact")
    assert loss.item() == hamming(v).item()
    wanted = torch.autograd.grad(whole, (u_s, u_t))
    assert any(slope.any() for slope in wanted)
    torch.testing.assert_close(torch.autograd.grad(loss, (u_s, u_t)), wanted)


def test_neighbours_are_the_nearest_by_cosine():
    u = drawn(6, 3)
    rows = u / u.norm(dim=1, keepdim=True)
    for i in range(6):
        others = sorted((j for j in range(6) if j != i), key=lambda j: -float(rows[i] @ rows[j]))
        assert [b for a, b in neighbour_edges(u, 3).tolist() if a == i] == others[:3]
    assert len(neighbour_edges(u, 9)) == 30


def test_noise_is_gumbel_and_small_lambdas_move_nothing():
    u, v = drawn(6, 4), drawn(6, 4, seed=1)
    values = [
        graph_matching_loss(u, v, noise=5.0, generator=torch.Generator().manual_seed(s)).item() for s in range(12)
    ]
    assert len(set(values)) > 1
    assert values[3] == graph_matching_loss(u, v, noise=5.0, generator=torch.Generator().manual_seed(3)).item()
    c = torch.zeros(2, 2, dtype=torch.float64)
    # of four equal affinities noise decides: each of the two matchings is taken half the time
    draws = [
        graph_matching_loss(c, c, noise=1.0, knn=0, generator=torch.Generator().manual_seed(s)) for s in range(200)
    ]
    assert np.mean([d.item() / 4 for d in draws]) == pytest.approx(0.5, abs=0.12)


def test_training_finds_the_matching():
    generator = torch.Generator().manual_seed(0)
    x, weight = drawn(12, 5), torch.eye(5, dtype=torch.float64)
    turned = drawn(12, 5) @ torch.linalg.qr(drawn(5, 5, seed=3)).Q
    layer = (weight + 0.1 * torch.randn(5, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    first = graph_matching_loss(x @ layer, turned, knn=3).item()
    optimizer = torch.optim.Adam([layer], lr=0.1)
    for _ in range(60):
        loss = graph_matching_loss(x @ layer, turned, knn=3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 2


def test_few_items_and_equal_ones():
    for nodes in (0, 1, 2):
        u = drawn(nodes, 3).requires_grad_()
        loss = GraphMatchingLoss()(u, u.detach())
        assert loss == 0
        assert torch.autograd.grad(loss, u)[0].isfinite().all()
    u = torch.ones(4, 3, requires_grad=True)
    assert torch.autograd.grad(GraphMatchingLoss()(u, torch.ones(4, 3)), u)[0].isfinite().all()
    half = torch.ones(4, 3, dtype=torch.bfloat16)
    assert GraphMatchingLoss()(half, half).dtype == torch.float32


def test_wrong_arguments_are_refused():
    u, (c, e, s, t) = drawn(8, 3), random_problem(5, 0)
    for call, argument in (
        (lambda: match_graphs(c[:3]), "c"), (lambda: match_graphs(c, e), "e"),
        (lambda: match_graphs(c, e, s[:3], t), "edges_s"), (lambda: match_graphs(c, solver="greedy"), "solver"),
        (lambda: match_graphs(c, e, s, t + 9), "edges_t"), (lambda: match_graphs(c, e, s, t, "hungarian"), "solver"),
        (lambda: match_graphs(drawn(8, 8), solver="exact"), "solver"),
        (lambda: graph_matching_loss(u, u[:3]), "u_t"), (lambda: graph_matching_loss(u, u, alpha=0.5), "alpha"),
        (lambda: graph_matching_loss(u, u, u), "local"), (lambda: GraphMatchingLoss(lam=0.0), "lam"),
        (lambda: GraphMatchingLoss(knn=-1), "knn"), (lambda: GraphMatchingLoss(noise=-1.0), "noise"),
        (lambda: GraphMatchingLoss(alpha=2.0), "alpha"), (lambda: BlackboxMatching(solver="greedy"), "solver"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{argument}: expected"):
            call()
