"""Cross-entropy of tokens against torch's, with and without the entropy term."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from steepest.losses.language import TokenCrossEntropyLoss

pytestmark = pytest.mark.holds("token-cross-entropy")


def drawn():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(7, (3, 5), generator=generator)
    labels[0, 0] = labels[2, 3:] = -100
    return logits, labels


def test_it_is_cross_entropy():
    logits, labels = drawn()
    wanted = cross_entropy(logits.flatten(0, 1), labels.flatten())
    result = TokenCrossEntropyLoss()(logits, labels)
    assert result.item() == pytest.approx(wanted.item(), rel=1e-14)
    (slope,), (wanted_slope,) = torch.autograd.grad(result, logits), torch.autograd.grad(wanted, logits)
    torch.testing.assert_close(slope, wanted_slope, rtol=0, atol=1e-15)


def test_the_entropy_of_the_prediction_is_taken_off():
    logits, labels = drawn()
    flat, valid = logits.flatten(0, 1), labels.flatten() != -100
    entropy = torch.distributions.Categorical(logits=flat[valid]).entropy().mean()
    wanted = cross_entropy(flat, labels.flatten()) - 0.3 * entropy
    assert TokenCrossEntropyLoss(0.3)(logits, labels).item() == pytest.approx(wanted.item(), rel=1e-13)


def test_other_ignored_labels_and_refusals():
    logits, labels = drawn()
    zeros = torch.where(labels == -100, 0, labels)
    wanted = cross_entropy(logits.flatten(0, 1), zeros.flatten(), ignore_index=0)
    assert TokenCrossEntropyLoss(ignore_index=0)(logits, zeros).item() == pytest.approx(wanted.item(), rel=1e-14)
    with pytest.raises(ValueError, match="aggregation: expected one of"):
        TokenCrossEntropyLoss(aggregation="mean")
    with pytest.raises(ValueError, match="length: expected a number"):
        TokenCrossEntropyLoss(length=3.0)
    with pytest.raises(ValueError, match="entropy_bonus: expected a number >= 0"):
        TokenCrossEntropyLoss(-0.1)
    with pytest.raises(TypeError, match="forward: expected nothing beside labels and head"):
        TokenCrossEntropyLoss()(logits, labels, teacher=logits)
    with pytest.raises(ValueError, match="labels: expected shape"):
        TokenCrossEntropyLoss()(logits, labels[:, :-1])
