"""Multimodal competition: values by naive loops, gradients by differences with the stopped parts held, edge batches."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import warnings

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss
from torch import nn
from torch.nn.functional import cross_entropy

from steepest.losses.dependence.mcr import (
    MultimodalCompetitionRegularizer,
    PredictionDecoder,
    mcr_loss,
    permutation_divergence,
    permutation_pairs,
)

TARGET = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def softmax(row):
    exps = [math.exp(v - max(row)) for v in row]
    return [e / sum(exps) for e in exps]


def naive_js(first, second):
    """The definition, row by row, on lists of logits."""

    def kl(p, m):
        return sum(a * math.log(a / b) for a, b in zip(p, m) if a > 0)

    total = 0.0
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        p, q = softmax(a), softmax(b)
        m = [(u + v) / 2 for u, v in zip(p, q)]
        total += kl(p, m) / 2 + kl(q, m) / 2
    return total / len(first)


def draws(modalities=2, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(8, width, generator=generator, dtype=torch.float64) for _ in range(modalities)]


def head(modalities=2, width=4, seed=3):
    """A fusion that mixes the modalities and is not linear."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(modalities * width, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    fuse = lambda *z: net(torch.cat(z, 1))  # noqa: E731
    return net, fuse


def js_of(a, b):
    """Divergence of two rows of logits through the public function."""
    features = [torch.stack([a, b]), torch.zeros(2, len(a), dtype=a.dtype)]
    pairs = torch.tensor([0]), torch.tensor([1])
    return permutation_divergence(features, torch.add, pairs, permuted=0)


@pytest.mark.holds("mcr", 1)
def test_divergence_of_two_softmaxes():
    a, b = torch.tensor([2.0, 0.0], dtype=torch.float64), torch.tensor([0.0, 2.0], dtype=torch.float64)
    assert js_of(a, b).item() == pytest.approx(0.327813, abs=5e-7)
    for dtype in (torch.float32, torch.float64):
        assert js_of(a.to(dtype), a.to(dtype)).item() == 0.0
        assert js_of(a.to(dtype) * 1e4, b.to(dtype) * 1e4).item() == pytest.approx(math.log(2), rel=1e-6)
    generator = torch.Generator().manual_seed(0)
    for scale in (0.01, 1.0, 30.0):
        x, y = scale * torch.randn(2, 5, generator=generator, dtype=torch.float64)
        found = js_of(x, y).item()
        assert 0 < found <= math.log(2)
        assert found == pytest.approx(naive_js(x[None], y[None]), rel=1e-9)


@pytest.mark.holds("mcr", 1)
def test_divergence_has_an_exact_gradient():
    a, b = torch.randn(2, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    leaves = a.requires_grad_(), b.requires_grad_()
    assert torch.autograd.gradcheck(js_of, leaves)
    # where both are the same, and where only one logit is
    (slope,) = torch.autograd.grad(js_of(a, a.detach()), a)
    assert slope.abs().max() < 1e-12
    far = torch.tensor([1e4, -1e4, 0.0], requires_grad=True)
    (slope,) = torch.autograd.grad(js_of(far, -far.detach()), far)
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize("mode", ["greedy", "independent", "collaborative"])
@pytest.mark.parametrize("modalities", [2, 3])
def test_values_against_naive_loops(mode, modalities):
    features = draws(modalities)
    _, fuse = head(modalities)
    samples, partners = permutation_pairs(TARGET, 4, generator=torch.Generator().manual_seed(2))
    whole = fuse(*features)[samples]
    wanted, single = 0.0, {}
    for size in range(1, modalities):
        for moved in itertools.combinations(range(modalities), size):
            mixed = [z[partners] if m in moved else z[samples] for m, z in enumerate(features)]
            divergence = naive_js(fuse(*mixed), whole)
            if size == 1:
                single[moved[0]] = divergence
            # players in the set are paid, players outside pay
            signs = {"greedy": (modalities - size) - size, "independent": -size, "collaborative": -1}
            wanted += signs[mode] * divergence
    found = mcr_loss(features, fuse, TARGET, competition=0.5, mode=mode, pairs=(samples, partners))
    assert set(found) == {"competition"}
    assert found["competition"].item() == pytest.approx(0.5 * wanted, abs=1e-12)
    regularizer = MultimodalCompetitionRegularizer(0.5, mode=mode, num_permutations=4)
    torch.manual_seed(5)
    regularizer(features, fuse, TARGET)
    torch.manual_seed(5)
    drawn = permutation_pairs(TARGET, 4)
    for p in range(modalities):
        term = permutation_divergence(features, fuse, drawn, permuted=p)
        assert regularizer.terms[f"divergence_{p}"].item() == pytest.approx(term.item(), abs=1e-12)
    assert single[0] != pytest.approx(single[1], abs=1e-3)


def difference(function, x, step=1e-6):
    """Central differences of a scalar function, entry by entry."""
    slope = torch.zeros_like(x)
    for place in itertools.product(*map(range, x.shape)):
        up, down = x.clone(), x.clone()
        up[place] += step
        down[place] -= step
        slope[place] = (function(up) - function(down)) / (2 * step)
    return slope


def test_greedy_gradient_against_differences():
    """Each encoder's slope is that of what it is charged less what it is paid; the head gets none."""
    features = [z.requires_grad_() for z in draws()]
    net, fuse = head()
    pairs = samples, partners = permutation_pairs(TARGET, 2, generator=torch.Generator().manual_seed(2))
    held = [z.detach() for z in features]
    whole = fuse(*held).detach()[samples]

    def divergence(moved, z0, z1):
        mixed = [z[partners] if m == moved else z[samples] for m, z in enumerate((z0, z1))]
        return naive_js(fuse(*mixed).detach(), whole)

    loss = mcr_loss(features, fuse, TARGET, competition=1.0, pairs=pairs)["competition"]
    slopes = torch.autograd.grad(loss, [*features, *net.parameters()])
    zero = difference(lambda z: -divergence(0, z, held[1]) + divergence(1, z, held[1]), held[0])
    one = difference(lambda z: -divergence(1, held[0], z) + divergence(0, held[0], z), held[1])
    assert torch.allclose(slopes[0], zero, atol=1e-8)
    assert torch.allclose(slopes[1], one, atol=1e-8)
    assert min(zero.norm().item(), one.norm().item()) > 1e-3
    assert max(slope.abs().max().item() for slope in slopes[2:]) < 1e-15


@pytest.mark.parametrize("mode", ["independent", "collaborative"])
def test_reference_is_attached(mode):
    features = [z.requires_grad_() for z in draws()]
    net, fuse = head()
    pairs = permutation_pairs(TARGET, 2, generator=torch.Generator().manual_seed(2))
    attached = mcr_loss(features, fuse, TARGET, mode=mode, pairs=pairs)["competition"]
    cut = mcr_loss(features, fuse, TARGET, mode=mode, pairs=pairs, logits=fuse(*features).detach())["competition"]
    assert attached.item() == cut.item()
    leaves = [*features, *net.parameters()]
    for a, b in zip(torch.autograd.grad(attached, leaves[:3]), torch.autograd.grad(cut, leaves[:3]), strict=True):
        assert (a - b).norm() > 1e-6


def test_collaborative_gradient_is_exact():
    _, fuse = head()
    pairs = permutation_pairs(TARGET, 1, generator=torch.Generator().manual_seed(2))

    def loss(*z):
        return mcr_loss(list(z), fuse, TARGET, mode="collaborative", pairs=pairs)["competition"]

    assert torch.autograd.gradcheck(loss, [z.requires_grad_() for z in draws()])


@pytest.mark.holds("mcr", 2)
@pytest.mark.parametrize("modalities", [2, 3])
def test_only_the_player_gets_a_gradient_through_the_mixed_path(modalities):
    torch.manual_seed(0)
    encoders = [nn.Linear(4, 4).double() for _ in range(modalities)]
    inputs = draws(modalities)
    _, fuse = head(modalities)
    pairs = permutation_pairs(TARGET, 2)
    for player, permuted in itertools.product(range(modalities), repeat=2):
        features = [encoder(x) for encoder, x in zip(encoders, inputs, strict=True)]
        reference = fuse(*features)
        for held in (True, False):
            given = reference.detach() if held else reference
            found = permutation_divergence(features, fuse, pairs, permuted=permuted, player=player, reference=given)
            slopes = torch.autograd.grad(found, [e.weight for e in encoders], allow_unused=True, retain_graph=True)
            for encoder, slope in enumerate(slopes):
                if held and encoder != player:
                    assert slope is None
                else:
                    assert slope.norm() > 1e-6


@pytest.mark.holds("mcr", 3)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_modality_that_is_ignored_does_not_move_the_prediction(dtype):
    features = [z.to(dtype).requires_grad_() for z in draws()]
    torch.manual_seed(0)
    net = nn.Linear(4, 3).to(dtype)
    pairs = permutation_pairs(TARGET, 3)
    fuse = lambda z0, z1: net(z0)  # noqa: E731
    logits = fuse(*features)
    for player in (0, None):
        found = permutation_divergence(features, fuse, pairs, permuted=1, player=player, reference=logits)
        assert found.item() == pytest.approx(0, abs=1e-15 if dtype == torch.float64 else 1e-7)
        assert permutation_divergence(features, fuse, pairs, permuted=0, player=player).item() > 1e-3
    # exactly, where the head computes the same bits for the same row
    same = lambda z0, z1: z0 * 2  # noqa: E731
    assert permutation_divergence(features, same, pairs, permuted=1, player=0).item() == 0.0


@pytest.mark.holds("mcr", 4)
@pytest.mark.parametrize("mode", ["greedy", "independent", "collaborative"])
@pytest.mark.parametrize("modalities", [2, 3])
def test_identity_gives_zero(mode, modalities):
    features = draws(modalities)
    _, fuse = head(modalities)
    rows = torch.arange(8)
    assert mcr_loss(features, fuse, TARGET, mode=mode, pairs=(rows, rows))["competition"].item() == 0.0
    if mode != "greedy":
        moved = mcr_loss(features, fuse, TARGET, mode=mode, pairs=(rows, rows.roll(1)))["competition"]
        assert moved.item() < -1e-3


@pytest.mark.holds("mcr", 5)
def test_weights_of_zero_are_plain_joint_training():
    x0, x1 = draws()

    def train(regularizer):
        torch.manual_seed(0)
        model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 3)]).double()
        fuse = lambda *z: model[2](torch.cat(z, 1))  # noqa: E731
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(3):
            features = [model[0](x0), model[1](x1)]
            logits = fuse(*features)
            loss = cross_entropy(logits, TARGET)
            if regularizer is not None:
                loss = loss + regularizer(features, fuse, TARGET, logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [*model.parameters(), torch.rand(1)]  # with torch's generator where it stands

    plain = train(None)
    assert all(map(torch.equal, plain, train(MultimodalCompetitionRegularizer(0.0))))
    assert mcr_loss([x0, x1], torch.add, TARGET, competition=0.0) == {}
    assert not all(map(torch.equal, plain, train(MultimodalCompetitionRegularizer(0.5))))


@pytest.mark.holds("mcr", 6)
def test_a_batch_of_one_label_is_skipped_with_a_warning():
    features, same = draws(), torch.zeros(8, dtype=torch.long)
    _, fuse = head()
    regularizer = MultimodalCompetitionRegularizer(mode="independent", num_permutations=3)
    with pytest.warns(UserWarning, match="no partners in this batch"):
        assert regularizer(features, fuse, same).item() == 0.0
    assert regularizer.terms == {}
    other = MultimodalCompetitionRegularizer(mode="independent", num_permutations=3, partner="other_sample")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert other(features, fuse, same).item() < 0
        assert regularizer(features, fuse, TARGET).item() < 0


@pytest.mark.parametrize("partner", ["different_label", "other_sample"])
def test_pairs(partner):
    samples, partners = permutation_pairs(TARGET, 200, partner, generator=torch.Generator().manual_seed(0))
    found = {(i, j) for i, j in zip(samples.tolist(), partners.tolist(), strict=True)}
    everyone = itertools.product(range(8), repeat=2)
    allowed = {(i, j) for i, j in everyone if (i != j if partner == "other_sample" else TARGET[i] != TARGET[j])}
    assert found == allowed
    # a permutation gives each sample one partner at most, and is nobody's twice
    one, other = permutation_pairs(TARGET, 1, partner)
    assert len(set(one.tolist())) == len(one)
    assert len(set(other.tolist())) == len(other)


@pytest.mark.parametrize("modalities", [2, 3])
@pytest.mark.parametrize("target", [TARGET, torch.tensor([0] * 7 + [1]), torch.arange(8)])
def test_contrastive_term_against_pytorch_metric_learning(modalities, target):
    features = [z.requires_grad_() for z in draws(modalities)]
    options = {"competition": 0.0, "contrastive": 0.7, "temperature": 0.5}
    found = mcr_loss(features, torch.add, target, **options)["contrastive"]
    peer = 0.7 * NTXentLoss(temperature=0.5)(torch.cat(features), target.repeat(modalities))
    assert found.item() == pytest.approx(peer.item(), abs=1e-9)
    for a, b in zip(torch.autograd.grad(found, features), torch.autograd.grad(peer, features), strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_contrastive_term_without_negatives_is_zero():
    features = [z.float().requires_grad_() for z in draws()]
    same = torch.zeros(8, dtype=torch.long)
    found = mcr_loss(features, torch.add, same, competition=0.0, contrastive=1.0)["contrastive"]
    assert found.item() == 0.0
    assert all(torch.equal(s, torch.zeros_like(s)) for s in torch.autograd.grad(found, features))


def test_reconstruction_term():
    features = [z.requires_grad_() for z in draws()]
    net, fuse = head()
    regularizer = MultimodalCompetitionRegularizer(0.0, ceb=0.3, classes=3, widths=(4, 4)).double()
    found = regularizer(features, fuse, TARGET)
    inner, outer = (p.detach() for p in regularizer.decoder.parameters())
    assert inner.shape == (4, 3)
    assert outer.shape == (8, 4)
    guess = (fuse(*features).detach() @ inner.T).clamp_min(0) @ outer.T
    gap = torch.cat([z.detach() for z in features], 1) - guess
    assert found.item() == pytest.approx(0.3 * gap.square().mean().item(), abs=1e-12)
    # the prediction is detached: the head learns nothing from it, the features are pulled towards the guess
    slopes = torch.autograd.grad(found, [*features, *net.parameters()], allow_unused=True)
    assert torch.allclose(torch.cat(slopes[:2], 1), 0.3 * 2 * gap / gap.numel(), atol=1e-12)
    assert all(slope is None for slope in slopes[2:])


def test_given_logits_save_a_pass():
    features = draws()
    _, fuse = head()
    calls = []
    counted = lambda *z: calls.append(len(z[0])) or fuse(*z)  # noqa: E731
    pairs = permutation_pairs(TARGET, 2, generator=torch.Generator().manual_seed(0))
    mcr_loss(features, counted, TARGET, pairs=pairs, logits=fuse(*features))
    assert calls == [len(pairs[0])] * 4
    calls.clear()
    mcr_loss(features, counted, TARGET, pairs=pairs, mode="independent")
    assert calls == [8, len(pairs[0]), len(pairs[0])]


def test_terms_add_up():
    features = draws()
    _, fuse = head()
    regularizer = MultimodalCompetitionRegularizer(
        0.2, 0.3, 0.4, "independent", 2, classes=3, widths=[4, 4]
    ).double()  # fmt: skip
    found = regularizer(features, fuse, TARGET)
    parts = [regularizer.terms[name] for name in ("competition", "contrastive", "ceb")]
    assert found.item() == pytest.approx(functools.reduce(torch.add, parts).item(), abs=1e-12)
    twin = copy.deepcopy(regularizer)
    assert {name for name, _ in twin.named_parameters()} == {"decoder.inner.weight", "decoder.outer.weight"}


def test_refusals():
    features = draws()
    _, fuse = head()
    for bad, message in (
        ({"competition": -1.0}, "competition: expected a number >= 0"),
        ({"mode": "kind"}, "mode: expected one of 'greedy'"),
        ({"partner": "self"}, "partner: expected one of 'different_label'"),
        ({"num_permutations": 0}, "num_permutations: expected an integer >= 1"),
        ({"temperature": 0.0}, "temperature: expected a number > 0"),
        ({"ceb": 1.0}, "classes, widths: expected numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            MultimodalCompetitionRegularizer(**bad)
    with pytest.raises(ValueError, match="features: expected two modalities"):
        mcr_loss(features[:1], fuse, TARGET)
    with pytest.raises(TypeError, match="features: expected a sequence"):
        mcr_loss(torch.stack(features), fuse, TARGET)
    with pytest.raises(ValueError, match=r"features\[1\]: expected \[N, ...\]"):
        mcr_loss([features[0], features[1][:5]], fuse, TARGET)
    with pytest.raises(ValueError, match=r"target: expected shape \(8\)"):
        mcr_loss(features, fuse, TARGET[:5])
    with pytest.raises(ValueError, match=r"fuse\(\*features\): expected 2 dimensions"):
        mcr_loss(features, lambda *z: z[0][:, 0], TARGET)
    with pytest.raises(ValueError, match="decoder: expected a module"):
        mcr_loss(features, fuse, TARGET, ceb=1.0)
    with pytest.raises(ValueError, match=r"decoder\(logits\): expected shape \(8, 8\)"):
        mcr_loss(features, fuse, TARGET, ceb=1.0, decoder=PredictionDecoder(3, (4, 3)))
    with pytest.raises(ValueError, match=r"features\[1\]: expected width 4 as the first"):
        mcr_loss([features[0], features[1][:, :3]], fuse, TARGET, competition=0.0, contrastive=1.0)
    pairs = permutation_pairs(TARGET)
    with pytest.raises(ValueError, match="permuted: expected an integer >= 0 and <= 1"):
        permutation_divergence(features, fuse, pairs, permuted=2)
