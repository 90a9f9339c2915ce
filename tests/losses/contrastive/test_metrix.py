"""Losses of mixed items against known numbers, loops in float64 and the unmixed losses of another library."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss as PeerMultiSimilarity
from pytorch_metric_learning.losses import ProxyAnchorLoss as PeerProxyAnchor

from steepest.losses.contrastive import MetrixLoss, metrix_loss, utilization
from steepest.losses.contrastive.metrix import KINDS, mix_pairs

SIM = torch.tensor([[0.8, 0.6, 0.3]], dtype=torch.float64)
HARD = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
LABELS = torch.tensor([4, -7, 4, 100, 4, -7, 3])
CONSTANTS = {"form": "multi_similarity", "beta": 2.0, "gamma": 10.0, "margin": 0.5}


def drawn(rows=7, width=4, seed=0):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(z):
    return torch.stack([v / v.norm() for v in z])


@pytest.mark.holds("metrix", 1)
def test_with_labels_0_and_1_it_is_the_unmixed_loss():
    assert metrix_loss(SIM, HARD).item() == pytest.approx(-0.7)
    z = unit(drawn())
    own, diagonal = (LABELS.unsqueeze(1) == LABELS).double(), torch.eye(7, dtype=torch.bool)
    peer = PeerMultiSimilarity(alpha=2, beta=50, base=0.5)(z, LABELS)
    ours = metrix_loss(z @ z.T, own, ~diagonal, form="multi_similarity")
    torch.testing.assert_close(ours, peer)
    target, proxies = torch.tensor([0, 1, 0, 3, 0, 1, 2]), PeerProxyAnchor(5, 4, margin=0.1, alpha=32).double()
    classes = torch.nn.functional.one_hot(target, 5).T.double()
    sim = unit(proxies.proxies.detach()) @ z.T
    torch.testing.assert_close(metrix_loss(sim, classes, form="proxy_anchor"), proxies(z, target).detach())


@pytest.mark.holds("metrix", 2)
def test_one_mixed_item():
    sim, label = torch.tensor([[0.65]], dtype=torch.float64), torch.tensor([[0.7]], dtype=torch.float64)
    assert metrix_loss(sim, label).item() == pytest.approx(-0.41)
    assert metrix_loss(sim, label, **CONSTANTS).item() == pytest.approx(0.294093, abs=1e-6)


@pytest.mark.holds("metrix", 3)
def test_multi_similarity_of_clean_items():
    assert metrix_loss(SIM, HARD, **CONSTANTS).item() == pytest.approx(0.353645, abs=1e-6)


@pytest.mark.holds("metrix", 4)
def test_mixed_embeddings():
    z = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]], dtype=torch.float64)
    mixed = mix_pairs(z, torch.tensor([0, 0, 1]), "positive_negative", lam=0.7, hardest=1)
    assert mixed.rows[1].tolist() == pytest.approx([0.56, 0.72])
    assert (unit(mixed.rows)[1] @ z[0]).item() == pytest.approx(0.613941, abs=1e-6)


@pytest.mark.holds("metrix", 5)
def test_a_share_of_1_is_the_positive_itself_and_utilization():
    z = drawn()
    mixed = mix_pairs(z, LABELS, "positive_negative", lam=1.0, hardest=2)
    assert torch.equal(mixed.rows, z.repeat_interleave(2, 0))
    assert torch.equal(mixed.soft_labels, torch.ones(7, 14, dtype=torch.float64))
    queries, data = torch.tensor([[0.6, 0.8], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert utilization(queries, data).item() == pytest.approx(1.2)


def by_definition(sim, labels, mask, form, m, beta, gamma, pairs="sum"):
    totals, nears, fars = [], [], []
    for s_row, y_row, on in zip(sim.tolist(), labels.tolist(), mask.tolist()):
        items = [(s, y) for s, y, own in zip(s_row, y_row, on) if own]
        if form == "contrastive":
            low, high = -sum(y * s for s, y in items), sum((1 - y) * max(0.0, s - m) for s, y in items)
            if pairs == "mean":
                low /= sum(y for _, y in items) or 1.0
                high /= sum(1 - y for s, y in items if s > m) or 1.0
        elif form == "multi_similarity":
            low = math.log(1 + sum(y * math.exp(-beta * (s - m)) for s, y in items)) / beta
            high = math.log(1 + sum((1 - y) * math.exp(gamma * (s - m)) for s, y in items)) / gamma
        else:
            low = math.log(1 + sum(y * math.exp(-gamma * (s - m)) for s, y in items))
            high = math.log(1 + sum((1 - y) * math.exp(gamma * (s + m)) for s, y in items))
            nears += [low] if any(y > 0 for _, y in items) else []
            fars.append(high)
        totals += [low + high] if items else []
    if form == "proxy_anchor":
        return sum(nears) / len(nears) + sum(fars) / len(fars)
    return sum(totals) / len(totals)


@pytest.mark.parametrize("form", ["contrastive", "multi_similarity", "proxy_anchor"])
@pytest.mark.parametrize("pairs", ["sum", "mean"])
def test_it_is_its_definition(form, pairs):
    generator = torch.Generator().manual_seed(3)
    sim = torch.rand(5, 9, generator=generator, dtype=torch.float64) * 2 - 1
    labels = torch.rand(5, 9, generator=generator, dtype=torch.float64)
    labels[:, :3], labels[:, 3:5] = 0.0, 1.0
    labels[2] = 0.0
    mask = torch.rand(5, 9, generator=generator) < 0.7
    mask[4] = False
    if pairs == "mean" and form != "contrastive":
        with pytest.raises(ValueError, match="pairs: expected 'sum'"):
            metrix_loss(sim, labels, mask, form=form, pairs=pairs)
        return
    numbers = {"margin": 0.3, "gamma": 7.0, "beta": 3.0}
    taken = {"contrastive": ["margin"], "multi_similarity": list(numbers), "proxy_anchor": ["margin", "gamma"]}[form]
    options = {name: numbers[name] for name in taken}
    wanted = by_definition(sim, labels, mask, form, 0.3, 3.0, 7.0, pairs)
    broken = sim.masked_fill(~mask, math.nan)  # what an anchor does not meet may be anything
    for values in (sim, broken):
        assert metrix_loss(values, labels, mask, form=form, pairs=pairs, **options).item() == pytest.approx(wanted)
    values = broken.clone().requires_grad_()
    (slope,) = torch.autograd.grad(metrix_loss(values, labels, mask, form=form, pairs=pairs, **options), values)
    assert slope.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hardest", [None, 1, 2])
def test_items_are_those_of_loops_over_all_pairs(kind, hardest):
    z, lam = drawn(), 0.3
    rows = unit(z)
    wanted = {a: [] for a in range(7)}
    for i in range(7):
        partners = [j for j in range(7) if j != i and (LABELS[i] == LABELS[j]) == (kind == "positives")]
        partners.sort(key=lambda j: float(rows[i] @ rows[j]), reverse=kind != "positives")
        for j in partners[:hardest]:
            item = [round(float(v), 12) for v in lam * z[i] + (1 - lam) * z[j]]
            for a in range(7):
                meets = a == i if kind == "anchor_negative" else LABELS[a] == LABELS[i] and a not in (i, j)
                if meets:
                    wanted[a].append(item)
    mixed = mix_pairs(z, LABELS, kind, lam=lam, hardest=hardest)
    for a in range(7):
        result = [[round(float(v), 12) for v in row] for row in mixed.rows[mixed.mask[a]]]
        assert sorted(result) == sorted(wanted[a])
    assert (mixed.soft_labels == (1.0 if kind == "positives" else lam)).all()


def test_proxies_meet_the_items_of_their_class_and_inputs_are_mixed():
    z, images = drawn(), torch.rand(7, 2, 3, dtype=torch.float64)
    proxies = torch.tensor([4, -7, 50])
    mixed = mix_pairs(z, LABELS, "positive_negative", lam=0.25, hardest=1, anchors=proxies, inputs=images)
    cosines = (unit(z) @ unit(z).T).masked_fill(LABELS.unsqueeze(1) == LABELS, -2.0)
    torch.testing.assert_close(mixed.rows, 0.25 * images + 0.75 * images[cosines.argmax(1)])
    assert torch.equal(mixed.mask, proxies.unsqueeze(1) == LABELS)
    with pytest.raises(ValueError, match="anchors: expected None with 'anchor_negative'"):
        mix_pairs(z, LABELS, "anchor_negative", anchors=proxies)


def test_shares_are_drawn_from_a_beta_law():
    generator = torch.Generator().manual_seed(0)
    z, labels = drawn(60, seed=1), torch.arange(60) % 3
    lam = mix_pairs(z, labels, "positive_negative", alpha=2.0, per_pair=True, generator=generator).soft_labels[0]
    # 3600 draws: the standard errors of mean and variance are .0037 and .0009
    assert lam.mean().item() == pytest.approx(0.5, abs=0.02)
    assert lam.var().item() == pytest.approx(0.05, abs=0.005)
    assert len(mix_pairs(z, labels, "positive_negative", generator=generator).soft_labels[0].unique()) == 1


@pytest.mark.parametrize("base", ["contrastive", "multi_similarity"])
def test_the_class_is_the_sum_of_both(base):
    z = drawn().requires_grad_()
    loss = MetrixLoss(base, w=0.6, kind="positive_negative", hardest=3, seed=5)
    lam = np.random.default_rng([5, 1]).beta(2.0, 2.0)
    items = mix_pairs(unit(z), LABELS, "positive_negative", lam=lam, hardest=3)
    rows = unit(z)
    clean = metrix_loss(
        rows @ rows.T, (LABELS.unsqueeze(1) == LABELS).double(), ~torch.eye(7, dtype=torch.bool), form=base
    )
    mixed = metrix_loss(rows @ unit(items.rows).T, items.soft_labels, items.mask, form=base)
    torch.testing.assert_close(loss(z, LABELS), clean + 0.6 * mixed)
    assert loss.terms["mixed"].item() == pytest.approx(mixed.item())
    torch.testing.assert_close(loss.eval()(z, LABELS), clean)


def test_kinds_are_drawn_alike_and_draws_go_on_after_loading():
    loss = MetrixLoss(seed=0, pairs="mean", margin=0.1)
    values = [loss(drawn(), LABELS).item() for _ in range(60)]
    wanted = []
    for step in range(60):
        rng = np.random.default_rng([0, step + 1])
        kind = KINDS[int(rng.integers(3))]
        items = mix_pairs(unit(drawn()), LABELS, kind, lam=rng.beta(2.0, 2.0))
        mixed = metrix_loss(unit(drawn()) @ unit(items.rows).T, items.soft_labels, items.mask, margin=0.1, pairs="mean")
        wanted.append((kind, (loss.eval()(drawn(), LABELS) + 0.4 * mixed).item()))
    assert values == pytest.approx([value for _, value in wanted])
    kinds = [kind for kind, _ in wanted]
    assert min(kinds.count(kind) for kind in KINDS) >= 10  # 20 expected, with a standard deviation of 3.7
    twin = MetrixLoss(seed=3, pairs="mean", margin=0.1)
    twin.load_state_dict(loss.state_dict())
    assert twin(drawn(), LABELS) == loss.train()(drawn(), LABELS)


def test_wrong_arguments_are_refused():
    z = drawn()
    for call, argument in (
        (lambda: metrix_loss(SIM, HARD + 0.5), "soft_labels"), (lambda: metrix_loss(SIM, HARD, beta=2.0), "beta"),
        (lambda: metrix_loss(SIM, HARD, form="triplet"), "form"), (lambda: metrix_loss(SIM, HARD, gamma=1.0), "gamma"),
        (lambda: metrix_loss(SIM, HARD, form="proxy_anchor", gamma=0.0), "gamma"),
        (lambda: metrix_loss(SIM, HARD, HARD.long()), "mask"), (lambda: mix_pairs(z, LABELS, "any"), "kind"),
        (lambda: mix_pairs(z, LABELS, "positives", lam=1.5), "lam"),
        (lambda: mix_pairs(z, LABELS, "positives", hardest=0), "hardest"),
        (lambda: mix_pairs(z, LABELS, "positives", inputs=z[:3]), "inputs"),
        (lambda: utilization(z, z[:0]), "data"), (lambda: MetrixLoss("proxy_anchor"), "base"),
        (lambda: MetrixLoss(w=-1.0), "w"), (lambda: MetrixLoss(beta=1.0), "beta"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"^{argument}: expected"):
            call()
