import math

import numpy as np
import pytest
import torch

from steepest.nn.graph import RandomProjectionPropagator, RpHGNNEncoder, sparse_random_projection
from steepest.nn.graph.rphgnn import reverse_relation

RELATION = ("u", "of", "t")
EDGES = {RELATION: torch.tensor([[0, 1, 1, 2], [0, 0, 1, 1]])}
X = {"u": torch.tensor([[1.0, 1.0], [0.0, 2.0], [3.0, 0.0]]), "t": torch.eye(2)}


def academic(seed=0, papers=30, authors=20, venues=4):
    """Papers, authors, venues and citations, some papers without any."""
    generator = torch.Generator().manual_seed(seed)

    def ends(sources, destinations, count):
        return torch.stack([torch.randint(n, (count,), generator=generator) for n in (sources, destinations)])

    edges = {
        ("author", "writes", "paper"): ends(authors, papers - 2, 60),
        ("paper", "in", "venue"): ends(papers - 2, venues, 28),
        ("paper", "cites", "paper"): ends(papers - 2, papers - 2, 50),
    }
    features = {
        "paper": torch.randn(papers, 6, generator=generator, dtype=torch.float64),
        "author": torch.randn(authors, 5, generator=generator, dtype=torch.float64),
        "venue": venues,
    }
    return features, edges


def mean_matrix(ends, destinations, sources):
    """Means over sources by counting, an edge at a time."""
    m = np.zeros((destinations, sources))
    for s, d in ends.T.tolist():
        m[d, s] += 1
    return np.array([row / row.sum() if row.sum() else row for row in m])


@pytest.mark.holds("rphgnn", 1)
def test_messages_of_the_smallest_graph():
    propagator = RandomProjectionPropagator(rounds=1, use_input=False)
    assert propagator.group_names(EDGES, "t") == [(RELATION, "odd"), (("t", "rev_of", "u"), "even")]
    odd, even = propagator.collect(X, EDGES, "t")
    assert odd[:, 0].tolist() == [[0.5, 1.5], [1.5, 1.0]]
    assert even[:, 0].tolist() == [[0.75, 0.25], [0.25, 0.75]]
    _, with_input = RandomProjectionPropagator(rounds=1).collect(X, EDGES, "t")
    assert torch.equal(with_input[:, 0], X["t"])
    assert torch.equal(with_input[:, 1:], even)


@pytest.mark.holds("rphgnn", 2)
def test_labels_reach_others_without_a_nodes_own():
    known, sizes = torch.tensor([True, True]), {"u": 3, "t": 2}
    propagator = RandomProjectionPropagator()
    (even,) = propagator.collect_labels(torch.tensor([0, 1]), known, 2, sizes, EDGES, "t")
    torch.testing.assert_close(even[:, 0], torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    alone = {RELATION: torch.tensor([[0, 1], [0, 1]])}  # each hears of itself alone: own share 1
    (even,) = propagator.collect_labels(torch.tensor([0, 1]), known, 2, sizes, alone, "t")
    assert even[:, 0].tolist() == [[0.5, 0.5], [0.5, 0.5]]


@pytest.mark.holds("rphgnn", 2)
def test_labels_of_a_larger_graph_are_those_of_loops():
    """Own shares of M_rev M, and of relations of a type to itself, by dense products; a label never shows itself."""
    _, edges = academic()
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (30,), generator=generator)
    known = torch.rand(30, generator=generator) < 0.6
    sizes = {"paper": 30, "author": 20, "venue": 4}
    propagator = RandomProjectionPropagator()
    heard = propagator.collect_labels(labels, known, 3, sizes, edges, "paper")
    y = np.where(known[:, None], np.eye(3)[labels], 1 / 3)
    writes = edges["author", "writes", "paper"], ("paper", "author")
    venue = edges["paper", "in", "venue"].flip(0), ("paper", "venue")
    cites = mean_matrix(edges["paper", "cites", "paper"], 30, 30)
    matrices = [
        mean_matrix(ends, sizes[a], sizes[b]) @ mean_matrix(ends.flip(0), sizes[b], sizes[a])
        for ends, (a, b) in (writes, venue)
    ]
    matrices += [cites, cites @ cites]
    assert len(heard) == len(matrices)
    for ours, m in zip(heard, matrices):
        for i in range(30):
            others = sum(m[i, j] * y[j] for j in range(30) if j != i)
            rest = sum(m[i, j] for j in range(30) if j != i)
            wanted = others / rest if rest > 1e-9 else np.full(3, 1 / 3)
            assert ours[i, 0].tolist() == pytest.approx(wanted.tolist(), abs=2e-6)
    moved = labels.clone()
    moved[int(known.nonzero()[0])] = (moved[int(known.nonzero()[0])] + 1) % 3
    for before, after in zip(heard, propagator.collect_labels(moved, known, 3, sizes, edges, "paper")):
        torch.testing.assert_close(before[known.nonzero()[0]], after[known.nonzero()[0]], atol=1e-6, rtol=0)
    hidden = torch.where(known, labels, -7)  # what is not known may be anything
    assert all(map(torch.equal, heard, propagator.collect_labels(hidden, known, 3, sizes, edges, "paper")))


@pytest.mark.holds("rphgnn", 3)
def test_entries_and_inner_products_of_projections():
    """Six standard errors of a mean of n entries: 6 / sqrt(n) for variance 1, 6 sqrt(2 / 9 n) for a share of 2/3."""
    generator = torch.Generator().manual_seed(0)
    r = sparse_random_projection(400, 250, generator=generator, dtype=torch.float64)
    n = r.numel()
    assert sorted(r.unique().tolist()) == pytest.approx([-math.sqrt(3), 0, math.sqrt(3)])
    assert abs(float(r.mean())) < 6 / n**0.5
    assert abs(float((r == 0).double().mean()) - 2 / 3) < 6 * (2 / 9 / n) ** 0.5
    assert abs(float(r.square().mean()) - 1) < 6 * (2 / n) ** 0.5  # its variance is 9/3 - 1
    x, y = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    products = []
    for _ in range(400):
        r = sparse_random_projection(12, 9, generator=generator, dtype=torch.float64)
        products.append(float((x @ r) @ (y @ r)))
    spread = np.std(products) / 20
    assert abs(np.mean(products) - 9 * float(x @ y)) < 5 * spread
    assert sparse_random_projection(2, 3).dtype == torch.float32


@pytest.mark.holds("rphgnn", 4)
def test_what_is_kept_grows_linearly_and_is_the_same_for_a_seed():
    features, edges = academic()
    numbers = [
        sum(g.numel() for g in RandomProjectionPropagator(k).collect(features, edges, "paper")) for k in (1, 2, 3, 4)
    ]
    assert set(np.diff(numbers)) == {numbers[1] - numbers[0]}
    first, again, other = (RandomProjectionPropagator(3, seed).collect(features, edges, "paper") for seed in (5, 5, 6))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0][:, 1], other[0][:, 1])


def test_two_rounds_are_those_of_loops():
    """The second round's messages with the same projections, drawn in the same order; relations that come with both
    directions, a share of the input, and a type without features."""
    features, edges = academic()
    edges[("paper", "rev_writes", "author")] = edges["author", "writes", "paper"].flip(0)
    propagator = RandomProjectionPropagator(2, 4, mix=0.25, width=3)
    groups = dict(zip(propagator.group_names(edges, "paper"), propagator.collect(features, edges, "paper")))

    generator = torch.Generator().manual_seed(4)
    sizes = {"paper": 30, "author": 20, "venue": 4}
    x = {"paper": features["paper"], "author": features["author"]}
    x["venue"] = (torch.randn(4, 3, generator=generator) / 3**0.5).double()
    both = {
        ("author", "writes", "paper"): edges["author", "writes", "paper"],
        ("paper", "in", "venue"): edges["paper", "in", "venue"],
        ("venue", "rev_in", "paper"): edges["paper", "in", "venue"].flip(0),
        ("paper", "cites", "paper"): edges["paper", "cites", "paper"],
        ("paper", "rev_writes", "author"): edges["author", "writes", "paper"].flip(0),
    }
    assert set(groups) == {(e, "odd") for e in both if e[2] == "paper"} | {(e, "even") for e in both if e[0] == "paper"}
    m = {e: torch.from_numpy(mean_matrix(ends, sizes[e[2]], sizes[e[0]])) for e, ends in both.items()}
    first = dict(x)
    for number in range(2):
        messages = {name: [] for name in x}
        for e in both:
            odd = m[e] @ x[e[0]]
            even = m[reverse_relation(e)] @ odd
            messages[e[2]].append(odd)
            messages[e[0]].append(even)
            if e[2] == "paper":
                torch.testing.assert_close(groups[e, "odd"][:, number], odd)
            if e[0] == "paper":
                torch.testing.assert_close(groups[e, "even"][:, number + 1], even)
        for name, arrived in messages.items():
            total = 0
            for message in arrived:
                r = sparse_random_projection(
                    message.shape[1], first[name].shape[1], generator=generator, dtype=torch.float64
                )
                p = message @ r
                norm = p.norm(dim=1, keepdim=True)
                total = total + torch.where(norm > 0, p / norm.clamp_min(1e-30), 0.0)
            x[name] = 0.75 * total + 0.25 * first[name]


def test_isolated_nodes_have_messages_of_zeros():
    features, edges = academic()
    for group in RandomProjectionPropagator(3, use_input=False).collect(features, edges, "paper"):
        assert group.isfinite().all()
        assert not group[28:].any()


@pytest.mark.holds("rphgnn", 5)
def test_the_convolution_mixes_messages():
    encoder = RpHGNNEncoder([(3, 2)], hidden=4, classes=2)
    with torch.no_grad():
        encoder.convolutions[0].weight.copy_(torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, -1.0]]))
    group = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]])
    seen = []
    encoder.group_layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    encoder([group])
    assert seen[0].tolist() == [[2.0, 3.0, -2.0, -2.0]]


@pytest.mark.parametrize("merge", ["concat", "mean"])
def test_the_encoder_takes_rows_and_learns(merge):
    features, edges = academic()
    groups = RandomProjectionPropagator(2).collect(features, edges, "paper")
    torch.manual_seed(0)
    encoder = RpHGNNEncoder([g.shape for g in groups], 16, 3, filters=4, merge=merge, dropout=0.1).double()
    logits = encoder.eval()(groups)
    torch.testing.assert_close(encoder([g[3:9] for g in groups]), logits[3:9])
    assert encoder.layers[0].in_features == 16 * (len(groups) if merge == "concat" else 1)
    y = torch.arange(30) % 3
    optimizer = torch.optim.Adam(encoder.train().parameters(), lr=2e-2)
    for _ in range(50):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(encoder(groups), y).backward()
        optimizer.step()
    assert float((encoder.eval()(groups).argmax(1) == y)[:28].double().mean()) > 0.9
    assert not torch.equal(encoder.train()(groups), encoder(groups))


def test_first_weights_are_normal_by_both_widths_and_biases_are_0():
    torch.manual_seed(0)
    layers = RpHGNNEncoder([(3, 32)], hidden=64, classes=2).group_layers[0]
    assert layers[0].weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)  # 4,096 numbers: 1.1% a deviation
    assert not layers[0].bias.any()


def collect(*args):
    return RandomProjectionPropagator().collect(*args)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("rounds: expected", lambda: RandomProjectionPropagator(0)),
        ("mix: expected", lambda: RandomProjectionPropagator(1, mix=2.0)),
        ("rows: expected", lambda: sparse_random_projection(0, 1)),
        ("target: expected", lambda: RandomProjectionPropagator().collect(X, EDGES, "v")),
        ("features: expected nodes of type 'u'", lambda: collect({"t": X["t"]}, EDGES, "t")),
        ("edges.*: expected values in 0..1", lambda: collect(X | {"t": 2}, {RELATION: torch.tensor([[0], [2]])}, "t")),
        ("edges: expected keys", lambda: RandomProjectionPropagator().collect(X, {"of": EDGES[RELATION]}, "t")),
        ("labels: expected values in 0..1", lambda: RandomProjectionPropagator().collect_labels(
            torch.tensor([0, 2]), torch.tensor([True, True]), 2, {"u": 3, "t": 2}, EDGES, "t")),
        ("target: expected one of u", lambda: RandomProjectionPropagator().collect_labels(
            torch.tensor([0, 2]), torch.tensor([True, True]), 2, {"u": 3}, EDGES, "t")),
        ("group_shapes: expected", lambda: RpHGNNEncoder([], 2, 2)),
        ("merge: expected", lambda: RpHGNNEncoder([(2, 2)], 2, 2, merge="sum")),
        ("filters: expected", lambda: RpHGNNEncoder([(2, 2)], 2, 2, filters=0)),
        ("dropout: expected", lambda: RpHGNNEncoder([(2, 2)], 2, 2, dropout=1.0)),
        ("groups: expected 1 tensors", lambda: RpHGNNEncoder([(2, 2)], 2, 2)([])),
        ("groups: expected shape", lambda: RpHGNNEncoder([(2, 2)], 2, 2)([torch.zeros(3, 2, 3)])),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(words, call):
    with pytest.raises(ValueError, match=words):
        call()


def test_wrong_types_are_named():
    with pytest.raises(TypeError, match="known: expected a boolean tensor"):
        RandomProjectionPropagator().collect_labels(
            torch.tensor([0, 1]), torch.tensor([1, 1]), 2, {"u": 3, "t": 2}, EDGES, "t"
        )
    with pytest.raises(TypeError, match="features"):
        RandomProjectionPropagator().collect(X | {"u": torch.ones(3, 2).long()}, EDGES, "t")
