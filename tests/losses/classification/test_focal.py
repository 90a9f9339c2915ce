"""Focal loss against the written-out formula and its sigmoid form."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from steepest.losses.classification.focal import FocalLoss, focal_loss

LOGITS = 3 * torch.randn(8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
TARGET = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
ALPHA = [0.25, 1.0, 0.5, 2.0]
MAPS = 3 * torch.randn(2, 4, 3, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
MAP_TARGET = torch.arange(12).view(2, 3, 2) % 4
HOT = (torch.arange(32) % 3 == 0).view(8, 4).double()
SHARES = torch.softmax(LOGITS.flip(0), 1)


def of_sigmoid(z, t, gamma, alpha):
    """One entry as torchvision's sigmoid_focal_loss writes it, alpha < 0 for none."""
    p = 1 / (1 + math.exp(-z))
    entropy = -(t * math.log(p) + (1 - t) * math.log(1 - p))
    p_t = p * t + (1 - p) * (1 - t)
    loss = entropy * (1 - p_t) ** gamma
    return (alpha * t + (1 - alpha) * (1 - t)) * loss if alpha >= 0 else loss


@pytest.mark.holds("focal")
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_equals_the_formula(gamma, alpha):
    wanted = []
    for row, y in zip(LOGITS.tolist(), TARGET.tolist()):
        p = math.exp(row[y]) / sum(map(math.exp, row))
        wanted.append(-(1 if alpha is None else alpha[y]) * (1 - p) ** gamma * math.log(p))
    found = FocalLoss(gamma, alpha, reduction="none")(LOGITS, TARGET)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.holds("focal")
def test_gamma_zero_is_cross_entropy():
    torch.testing.assert_close(focal_loss(LOGITS, TARGET, gamma=0.0), cross_entropy(LOGITS, TARGET))


def test_two_classes_are_the_sigmoid_form():
    score = torch.linspace(-6, 6, 9, dtype=torch.float64)
    logits = torch.stack([torch.zeros_like(score), score], -1)
    p = torch.sigmoid(score)
    torch.testing.assert_close(
        focal_loss(logits, torch.ones(9, dtype=torch.long), reduction="none"), -((1 - p) ** 2) * p.log()
    )


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("margin", [20.0, 90.0, 1e4, -1e4])
def test_slope_is_finite_where_p_rounds_to_one(gamma, margin):
    logits = torch.tensor([[margin, 0.0, 0.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(focal_loss(logits, torch.tensor([0]), gamma=gamma), logits)
    assert torch.isfinite(slope).all()


def test_small_losses_keep_their_digits():
    # u = 2 exp(-30): the loss is u^(1 + gamma) to first order, far below the rounding of 1 - p
    u = 2 * math.exp(-30)
    found = focal_loss(torch.tensor([[30.0, 0.0, 0.0]]), torch.tensor([0]), gamma=1.0)
    assert found.item() == pytest.approx(u * u, rel=1e-4, abs=0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: FocalLoss(-1.0),
        lambda: FocalLoss(alpha=[1.0, -1.0]),
        lambda: FocalLoss(alpha=[1.0, 1.0])(LOGITS, TARGET),
        lambda: FocalLoss(alpha=1.5),
        lambda: FocalLoss(alpha=0.25)(LOGITS, TARGET),
        lambda: FocalLoss(alpha=[1.0, 1.0, 1.0])(LOGITS[:, 0], TARGET % 2),
        lambda: FocalLoss(form="both"),
        lambda: FocalLoss(form="sigmoid")(LOGITS, TARGET),
        lambda: FocalLoss(form="softmax")(LOGITS[:, 0], TARGET),
        lambda: FocalLoss(form="softmax")(LOGITS, LOGITS.sigmoid()),
        lambda: FocalLoss()(LOGITS[:, 0], TARGET),
        lambda: FocalLoss()(LOGITS[:, 0], TARGET[1:] % 2),
        lambda: FocalLoss()(LOGITS, 2 * LOGITS.sigmoid()),
        lambda: FocalLoss(ignore_index=None)(LOGITS, torch.where(TARGET == 0, -100, TARGET)),
        lambda: FocalLoss()(LOGITS[0, 0], TARGET[0]),
        lambda: FocalLoss()(MAPS, MAP_TARGET[:, 1:]),
        lambda: FocalLoss()(MAPS, MAP_TARGET, weight=torch.ones(2, 3, 4)),
    ],
)
def test_refused(call):
    with pytest.raises(ValueError, match=": expected "):
        call()


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (2.0, -1.0), (0.0, 0.5), (0.5, 0.9)])
@pytest.mark.parametrize("target", [HOT, HOT.long(), LOGITS.sigmoid()], ids=["hot", "integers", "soft"])
def test_dense_targets_are_the_form_of_the_paper(target, gamma, alpha):
    """Of each entry, against the loop; mean and sum over all of them, as in torchvision."""
    wanted = [of_sigmoid(z, t, gamma, alpha) for z, t in zip(LOGITS.flatten().tolist(), target.flatten().tolist())]
    wanted = torch.tensor(wanted, dtype=torch.float64).view(8, 4)
    made = {
        reduction: FocalLoss(gamma, None if alpha < 0 else alpha, reduction) for reduction in ("none", "mean", "sum")
    }
    torch.testing.assert_close(made["none"](LOGITS, target), wanted)
    torch.testing.assert_close(made["mean"](LOGITS, target), wanted.mean())
    torch.testing.assert_close(made["sum"](LOGITS, target), wanted.sum())
    torch.testing.assert_close(made["none"](LOGITS[:, 0], target[:, 0]), wanted[:, 0])


def test_scores_are_two_classes():
    """A score is the logit of class 1 over a logit of 0 for class 0, with the factors of both."""
    score, y = LOGITS[:, 0], TARGET % 2
    two = torch.stack([torch.zeros_like(score), score], 1)
    for alpha in (None, [0.3, 2.0], 0.25):
        loss = FocalLoss(0.5, alpha, "none")
        torch.testing.assert_close(loss(score, y), loss(two, y))
    torch.testing.assert_close(FocalLoss().probabilities(score), two.softmax(1))
    assert torch.equal(FocalLoss().predict(score), FocalLoss().predict(two))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_soft_targets_average_over_classes(gamma, alpha):
    """Each class's loss with its probability; one-hot rows give the loss of indices."""
    by_class = torch.stack([FocalLoss(gamma, alpha, "none")(LOGITS, torch.full((8,), k)) for k in range(4)], 1)
    soft = FocalLoss(gamma, alpha, "none", form="softmax")
    torch.testing.assert_close(soft(LOGITS, SHARES), (SHARES * by_class).sum(1))
    hot = torch.nn.functional.one_hot(TARGET, 4).double()
    torch.testing.assert_close(soft(LOGITS, hot), FocalLoss(gamma, alpha, "none")(LOGITS, TARGET))
    if gamma == 0 and alpha is None:
        torch.testing.assert_close(soft(LOGITS, SHARES), cross_entropy(LOGITS, SHARES, reduction="none"))


@pytest.mark.parametrize("ignored", [None, -100, 255])
def test_maps_are_their_rows(ignored):
    """Every place of a map is a row; ignored places count on neither side, a sample's weight is that of its places."""
    target = MAP_TARGET.clone()
    if ignored is not None:
        target[:, 1] = ignored
    loss = FocalLoss(1.5, ALPHA, ignore_index=ignored)
    rows, y = MAPS.movedim(1, -1).reshape(-1, 4), target.reshape(-1)
    kept = torch.ones_like(y, dtype=torch.bool) if ignored is None else y != ignored
    each = focal_loss(rows[kept], y[kept], gamma=1.5, alpha=torch.tensor(ALPHA), reduction="none")
    torch.testing.assert_close(loss(MAPS, target), each.mean())
    weight = torch.tensor([1.0, 3.0], dtype=torch.float64)
    of_row = weight.repeat_interleave(6)[kept]
    torch.testing.assert_close(loss(MAPS, target, weight=weight), (of_row * each).sum() / of_row.sum())
    loss.reduction = "none"
    assert loss(MAPS, target).shape == target.shape
    torch.testing.assert_close(loss(MAPS, target).reshape(-1)[kept], each)
    assert not loss(MAPS, target).reshape(-1)[~kept].any()
    assert loss.predict(MAPS).shape == target.shape
    torch.testing.assert_close(loss.probabilities(MAPS).sum(1), torch.ones(2, 3, 2, dtype=torch.float64))


def test_gamma_zero_of_maps_is_cross_entropy():
    target = MAP_TARGET.clone()
    target[0, 0] = -100
    torch.testing.assert_close(focal_loss(MAPS, target, gamma=0.0), cross_entropy(MAPS, target))
    shares = MAPS.flip(1).softmax(1)
    torch.testing.assert_close(focal_loss(MAPS, shares, gamma=0.0, form="softmax"), cross_entropy(MAPS, shares))


@pytest.mark.parametrize("target", [HOT.long(), HOT], ids=["integers", "floats"])
def test_ignored_labels_of_the_sigmoid_form(target):
    ignored = target.clone()
    ignored[::2] = -1
    loss = FocalLoss(ignore_index=-1)
    torch.testing.assert_close(loss(LOGITS, ignored), loss(LOGITS[1::2], target[1::2]))
    torch.testing.assert_close(loss(LOGITS[:, 0], ignored[:, 0]), loss(LOGITS[1::2, 0], target[1::2, 0]))
    assert loss(LOGITS, torch.full_like(target, -1)).isnan()


CALLS = [(LOGITS, HOT, None), (LOGITS[:, 0], TARGET % 2, None), (LOGITS, SHARES, "softmax"), (MAPS, MAP_TARGET, None)]


@pytest.mark.parametrize(("outputs", "target", "form"), CALLS, ids=["hot", "scores", "soft", "maps"])
@pytest.mark.parametrize("gamma", [0.3, 2.0])
def test_gradients(outputs, target, form, gamma):
    """gradcheck; finite at extremes; half precision; vmap."""

    def run(z):
        return focal_loss(z, target, gamma=gamma, form=form)

    leaf = outputs.clone().requires_grad_()
    assert torch.autograd.gradcheck(run, leaf)
    for size in (1e2, 1e4):
        wild = (size * outputs.sign()).float().requires_grad_()
        loss = run(wild)
        (slope,) = torch.autograd.grad(loss, wild)
        assert torch.isfinite(loss)
        assert torch.isfinite(slope).all()
    assert run(outputs.bfloat16()).dtype == torch.float32
    both = torch.func.vmap(torch.func.grad(run))(torch.stack([outputs, 0.5 * outputs]))
    torch.testing.assert_close(both[0], torch.autograd.grad(run(leaf), leaf)[0])


def test_predictions_of_labels():
    loss = FocalLoss(form="sigmoid")
    assert torch.equal(loss.predict(LOGITS), (LOGITS > 0).long())
    assert torch.equal(loss.probabilities(LOGITS), LOGITS.sigmoid())
    assert torch.equal(loss.decision(LOGITS), LOGITS)
    assert torch.equal(FocalLoss().decision(LOGITS[:, :2]), LOGITS[:, 1] - LOGITS[:, 0])
