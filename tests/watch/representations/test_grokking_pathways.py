"""Pathways: the card's numbers, edit distances by recursion, cosines by loops, and what the monitor reads."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
from torch import nn

from steepest.core.probe import Moment
from steepest.watch.representations import (
    MoEClassifier,
    PathwayMonitor,
    pathway_consistency,
    pathway_distance,
    pathway_tokens,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def routing_of(n=6, layers=3, experts=5, seed=0):
    return (2 * drawn(n, layers, experts, seed=seed)).softmax(-1)


def symbols_of(n, length, symbols=4, seed=0):
    return torch.randint(symbols, (n, length), generator=torch.Generator().manual_seed(seed))


def levenshtein(a, b):
    """By its definition."""

    @functools.cache
    def of(i, j):
        if i == 0 or j == 0:
            return i + j
        return min(of(i - 1, j) + 1, of(i, j - 1) + 1, of(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return of(len(a), len(b))


def all_distances(tokens, normalized=False):
    return pathway_distance(tokens[:, None], tokens[None], normalized)


@pytest.mark.holds("grokking-pathways", 1)
def test_the_distance_of_the_card():
    a, b = torch.tensor([3, 1, 4, 1]), torch.tensor([1, 4, 1, 5])
    assert float(pathway_distance(a, b, normalized=False)) == 2.0
    assert float(pathway_distance(a, b)) == 0.5
    assert pathway_distance(a, b).dtype == torch.float32


@pytest.mark.parametrize(("length", "longer"), [(4, 7), (7, 4), (5, 5), (1, 3), (0, 3)])
def test_distances_by_recursion(length, longer):
    a, b = symbols_of(40, length), symbols_of(40, longer, seed=1)
    wanted = torch.tensor([levenshtein(tuple(x), tuple(y)) for x, y in zip(a.tolist(), b.tolist())]).float()
    torch.testing.assert_close(pathway_distance(a, b, normalized=False), wanted, rtol=0.0, atol=0.0)
    torch.testing.assert_close(pathway_distance(a, b), wanted / max(length, longer))


def test_distances_of_shorter_pathways():
    a, b = symbols_of(60, 5), symbols_of(60, 6, seed=1)
    for tokens, seed in ((a, 2), (b, 3)):
        lengths = torch.randint(tokens.shape[1] + 1, (60, 1), generator=torch.Generator().manual_seed(seed))
        tokens[torch.arange(tokens.shape[1]) >= lengths] = -1
    wanted, longest = [], []
    for x, y in zip(a.tolist(), b.tolist()):
        x, y = (tuple(symbol for symbol in row if symbol >= 0) for row in (x, y))
        wanted.append(levenshtein(x, y))
        longest.append(max(len(x), len(y), 1))
    assert min(longest) == 1
    wanted = torch.tensor(wanted).float()
    torch.testing.assert_close(pathway_distance(a, b, False), wanted, rtol=0.0, atol=0.0)
    torch.testing.assert_close(pathway_distance(a, b), wanted / torch.tensor(longest))


@pytest.mark.holds("grokking-pathways", 2)
def test_the_distance_is_a_metric():
    tokens = torch.cat([symbols_of(14, 6, 3), symbols_of(2, 6, 3)])
    tokens[3:6, 4:] = -1
    d = all_distances(tokens)
    assert d.shape == (16, 16)
    assert (d == d.T).all()
    same = (tokens[:, None] == tokens[None]).all(-1)
    assert ((d == 0) == same).all()
    assert (d[:, None, :] <= d[:, :, None] + d[None]).all()  # over whichever third one
    length = (tokens >= 0).sum(1)
    assert (d <= torch.maximum(length[:, None], length)).all()
    assert (d >= (length[:, None] - length).abs()).all()


@pytest.mark.holds("grokking-pathways", 5)
def test_other_numbers_of_the_experts_of_a_layer_change_nothing():
    routing = routing_of(12, 4, 6)
    orders = [torch.randperm(6, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    renamed = torch.stack([routing[:, layer, order] for layer, order in enumerate(orders)], 1)
    for choice in ({"k": 2}, {"k": None, "threshold": 0.2}):
        plain, other_names = (all_distances(pathway_tokens(r, **choice)) for r in (routing, renamed))
        assert (plain == other_names).all()
    without = [all_distances(pathway_tokens(r, by_layer=False)) for r in (routing, renamed)]
    assert (without[0] != without[1]).any()


def test_pathways_by_hand():
    routing = torch.tensor([[[0.1, 0.6, 0.3], [0.5, 0.1, 0.4]], [[0.2, 0.2, 0.6], [0.3, 0.4, 0.3]]])
    assert pathway_tokens(routing).tolist() == [[1, 2, 3, 5], [2, 0, 4, 3]]  # of equal weights the first
    assert pathway_tokens(routing, 1, by_layer=False).tolist() == [[1, 0], [2, 1]]
    assert pathway_tokens(routing, None, threshold=0.35).tolist() == [[1, 3, 5], [2, 4, -1]]
    assert pathway_tokens(routing, None, threshold=0.5).tolist() == [[1], [2]]  # above it, not at it
    assert pathway_tokens(routing, None, threshold=0.9).shape == (2, 0)
    assert pathway_tokens(routing[:0], None, threshold=0.1).shape == (0, 0)
    assert pathway_tokens(routing, 3).shape == (2, 6)


@pytest.mark.holds("grokking-pathways", 3)
def test_the_consistency_of_the_card():
    vectors = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-1.0, 0.0]]).double()
    c = pathway_consistency(torch.ones(1, 4, 1).double(), vectors[:, None], 1)
    assert c.tolist() == pytest.approx([0.471405], abs=5e-7)
    assert c.dtype == torch.float64
    pairs = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in itertools.pairwise(vectors)]
    assert pairs == pytest.approx([0.707107, 0.707107, 0.0], abs=5e-7)


@pytest.mark.holds("grokking-pathways", 4)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_one_choice_in_all_layers_is_smooth(k):
    routing = routing_of(6, 1, 5).expand(6, 4, 5)
    ones = torch.ones(6).double()
    torch.testing.assert_close(pathway_consistency(routing, drawn(5, 3, seed=1), k), ones)
    torch.testing.assert_close(pathway_consistency(routing, drawn(5, 3, seed=1).expand(4, 5, 3), k), ones)
    assert (pathway_consistency(routing, drawn(4, 5, 3, seed=1), k) < 0.999).all()


@pytest.mark.parametrize("choice", [{"k": 1}, {"k": 3}, {"k": None, "threshold": 0.15}])
def test_consistency_by_loops(choice):
    routing, vectors = routing_of(), drawn(3, 5, 4, seed=1)
    wanted = []
    for sample in routing:
        z = []
        for weights, rows in zip(sample, vectors):
            order = weights.argsort(descending=True).tolist()
            own = order[: choice["k"]] if choice["k"] else [e for e in order if weights[e] > choice["threshold"]]
            total = sum(float(weights[e]) for e in own)
            z.append(sum(float(weights[e]) / total * rows[e] for e in own))
        wanted.append(sum(float(a @ b / a.norm() / b.norm()) for a, b in itertools.pairwise(z)) / (len(z) - 1))
    assert pathway_consistency(routing, vectors, **choice).tolist() == pytest.approx(wanted, rel=1e-12)


def test_no_expert_has_no_direction():
    routing = torch.tensor([[[0.9, 0.1], [0.5, 0.5]], [[0.9, 0.1], [0.8, 0.2]]])
    c = pathway_consistency(routing, torch.eye(2), None, threshold=0.6)
    assert c[0].isnan()
    assert float(c[1]) == 1.0
    assert pathway_consistency(routing, torch.zeros(2, 2), 1).isnan().all()


R, V = routing_of(), drawn(5, 3)


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: pathway_tokens(R[0]), ValueError, "routing: expected 3 dimensions"),
        (lambda: pathway_tokens(R.long()), TypeError, "routing: expected a floating tensor"),
        (lambda: pathway_tokens(R, 6), ValueError, "k: expected an integer >= 1 and <= 5"),
        (lambda: pathway_tokens(R, 0), ValueError, "k: expected an integer >= 1 and <= 5"),
        (lambda: pathway_tokens(R, 2, threshold=0.1), ValueError, "k: expected k or a threshold, and not both"),
        (lambda: pathway_tokens(R, None), ValueError, "k: expected k or a threshold, and not both"),
        (lambda: pathway_tokens(R, None, threshold=-0.1), ValueError, "threshold: expected a number >= 0"),
        (lambda: pathway_tokens(R, by_layer=1), TypeError, "by_layer: expected True or False"),
        (lambda: pathway_distance(R, R), TypeError, "tokens_a: expected an integer tensor"),
        (lambda: pathway_distance(torch.tensor([1]), torch.tensor(1)), ValueError, "tokens_b: expected at least one"),
        (lambda: pathway_distance(symbols_of(2, 3), symbols_of(3, 3)), ValueError, "tokens_b: expected leading"),
        (lambda: pathway_distance(symbols_of(2, 3), symbols_of(2, 3), 1), TypeError, "normalized: expected True or"),
        (lambda: pathway_consistency(R, V[0]), ValueError, "expert_vectors: expected 2 or 3 dimensions"),
        (lambda: pathway_consistency(R, V[:4]), ValueError, r"expert_vectors: expected shape \(5, \*\)"),
        (lambda: pathway_consistency(R, V.expand(2, 5, 3)), ValueError, r"expert_vectors: expected shape \(3, 5, \*\)"),
        (lambda: pathway_consistency(R[:, :1], V), ValueError, "routing: expected at least 2 layers"),
        (lambda: pathway_consistency(R, V, 6), ValueError, "k: expected an integer >= 1 and <= 5"),
        (lambda: MoEClassifier(0, 2), ValueError, "inputs: expected an integer >= 1"),
        (lambda: MoEClassifier(2, 0), ValueError, "classes: expected an integer >= 1"),
        (lambda: MoEClassifier(2, 2, 0), ValueError, "dim: expected an integer >= 1"),
        (lambda: MoEClassifier(2, 2, experts=0), ValueError, "experts: expected an integer >= 1"),
        (lambda: MoEClassifier(2, 2, layers=0), ValueError, "layers: expected an integer >= 1"),
        (lambda: MoEClassifier(2, 2, k=9), ValueError, "k: expected an integer >= 1 and <= 8"),
        (lambda: PathwayMonitor(threshold=0.1), ValueError, "k: expected k or a threshold, and not both"),
        (lambda: PathwayMonitor(k=0), ValueError, "k: expected an integer >= 1"),
        (lambda: PathwayMonitor(k=None, threshold=-1.0), ValueError, "threshold: expected a number >= 0"),
        (lambda: PathwayMonitor(groups=torch.tensor([1])), ValueError, "groups: expected None, because"),
        (lambda: PathwayMonitor(V, groups=torch.tensor([1])), ValueError, r"groups: expected shape \(5\)"),
        (lambda: PathwayMonitor(most=1), ValueError, "most: expected an integer >= 2"),
        (lambda: PathwayMonitor(every=0), ValueError, "every: expected an integer >= 1"),
    ],
)  # fmt: skip
def test_wrong_arguments(call, error, named):
    with pytest.raises(error, match=f"^{named}"):
        call()


def network(**options):
    torch.manual_seed(0)
    return MoEClassifier(5, 3, 8, **{"experts": 6, "layers": 3, **options})


@pytest.mark.parametrize("k", [1, 2, 6])
def test_the_network_by_loops(k):
    model, x = network(k=k).double(), drawn(4, 5)
    routing = []
    h = x @ model.stem.weight.T + model.stem.bias
    for layer in model.layers:
        normal = nn.functional.layer_norm(h, (8,), layer.norm.weight, layer.norm.bias)
        p = (normal @ layer.router.weight.T).softmax(-1)
        routing.append(p)
        rows = []
        for own, shares in zip(normal, p):
            chosen = shares.argsort(descending=True)[:k]
            outputs = [shares[e] / shares[chosen].sum() * ((own @ layer.up[e]).relu() @ layer.down[e]) for e in chosen]
            rows.append(sum(outputs))
        h = h + torch.stack(rows)
    torch.testing.assert_close(model(x), h @ model.head.weight.T + model.head.bias)
    torch.testing.assert_close(model.routing(x), torch.stack(routing, 1))
    assert not model.routing(x).requires_grad
    assert model.expert_vectors().shape == (3, 6, 8)
    assert (model.expert_vectors()[1] == model.layers[1].router.weight).all()
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert float(model.layers[0].up.abs().max()) <= 8**-0.5


def by_pairs(routing, pairs, **choice):
    tokens = pathway_tokens(routing, **choice)
    return torch.stack([pathway_distance(tokens[i], tokens[j]) for i, j in pairs]).mean()


@pytest.mark.parametrize("choice", [{}, {"k": 3}, {"k": None, "threshold": 0.2}])
def test_the_monitor_reads_the_network(choice):
    model, x = network(), drawn(7, 5).float()
    reading = PathwayMonitor(**choice).measure(Moment(1, "gradients", model, inputs=x))
    routing = model.routing(x)
    pairs = list(itertools.combinations(range(7), 2))
    assert float(reading.numbers["distance"]) == pytest.approx(float(by_pairs(routing, pairs, **choice)), rel=1e-6)
    c = pathway_consistency(routing, model.expert_vectors(), **choice).mean()
    assert float(reading.numbers["consistency"]) == pytest.approx(float(c), rel=1e-5)
    assert reading.numbers["samples"] == 7.0
    assert not reading.arrays
    few = PathwayMonitor(x, most=4, **choice).measure(Moment(1, "gradients", model)).numbers
    assert few["samples"] == 4.0
    assert float(few["distance"]) == pytest.approx(
        float(by_pairs(routing, itertools.combinations(range(4), 2), **choice)), rel=1e-6
    )


def test_groups():
    model, x = network(), drawn(7, 5).float()
    groups = torch.tensor([5, 2, 5, 2, 5, 9, 2])
    reading = PathwayMonitor(x, groups=groups).measure(Moment(1, "gradients", model))
    routing, c = model.routing(x), pathway_consistency(model.routing(x), model.expert_vectors())
    inside = {2: [(1, 3), (1, 6), (3, 6)], 5: [(0, 2), (0, 4), (2, 4)]}
    distance, consistency = reading.arrays["distance"], reading.arrays["consistency"]
    assert distance.axes == consistency.axes == {"group": [2.0, 5.0, 9.0]}
    for place, (group, pairs) in enumerate(inside.items()):
        assert float(distance.values[place]) == pytest.approx(float(by_pairs(routing, pairs)), rel=1e-6)
        assert float(consistency.values[place]) == pytest.approx(float(c[groups == group].mean()), rel=1e-5)
    assert distance.values[2].isnan()  # one sample makes no pair
    everyone = by_pairs(routing, [*inside[2], *inside[5]])
    assert float(reading.numbers["distance"]) == pytest.approx(float(everyone), rel=1e-6)


class Tokens(nn.Module):
    """Two routers over tokens, the second of flattened ones, and dropout before them."""

    def __init__(self, widths=(4, 4), experts=(5, 5)):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.first = nn.ModuleDict({"gate": nn.Linear(widths[0], experts[0])})
        self.second = nn.ModuleDict({"router": nn.Linear(widths[1], experts[1])})
        self.widths = widths

    def forward(self, x):
        x = self.drop(x)
        a = self.first["gate"](x[..., : self.widths[0]])
        return a.mean() + self.second["router"](x[..., : self.widths[1]].flatten(0, 1)).mean()


def test_tokens_are_averaged_as_probabilities():
    torch.manual_seed(0)
    model, x = Tokens().train(), torch.randn(6, 3, 4)
    reading = PathwayMonitor().measure(Moment(1, "gradients", model, inputs=x))
    p = torch.stack([model.first["gate"](x).softmax(-1).mean(1), model.second["router"](x).softmax(-1).mean(1)], 1)
    pairs = itertools.combinations(range(6), 2)
    assert float(reading.numbers["distance"]) == pytest.approx(float(by_pairs(p.detach(), pairs)), rel=1e-6)
    vectors = torch.stack([model.first["gate"].weight, model.second["router"].weight])
    c = pathway_consistency(p, vectors).mean()
    assert float(reading.numbers["consistency"]) == pytest.approx(float(c), rel=1e-5)
    by_scores = torch.stack([g(x).mean(1).softmax(-1) for g in (model.first["gate"], model.second["router"])], 1)
    assert float(pathway_consistency(by_scores, vectors).mean()) != pytest.approx(float(c), rel=1e-4)
    assert model.training


def test_what_has_no_consistency_or_no_distance():
    torch.manual_seed(0)
    x = torch.randn(6, 3, 4)
    numbers = PathwayMonitor().measure(Moment(1, "gradients", Tokens((4, 3)), inputs=x)).numbers
    assert math.isnan(numbers["consistency"])
    assert float(numbers["distance"]) > 0
    only = PathwayMonitor(routers=["first.gate"]).measure(Moment(1, "gradients", Tokens(), inputs=x)).numbers
    assert math.isnan(only["consistency"])
    single = PathwayMonitor().measure(Moment(1, "gradients", Tokens(), inputs=x[:1])).numbers
    assert math.isnan(single["distance"])
    assert not math.isnan(float(single["consistency"]))
    nothing = PathwayMonitor().measure(Moment(1, "gradients", Tokens(), inputs=x[:0])).numbers
    assert nothing["samples"] == 0.0
    assert math.isnan(nothing["distance"])
    x[2, 1, 0] = math.nan
    model = Tokens()
    rest = PathwayMonitor().measure(Moment(1, "gradients", model, inputs=x)).numbers
    wanted = PathwayMonitor().measure(Moment(1, "gradients", model, inputs=x[[0, 1, 3, 4, 5]])).numbers
    assert rest["samples"] == 5.0
    for name in ("distance", "consistency"):
        assert float(rest[name]) == pytest.approx(float(wanted[name]), rel=1e-6)
    grouped = PathwayMonitor(x[2:3], groups=torch.tensor([1])).measure(Moment(1, "gradients", model)).numbers
    assert grouped["samples"] == 0.0


@pytest.mark.parametrize(
    ("model", "options", "named"),
    [
        (nn.Linear(2, 2), {}, "routers: expected names of modules of the model, at least one, got None"),
        (network(), {"routers": ["gate"]}, "routers: expected names of modules of the model, at least one, got 'gate'"),
        (network(), {"k": 7}, "routers: expected modules with one number of experts, at least 7"),
        (Tokens(experts=(5, 4)), {}, "routers: expected modules with one number of experts"),
    ],
)
def test_refused_models(model, options, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        PathwayMonitor(**options).check(model, None)
