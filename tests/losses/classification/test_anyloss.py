"""AnyLoss: soft confusion matrices, their scores and slopes, and batches without a class."""

import math

import pytest
import torch
from sklearn import metrics

from steepest.losses.classification.anyloss import (
    METRICS,
    AnyLoss,
    BalancedAccuracyLoss,
    FBetaLoss,
    GMeanLoss,
    soft_confusion,
)

P = torch.tensor([0.52, 0.49, 0.51, 0.30], dtype=torch.float64)
Y = torch.tensor([1, 1, 0, 0])


def batch(rows: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(rows, generator=generator, dtype=torch.float64)
    return logits, (torch.rand(rows, generator=generator) < 0.3).long()


@pytest.mark.holds("anyloss", 1)
def test_confusion_by_hand():
    amplified = torch.stack([soft_confusion(P[i : i + 1], torch.ones(1), 73.0)[0] for i in range(4)])
    wanted = amplified.new_tensor([0.811532, 0.325195, 0.674805, 4.56e-7])
    torch.testing.assert_close(amplified, wanted, atol=1e-6, rtol=0)
    assert amplified[3].item() == pytest.approx(4.56e-7, rel=2e-3)
    counts = [float(c) for c in soft_confusion(P, Y)]
    assert counts == pytest.approx([1.1367, 0.8633, 0.6748, 1.3252], abs=5e-5)


@pytest.mark.holds("anyloss", 1)
def test_confusion_equals_a_loop():
    logits, y = batch()
    p = torch.sigmoid(logits)
    counts = [0.0] * 4
    for value, label in zip(p.tolist(), y.tolist()):
        a = 1 / (1 + math.exp(-20 * (value - 0.5)))
        counts[0 if label else 2] += a
        counts[1 if label else 3] += 1 - a
    assert [float(c) for c in soft_confusion(p, y, 20.0)] == pytest.approx(counts)


@pytest.mark.holds("anyloss", 2)
@pytest.mark.parametrize(
    ("loss", "wanted"),
    [
        (AnyLoss("f1"), 0.4035),
        (FBetaLoss(), 0.4035),
        (AnyLoss("accuracy"), 0.3845),
        (AnyLoss("balanced_accuracy"), 0.3845),
        (BalancedAccuracyLoss(), 0.3845),
        (AnyLoss("gmean"), 0.3863),
        (GMeanLoss(), 0.3863),
    ],
)
def test_losses_by_hand(loss, wanted):
    assert loss(torch.logit(P), Y).item() == pytest.approx(wanted, abs=5e-5)


@pytest.mark.holds("anyloss", 3)
def test_slope_in_probabilities():
    p = P.clone().requires_grad_()
    (slope,) = torch.autograd.grad(AnyLoss("f1", from_logits=False)(p, Y), p)
    assert slope[:3].tolist() == pytest.approx([-4.111, -5.899, 2.507], abs=5e-4)
    # by the chain rule: with D = 2 TP + FN + FP, dF1/dTP = 2/D at fixed count of positives, and D grows with every A
    a = 1 / (1 + torch.exp(-73 * (P - 0.5)))
    tp, total = (a[:2].sum(), a.sum() + 2)
    inner = 73 * a * (1 - a)
    wanted = -inner * (2 * Y / total - 2 * tp / total**2)
    torch.testing.assert_close(slope, wanted)
    assert slope[3] > 0


@pytest.mark.holds("anyloss", 3)
@pytest.mark.parametrize("metric", METRICS)
def test_loss_goes_down_with_positives_and_up_with_negatives(metric):
    logits, y = batch()
    logits = (0.1 * logits).requires_grad_()
    (slope,) = torch.autograd.grad(AnyLoss(metric)(logits, y), logits)
    assert (slope[y == 1] < 0).all()
    assert (slope[y == 0] > 0).all()


@pytest.mark.holds("anyloss", 4)
def test_steep_limit_is_the_hard_metric():
    logits, y = batch()
    hard = (logits > 0).long()
    recall = metrics.recall_score(y, hard), metrics.recall_score(y, hard, pos_label=0)
    wanted = {
        "f1": metrics.f1_score(y, hard),
        "accuracy": metrics.accuracy_score(y, hard),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, hard),
        "gmean": math.sqrt(recall[0] * recall[1]),
    }
    for metric, score in wanted.items():
        assert 1 - AnyLoss(metric, L=1e6)(logits, y).item() == pytest.approx(score, abs=1e-9)
    score = metrics.fbeta_score(y, hard, beta=2.0)
    assert 1 - FBetaLoss(2.0, L=1e6)(logits, y).item() == pytest.approx(score, abs=1e-9)


@pytest.mark.holds("anyloss", 4)
@pytest.mark.parametrize("L", [0.1, 5.0, 73.0, 1e4])
def test_rows_of_the_matrix_are_the_class_counts(L):
    logits, y = batch()
    tp, fn, fp, tn = soft_confusion(torch.sigmoid(logits), y, L)
    assert (tp + fn).item() == pytest.approx(int(y.sum()), rel=1e-14)
    assert (fp + tn).item() == pytest.approx(int((1 - y).sum()), rel=1e-14)


@pytest.mark.holds("anyloss", 5)
def test_accuracy_is_a_mean_over_samples_and_order_is_irrelevant():
    logits, y = batch()
    a = torch.sigmoid(73 * (torch.sigmoid(logits) - 0.5))
    torch.testing.assert_close(AnyLoss("accuracy")(logits, y), (y * (1 - a) + (1 - y) * a).mean())
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    for metric in METRICS:
        torch.testing.assert_close(AnyLoss(metric)(logits[order], y[order]), AnyLoss(metric)(logits, y))


@pytest.mark.holds("anyloss", 6)
@pytest.mark.parametrize("metric", ["f1", "gmean"])
@pytest.mark.parametrize("L", [73.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_batch_without_positives_stays_finite(metric, L, dtype):
    logits = torch.linspace(-9, -1, 8, dtype=dtype, requires_grad=True)
    loss = AnyLoss(metric, L=L)(logits, torch.zeros(8))
    (slope,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(1.0, abs=2e-6)
    assert torch.isfinite(slope).all()


@pytest.mark.holds("anyloss", 6)
@pytest.mark.parametrize("label", [0, 1])
def test_balanced_accuracy_warns_of_an_absent_class(label):
    with pytest.warns(UserWarning, match="one class only"):
        loss = BalancedAccuracyLoss()(torch.zeros(4), torch.full((4,), label))
    assert loss.item() == pytest.approx(0.75)


def test_confident_errors_do_not_lose_the_small_side_in_float32():
    _, fn, _, _ = soft_confusion(torch.ones(1), torch.ones(1))
    assert fn.item() == pytest.approx(math.exp(-36.5), rel=1e-4, abs=0)


def test_any_function_of_the_counts_is_a_metric():
    def jaccard(tp, fn, fp, tn):
        return tp / (tp + fn + fp)

    logits, y = batch()
    found = 1 - AnyLoss(jaccard, L=1e6)(logits, y).item()
    assert found == pytest.approx(metrics.jaccard_score(y, (logits > 0).long()), abs=1e-9)


def test_probability_outputs_predict_at_one_half():
    loss = AnyLoss(from_logits=False)
    assert loss.predict(P).tolist() == loss.probabilities(P).argmax(-1).tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize(
    "call",
    [
        lambda: AnyLoss("auc"),
        lambda: AnyLoss(L=0.0),
        lambda: FBetaLoss(beta=0.0),
        lambda: AnyLoss(from_logits=False)(2 * P + 0.5, Y),
        lambda: AnyLoss()(P, Y + 1),
        lambda: AnyLoss()(P[:, None], Y[:, None]),
    ],
)
def test_refused(call):
    with pytest.raises(ValueError, match=": expected "):
        call()
