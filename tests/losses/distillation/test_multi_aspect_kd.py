"""Multi-aspect distillation."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch.nn import functional

from steepest.core.objective import TaskInfo
from steepest.losses.distillation.multi_aspect_kd import (
    LOOKED_AT,
    MultiAspectKDLoss,
    multi_aspect_kd_loss,
    yes_probability,
)

Z = torch.tensor([[2.0, 0.5, -1.0, 1.0, -2.0]], dtype=torch.float64)
FIRST = torch.tensor([0])
YES, NO = torch.tensor([[3.0, 0.0]], dtype=torch.float64), torch.tensor([[1.0, 1.0]], dtype=torch.float64)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def batch(generator, rows=6, classes=4, questions=5):
    logits = 2 * torch.randn(rows, classes + questions, generator=generator, dtype=torch.float64)
    answers = torch.rand(rows, questions, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (rows,), generator=generator), answers


@pytest.mark.holds("multi-aspect-kd", 1)
def test_card_values():
    answers = yes_probability(YES, NO)
    torch.testing.assert_close(answers, Z.new_tensor([[0.880797, 0.268941]]), atol=5e-7, rtol=0)
    loss = MultiAspectKDLoss(3, 2)
    assert loss(Z, FIRST, attributes=answers).item() == pytest.approx(0.789949, abs=5e-7)
    assert loss.terms["classes"].item() == pytest.approx(0.241311, abs=5e-7)
    assert loss.terms["aspects"].item() == pytest.approx(0.548638, abs=5e-7)


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_naive_sums(alpha, generator):
    """Python's own floats, an answer after the other."""
    logits, target, answers = batch(generator)
    mask = torch.rand(answers.shape, generator=generator) < 0.6
    entropy, total = 0.0, 0.0
    for z, y, row, valid in zip(logits.tolist(), target.tolist(), answers.tolist(), mask.tolist()):
        entropy += math.log(sum(math.exp(v) for v in z[:4])) - z[y]
        for own, t, counts in zip(z[4:], row, valid):
            p = 1 / (1 + math.exp(-own))
            total -= counts * (t * math.log(p) + (1 - t) * math.log(1 - p))
    loss = multi_aspect_kd_loss(logits, target, attributes=answers, mask=mask, alpha=alpha)
    assert loss.item() == pytest.approx(entropy / 6 + alpha * total / int(mask.sum()), rel=1e-13)


@pytest.mark.holds("multi-aspect-kd", 2)
def test_without_answers_it_is_cross_entropy(generator):
    logits, target, answers = batch(generator)
    wanted = functional.cross_entropy(logits[:, :4], target)
    logits.requires_grad_()
    loss = multi_aspect_kd_loss(logits, target, attributes=answers, alpha=0.0)
    torch.testing.assert_close(loss, wanted)
    assert not torch.autograd.grad(loss, logits)[0][:, 4:].any()
    torch.testing.assert_close(multi_aspect_kd_loss(logits[:, :4], target, attributes=answers[:, :0]), wanted)
    objective = MultiAspectKDLoss.from_task(TaskInfo("multiclass", 21, 4, (5, 5, 5, 6)))
    torch.testing.assert_close(objective(logits[:, :4], target, attributes=answers[:, :0]), wanted)


@pytest.mark.holds("multi-aspect-kd", 3)
@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_gradient(alpha, generator):
    logits, target, answers = batch(generator)
    logits[2, 4:] = answers[2].logit()
    logits.requires_grad_()
    loss = multi_aspect_kd_loss(logits, target, attributes=answers, alpha=alpha)
    (slope,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(slope[:, 4:], alpha * (logits[:, 4:].sigmoid() - answers).detach() / 30)
    assert float(slope[2, 4:].abs().max()) < 1e-16
    own = (logits[:, :4].softmax(1) - functional.one_hot(target, 4)).detach() / 6
    torch.testing.assert_close(slope[:, :4], own)


@pytest.mark.holds("multi-aspect-kd", 3)
def test_classes_and_questions_share_no_gradient(generator):
    """Of each term alone: the block of mixed second derivatives is 0, and so is the other term's slope."""
    logits, target, answers = batch(generator, rows=2)

    def slopes(z):
        return torch.autograd.functional.jacobian(
            lambda v: multi_aspect_kd_loss(v, target, attributes=answers, alpha=3.0), z
        )

    moved = logits.clone()
    moved[:, 4:] += 1.0
    assert torch.equal(slopes(moved)[:, :4], slopes(logits)[:, :4])
    moved = logits.clone()
    moved[:, :4] *= -1.0
    assert torch.equal(slopes(moved)[:, 4:], slopes(logits)[:, 4:])


@pytest.mark.holds("multi-aspect-kd", 4)
@pytest.mark.parametrize("scale", [1.0, 40.0])
def test_agrees_with_torch(scale, generator):
    logits, target, answers = batch(generator)
    answers = answers.round(decimals=1).clamp(0, 1)
    logits = scale * logits
    each = functional.binary_cross_entropy_with_logits(logits[:, 4:], answers, reduction="none")
    wanted = functional.cross_entropy(logits[:, :4], target, reduction="none") + 0.7 * each.mean(1)
    named = {"attributes": answers, "alpha": 0.7}
    torch.testing.assert_close(multi_aspect_kd_loss(logits, target, reduction="none", **named), wanted)
    torch.testing.assert_close(multi_aspect_kd_loss(logits, target, **named), wanted.mean())
    weight = torch.rand(6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        multi_aspect_kd_loss(logits, target, weight=weight, **named), (weight * wanted).sum() / weight.sum()
    )


@pytest.mark.holds("multi-aspect-kd", 5)
def test_refusals(generator):
    logits, target, answers = batch(generator)
    for wrong in (-0.01, 1.01, math.inf):
        changed = answers.clone()
        changed[3, 2] = wrong
        for call in (MultiAspectKDLoss(4, 5), multi_aspect_kd_loss):
            with pytest.raises(ValueError, match=r"^attributes: expected probabilities in \[0, 1\]"):
                call(logits, target, attributes=changed)
    objective = MultiAspectKDLoss(4, 5)
    for width in (8, 10):
        with pytest.raises(ValueError, match=r"^outputs: expected shape \(\*, 9\)"):
            objective(torch.zeros(6, width), target, attributes=answers)
    with pytest.raises(ValueError, match=r"^attributes: expected shape \(6, 5\)"):
        objective(logits, target, attributes=answers[:, :4])
    with pytest.raises(ValueError, match=r"^attributes: expected shape"):
        multi_aspect_kd_loss(logits, target, attributes=answers[:5])
    with pytest.raises(ValueError, match=r"^logits: expected at least 7 columns, of two classes and 5 questions"):
        multi_aspect_kd_loss(logits[:, :6], target, attributes=answers)
    with pytest.raises(ValueError, match=r"^mask: expected shape"):
        multi_aspect_kd_loss(logits, target, attributes=answers, mask=torch.ones(6, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"^mask: expected an integer tensor"):
        multi_aspect_kd_loss(logits, target, attributes=answers, mask=torch.ones(6, 5))
    with pytest.raises(ValueError, match=r"^target: expected values in 0..3"):
        multi_aspect_kd_loss(logits, target + 4, attributes=answers)
    for options in ({"num_classes": 1}, {"num_aspects": -1}, {"alpha": -0.1}):
        with pytest.raises(ValueError, match=": expected "):
            MultiAspectKDLoss(**{"num_classes": 4, "num_aspects": 5, **options})
    with pytest.raises(ValueError, match=r"^alpha: expected"):
        multi_aspect_kd_loss(logits, target, attributes=answers, alpha=-1.0)
    with pytest.raises(ValueError, match=r"^no_logit: expected shape"):
        yes_probability(YES, NO[0])
    with pytest.raises(TypeError, match=r"^yes_logit: expected a floating tensor"):
        yes_probability(YES.long(), NO)


@pytest.mark.holds("multi-aspect-kd", 6)
def test_unanswered_questions(generator):
    logits, target, answers = batch(generator)
    mask = torch.rand(answers.shape, generator=generator) < 0.5
    mask[1] = False
    each = functional.binary_cross_entropy_with_logits(logits[:, 4:], answers, reduction="none")
    entropy = functional.cross_entropy(logits[:, :4], target)
    loss = multi_aspect_kd_loss(logits, target, attributes=answers, mask=mask, alpha=2.0)
    torch.testing.assert_close(loss, entropy + 2.0 * each[mask].mean())
    none = torch.zeros_like(mask)
    torch.testing.assert_close(multi_aspect_kd_loss(logits, target, attributes=answers, mask=none), entropy)
    every = torch.ones_like(mask)
    torch.testing.assert_close(
        multi_aspect_kd_loss(logits, target, attributes=answers, mask=every),
        multi_aspect_kd_loss(logits, target, attributes=answers),
    )


@pytest.mark.holds("multi-aspect-kd", 6)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -7.0])
def test_what_stands_under_the_mask_does_no_harm(wrong, generator):
    logits, target, answers = batch(generator)
    mask = torch.rand(answers.shape, generator=generator) < 0.5
    spoilt, wild = answers.masked_fill(~mask, wrong), logits.clone()
    wild[:, 4:][~mask] = wrong
    slopes = []
    for own, t in ((logits, answers), (wild, spoilt)):
        own = own.clone().requires_grad_()
        slopes.append(torch.autograd.grad(multi_aspect_kd_loss(own, target, attributes=t, mask=mask), own)[0])
    assert torch.equal(slopes[0], slopes[1])
    assert not slopes[0][:, 4:][~mask].any()


def test_answers_carry_no_gradient(generator):
    logits, target, answers = batch(generator)
    loss = multi_aspect_kd_loss(logits.requires_grad_(), target, attributes=answers.requires_grad_())
    assert torch.autograd.grad(loss, answers, allow_unused=True) == (None,)


def test_yes_probability_is_stable():
    gaps = torch.tensor([0.0, 30.0, -30.0, 2e4, -2e4])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        found = yes_probability((gaps / 2).to(dtype), (-gaps / 2).to(dtype))
        assert found.dtype == torch.float32
        wanted = [1 / (1 + math.exp(-g)) if g > -700 else 0.0 for g in gaps.tolist()]
        torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-5, atol=0)
    spread = torch.tensor([60000.0], dtype=torch.float16)
    assert yes_probability(spread, -spread).item() == 1.0


def test_the_floor_is_the_entropy_of_the_answers(generator):
    _, target, answers = batch(generator)
    sure = torch.cat([40 * functional.one_hot(target, 4).double(), answers.logit()], 1)
    entropy = -(answers * answers.log() + (1 - answers) * (1 - answers).log()).mean()
    torch.testing.assert_close(multi_aspect_kd_loss(sure, target, attributes=answers), entropy)


def steps(objective, generator, rows, answers_of, mask=None):
    for _ in range(rows // 16):
        logits, target, _ = batch(generator, rows=16)
        objective(logits, target, attributes=answers_of(16), mask=mask)


def test_questions_that_all_answer_alike_warn_once(generator):
    def answers_of(rows):
        answers = torch.rand(rows, 5, generator=generator, dtype=torch.float64)
        answers[:, 1], answers[:, 4] = 0.3, 1.0
        return answers

    objective = MultiAspectKDLoss(4, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(objective, generator, LOOKED_AT - 16, answers_of)
        steps(MultiAspectKDLoss(4, 5).eval(), generator, 2 * LOOKED_AT, answers_of)
    with pytest.warns(UserWarning, match=r"attributes: 256 rows answer the questions \[1, 4\] alike") as caught:
        steps(objective, generator, 2 * LOOKED_AT, answers_of)
    assert len(caught) == 1


def test_answers_that_differ_once_do_not_warn(generator):
    number = iter(range(1000))

    def answers_of(rows):
        answers = torch.full((rows, 5), 0.3)
        answers[0] = 0.3 + 0.1 * (next(number) == 0)  # in the first batch alone
        return answers

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(MultiAspectKDLoss(4, 5), generator, 2 * LOOKED_AT, answers_of)
        some = torch.ones(16, 5, dtype=torch.bool)
        some[:, 2] = False  # never answered: not known to be alike
        steps(MultiAspectKDLoss(4, 5), generator, 2 * LOOKED_AT, lambda rows: torch.full((rows, 5), 0.3), some)


def test_head_and_predictions(generator):
    objective = MultiAspectKDLoss(4, 5)
    info = TaskInfo("multiclass", 21, 4, (5, 5, 5, 6), feature_dim=3)
    assert objective.head(3, info).weight.shape == (9, 3)
    logits, _, _ = batch(generator)
    logits[:, 4:] += 50.0
    assert torch.equal(objective.predict(logits), logits[:, :4].argmax(1))
    torch.testing.assert_close(objective.probabilities(logits), logits[:, :4].softmax(1))
