"""Scores of samples, against loops in float64, gradients of one sample at a time, and by hand; pruning by them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from steepest.data.scores import (
    ScoreSampler,
    el2n,
    forgetting_counts,
    last_layer_self_influence,
    pointwise_v_information,
    tracin_self_influence,
    variance_of_gradients,
)
from steepest.nn.networks import Network, mlp


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(n=9, d=4, classes=3, dtype=torch.float64):
    x = torch.randn(n, d, generator=seeded(), dtype=dtype)
    return x, torch.arange(n) % classes


def network(d=4, classes=3, width=5, bias=True):
    torch.manual_seed(0)
    return Network(mlp(d, width=width, depth=1), nn.Linear(width, classes, bias=bias)).double()


def checkpoints_of(model, count=3):
    states = []
    for seed in range(count):
        states.append(
            {k: v + 0.3 * torch.randn(v.shape, generator=seeded(seed)) for k, v in model.state_dict().items()}
        )
    return states


# -------- EL2N


@pytest.mark.holds("influence-scores", 1)
def test_el2n_by_hand_and_its_range():
    logits = torch.tensor([[0.7, 0.2, 0.1]] * 2, dtype=torch.float64).log()
    assert el2n(logits, torch.tensor([0, 1])).tolist() == pytest.approx([0.374166, 1.067708], abs=1e-6)
    far = 1e4 * torch.eye(3)
    assert el2n(far, torch.tensor([1, 2, 0])).tolist() == pytest.approx([math.sqrt(2)] * 3, rel=1e-6)
    assert el2n(far, torch.arange(3)).tolist() == [0.0] * 3


def test_el2n_is_a_mean_over_trainings():
    logits = torch.randn(5, 7, 3, generator=seeded(), dtype=torch.float64)
    labels = torch.randint(3, (7,), generator=seeded(1))
    wanted = torch.zeros(7, dtype=torch.float64)
    for training in logits:
        for i, row in enumerate(training):
            wanted[i] += (row.softmax(0) - one_hot(labels[i], 3)).square().sum().sqrt() / 5
    assert torch.allclose(el2n(logits, labels), wanted, rtol=1e-12)
    assert torch.allclose(el2n(logits[0], labels.int()), el2n(logits[:1], labels))


def test_el2n_keeps_the_digits_of_a_sample_that_is_nearly_certain():
    tiny = el2n(torch.tensor([[20.0, 0.0]]), torch.tensor([0]))
    assert tiny.item() == pytest.approx(math.sqrt(2) / (1 + math.exp(20.0)), rel=1e-5)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_logits_give_float32(half):
    logits, labels = torch.randn(6, 3, generator=seeded()).to(half), torch.arange(6) % 3
    assert el2n(logits, labels).dtype == torch.float32
    assert torch.allclose(el2n(logits, labels), el2n(logits.float(), labels))
    features = torch.full((6, 2), 300.0, dtype=half)
    assert last_layer_self_influence(features, logits, labels).isfinite().all()


# -------- variance of gradients


def rows_as_checkpoints(*rows):
    return [{"weight": torch.tensor([row, [0.0, 0.0]])} for row in rows]


@pytest.mark.holds("influence-scores", 2)
def test_variance_by_hand():
    line, x, y = nn.Linear(2, 2, bias=False), torch.ones(1, 2), torch.tensor([0])
    states = rows_as_checkpoints([1.0, 2.0], [3.0, 2.0], [2.0, 5.0])
    assert variance_of_gradients(line, x, y, states, None).item() == pytest.approx(1.115355, abs=1e-6)
    first = rows_as_checkpoints([1.0, 0.0], [3.0, 0.0], [2.0, 0.0])
    second = rows_as_checkpoints([0.0, 2.0], [0.0, 2.0], [0.0, 5.0])
    assert 2 * variance_of_gradients(line, x, y, first, None).item() == pytest.approx(0.816497, abs=1e-6)
    assert 2 * variance_of_gradients(line, x, y, second, None).item() == pytest.approx(1.414214, abs=1e-6)
    assert variance_of_gradients(line, x, y, states[:1] * 4, None).item() == 0.0


@pytest.mark.parametrize("batch_size", [2, 256])
def test_variance_is_that_of_gradients_taken_one_by_one(batch_size):
    model, (x, y) = network(), drawn()
    states = checkpoints_of(model, 4)
    slopes = torch.zeros(4, len(x), 4, dtype=torch.float64)
    for t, state in enumerate(states):
        for i in range(len(x)):
            leaf = x[i].clone().requires_grad_()
            z = torch.func.functional_call(model, state, (leaf[None],))[0, y[i]]
            (slopes[t, i],) = torch.autograd.grad(z, leaf)
    wanted = slopes.std(0, unbiased=False).mean(1)
    scores = variance_of_gradients(model, x, y, states, None, batch_size=batch_size)
    assert torch.allclose(scores, wanted, rtol=1e-10)
    by_class = variance_of_gradients(model, x, y, states, batch_size=batch_size)
    for label in y.unique():
        own = wanted[y == label]
        assert torch.allclose(by_class[y == label], (own - own.mean()) / own.std(unbiased=False), rtol=1e-8)


@pytest.mark.holds("influence-scores", 3)
def test_normalisation_by_class():
    # the slope of logit y is w_y(t) x's own scale: sample i has the score |w - mean| of a path through 1 +- s_i
    class PerSample(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def forward(self, inputs):
            scale, x = inputs[:, :1].detach(), inputs[:, 1:]
            return torch.cat([scale * self.w * x, scale * self.w * x], 1) * 2

    model = PerSample()
    states = [{"w": torch.tensor(-1.0)}, {"w": torch.tensor(1.0)}]
    inputs = torch.stack([torch.tensor([1.0, 3.0, 2.0, 10.0, 7.0]), torch.ones(5)], 1)
    labels = torch.tensor([0, 0, 1, 1, 1])
    plain = variance_of_gradients(model, inputs[:4], labels[:4], states, None)
    assert plain.tolist() == pytest.approx([1.0, 3.0, 2.0, 10.0])
    by_class = variance_of_gradients(model, inputs[:4], labels[:4], states)
    assert by_class.tolist() == pytest.approx([-1.0, 1.0, -1.0, 1.0])
    alone = variance_of_gradients(model, inputs[:3], labels[:3], states)
    assert alone.tolist() == pytest.approx([-1.0, 1.0, 0.0])
    equal = variance_of_gradients(model, inputs[[3, 3, 3]], labels[[0, 0, 0]], states)
    assert equal.tolist() == [0.0] * 3


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(6, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, tokens):
        return self.head(self.table(tokens).square().mean(1))


def test_variance_of_words_is_that_of_their_embeddings():
    model = Words().double()
    tokens, labels = torch.randint(6, (5, 4), generator=seeded()), torch.arange(5) % 2
    states = checkpoints_of(model)
    slopes = torch.stack(
        [2 * s["table.weight"][tokens] * s["head.weight"][labels][:, None] / 4 for s in states]
    )  # d/de of w' mean(e ** 2) over 4 positions
    wanted = slopes.std(0, unbiased=False).flatten(1).mean(1)
    scores = variance_of_gradients(model, tokens, labels, states, None, embedding="table")
    assert torch.allclose(scores, wanted, rtol=1e-10)
    named = variance_of_gradients(model, {"tokens": tokens}, labels, states, None, embedding="table", batch_size=2)
    assert torch.allclose(named, wanted, rtol=1e-10)


def test_the_model_stays_as_it_is():
    model, (x, y) = network(), drawn()
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    states = checkpoints_of(model)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    variance_of_gradients(model, x, y, states)
    tracin_self_influence(model, (x, y), states, [0.1] * 3, head="head")
    tracin_self_influence(model, (x, y), states, [0.1] * 3)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.head._forward_hooks


# -------- forgetting, PVI


@pytest.mark.holds("influence-scores", 5)
def test_forgetting():
    history = torch.tensor([[0, 1, 1, 0, 1, 0, 0, 1], [0] * 8, [1] * 8, [0] * 7 + [1]]).T
    assert forgetting_counts(history).tolist() == [2, 8, 0, 0]
    assert torch.equal(forgetting_counts(history.bool()), forgetting_counts(history))
    correct = torch.rand(30, 20, generator=seeded()) < 0.5
    wanted = []
    for column in correct.T.tolist():
        events = sum(a and not b for a, b in pairwise(column))
        wanted.append(events if any(column) else 30)
    assert forgetting_counts(correct).tolist() == wanted
    assert forgetting_counts(torch.ones(1, 2, dtype=torch.bool)).tolist() == [0, 0]
    assert forgetting_counts(torch.zeros(1, 2, dtype=torch.bool)).tolist() == [1, 1]


@pytest.mark.holds("influence-scores", 4)
def test_bits():
    logp = torch.tensor([0.8, 0.1], dtype=torch.float64).log()
    null = torch.full((2,), 0.25, dtype=torch.float64).log()
    assert pointwise_v_information(logp, null).tolist() == pytest.approx([1.678072, -1.321928], abs=1e-6)
    assert pointwise_v_information(null, null).tolist() == [0.0, 0.0]


# -------- self-influence


@pytest.mark.holds("influence-scores", 6)
def test_influence_by_hand_and_pruning_nothing():
    class Fixed(nn.Module):
        """Its loss is w x: the squared gradient is x ** 2."""

        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return self.w * x

    states = [{"w": torch.tensor(1.0)}, {"w": torch.tensor(2.0)}]
    first = tracin_self_influence(Fixed(), (torch.tensor([5.0]),) * 2, states[:1], [0.1], loss_fn=lambda z, y: z.sum())
    second = tracin_self_influence(
        Fixed(), (torch.tensor([2.0]),) * 2, states[1:], [0.05], loss_fn=lambda z, y: z.sum()
    )
    assert (first + second).item() == pytest.approx(0.1 * 25 + 0.05 * 4)
    grows = tracin_self_influence(
        Fixed(), (torch.ones(1), torch.ones(1)), states, [0.1, 0.05], loss_fn=lambda z, y: 2.5 * z.square().sum()
    )
    assert grows.item() == pytest.approx(0.1 * 25 + 0.05 * 100)
    for mode in ("hard", "easy", "middle", "random"):
        assert ScoreSampler(torch.rand(7), keep=1.0, mode=mode).rows.tolist() == list(range(7))


@pytest.mark.parametrize("bias", [True, False])
def test_the_closed_form_is_the_gradient_of_each_sample(bias):
    model, (x, y) = network(bias=bias), drawn()
    states, rates = checkpoints_of(model), [0.1, 0.2, 0.05]
    wanted, whole = torch.zeros(2, len(x), dtype=torch.float64)
    for state, rate in zip(states, rates):
        model.load_state_dict(state)
        for i in range(len(x)):
            loss = cross_entropy(model(x[i : i + 1]), y[i : i + 1])
            own = torch.autograd.grad(loss, list(model.parameters()))
            squares = [float(g.square().sum()) for g in own]
            whole[i] += rate * sum(squares)
            wanted[i] += rate * sum(squares[2:])  # behind weight and bias of the backbone
    for batch_size in (2, 256):
        scores = tracin_self_influence(model, (x, y), states, rates, head="head", batch_size=batch_size)
        assert torch.allclose(scores, wanted, rtol=1e-10)
        scores = tracin_self_influence(model, (x, y), states, rates, batch_size=batch_size)
        assert torch.allclose(scores, whole, rtol=1e-10)


def test_losses_are_those_of_samples_whatever_their_reduction():
    model, (x, _) = network(classes=2), drawn()
    target = torch.randn(len(x), 2, generator=seeded(4), dtype=torch.float64)
    states = checkpoints_of(model, 1)
    options = {"loss_fn": mse_loss, "head": "head"}
    scores = tracin_self_influence(model, (x, target), states, [1.0], **options)
    model.load_state_dict(states[0])
    h = model.backbone(x)
    slope = 2 * (model(x) - target) / 2  # of the mean over two outputs
    assert torch.allclose(scores, slope.square().sum(1) * (h.square().sum(1) + 1), rtol=1e-10)
    whole = tracin_self_influence(model, (x, target), states, [1.0], loss_fn=mse_loss)
    assert (whole > scores).all()


def test_wrong_labels_have_the_highest_scores():
    x = torch.randn(200, 2, generator=seeded())
    x[:, 0] += 2 * x[:, 0].sign()
    clean = (x[:, 0] > 0).long()
    wrong = torch.zeros(200, dtype=torch.bool)
    wrong[:20] = True
    y = torch.where(wrong, 1 - clean, clean)
    torch.manual_seed(0)
    model, states, right = nn.Linear(2, 2), [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        z = model(x)
        cross_entropy(z, y).backward()
        optimizer.step()
        states.append({k: v.clone() for k, v in model.state_dict().items()})
        right.append(z.argmax(1) == y)
    z = model(x).detach()
    influence = tracin_self_influence(model, (x, y), states, [0.5] * 20, head="")
    for scores in (el2n(z, y), influence, forgetting_counts(torch.stack(right)).float()):
        assert wrong[scores.topk(20).indices].float().mean() > 0.8


# -------- pruning


def test_what_remains():
    scores = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 0.0])
    rows = {mode: ScoreSampler(scores, keep=0.5, mode=mode).rows.tolist() for mode in ("hard", "easy", "middle")}
    assert rows == {"hard": [0, 2, 4], "easy": [1, 3, 5], "middle": [2, 3, 4]}
    assert ScoreSampler(scores, keep=0.5, mode="hard", hard="low").rows.tolist() == [1, 3, 5]
    assert ScoreSampler(scores, keep=0.5, mode="easy", hard="low").rows.tolist() == [0, 2, 4]
    assert ScoreSampler(scores, keep=0.01).rows.tolist() == [0]
    assert ScoreSampler(torch.zeros(4, dtype=torch.int64), keep=0.5).rows.tolist() == [0, 1]
    assert len(ScoreSampler(torch.rand(200), keep=0.305, mode="random").rows) == 61


def test_by_class():
    scores, labels = torch.arange(10.0), torch.tensor([0] * 6 + [-3] * 3 + [7])
    assert ScoreSampler(scores, labels, 0.5, "hard", per_class=True).rows.tolist() == [3, 4, 5, 7, 8, 9]
    assert ScoreSampler(scores, labels, 0.5, "hard").rows.tolist() == [5, 6, 7, 8, 9]


def test_random_is_drawn_by_the_seed_and_blind_to_scores():
    scores = torch.rand(60, generator=seeded())
    first = ScoreSampler(scores, mode="random", seed=1).rows
    assert torch.equal(first, ScoreSampler(-scores, mode="random", seed=1).rows)
    assert not torch.equal(first, ScoreSampler(scores, mode="random", seed=2).rows)
    assert len(first) == 30


def test_epochs_hold_what_remains():
    sampler = ScoreSampler(torch.arange(10.0), keep=0.5, batch_size=2, seed=3)
    epochs = [[row for batch in sampler for row in batch] for _ in range(3)]
    assert all(sorted(epoch) == [5, 6, 7, 8, 9] for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("kind", ["hard", "low"])
def test_infinite_scores_are_extreme(kind):
    scores = torch.tensor([0.0, torch.inf, 1.0, -torch.inf])
    mode = {"hard": "hard", "low": "easy"}[kind]
    assert ScoreSampler(scores, keep=0.25, mode=mode).rows.tolist() == [{"hard": 1, "low": 3}[kind]]


# -------- refusals

X, Y = torch.ones(3, 2), torch.tensor([0, 1, 0])
STATES = [nn.Linear(2, 2).state_dict()]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: el2n(torch.zeros(2), Y), "logits: expected 2 or 3 dimensions"),
        (lambda: el2n(torch.zeros(0, 3, 2), Y), "logits: expected at least one training"),
        (lambda: el2n(torch.zeros(3, 1), Y), "logits: expected at least 2 classes"),
        (lambda: el2n(torch.zeros(3, 2), Y + 1), "labels: expected values in 0..1"),
        (lambda: forgetting_counts(torch.zeros(0, 2, dtype=torch.bool)), "correct: expected at least one check"),
        (lambda: forgetting_counts(torch.full((2, 2), 2)), "correct: expected values in 0..1"),
        (lambda: forgetting_counts(torch.rand(2, 2)), "correct: expected an integer tensor"),
        (lambda: pointwise_v_information(torch.ones(2), -torch.ones(2)), "logp: expected logarithms"),
        (lambda: pointwise_v_information(-torch.ones(2), torch.ones(2)), "logp_null: expected logarithms"),
        (lambda: pointwise_v_information(-torch.ones(2), -torch.ones(3)), "logp_null: expected shape"),
        (lambda: last_layer_self_influence(X[:2], X, Y), "features: expected shape"),
        (lambda: last_layer_self_influence(X, X, Y, bias=1), "bias: expected True or False"),
        (lambda: variance_of_gradients(nn.Linear(2, 2), X, Y, STATES, "all"), "normalize: expected one of"),
        (lambda: variance_of_gradients(nn.Linear(2, 2), X, Y, []), "checkpoints: expected at least one"),
        (lambda: variance_of_gradients(nn.Linear(2, 2), X, Y, [{}]), "checkpoints: expected state dicts"),
        (lambda: variance_of_gradients(nn.Linear(2, 2), X.long(), Y, STATES), "inputs: expected a floating"),
        (lambda: variance_of_gradients(nn.Linear(2, 2), X, Y, STATES, embedding="e"), "embedding: expected the name"),
        (lambda: variance_of_gradients(nn.Linear(2, 2), X, Y + 1, STATES), "labels: expected values in 0..1"),
        (lambda: variance_of_gradients(len, X, Y, STATES), "model: expected a module"),
        (lambda: tracin_self_influence(nn.Linear(2, 2), (X, Y), STATES, []), "lrs: expected 1 rates"),
        (lambda: tracin_self_influence(nn.Linear(2, 2), (X, Y), STATES, [0.0]), "lrs: expected a number > 0"),
        (lambda: tracin_self_influence(nn.Linear(2, 2), (X, Y), STATES, [1.0], head="x"), "head: expected the name"),
        (lambda: tracin_self_influence(nn.Linear(2, 2), (X, Y), STATES, [1.0], batch_size=0), "batch_size: expected"),
        (lambda: tracin_self_influence(nn.Linear(2, 2), (X, Y), STATES, [1.0], loss_fn=1), "loss_fn: expected a func"),
        (lambda: tracin_self_influence(nn.Linear(2, 2), (X, X), STATES, [1.0]), "targets: expected"),
        (lambda: ScoreSampler(torch.tensor([0.0, torch.nan])), "scores: expected numbers"),
        (lambda: ScoreSampler(torch.rand(3), keep=0.0), "keep: expected a number > 0"),
        (lambda: ScoreSampler(torch.rand(3), mode="best"), "mode: expected one of"),
        (lambda: ScoreSampler(torch.rand(3), hard="up"), "hard: expected one of"),
        (lambda: ScoreSampler(torch.rand(3), per_class=True), "labels: expected the classes"),
        (lambda: ScoreSampler(torch.rand(3), Y[:2]), "labels: expected shape"),
    ],
)
def test_refusals(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_a_head_that_is_none_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(2, 2)
            self.act = nn.ReLU()

        def forward(self, x):
            return self.line(self.line(self.act(x)))

    model = Twice()
    for name, message in (("line", "runs once"), ("act", "a linear layer")):
        with pytest.raises(ValueError, match=f"head: expected .*{message}"):
            tracin_self_influence(model, (X, Y), [model.state_dict()], [1.0], head=name)
    with pytest.raises(ValueError, match="embedding: expected a submodule that runs once"):
        variance_of_gradients(model, X, Y, [model.state_dict()], embedding="line")
    inner = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    with pytest.raises(ValueError, match="gives the outputs"):
        tracin_self_influence(inner, (X, Y), [inner.state_dict()], [1.0], head="0")
    joins = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    with pytest.raises(ValueError, match="model: expected no layer that joins samples"):
        variance_of_gradients(joins, X, Y, [joins.state_dict()])
