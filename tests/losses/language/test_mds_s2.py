"""Knowledge of a graph composed into a context, and a representation held to that of the answer."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steepest.losses.language.mds_s2 import (
    KnowledgeComposer,
    LatentQueryRegularizer,
    _attend,
    latent_query_loss,
    n_hop_walk,
)

CHAIN = [("a", "r", "b"), ("b", "s", "c"), ("c", "t", "d")]
DISTANCES = ("cosine", "mse", "kl")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def states(generator):
    """Two sequences with padding: composed ``[3, 6, 8]`` and the answer's ``[3, 4, 8]``, with their masks."""
    composed = torch.randn(3, 6, 8, generator=generator, dtype=torch.float64)
    target = torch.randn(3, 4, 8, generator=generator, dtype=torch.float64)
    composed_mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 0]]).bool()
    target_mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [1, 1, 1, 1]]).bool()
    return composed, composed_mask, target, target_mask


def regularizer(distance="cosine", **arguments):
    torch.manual_seed(1)
    return LatentQueryRegularizer(8, 3, 2, distance, **arguments).double()


@pytest.mark.holds("mds-s2", 1)
@pytest.mark.parametrize("distance", DISTANCES)
def test_equal_sequences_are_at_no_distance(distance, states):
    composed, mask, _, _ = states
    assert regularizer(distance)(composed, mask, composed.clone(), mask.clone()).item() == 0
    assert regularizer(distance).float()(composed.float(), mask, composed.float(), mask).item() == 0
    assert regularizer(distance)(*states).item() > 0.01


@pytest.mark.holds("mds-s2", 2)
@pytest.mark.parametrize("distance", DISTANCES)
def test_order_of_positions_does_not_count(distance, states, generator):
    composed, composed_mask, target, target_mask = states
    loss = regularizer(distance)
    first, second = torch.randperm(6, generator=generator), torch.randperm(4, generator=generator)
    moved = loss(composed[:, first], composed_mask[:, first], target[:, second], target_mask[:, second])
    torch.testing.assert_close(moved, loss(*states), atol=1e-12, rtol=1e-12)
    elsewhere = loss(composed[:, first], composed_mask, target, target_mask)
    assert abs(elsewhere - moved) > 1e-4, "the mask moves with its positions"


@pytest.mark.holds("mds-s2", 2)
@pytest.mark.parametrize("junk", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("distance", DISTANCES)
def test_masked_positions_have_no_effect(distance, junk, states):
    """The same bits, of the value and of all gradients."""

    def both(composed, composed_mask, target, target_mask):
        loss = regularizer(distance, detach_target=False)
        inputs = [composed.clone().requires_grad_(), target.clone().requires_grad_()]
        value = loss(inputs[0], composed_mask, inputs[1], target_mask)
        return value, torch.autograd.grad(value, [*inputs, *loss.parameters()])

    composed, composed_mask, target, target_mask = states
    dirty = [
        torch.where(mask[..., None], clean, junk) for clean, mask in ((composed, composed_mask), (target, target_mask))
    ]
    value, slopes = both(*states)
    value_of_dirty, slopes_of_dirty = both(dirty[0], composed_mask, dirty[1], target_mask)
    assert torch.equal(value, value_of_dirty)
    assert all(torch.equal(a, b) for a, b in zip(slopes, slopes_of_dirty))
    assert not slopes[0][~composed_mask].any()
    assert not slopes[1][~target_mask].any()


@pytest.mark.holds("mds-s2", 3)
def test_the_cosine_loss_lies_between_0_and_2(generator):
    u = torch.randn(50, 4, 8, generator=generator, dtype=torch.float64)
    for v, wanted in ((u, 0.0), (3 * u, 0.0), (-u, 2.0), (-0.1 * u, 2.0)):
        assert latent_query_loss(u, v).item() == pytest.approx(wanted, abs=1e-14)
    values = [latent_query_loss(a, b).item() for a, b in zip(u[:-1, None], u[1:, None])]
    assert 0 <= min(values) < 0.7
    assert 1.3 < max(values) <= 2


@pytest.mark.holds("mds-s2", 3)
@pytest.mark.parametrize("side", ["composed", "target"])
def test_a_row_without_a_token_is_refused(side, states):
    masks = {"composed": states[1].clone(), "target": states[3].clone()}
    masks[side][1] = False
    with pytest.raises(ValueError, match=rf"^{side}_mask: expected a token that counts in each row, got \[1\]$"):
        regularizer()(states[0], masks["composed"], states[2], masks["target"])


@pytest.mark.holds("mds-s2", 4)
def test_a_hop_more_is_a_triple_more():
    assert [len(n_hop_walk(CHAIN, ["a"], hops)) for hops in range(5)] == [0, 1, 2, 3, 3]
    assert n_hop_walk(CHAIN, ["a"], 2) == CHAIN[:2]
    assert n_hop_walk(CHAIN, ["a"]) == CHAIN[:2], "two hops are the default"
    assert n_hop_walk(CHAIN, ["d"], 3) == [], "a hop leads from head to tail"


@pytest.mark.holds("mds-s2", 5)
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_target_branch_gets_no_gradient(distance, states):
    composed, composed_mask, target, target_mask = states
    composed, target = composed.requires_grad_(), target.requires_grad_()
    loss = regularizer(distance)
    loss(composed, composed_mask, target, target_mask).backward()
    assert target.grad is None
    assert composed.grad.any()
    assert loss.queries.grad.any()
    # queries learn by the composed branch alone: with the other reading as a constant they get the same
    twin = regularizer(distance, detach_target=False)
    constant = twin.read(target, target_mask).detach()
    latent_query_loss(twin.read(composed, composed_mask), constant, distance=distance).backward()
    assert torch.equal(loss.queries.grad, twin.queries.grad)
    open_both_ways = regularizer(distance, detach_target=False)
    open_both_ways(composed, composed_mask, target, target_mask).backward()
    assert target.grad.any()
    assert not torch.allclose(open_both_ways.queries.grad, twin.queries.grad)


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradient_in_the_target_where_it_is_open(distance, states):
    loss = regularizer(distance, detach_target=False)
    target = states[2].requires_grad_()

    def call(y):
        return loss(states[0], states[1], y, states[3])

    assert torch.autograd.gradcheck(call, target, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, target, fast_mode=True)


def reading_in_loops(loss, states, mask):
    """Queries of two heads on one sequence, written out; a list of vectors."""
    weights, biases = loss.attention.in_proj_weight.tolist(), loss.attention.in_proj_bias.tolist()
    out, out_bias = loss.attention.out_proj.weight.tolist(), loss.attention.out_proj.bias.tolist()

    def project(first, vector):
        return [sum(w * x for w, x in zip(weights[first + i], vector)) + biases[first + i] for i in range(8)]

    tokens = [x for x, valid in zip(states.tolist(), mask.tolist()) if valid]
    keys, values = [project(8, x) for x in tokens], [project(16, x) for x in tokens]
    readings = []
    for query in loss.queries.tolist():
        asked, heads = project(0, query), []
        for head in (slice(0, 4), slice(4, 8)):
            scores = [math.exp(sum(a * b for a, b in zip(asked[head], key[head])) / 2) for key in keys]
            total = sum(scores)
            heads += [sum(s / total * value[head][i] for s, value in zip(scores, values)) for i in range(4)]
        raw = [sum(w * x for w, x in zip(out[i], heads)) + out_bias[i] for i in range(8)]
        mean = sum(raw) / 8
        deviation = math.sqrt(sum((x - mean) ** 2 for x in raw) / 8 + 1e-5)
        readings.append([(x - mean) / deviation for x in raw])
    return readings


def distance_in_loops(distance, u, v):
    if distance == "mse":
        return sum((a - b) ** 2 for a, b in zip(u, v)) / len(u)
    if distance == "cosine":
        return 1 - sum(a * b for a, b in zip(u, v)) / math.hypot(*u) / math.hypot(*v)
    p, q = ([math.exp(x) / sum(map(math.exp, w)) for x in w] for w in (v, u))
    return sum(a * math.log(a / b) for a, b in zip(p, q))


@pytest.mark.parametrize("distance", DISTANCES)
def test_loops(distance, states):
    loss = regularizer(distance)
    nn.init.normal_(loss.attention.in_proj_bias)
    nn.init.normal_(loss.attention.out_proj.bias)
    composed, composed_mask, target, target_mask = states
    total = 0.0
    for row in range(3):
        u = reading_in_loops(loss, composed[row], composed_mask[row])
        v = reading_in_loops(loss, target[row], target_mask[row])
        torch.testing.assert_close(loss.read(composed, composed_mask)[row], torch.tensor(u, dtype=torch.float64))
        total += sum(distance_in_loops(distance, a, b) for a, b in zip(u, v))
    assert loss(*states).item() == pytest.approx(total / 9, rel=1e-12)


def test_peers():
    """Torch's own cosine, squared error and divergence."""
    u, v = torch.randn(2, 5, 3, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    wanted = {
        "cosine": (1 - nn.functional.cosine_similarity(u, v, dim=-1)).mean(),
        "mse": nn.functional.mse_loss(u, v),
        "kl": nn.functional.kl_div(u.flatten(0, 1).log_softmax(-1), v.flatten(0, 1).softmax(-1), reduction="batchmean"),
    }
    for distance, value in wanted.items():
        torch.testing.assert_close(latent_query_loss(u, v, distance=distance), value, rtol=1e-12, atol=0)


def test_without_a_factor_the_readings_keep_their_length(states):
    loss = regularizer()
    assert {name for name, _ in loss.named_parameters()} == {
        "queries", "attention.in_proj_weight", "attention.in_proj_bias",
        "attention.out_proj.weight", "attention.out_proj.bias",
    }  # fmt: skip
    torch.testing.assert_close(loss.read(*states[:2]).square().mean(-1), torch.ones(3, 3).double(), rtol=1e-3, atol=0)


def test_large_and_half_inputs(states):
    composed, composed_mask, target, target_mask = states
    loss = regularizer().float()
    big = loss(1e4 * composed.float(), composed_mask, 1e4 * target.float(), target_mask)
    assert 0 < big < 2
    for half in (torch.float16, torch.bfloat16):
        value = loss.to(half)(composed.to(half), composed_mask, target.to(half), target_mask)
        assert value.dtype == torch.float32
        loss.float()


def test_a_walk_goes_breadth_first_once():
    words = "bra arb ara arb bsc xrb cra"
    graph = [tuple(word) for word in words.split()]
    assert n_hop_walk(graph, ["x", "a", "x"], 1) == [("x", "r", "b"), ("a", "r", "b"), ("a", "r", "a")]
    assert n_hop_walk(graph, ["x", "a"], 2)[3:] == [("b", "r", "a"), ("b", "s", "c")]
    assert n_hop_walk(graph, ["x", "a"], 9)[5:] == [("c", "r", "a")]
    assert n_hop_walk([], ["x"], 2) == n_hop_walk(graph, [], 2) == n_hop_walk(graph, ["nobody"], 2) == []
    assert n_hop_walk([[1, 2, 3]], {1}, 1) == [(1, 2, 3)]


def reached_by_powers(adjacency, seed, hops):
    """Entities that at most ``hops - 1`` steps lead to: the heads of the triples that a walk meets."""
    reach = torch.eye(len(adjacency))[seed]
    for _ in range(hops - 1):
        reach = reach + reach @ adjacency
    return reach > 0


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_a_walk_meets_what_powers_of_the_adjacency_reach(hops, generator):
    for _ in range(20):
        edges = torch.unique(torch.randint(12, (20, 2), generator=generator), dim=0).tolist()
        adjacency = torch.zeros(12, 12)
        for head, tail in edges:
            adjacency[head, tail] = 1
        heads = reached_by_powers(adjacency, 0, hops)
        wanted = {(head, "to", tail) for head, tail in edges if heads[head]}
        assert set(n_hop_walk([(h, "to", t) for h, t in edges], [0], hops)) == wanted


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([("a", "r")], ["a"], 1), ValueError, r"^triples: expected \(head, relation, tail\), got \('a', 'r'\)$"),
        (([("a", "r", [])], ["a"], 1), TypeError, "^triples: expected entries that can be hashed"),
        (([3], ["a"], 1), TypeError, "^triples: expected entries that can be hashed, got 3$"),
        ((CHAIN, "abc", 1), TypeError, "^seeds: expected several entities, got 'abc'"),
        ((CHAIN, 7, 1), TypeError, "^seeds: expected several entities, got 7"),
        ((CHAIN, [["a"]], 1), TypeError, "^seeds: expected entries that can be hashed"),
        ((CHAIN, ["a"], -1), ValueError, "^hops: expected an integer >= 0, got -1$"),
        ((CHAIN, ["a"], 1.5), TypeError, "^hops: expected an integer, got 1.5"),
    ],
)
def test_walks_that_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        n_hop_walk(*arguments)


def composer():
    torch.manual_seed(3)
    return KnowledgeComposer(8, 2).double()


def test_the_gate_mixes_context_and_attended_knowledge(states):
    """Against torch's own attention, row by row without padding."""
    context, _, relations, mask = states
    layer = composer()
    composed = layer(context, relations, mask)
    for row in range(3):
        own = relations[row, mask[row]][None]
        attended, _ = layer.attention(context[row][None], own, own)
        inner = nn.functional.layer_norm(context[row] + attended[0], (8,), layer.norm.weight, layer.norm.bias)
        gate = torch.sigmoid(torch.cat([context[row], inner], -1) @ layer.gate.weight.T + layer.gate.bias)
        torch.testing.assert_close(composed[row], gate * inner + (1 - gate) * context[row], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer(context, relations), layer(context, relations, torch.ones_like(mask)))
    for bias, wanted in ((-1e3, context), (1e3, None)):
        nn.init.constant_(layer.gate.bias, bias)
        assert (wanted is not None) == torch.equal(layer(context, relations, mask), context)


def test_padding_and_samples_without_knowledge(states):
    """NaN in padding leaves no trace; a sample without triples goes through as it is, its gradient too."""
    context, _, relations, mask = states
    layer, mask = composer(), mask.clone()
    mask[1] = False
    clean = torch.where(mask[..., None], relations, 0.0).requires_grad_()
    dirty = torch.where(mask[..., None], relations, math.nan).requires_grad_()
    context = context.requires_grad_()
    values, slopes = [], []
    for knowledge in (clean, dirty):
        values.append(layer(context, knowledge, mask))
        slopes.append(torch.autograd.grad(values[-1].square().sum(), [context, knowledge, *layer.parameters()]))
    assert torch.equal(*values)
    assert all(torch.equal(a, b) for a, b in zip(*slopes))
    assert torch.equal(values[0][1], context[1])
    assert torch.equal(slopes[0][0][1], 2 * context[1])
    assert all(slope.isfinite().all() for slope in slopes[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"composed": torch.zeros(3, 6, 7)}, r"^composed: expected shape \(\*, \*, 8\)"),
        ({"target": torch.zeros(3, 4)}, r"^target: expected shape \(\*, \*, 8\)"),
        ({"composed_mask": torch.ones(3, 5).bool()}, r"^composed_mask: expected shape \(3, 6\)"),
        ({"target_mask": torch.ones(3, 4)}, "^target_mask: expected a boolean tensor"),
        ({"target": torch.zeros(2, 4, 8), "target_mask": torch.ones(2, 4).bool()}, r"^target: expected shape \(3,"),
    ],
)
def test_calls_that_are_refused(change, message, states):
    call = dict(zip(("composed", "composed_mask", "target", "target_mask"), states)) | change
    with pytest.raises((ValueError, TypeError), match=message):
        regularizer()(**call)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 6}, "^dim: expected a multiple of 4 heads, got 6$"),
        ({"dim": 0}, "^dim: expected an integer >= 1, got 0$"),
        ({"heads": 0}, "^heads: expected an integer >= 1, got 0$"),
        ({"num_queries": 0}, "^num_queries: expected an integer >= 1, got 0$"),
        ({"distance": "l1"}, "^distance: expected one of 'cosine', 'mse', 'kl', got 'l1'$"),
        ({"detach_target": 1}, "^detach_target: expected True or False, got 1"),
    ],
)
def test_settings_that_are_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        LatentQueryRegularizer(**{"dim": 8} | arguments)
    if arguments.keys() <= {"dim", "heads"}:
        with pytest.raises((ValueError, TypeError), match=message):
            KnowledgeComposer(**{"dim": 8} | arguments)


def test_readings_and_knowledge_that_are_refused(states):
    u = torch.zeros(2, 3, 4)
    for wrong in ({"target": u[:1]}, {"distance": "l2"}, {"detach_target": None}, {"composed": u[0]}):
        with pytest.raises((ValueError, TypeError), match=f"^{next(iter(wrong))}: expected"):
            latent_query_loss(**{"composed": u, "target": u} | wrong)
    context, _, relations, mask = states
    for wrong, name in (
        ((context[..., :7], relations, mask), "context"),
        ((context, relations[:2], mask[:2]), "relations"),
        ((context, relations, mask.long()), "relation_mask"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"^{name}: expected"):
            composer()(*wrong)


def test_autocast_rounds_nothing_of_knowledge():
    torch.manual_seed(0)
    composer = KnowledgeComposer(8, 2)
    context, relations = torch.randn(2, 8), torch.randn(2, 3, 8)
    mask = torch.ones(2, 3, dtype=torch.bool)
    attention = composer.attention
    wanted = _attend(attention, context[:, None], relations, mask)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(_attend(attention, context[:, None], relations, mask), wanted)
