"""Knowledge distillation from a teacher's logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steepest.losses.distillation.knowledge_distillation import (
    DistillationLoss,
    distillation_divergence,
    distillation_loss,
)

Z = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
TEACHER = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64)
FIRST = torch.tensor([0])


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (3 * torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    return logits, teacher, torch.randint(5, (7,), generator=generator), torch.rand(7, generator=generator).double()


def by_loops(logits, teacher, temperature):
    """A list of T^2 KL(teacher || student)."""
    values = []
    for z, t in zip(logits.tolist(), teacher.tolist()):
        p, q = ([math.exp(v / temperature) for v in row] for row in (t, z))
        p, q = ([v / sum(row) for v in row] for row in (p, q))
        values.append(temperature**2 * sum(a * math.log(a / b) for a, b in zip(p, q)))
    return values


@pytest.mark.holds("distillation")
def test_known_value_is_a_sum_over_classes():
    """A mean over the three classes would be .110312, the divergence in the other direction is .3383."""
    assert distillation_divergence(Z, TEACHER).item() == pytest.approx(0.330936, abs=5e-7)
    assert distillation_divergence(TEACHER, Z).item() == pytest.approx(by_loops(TEACHER, Z, 4.0)[0])


@pytest.mark.holds("distillation")
@pytest.mark.parametrize("temperature", [0.7, 1.0, 4.0])
def test_agrees_with_loops_and_with_torch(batch, temperature):
    logits, teacher, target, weight = batch
    divergences = torch.tensor(by_loops(logits, teacher, temperature), dtype=torch.float64)
    of_torch = temperature**2 * nn.functional.kl_div(
        (logits / temperature).log_softmax(-1), (teacher / temperature).softmax(-1), reduction="batchmean"
    )
    torch.testing.assert_close(distillation_divergence(logits, teacher, temperature=temperature), of_torch)
    own = distillation_divergence(logits, teacher, temperature=temperature, weight=weight)
    torch.testing.assert_close(own, (weight * divergences).sum() / weight.sum())
    losses = 0.7 * nn.functional.cross_entropy(logits, target, reduction="none") + 0.3 * divergences
    options = {"teacher": teacher, "temperature": temperature, "alpha": 0.3}
    torch.testing.assert_close(distillation_loss(logits, target, reduction="none", **options), losses)
    weighted = distillation_loss(logits, target, reduction="sum", weight=weight, **options)
    torch.testing.assert_close(weighted, (weight * losses).sum())
    module = DistillationLoss(temperature, 0.3, "none")
    torch.testing.assert_close(module(logits, target, teacher=teacher), losses)


@pytest.mark.holds("distillation")
def test_gradient_is_that_of_the_softened_classes_and_none_to_the_teacher(batch):
    logits, teacher, target, _ = batch
    z, t = logits.clone().requires_grad_(), teacher.clone().requires_grad_()
    distillation_loss(z, target, teacher=t, temperature=3.0, alpha=1.0, reduction="sum").backward()
    torch.testing.assert_close(z.grad, 3 * ((logits / 3).softmax(-1) - (teacher / 3).softmax(-1)))
    assert t.grad is None


@pytest.mark.holds("distillation")
def test_gradient_keeps_its_size_when_the_temperature_grows(batch):
    logits, teacher, _, _ = batch
    z = logits.clone().requires_grad_()
    distillation_divergence(z, teacher, temperature=1e4, reduction="sum").backward()
    gaps = logits - teacher
    torch.testing.assert_close(z.grad, (gaps - gaps.mean(1, keepdim=True)) / 5, atol=1e-3, rtol=0)


def test_without_a_share_it_is_cross_entropy_and_a_bad_teacher_does_no_harm(batch):
    logits, teacher, target, _ = batch
    wanted = nn.functional.cross_entropy(logits, target)
    torch.testing.assert_close(distillation_loss(logits, target, teacher=teacher * math.nan, alpha=0.0), wanted)


def test_a_class_that_the_teacher_rules_out_counts_nothing():
    ruled_out = torch.tensor([[2.0, 0.0, -math.inf]], requires_grad=True)
    z = torch.tensor([[1.0, 0.0, 3.0]], requires_grad=True)
    loss = distillation_divergence(z, ruled_out, temperature=1.0)
    (slope,) = torch.autograd.grad(loss, z)
    p, log_q = ruled_out[0, :2].softmax(0), z[0].log_softmax(0)[:2]
    torch.testing.assert_close(loss, (p * (p.log() - log_q)).sum().detach())
    torch.testing.assert_close(slope[0], z[0].softmax(0) - ruled_out[0].softmax(0))


def test_confident_rows_are_finite():
    z, t = torch.tensor([[1e4, 0.0]], requires_grad=True), torch.tensor([[0.0, 1e4]])
    loss = distillation_divergence(z, t, temperature=1.0)
    (slope,) = torch.autograd.grad(loss, z)
    assert loss.item() == 1e4
    assert slope.tolist() == [[1.0, -1.0]]


def test_half_inputs_give_float32(batch):
    logits, teacher, target, _ = batch
    for dtype in (torch.bfloat16, torch.float16):
        half = distillation_loss(logits.to(dtype), target, teacher=teacher.to(dtype))
        assert half.dtype == torch.float32
        torch.testing.assert_close(
            half, distillation_loss(logits.to(dtype).float(), target, teacher=teacher.to(dtype).float())
        )


def test_refusals():
    with pytest.raises(ValueError, match=r"^teacher: expected shape \(1, 3\), got a float64 tensor of shape \(1, 2\)"):
        DistillationLoss()(Z, FIRST, teacher=TEACHER[:, :2])
    with pytest.raises(TypeError, match="teacher: expected a floating tensor"):
        distillation_divergence(Z, TEACHER.long())
    with pytest.raises(TypeError, match="teacher"):
        DistillationLoss()(Z, FIRST)
    for options in ({"temperature": 0.0}, {"alpha": 1.1}, {"alpha": -0.1}):
        with pytest.raises(ValueError, match=": expected "):
            DistillationLoss(**options)
        with pytest.raises(ValueError, match=": expected "):
            distillation_loss(Z, FIRST, teacher=TEACHER, **options)
    with pytest.raises(ValueError, match="temperature: expected a number > 0"):
        distillation_divergence(Z, TEACHER, temperature=0.0)
    with pytest.raises(ValueError, match=r"target: expected values in 0..2"):
        distillation_loss(Z, torch.tensor([3]), teacher=TEACHER)
