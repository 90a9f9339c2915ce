"""Mutual information against another library, complementary masks, the loss by hand, who gets a gradient."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import mutual_info_score

from steepest.losses.contrastive import (
    CorrelatedFeatureMasking,
    ItemContrastiveLoss,
    RandomFeatureMasking,
    drop_values,
    feature_mutual_information,
    mask_features,
)

PAIRS = torch.tensor([[1.0, 0.9, 0.0, 0.1], [0.9, 1.0, 0.1, 0.0], [0.0, 0.1, 1.0, 0.8], [0.1, 0.0, 0.8, 1.0]])


def masks(k=6, rows=50, **options):
    information = torch.rand(k, k, generator=torch.Generator().manual_seed(0))
    codes = torch.zeros(rows, k, dtype=torch.int64)
    generator = torch.Generator().manual_seed(1)
    for masking in (RandomFeatureMasking(k, **options), CorrelatedFeatureMasking(information, **options)):
        yield masking(codes, generator)


@pytest.mark.holds("ssl-item-recommendation", 1)
def test_mutual_information():
    binary = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1]])
    result = feature_mutual_information(binary)
    assert result[0, 1].item() == pytest.approx(math.log(2), abs=1e-12)
    assert result[0, 2].item() == pytest.approx(0, abs=1e-12)
    two = feature_mutual_information(torch.tensor([[0, 0], [0, 0], [1, 1], [1, 1], [2, 1]], dtype=torch.int32))
    assert two[0, 1].item() == pytest.approx(0.673012, abs=1e-6)
    codes = torch.randint(-2, 3, (80, 4), generator=torch.Generator().manual_seed(0))
    codes[:, 3] = codes[:, 0] + codes[:, 1]
    result = feature_mutual_information(codes)
    for i in range(4):
        for j in range(4):
            assert result[i, j].item() == pytest.approx(mutual_info_score(codes[:, i], codes[:, j]), abs=1e-12)
    assert torch.equal(result, result.T)
    assert (result >= 0).all()
    share = codes[:, 0].unique(return_counts=True)[1] / 80
    assert result[0, 0].item() == pytest.approx(-float((share * share.log()).sum()), rel=1e-6)


@pytest.mark.holds("ssl-item-recommendation", 2)
@pytest.mark.parametrize("k", [2, 5, 6])
@pytest.mark.parametrize("per", ["item", "batch"])
def test_masks_complement_each_other(k, per):
    for first, second in masks(k, per=per):
        assert torch.equal(first, ~second)
        assert first.sum(1).tolist() == [k // 2] * 50
        assert len(first.unique(dim=0)) == 1 if per == "batch" else len(first.unique(dim=0)) > 1
    (first, _), _ = masks(k)
    assert first.float().mean(0).tolist() == pytest.approx([k // 2 / k] * k, abs=0.25)


@pytest.mark.holds("ssl-item-recommendation", 3)
def test_correlated_features_are_hidden_together():
    first, _ = CorrelatedFeatureMasking(PAIRS)(torch.zeros(200, 4), torch.Generator().manual_seed(0))
    kinds = {tuple(row) for row in first.tolist()}
    assert kinds == {(True, True, False, False), (False, False, True, True)}
    assert 70 < first[:, 0].sum() < 130
    flat = PAIRS - torch.diag(torch.diag(PAIRS)) - torch.eye(4)  # the diagonal is not read
    again, _ = CorrelatedFeatureMasking(flat)(torch.zeros(200, 4), torch.Generator().manual_seed(0))
    assert torch.equal(again, first)
    codes = torch.randint(3, (300, 1), generator=torch.Generator().manual_seed(2))
    other = torch.randint(3, (300, 1), generator=torch.Generator().manual_seed(3))
    information = feature_mutual_information(torch.cat([codes, other, codes, other], 1))
    first, _ = CorrelatedFeatureMasking(information)(torch.zeros(50, 4))
    assert {tuple(row) for row in first.tolist()} == {(True, False, True, False), (False, True, False, True)}


@pytest.mark.holds("ssl-item-recommendation", 4)
@pytest.mark.parametrize(("temperature", "wanted"), [(0.1, 0.026462), (1.0, 0.479110)])
def test_the_loss_of_two_items(temperature, wanted):
    z = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 1.0]]], dtype=torch.float64)
    loss = ItemContrastiveLoss(temperature)
    assert loss(z, torch.arange(2)).item() == pytest.approx(wanted, abs=1e-6)
    r = 1 / math.sqrt(2) / temperature
    by_hand = (math.log1p(math.exp(-r)) + math.log1p(math.exp(r - 1 / temperature))) / 2
    assert loss(3 * z, torch.arange(2)).item() == pytest.approx(by_hand, rel=1e-9)
    assert loss(z.flip(0), torch.arange(2)) != loss(z, torch.arange(2))
    rows = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unit = torch.nn.functional.normalize(rows, dim=-1)
    entropy = torch.nn.functional.cross_entropy(unit[0] @ unit[1].T / temperature, torch.arange(5))
    torch.testing.assert_close(loss(rows, torch.arange(5)), entropy)


def test_a_duplicate_is_no_negative():
    rows = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.tensor([0, 1, 2, 0])
    s = torch.einsum("id,jd->ij", *torch.nn.functional.normalize(rows, dim=-1)) / 0.1
    hidden = (ids.unsqueeze(1) == ids) & ~torch.eye(4, dtype=torch.bool)
    wanted = torch.nn.functional.cross_entropy(s.masked_fill(hidden, -torch.inf), torch.arange(4))
    torch.testing.assert_close(ItemContrastiveLoss()(rows, torch.arange(4), ids=ids), wanted)


@pytest.mark.holds("ssl-item-recommendation", 5)
def test_a_hidden_feature_has_its_gradient_in_the_default_alone():
    embedded = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    default = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, False, False, True], [True, True, False, False], [False, False, False, True]])
    result = mask_features(embedded, default, mask)
    for i in range(3):
        for j in range(4):
            assert torch.equal(result[i, j], default[j] if mask[i, j] else embedded[i, j])
    own, of_default = torch.autograd.grad(result.sum(), (embedded, default))
    assert torch.equal(own, (~mask).double().unsqueeze(-1).expand_as(own))
    assert torch.equal(of_default, mask.sum(0).double().unsqueeze(-1).expand_as(of_default))


def test_values_are_dropped_at_the_rate():
    present = torch.rand(40, 100, generator=torch.Generator().manual_seed(0)) < 0.5
    stays = drop_values(present, 0.3, torch.Generator().manual_seed(1))
    assert not (stays & ~present).any()
    assert stays.sum().item() / present.sum().item() == pytest.approx(0.7, abs=0.05)
    assert torch.equal(drop_values(present, 0.3, torch.Generator().manual_seed(1)), stays)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("features: expected two", lambda: RandomFeatureMasking(1)),
        ("information: expected two", lambda: CorrelatedFeatureMasking(torch.zeros(1, 1))),
        ("information: expected shape", lambda: CorrelatedFeatureMasking(torch.zeros(2, 3))),
        ("information: expected finite", lambda: CorrelatedFeatureMasking(torch.full((2, 2), torch.nan))),
        ("per: expected", lambda: RandomFeatureMasking(2, per="row")),
        ("codes: expected shape", lambda: RandomFeatureMasking(3)(torch.zeros(2, 4))),
        ("codes: expected one item", lambda: feature_mutual_information(torch.zeros(0, 2, dtype=torch.int64))),
        ("default: expected", lambda: mask_features(torch.zeros(1, 2, 3), torch.zeros(2, 2), torch.ones(1, 2) > 0)),
        ("p: expected", lambda: drop_values(torch.ones(2) > 0, 1.0)),
        ("temperature: expected", lambda: ItemContrastiveLoss(0.0)),
    ],
)
def test_wrong_arguments_are_named(words, call):
    with pytest.raises(ValueError, match=words):
        call()


def test_masks_of_numbers_are_refused():
    with pytest.raises(TypeError, match="mask: expected a boolean tensor"):
        mask_features(torch.zeros(1, 2, 3), torch.zeros(2, 3), torch.ones(1, 2))
    with pytest.raises(TypeError, match="present: expected a boolean tensor"):
        drop_values(torch.ones(2))
