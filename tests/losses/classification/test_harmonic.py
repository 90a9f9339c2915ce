"""The harmonic loss: probabilities as a power of the distance, the head of centres, models in a stack."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.distance import cdist
from torch import nn
from torch.nn.functional import cross_entropy

from steepest.core.distances import VARIANTS
from steepest.core.objective import TaskInfo
from steepest.descent import Stack
from steepest.losses.classification.harmonic import DistanceHead, HarmonicLoss, distances, harmonic_log_softmax
from steepest.nn.networks import Network, mlp

X = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
W = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]], dtype=torch.float64)
FORMS = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]


def head_with(centres, distance, **how):
    head = DistanceHead(centres.shape[1], len(centres), distance, **how).to(centres.dtype)
    head.weight.data.copy_(centres)
    return head


def p_of(distance, n=1.0, **how):
    return head_with(W, distance, n=n, eps=0.0, **how)(X).softmax(-1)


def near(found, wanted, tolerance=5e-5):
    torch.testing.assert_close(found, found.new_tensor([wanted]), atol=tolerance, rtol=0)


@pytest.mark.holds("harmonic-loss", 1)
def test_euclidean_card_values():
    near(distances(X, W), (2, 1, 2.23607))
    for n, wanted in ((1.0, (0.2568, 0.5136, 0.2297)), (2.0, (0.1724, 0.6897, 0.1379))):
        near(p_of("euclidean", n), wanted)
        near(harmonic_log_softmax(distances(X, W), n=n, eps=0.0).exp(), wanted)
        head = head_with(W, "euclidean", eps=0.0)
        near(HarmonicLoss(n).probabilities(head(X)), wanted)


@pytest.mark.holds("harmonic-loss", 2)
def test_other_card_values():
    near(distances(X, W, distance="cosine"), (0.5528, 0.1056, 0.0513))
    near(p_of("cosine"), (0.0588, 0.3079, 0.6333))
    near(p_of("manhattan"), (0.2727, 0.5455, 0.1818))
    near(distances(X, W, distance="canberra"), (1, 1, 0.7))
    near(distances(X, W, distance="bray_curtis", variant="abs"), (0.5, 0.2, 0.3333))


@pytest.mark.parametrize("n", [0.5, 1.0, 8.0, 30.0])
def test_naive_power(n):
    """p_y and the loss by powers of scipy's distances."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(rows, 4, generator=generator, dtype=torch.float64) for rows in (7, 3))
    power = (torch.from_numpy(cdist(x.numpy(), w.numpy(), "cityblock")) + 1e-2) ** -n
    p = power / power.sum(-1, keepdim=True)
    target = torch.tensor([0, 1, 2, 0, 1, 2, 2])
    wanted = -p[torch.arange(7), target].log().mean()
    head = head_with(w, "manhattan", eps=1e-2)
    torch.testing.assert_close(HarmonicLoss(n, "manhattan")(head(x), target), wanted)
    own = head_with(w, "manhattan", n=n, eps=1e-2)
    torch.testing.assert_close(cross_entropy(own(x), target), wanted)
    torch.testing.assert_close(own(x).softmax(-1), p)


@pytest.mark.holds("harmonic-loss", 3)
@pytest.mark.parametrize(("name", "variant"), FORMS)
@pytest.mark.parametrize("c", [0.01, 3.0, 500.0])
def test_scale(name, variant, c):
    """Blind to a common scale; but for the three forms with a scale of their own."""
    generator = torch.Generator().manual_seed(2)
    x, w = (torch.randn(rows, 5, generator=generator, dtype=torch.float64) for rows in (6, 4))
    how = {"n": 3.0, "eps": 0.0, "variant": variant or None, "floor": 1.0}
    p, scaled = (head_with(size * w, name, **how)(size * x).softmax(-1) for size in (1.0, c))
    if name == "hamming" or variant in ("smooth", "robust"):
        assert not torch.allclose(p, scaled, rtol=0, atol=1e-12)
    else:
        torch.testing.assert_close(p, scaled, rtol=1e-9, atol=1e-12)


@pytest.mark.holds("harmonic-loss", 4)
@pytest.mark.parametrize(("name", "variant"), FORMS)
def test_limits_of_the_exponent(name, variant):
    generator = torch.Generator().manual_seed(3)
    x, w = (torch.randn(rows, 5, generator=generator, dtype=torch.float64) for rows in (20, 4))
    head = head_with(w, name, eps=1e-4, variant=variant or None)
    d = (-head(x)).exp()
    nearest = d.argmin(-1)
    for n in (1e-9, 0.3, 1.0, 20.0, 1e6):
        assert torch.equal(HarmonicLoss(n).predict(head(x)), nearest)
        assert torch.equal(harmonic_log_softmax(d, n=n).argmax(-1), nearest)
    uniform = HarmonicLoss(1e-9).probabilities(head(x))
    torch.testing.assert_close(uniform, torch.full_like(uniform, 0.25), atol=1e-7, rtol=0)
    one_hot = HarmonicLoss(1e6).probabilities(head(x))
    torch.testing.assert_close(one_hot, nn.functional.one_hot(nearest, 4).double(), atol=1e-6, rtol=0)


@pytest.mark.holds("harmonic-loss", 5)
@pytest.mark.parametrize("variant", VARIANTS["mahalanobis"])
def test_equal_to_euclidean(variant):
    wanted = p_of("euclidean", 2.0)
    torch.testing.assert_close(p_of("minkowski", 2.0, p=2.0), wanted)
    torch.testing.assert_close(p_of("mahalanobis", 2.0, variant=variant), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("variant", VARIANTS["mahalanobis"])
def test_the_metric_is_learned_and_is_the_stated_one(variant):
    head = head_with(W, "mahalanobis", eps=0.0, variant=variant)
    raw = torch.tensor([0.4, -1.0] if variant == "diagonal" else [[1.5, 7.0], [-0.3, 0.6]], dtype=torch.float64)
    head.metric.data.copy_(raw)
    if variant == "diagonal":
        m = torch.diag(raw.exp())
    elif variant == "lower":
        m = torch.tril(raw) @ torch.tril(raw).T
    else:
        m = raw @ raw.T + 0.01 * torch.eye(2, dtype=torch.float64)
    squares = torch.stack([(X[0] - w) @ m @ (X[0] - w) for w in W])
    torch.testing.assert_close(head(X)[0], -0.5 * squares.log())
    head(X).logsumexp(-1).sum().backward()
    slope = head.metric.grad
    used = slope if variant != "lower" else slope[torch.tril(torch.ones_like(slope)) > 0]
    assert bool((used != 0).all())


@pytest.mark.parametrize(("name", "variant"), FORMS)
def test_a_stack_of_models_is_each_model(name, variant):
    """Values and gradients of heads that run stacked, as comparisons train them."""
    torch.manual_seed(0)
    models = [Network(mlp(3, width=6, depth=1), DistanceHead(6, 4, name, variant=variant or None)) for _ in range(3)]
    stack = Stack(models)
    x = torch.randn(3, 5, 3)
    out = stack(x)
    out.square().sum().backward()
    for i, model in enumerate(models):
        alone = model(x[i])
        torch.testing.assert_close(out[i], alone, rtol=1e-5, atol=1e-5)
        alone.square().sum().backward()
        for key, parameter in model.named_parameters():
            torch.testing.assert_close(stack.views[key].grad[i], parameter.grad, rtol=1e-3, atol=1e-3)


def test_head():
    torch.manual_seed(0)
    head = DistanceHead(9, 50)
    assert float(head.weight.detach().abs().max()) <= 1 / 3
    assert float(head.weight.detach().std()) == pytest.approx(1 / (3 * 3**0.5), rel=0.1)
    assert head(torch.randn(2, 7, 9)).shape == (2, 7, 50)
    assert head(torch.randn(2, 9).bfloat16()).dtype == torch.float32
    info = TaskInfo("multiclass", 20, 4)
    own = HarmonicLoss(8.0, "manhattan", eps=1e-3).head(6, info)
    assert (own.distance, own.n, own.eps, own.weight.shape) == ("manhattan", 1.0, 1e-3, (4, 6))
    assert "'cosine', n=1.0" in repr(head)
    on_a_centre = head_with(W, "euclidean")(W)
    torch.testing.assert_close(on_a_centre.diagonal(), torch.full((3,), 9.2103, dtype=torch.float64), atol=1e-3, rtol=0)


def test_centres_become_prototypes():
    """Trained with its head, the centre of a class ends near that class's mean."""
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([[3.0, 1.0], [-2.0, 3.0], [0.0, -4.0]])
    target = torch.arange(90) % 3
    x = means[target] + 0.3 * torch.randn(90, 2, generator=generator)
    torch.manual_seed(0)
    loss = HarmonicLoss(n=2.0)
    head = loss.head(2, TaskInfo("multiclass", 90, 3))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        loss(head(x), target).backward()
        optimizer.step()
    assert float((head.weight.detach() - means).norm(dim=-1).max()) < 0.3


def test_refusals():
    bad = (
        lambda: HarmonicLoss(0.0),
        lambda: HarmonicLoss(distance="taxi"),
        lambda: HarmonicLoss(eps=-1e-4),
        lambda: DistanceHead(3, 2, "taxi"),
        lambda: DistanceHead(3, 2, "cosine", n=0.0),
        lambda: DistanceHead(3, 2, "minkowski", p=0.5),
        lambda: DistanceHead(3, 2, "bray_curtis", variant="robust"),
        lambda: DistanceHead(0, 2),
        lambda: harmonic_log_softmax(torch.ones(2), n=-1.0),
        lambda: DistanceHead(3, 2)(torch.zeros(1, 4)),
    )
    for call in bad:
        with pytest.raises(ValueError, match=": expected "):
            call()
