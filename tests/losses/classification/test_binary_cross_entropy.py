"""Binary cross-entropy of several labels against a loop and torch's own."""

import math

import pytest
import torch
import torch.nn.functional as nnf

from steepest.losses.classification.binary_cross_entropy import BinaryCrossEntropyLoss, binary_cross_entropy

LOGITS = 2 * torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TARGET = (torch.arange(24).reshape(6, 4) % 3 == 0).long()
WEIGHT = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 3.0], dtype=torch.float64)


def naive():
    cells = []
    for row, labels in zip(LOGITS.tolist(), TARGET.tolist()):
        p = [1 / (1 + math.exp(-x)) for x in row]
        cells.append([-math.log(q if y else 1 - q) for q, y in zip(p, labels)])
    return torch.tensor(cells, dtype=torch.float64)


@pytest.mark.holds("binary-cross-entropy")
@pytest.mark.parametrize("kind", [torch.long, torch.bool, torch.float32])
def test_cells_equal_a_loop(kind):
    torch.testing.assert_close(binary_cross_entropy(LOGITS, TARGET.to(kind), reduction="none"), naive())


@pytest.mark.holds("binary-cross-entropy")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_agrees_with_torch(reduction):
    wanted = nnf.binary_cross_entropy_with_logits(LOGITS, TARGET.double(), reduction=reduction)
    torch.testing.assert_close(binary_cross_entropy(LOGITS, TARGET, reduction=reduction), wanted)


def test_weights_are_of_samples():
    cells = naive()
    wanted = (WEIGHT[:, None] * cells).sum()
    torch.testing.assert_close(binary_cross_entropy(LOGITS, TARGET, weight=WEIGHT, reduction="sum"), wanted)
    mean = wanted / WEIGHT.sum() / 4
    torch.testing.assert_close(binary_cross_entropy(LOGITS, TARGET, weight=WEIGHT), mean)
    torch.testing.assert_close(BinaryCrossEntropyLoss()(LOGITS, TARGET, weight=WEIGHT), mean)


@pytest.mark.holds("binary-cross-entropy")
def test_loss_of_a_sample_is_the_mean_over_its_labels():
    found = BinaryCrossEntropyLoss(reduction="none")(LOGITS, TARGET)
    torch.testing.assert_close(found, naive().mean(-1))
    torch.testing.assert_close(BinaryCrossEntropyLoss(reduction="sum")(LOGITS, TARGET), naive().sum() / 4)


def test_probabilities_and_predictions_are_of_each_label():
    loss = BinaryCrossEntropyLoss()
    p, predicted = loss.probabilities(LOGITS), loss.predict(LOGITS)
    torch.testing.assert_close(p, 1 / (1 + torch.exp(-LOGITS)))
    assert predicted.dtype == torch.long
    assert torch.equal(predicted, (p > 0.5).long())


def test_one_label_is_allowed():
    assert binary_cross_entropy(torch.zeros(3, 1), torch.ones(3, 1)).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    "call",
    [
        lambda: binary_cross_entropy(LOGITS, TARGET[:, :3]),
        lambda: binary_cross_entropy(LOGITS, TARGET + 1),
        lambda: binary_cross_entropy(LOGITS[:, :0], TARGET[:, :0]),
        lambda: binary_cross_entropy(LOGITS, TARGET, weight=-WEIGHT),
        lambda: binary_cross_entropy(LOGITS, TARGET, reduction="median"),
        lambda: BinaryCrossEntropyLoss()(LOGITS[:, 0], TARGET[:, 0]),
    ],
)
def test_refused(call):
    with pytest.raises(ValueError, match=": expected "):
        call()
