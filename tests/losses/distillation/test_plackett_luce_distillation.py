"""Plackett-Luce distillation."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from steepest.losses.distillation import plackett_luce_distillation as module
from steepest.losses.distillation.plackett_luce_distillation import PLDLoss, pld_loss, teacher_choices

S = torch.tensor([[1.0, 2.0, 0.5, -1.0]], dtype=torch.float64)
T = torch.tensor([[2.0, 3.0, 1.0, 0.0]], dtype=torch.float64)
FIRST = torch.tensor([0])
CERTAIN = 60.0
"""A logit beside which the others have probabilities below 1e-20."""


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def batch(generator, rows=6, classes=5, dtype=torch.float64, scale=2.0):
    student, teacher = (scale * torch.randn(2, rows, classes, generator=generator, dtype=torch.float64)).unbind()
    return student.to(dtype), teacher.to(dtype), torch.randint(classes, (rows,), generator=generator)


def loss_and_gradient(student, target, **named):
    student = student.detach().clone().requires_grad_()
    losses = pld_loss(student, target, reduction="none", **named)
    return losses.detach(), torch.autograd.grad(losses.sum(), student)[0]


def naive(student, teacher, label, tau):
    """One row, a choice after the other, with Python's own floats."""
    top = max(t / tau for t in teacher)
    mass = [math.exp(t / tau - top) for t in teacher]
    left = list(range(len(student)))
    order = [label, *sorted((c for c in left if c != label), key=lambda c: (-teacher[c], c))]
    total, slope = 0.0, [0.0] * len(student)
    for chosen in order:
        weight = mass[chosen] / sum(mass)
        largest = max(student[c] for c in left)
        norm = sum(math.exp(student[c] - largest) for c in left)
        total += weight * (largest + math.log(norm) - student[chosen])
        for c in left:
            slope[c] += weight * (math.exp(student[c] - largest) / norm - (c == chosen))
        left.remove(chosen)
    return total, slope


@pytest.mark.holds("plackett-luce-distillation", 1)
def test_card_values():
    order, weights = teacher_choices(T, FIRST)
    assert order.tolist() == [[0, 1, 2, 3]]
    torch.testing.assert_close(weights, T.new_tensor([[0.2369, 0.6439, 0.0871, 0.0321]]), atol=5e-5, rtol=0)
    losses, slope = loss_and_gradient(S, FIRST, teacher=T)
    assert losses.item() == pytest.approx(0.527119, abs=5e-7)
    torch.testing.assert_close(slope, T.new_tensor([[-0.1838, 0.0063, 0.1292, 0.0483]]), atol=5e-5, rtol=0)
    assert slope.sum().item() == pytest.approx(0.0, abs=1e-15)
    assert pld_loss(S, FIRST, teacher=T, tau=4.0).item() == pytest.approx(0.534669, abs=5e-7)


@pytest.mark.parametrize(("classes", "tau"), [(2, 1.0), (7, 0.7), (40, 4.0)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_naive_choices(classes, tau, dtype, generator):
    """Against a loop over choices; in float32 in C++ too, whose lanes hold 1 to 10 places of a row here."""
    student, teacher, target = batch(generator, classes=classes, dtype=dtype)
    teacher = teacher.mul(2).round()  # many are equal
    losses, slope = loss_and_gradient(student, target, teacher=teacher, tau=tau)
    rows = [naive(s, t, y, tau) for s, t, y in zip(student.tolist(), teacher.tolist(), target.tolist())]
    tolerance = {"atol": 1e-6, "rtol": 2e-6} if dtype == torch.float32 else {"atol": 1e-13, "rtol": 1e-13}
    torch.testing.assert_close(losses, torch.tensor([row[0] for row in rows], dtype=dtype), **tolerance)
    torch.testing.assert_close(slope, torch.tensor([row[1] for row in rows], dtype=dtype), **tolerance)


@pytest.mark.parametrize("classes", [3, 33, 1000])
def test_listmle_is_the_case_of_equal_weights(classes, generator):
    """As ranking libraries write it: gather, cumulative sums of exponentials from the end, by autograd."""
    student, teacher, target = batch(generator, rows=4, classes=classes, dtype=torch.float32)
    order, _ = teacher_choices(teacher, target)
    scores = student.double().requires_grad_()
    ranked = scores.gather(1, order.long())
    ranked = ranked - ranked.max(1, keepdim=True).values
    sums = ranked.exp().flip(1).cumsum(1).flip(1)
    wanted = (sums.log() - ranked).sum(1) / classes
    equal = torch.full((classes,), 1 / classes)
    losses, slope = loss_and_gradient(student, target, order=order, choice_weights=equal)
    torch.testing.assert_close(losses.double(), wanted.detach(), rtol=2e-6, atol=0)
    (wanted_slope,) = torch.autograd.grad(wanted.sum(), scores)
    torch.testing.assert_close(slope.double(), wanted_slope, rtol=2e-5, atol=2e-7)
    falling = torch.arange(classes, 0, -1.0).softmax(0)
    losses = pld_loss(student, target, teacher=teacher, choice_weights=falling, reduction="none")
    wanted = ((sums.log() - ranked) * falling.double()).sum(1).detach()
    torch.testing.assert_close(losses.double(), wanted, rtol=2e-6, atol=1e-7)


@pytest.mark.holds("plackett-luce-distillation", 2)
def test_constants_change_nothing_and_the_scale_does(generator):
    student, teacher, target = batch(generator)
    loss = pld_loss(student, target, teacher=teacher)
    shifts = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(pld_loss(student + shifts, target, teacher=teacher), loss)
    torch.testing.assert_close(pld_loss(student, target, teacher=teacher - shifts), loss)
    assert abs(pld_loss(2 * student, target, teacher=teacher) - loss) > 0.05


@pytest.mark.holds("plackett-luce-distillation", 3)
def test_convex_and_not_negative(generator):
    a, teacher, target = batch(generator, rows=64)
    b = batch(generator, rows=64)[0]

    def losses(student):
        return pld_loss(student, target, teacher=teacher, reduction="none")

    gap = (losses(a) + losses(b)) / 2 - losses((a + b) / 2)
    assert bool((gap > 0).all())
    for student in (a, 5 * b, torch.zeros_like(a)):
        assert bool((losses(student) >= 0).all())


@pytest.mark.holds("plackett-luce-distillation", 4)
def test_a_certain_teacher_leaves_cross_entropy(generator):
    student, teacher, target = batch(generator)
    sure = teacher.scatter(1, target[:, None], CERTAIN)
    torch.testing.assert_close(
        pld_loss(student, target, teacher=sure), functional.cross_entropy(student, target), rtol=1e-14, atol=0
    )
    one = torch.zeros(5, dtype=torch.float64)
    one[0] = 1.0
    loss = pld_loss(student, target, teacher=teacher, choice_weights=one)
    torch.testing.assert_close(loss, functional.cross_entropy(student, target))


@pytest.mark.holds("plackett-luce-distillation", 4)
@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_two_classes_weigh_cross_entropy(tau, generator):
    student, teacher, target = batch(generator, classes=2)
    own = (teacher / tau).softmax(1).gather(1, target[:, None]).squeeze(1)
    wanted = own * functional.cross_entropy(student, target, reduction="none")
    torch.testing.assert_close(pld_loss(student, target, teacher=teacher, tau=tau, reduction="none"), wanted)


@pytest.mark.holds("plackett-luce-distillation", 5)
def test_numbers_of_classes_don_t_count(generator):
    student, teacher, target = batch(generator)
    wanted = pld_loss(student, target, teacher=teacher, reduction="none")
    for row in range(6):
        numbers = torch.randperm(5, generator=generator)
        place = int((numbers == target[row]).nonzero())
        numbers[[0, place]] = numbers[[place, 0]]  # the true class becomes class 0
        loss = pld_loss(student[row : row + 1, numbers], FIRST, teacher=teacher[row : row + 1, numbers])
        torch.testing.assert_close(loss, wanted[row])


@pytest.mark.holds("plackett-luce-distillation", 6)
def test_no_gradient_reaches_the_teacher(generator):
    student, teacher, target = batch(generator)
    teacher.requires_grad_()
    loss = pld_loss(student.requires_grad_(), target, teacher=teacher)
    assert torch.autograd.grad(loss, teacher, allow_unused=True) == (None,)
    weights = teacher.detach().softmax(1).requires_grad_()
    loss = pld_loss(student, target, teacher=teacher, choice_weights=weights)
    assert torch.autograd.grad(loss, weights, allow_unused=True) == (None,)


@pytest.mark.holds("plackett-luce-distillation", 6)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_nan_never_gives_a_number(dtype, generator):
    student, teacher, target = batch(generator, rows=3, classes=40, dtype=dtype)
    for place in (0, 20, 39):
        order, _ = teacher_choices(teacher, target)
        spoilt = student.clone()
        spoilt[1, order[1, place]] = math.nan
        losses, slope = loss_and_gradient(spoilt, target, teacher=teacher)
        assert losses.isnan().tolist() == [False, True, False]
        assert slope.isfinite().all(1).tolist() == [True, False, True]
    for wrong in (math.nan, math.inf):
        spoilt = teacher.clone()
        spoilt[2, 5] = wrong
        losses = pld_loss(student, target, teacher=spoilt, reduction="none")
        assert losses.isnan().tolist() == [False, False, True]


@pytest.mark.holds("plackett-luce-distillation", 6)
def test_one_class_is_refused():
    with pytest.raises(ValueError, match="outputs: expected at least 2 classes"):
        pld_loss(S[:, :1], FIRST, teacher=T[:, :1])
    with pytest.raises(ValueError, match="teacher: expected at least 2 classes"):
        teacher_choices(T[:, :1], FIRST)


def test_equal_logits_stand_by_their_numbers():
    teacher = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0], [0.0] * 5, [math.inf, 1.0, 0.0, 0.0, -math.inf]])
    order, weights = teacher_choices(teacher, torch.tensor([3, 2, 4]))
    assert order.dtype == torch.int32
    assert order.tolist() == [[3, 1, 2, 4, 0], [2, 0, 1, 3, 4], [4, 0, 1, 2, 3]]
    torch.testing.assert_close(weights[:2].sum(1), torch.ones(2))
    for dtype in (torch.float16, torch.bfloat16):
        assert teacher_choices(teacher.to(dtype), torch.tensor([3, 2, 4]))[1].dtype == torch.float32


@pytest.mark.parametrize("classes", [2, 10, 49, 50, 51, 700])
def test_order_against_torch(classes, generator):
    """In C++ as in float64: few classes and many, with equal logits, both zeros, infinities and NaN."""
    teacher = (2 * torch.randn(9, classes, generator=generator)).round(decimals=1)
    teacher[0] = 0.0
    teacher[1, ::2] = -0.0
    if classes > 4:
        teacher[2, 1], teacher[3, 2], teacher[3, 4] = math.nan, math.inf, -math.inf
    target = torch.randint(classes, (9,), generator=generator)
    order, weights = teacher_choices(teacher, target, tau=2.0)
    wanted, shares = teacher_choices(teacher.double(), target, tau=2.0)
    assert torch.equal(order, wanted)
    torch.testing.assert_close(weights.double(), shares, rtol=1e-6, atol=0, equal_nan=True)
    assert torch.equal(order.sort(1).values, torch.arange(classes, dtype=torch.int32).expand(9, classes))
    rest = teacher.nan_to_num().gather(1, order.long())[:, 1:]
    assert bool((rest[:, 1:] <= rest[:, :-1])[[0, 1, 4, 5, 6, 7, 8]].all())


def test_kept_choices_are_the_teacher(generator):
    for dtype in (torch.float64, torch.float32):
        student, teacher, target = batch(generator, classes=30, dtype=dtype)
        order, weights = teacher_choices(teacher, target, tau=4.0)
        loss = PLDLoss(tau=4.0)
        wanted = loss(student, target, teacher=teacher)
        assert torch.equal(loss(student, target, order=order, choice_weights=weights), wanted)
        assert torch.equal(loss(student, target, order=order.long(), teacher=teacher), wanted)
        assert torch.equal(loss(student, target, choice_weights=weights, teacher=teacher), wanted)
        turned = torch.randperm(6, generator=generator)
        again = loss(student[turned], target[turned], order=order[turned], choice_weights=weights[turned])
        torch.testing.assert_close(again, wanted)


@pytest.mark.parametrize("tau", [0.5, 4.0])
def test_the_temperature_changes_the_weights_alone(tau, generator):
    _, teacher, target = batch(generator)
    order, weights = teacher_choices(teacher, target, tau=tau)
    plain, others = teacher_choices(teacher, target)
    assert torch.equal(order, plain)
    torch.testing.assert_close(weights, others ** (1 / tau) / (others ** (1 / tau)).sum(1, keepdim=True))


@pytest.mark.parametrize("classes", [5, 300])
def test_wild_rows_are_as_exact_as_tame_ones(classes, generator):
    """Rows whose exponentials don't fit into float32, beside others; what one row gets depends on no other."""
    student, teacher, target = batch(generator, rows=5, classes=classes, dtype=torch.float32)
    alone = pld_loss(student, target, teacher=teacher, reduction="none")
    student[1] *= 30.0
    student[3] *= 3e3
    losses, slope = loss_and_gradient(student, target, teacher=teacher)
    wanted, wanted_slope = loss_and_gradient(student.double(), target, teacher=teacher)
    torch.testing.assert_close(losses.double(), wanted, rtol=2e-6, atol=0)
    torch.testing.assert_close(slope.double(), wanted_slope, rtol=2e-5, atol=1e-6)
    tame = [0, 2, 4]
    assert torch.equal(losses[tame], alone[tame])


@pytest.mark.parametrize("margin", [20.0, 60.0, 90.0])
def test_exact_where_a_choice_is_nearly_certain(margin):
    """The student ranks as the teacher does: small losses and slopes are not rounded away."""
    student = -margin / 2 * torch.arange(3.0)[None]
    losses, slope = loss_and_gradient(student, FIRST, teacher=torch.zeros(1, 3))
    gaps = [math.exp(-margin / 2) + math.exp(-margin), math.exp(-margin / 2)]
    wanted = sum(map(math.log1p, gaps)) / 3
    assert losses.item() == pytest.approx(wanted, rel=1e-6)
    assert slope[0, 0].item() == pytest.approx(-gaps[0] / (1 + gaps[0]) / 3, rel=1e-6)


def test_gradients_of_gradients(generator):
    student, teacher, target = batch(generator, rows=3, classes=4)
    student.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda s: pld_loss(s, target, teacher=teacher), student, fast_mode=True)
    hessian = torch.autograd.functional.hessian(lambda s: pld_loss(s, target, teacher=teacher), student)
    assert float(torch.linalg.eigvalsh(hessian.reshape(12, 12)).min()) > -1e-12


def test_without_the_library(generator, monkeypatch):
    """Torch gives what C++ gives, and refuses what it refuses."""
    student, teacher, target = batch(generator, rows=40, classes=60, dtype=torch.float32)
    order, weights = teacher_choices(teacher, target)
    named = {"order": order, "choice_weights": weights}
    losses, slope = loss_and_gradient(student, target, **named)
    monkeypatch.setattr(type(module._native), "runs", lambda *args, **kwargs: False)
    wanted, wanted_slope = loss_and_gradient(student, target, **named)
    torch.testing.assert_close(losses, wanted, rtol=2e-6, atol=0)
    torch.testing.assert_close(slope, wanted_slope, rtol=2e-5, atol=1e-7)
    refuses_wrong_choices(student, target, order, weights)


def refuses_wrong_choices(student, target, order, weights):
    for what, changed in wrong_orders(order).items():
        with pytest.raises(ValueError, match="order: expected rows that are permutations"):
            pld_loss(student, target, order=changed, choice_weights=weights), what
    negative = weights.clone()
    negative[3, 7] = -1e-3
    with pytest.raises(ValueError, match="choice_weights: expected weights >= 0"):
        pld_loss(student, target, order=order, choice_weights=negative)


def wrong_orders(order):
    twice, beyond, below, turned = (order.clone() for _ in range(4))
    twice[1, 4] = twice[1, 9]
    beyond[2, 5] = 2**30
    below[2, 5] = -1
    turned[0] = turned[0].flip(0)
    return {"a class that comes twice": twice, "a class beyond": beyond, "below": below, "another target": turned}


def test_wrong_choices(generator):
    student, teacher, target = batch(generator, rows=40, classes=60, dtype=torch.float32)
    refuses_wrong_choices(student, target, *teacher_choices(teacher, target))


def test_refusals(generator):
    student, teacher, target = batch(generator)
    order, weights = teacher_choices(teacher, target)
    for named in ({}, {"order": order}, {"choice_weights": weights}):
        with pytest.raises(ValueError, match="teacher: expected logits, because"):
            pld_loss(student, target, **named)
    for argument, wrong in {
        "teacher": {"teacher": teacher[:, :4]},
        "order": {"teacher": teacher, "order": order[:3]},
        "choice_weights": {"teacher": teacher, "choice_weights": weights[:, :3]},
        "tau": {"order": order, "choice_weights": weights, "tau": 2.0},
    }.items():
        with pytest.raises(ValueError, match=f"^{argument}: expected"):
            pld_loss(student, target, **wrong)
    with pytest.raises(ValueError, match=r"^choice_weights: expected"):
        pld_loss(student, target, teacher=teacher, choice_weights=torch.tensor(1.0))
    with pytest.raises(TypeError, match=r"^order: expected an integer tensor"):
        pld_loss(student, target, teacher=teacher, order=order.double())
    for tau in (0.0, -1.0):
        for call in (PLDLoss, lambda tau: pld_loss(S, FIRST, teacher=T, tau=tau)):
            with pytest.raises(ValueError, match=r"^tau: expected a number > 0"):
                call(tau=tau)


def test_classes_beyond_32_bits_do_not_come_round(generator):
    student, teacher, target = batch(generator)
    order, weights = teacher_choices(teacher, target)
    wide = order.long()
    assert torch.equal(
        pld_loss(student, target, order=wide, choice_weights=weights),
        pld_loss(student, target, order=order, choice_weights=weights),
    )
    with pytest.raises(ValueError, match=r"^order: expected values in 0\.\.4"):
        pld_loss(student, target, order=wide + 2**32, choice_weights=weights)
