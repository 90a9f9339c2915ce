"""RankMixup against hand-computed numbers and float64 loops; what it feeds the model."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from steepest.core.objective import Batch
from steepest.data.mixing import MixupRankingLoss, MNDCGLoss, RankMixup, mixup_ranking_term, mndcg_term
from steepest.losses import CompSumLoss
from steepest.nn.networks import Network, mlp

RAW = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
MIXED = torch.tensor([[1.0, 0.5, 0.0], [3.0, 0.0, 0.0]])
LABELS = torch.tensor([[0.7, 0.3, 0.0], [0.4, 0.6, 0.0]])


def with_confidence(p: list[float], classes: int = 2) -> torch.Tensor:
    """Logits [N, K] whose largest softmax value is p >= 1/K."""
    top = torch.tensor(p, dtype=torch.float64)
    rest = ((1 - top) / (classes - 1))[:, None].expand(-1, classes - 1)
    return torch.cat([top[:, None], rest], 1).log()


def pair_labels(c: list[float]) -> torch.Tensor:
    top = torch.tensor(c, dtype=torch.float64)
    return torch.stack([top, 1 - top], -1)


def drawn(rows: int = 9, classes: int = 4, mixtures: int = 3, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    mixed = 3 * torch.randn(mixtures, rows, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (rows,), generator=generator)
    other = torch.randint(classes, (mixtures, rows), generator=generator)
    lam = torch.rand(mixtures, rows, 1, generator=generator, dtype=torch.float64)
    eye = torch.eye(classes, dtype=torch.float64)
    return logits, target, mixed, lam * eye[target] + (1 - lam) * eye[other]


def softmax(row: list[float]) -> list[float]:
    e = [math.exp(v - max(row)) for v in row]
    return [v / sum(e) for v in e]


def naive_mndcg(logits, mixed, labels) -> float:
    total = 0.0
    for i, row in enumerate(logits.tolist()):
        pairs = sorted(
            ((max(labels[q, i].tolist()), max(softmax(mixed[q, i].tolist()))) for q in range(len(mixed))), reverse=True
        )
        gain, ideal = max(softmax(row)), 1.0
        for rank, (c, p) in enumerate(pairs, start=1):
            gain += p / math.log2(rank + 2)
            ideal += c / math.log2(rank + 2)
        total += 1 - (gain / ideal if ideal > gain else ideal / gain)
    return total / len(logits)


@pytest.mark.holds("rankmixup", 1)
def test_mrl_of_the_card():
    assert mixup_ranking_term(RAW, MIXED, LABELS).item() == pytest.approx(2.5, abs=1e-6)
    assert mixup_ranking_term(RAW, MIXED, LABELS, margin=0.1).item() == pytest.approx(1.05, abs=1e-6)
    loss = MixupRankingLoss()
    total = loss(RAW, torch.tensor([0, 1]), MIXED, LABELS)
    assert loss.terms["own"].item() == pytest.approx(0.425058, abs=1e-6)
    assert total.item() == pytest.approx(0.425058 + 0.1 * 2.5, abs=1e-6)


@pytest.mark.holds("rankmixup", 1)
@pytest.mark.parametrize("margin", [0.0, 0.1, 2.0])
def test_mrl_is_the_naive_loop(margin):
    logits, target, mixed, labels = drawn()
    total = 0.0
    for o, m, y in zip(logits.tolist(), mixed[0].tolist(), labels[0].tolist()):
        total += 0.0 if max(y) == 1 else max(0.0, max(m) - max(o) + margin)
    assert mixup_ranking_term(logits, mixed[0], labels[0], margin=margin).item() == pytest.approx(total / 9, rel=1e-12)
    own = sum(-math.log(softmax(o)[y]) for o, y in zip(logits.tolist(), target.tolist())) / 9
    found = MixupRankingLoss(margin, 0.3)(logits, target, mixed[0], labels[0])
    assert found.item() == pytest.approx(own + 0.3 * total / 9, rel=1e-12)


@pytest.mark.holds("rankmixup", 2)
def test_mndcg_of_the_card():
    raw = with_confidence([0.9])
    mixed = with_confidence([0.8, 0.6, 0.7])[:, None]
    labels = pair_labels([0.6, 0.9, 0.75])[:, None]
    found = mndcg_term(raw, mixed, labels).item()
    gain = 0.9 + 0.6 / math.log2(3) + 0.7 / 2 + 0.8 / math.log2(5)
    ideal = 1 + 0.9 / math.log2(3) + 0.75 / 2 + 0.6 / math.log2(5)
    assert gain == pytest.approx(1.973099, abs=1e-5)
    assert ideal == pytest.approx(2.201243, abs=1e-5)
    assert found == pytest.approx(1 - gain / ideal, rel=1e-12)
    assert found == pytest.approx(0.103643, abs=1e-6)


@pytest.mark.holds("rankmixup", 2, 3)
@pytest.mark.parametrize("seed", range(3))
def test_mndcg_is_the_naive_loop(seed):
    logits, target, mixed, labels = drawn(seed=seed)
    found = mndcg_term(logits, mixed, labels).item()
    assert found == pytest.approx(naive_mndcg(logits, mixed, labels), rel=1e-12)
    assert 0 < found < 1
    loss = MNDCGLoss(0.5)
    own = nn.functional.cross_entropy(logits, target).item()
    assert loss(logits, target, mixed, labels).item() == pytest.approx(own + 0.5 * found, rel=1e-12)


@pytest.mark.holds("rankmixup", 3)
def test_mndcg_is_zero_only_at_equal_gains():
    sure = torch.tensor([[1e4, 0.0]], dtype=torch.float64)
    c = [0.6, 0.9, 0.75]
    equal = with_confidence(c)[:, None].requires_grad_()
    at_zero = mndcg_term(sure, equal, pair_labels(c)[:, None])
    assert at_zero.item() == pytest.approx(0, abs=1e-15)
    for shift in (-0.05, 0.05):
        moved = with_confidence([0.6, 0.9 + shift, 0.75])[:, None]
        assert mndcg_term(sure, moved, pair_labels(c)[:, None]).item() > 0.01
    # two misorderings that cancel leave the sums equal: it compares sums, not orders
    d = [1 / math.log2(3), 1 / 2]
    swapped = with_confidence([0.8 - 0.1, 0.7 + 0.1 * d[0] / d[1]])[:, None]
    assert mndcg_term(sure, swapped, pair_labels([0.8, 0.7])[:, None]).item() == pytest.approx(0, abs=1e-14)


@pytest.mark.holds("rankmixup", 3)
def test_mndcg_stays_below_one_for_huge_logits():
    raw = torch.full((1, 1000), 0.0)
    mixed = torch.zeros(3, 1, 1000)
    labels = torch.zeros(3, 1, 1000).index_fill_(2, torch.tensor([0]), 1.0)
    assert 0 < mndcg_term(raw, mixed, labels).item() < 1
    sure = torch.zeros(1, 1000).index_fill_(1, torch.tensor([3]), 1e4)
    assert mndcg_term(sure, sure.expand(3, 1, -1), labels).item() == 0


@pytest.mark.holds("rankmixup", 4)
def test_pairs_of_one_class_do_not_count():
    pure = torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0]])
    mixed = MIXED.clone().requires_grad_()
    found = mixup_ranking_term(RAW, mixed, pure)
    assert found.item() == pytest.approx(1.0 / 2, abs=1e-6)  # the mean is over all rows
    found.backward()
    assert mixed.grad[1].abs().sum() == 0
    assert mixed.grad[0].abs().sum() > 0
    with_one = torch.eye(3)[[0, 1]]
    assert mixup_ranking_term(RAW, MIXED, with_one).item() == 0
    # the labels that the method mixes are one-hot for any coefficient
    method = RankMixup(kind="mrl", per_sample=True, seed=0)
    method(nn.Linear(4, 3), torch.randn(64, 4), torch.full((64,), 2))
    assert method.terms["ranking"].item() == 0


@pytest.mark.holds("rankmixup", 5)
@pytest.mark.parametrize("kind", ["mrl", "mndcg"])
def test_weight_zero_is_cross_entropy(kind):
    logits, target, mixed, labels = drawn()
    own = nn.functional.cross_entropy(logits, target)
    if kind == "mrl":
        assert torch.equal(MixupRankingLoss(weight=0.0)(logits, target, mixed[0], labels[0]), own)
    else:
        assert torch.equal(MNDCGLoss(weight=0.0)(logits, target, mixed, labels), own)
    model = nn.Linear(4, 4).double()
    found = RankMixup(kind=kind, weight=0.0, seed=0)(model, logits, target)
    assert torch.equal(found, nn.functional.cross_entropy(model(logits), target))


@pytest.mark.holds("rankmixup", 6)
def test_the_order_of_mixtures_changes_nothing():
    logits, _, mixed, labels = drawn()
    labels[1, :4] = labels[0, :4]  # ties in purity too
    wanted = mndcg_term(logits, mixed, labels)
    for order in itertools.permutations(range(3)):
        assert mndcg_term(logits, mixed[list(order)], labels[list(order)]).item() == pytest.approx(
            wanted.item(), rel=1e-14
        )


class Seen(nn.Module):
    """A linear model that keeps its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.inputs: list[torch.Tensor] = []

    def forward(self, x):
        self.inputs.append(x)
        return self.linear(x)


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_model_sees_the_raw_batch_then_all_mixtures(per_sample):
    torch.manual_seed(0)
    model, x, y = Seen(), torch.randn(6, 2), torch.arange(6) % 3
    method = RankMixup(per_sample=per_sample, seed=1)
    found = method(model, x, y)
    raw, mixed = model.inputs
    assert torch.equal(raw, x)
    assert mixed.shape == (18, 2)
    labels = torch.zeros(3, 6, 3)
    for q, rows in enumerate(mixed.view(3, 6, 2)):
        coefficients = []
        for i, row in enumerate(rows):
            if torch.allclose(row, x[i], atol=1e-6):  # mixed with itself
                labels[q, i, y[i]] = 1
                continue
            # the one pair (partner, lam in [0, 1]) that gives this row
            fits = []
            for j in range(6):
                if j == i:
                    continue
                lam = ((row - x[j]) @ (x[i] - x[j]) / (x[i] - x[j]).square().sum()).item()
                if -1e-6 <= lam <= 1 + 1e-6 and torch.allclose(lam * x[i] + (1 - lam) * x[j], row, atol=1e-5):
                    fits.append((j, lam))
            ((j, lam),) = fits
            labels[q, i, y[i]] += lam
            labels[q, i, y[j]] += 1 - lam
            coefficients.append(lam)
        assert (max(coefficients) - min(coefficients) < 1e-4) != per_sample
    logits = model.linear(x)
    wanted = MNDCGLoss()(logits, y, model.linear(mixed).view(3, 6, 3), labels)
    assert found.item() == pytest.approx(wanted.item(), abs=1e-5)


def test_gradients_flow_through_raw_and_mixed_outputs():
    logits, target, mixed, labels = drawn()
    for loss, m, y in ((MNDCGLoss(), mixed, labels), (MixupRankingLoss(), mixed[0], labels[0])):
        m = m.clone().requires_grad_()
        loss(logits.clone().requires_grad_(), target, m, y).backward()
        assert m.grad.abs().sum() > 0
    found = [torch.autograd.grad(mndcg_term(o, mixed, labels), o)[0] for o in [logits.clone().requires_grad_()]]
    assert found[0].abs().sum() > 0


def test_the_objective_of_the_loop_scores_the_raw_samples():
    torch.manual_seed(0)
    model = Network(mlp(5, width=8, depth=1), nn.Linear(8, 3))
    x, y = torch.randn(8, 5), torch.arange(8) % 3
    weight = torch.tensor([1.0, 0, 1, 0, 1, 0, 1, 0])
    objective = CompSumLoss(1.5)
    method = RankMixup(seed=0).eval()
    found = method.loss(model, Batch(x, y, weight=weight), objective)
    assert method.terms["own"].item() == pytest.approx(objective(model(x)[::2], y[::2]).item(), rel=1e-6)
    assert found.item() == pytest.approx((method.terms["own"] + 0.1 * method.terms["ranking"]).item(), rel=1e-6)
    # in eval mode the stream stays, in training it goes on
    assert method.loss(model, Batch(x, y, weight=weight), objective).item() == found.item()
    method.train()
    a, b = (method.loss(model, Batch(x, y), objective).item() for _ in range(2))
    assert a != b


def test_refusals():
    logits, target, mixed, labels = drawn()
    with pytest.raises(ValueError, match="margin"):
        MixupRankingLoss(-1.0)
    with pytest.raises(ValueError, match="num_mix"):
        RankMixup(kind="mrl", num_mix=3)
    with pytest.raises(ValueError, match="kind"):
        RankMixup(kind="ndcg")
    with pytest.raises(ValueError, match="mix_logits"):
        mndcg_term(logits, mixed[0], labels)
    with pytest.raises(ValueError, match="at least one mixture"):
        mndcg_term(logits, mixed[:0], labels[:0])
    with pytest.raises(ValueError, match="sum to 1"):
        mndcg_term(logits, mixed, 2 * labels)
    with pytest.raises(ValueError, match="target"):
        MNDCGLoss()(logits, target + 4, mixed, labels)
