"""Objectives of a stack in one call: each gets the losses and gradients that it gives by itself."""

from __future__ import annotations

import importlib

import pytest
import torch

from steepest.core.objective import TaskInfo
from steepest.descent import StackedObjective
from steepest.descent.joined import FORMS, Joined, form_of
from steepest.losses import CompSumLoss, CrossEntropyLoss, FocalLoss, LDRLoss, SmoothedCrossEntropyLoss, SquentropyLoss

POINTS = (0.0, 0.3, 0.55, 0.999)
ROWS, CLASSES = 9, 5


def class_of(key):
    module, _, name = key.rpartition(".")
    return getattr(importlib.import_module(f"steepest.losses.{module}"), name)


def members_of(key):
    """At points of the search space that differ in every parameter."""
    cls = class_of(key)
    info = TaskInfo("multiclass", 45, CLASSES, (9,) * CLASSES, feature_dim=6, epochs=10, steps_per_epoch=5)
    hyper = [{name: space.at(u) for name, space in cls.search.items()} for u in POINTS]
    return [cls.from_task(info, **own) for own in hyper]


def drawn(models, scale, dtype):
    g = torch.Generator().manual_seed(models)
    outputs = torch.randn(models, ROWS, CLASSES, generator=g, dtype=torch.float64) * scale
    return outputs.to(dtype), torch.randint(CLASSES, (models, ROWS), generator=g)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("key", FORMS)
def test_each_member_as_alone(key, dtype, scale):
    """Against its own form in float64; columns of parameters round like numbers, powers of them to the last bits."""
    members = members_of(key)
    outputs, target = drawn(len(members), scale, dtype)
    gradient = torch.full_like(outputs, torch.nan)
    joined = Joined(members)
    assert joined.takes(outputs, target)
    losses = joined.rows(outputs, target, gradient)
    eps = torch.finfo(dtype).eps
    for m, member in enumerate(members):
        exact, slope = member.fused_row(outputs[m].double(), target[m])
        own, own_slope = member.fused_row(outputs[m], target[m])
        # as near as the member's own form of this type, or a few roundings of the logits or of what they are scaled by
        allowed = (own.double() - exact).abs().max() + 16 * eps * max(
            1.0, float(outputs[m].abs().max()), float(exact.abs().max())
        )
        assert (losses[m].double() - exact).abs().max() <= allowed
        allowed = (own_slope.double() - slope).abs().max() + 16 * eps * max(1.0, float(slope.abs().max()))
        assert (gradient[m].double() - slope).abs().max() <= allowed


@pytest.mark.parametrize("key", FORMS)
def test_equal_members_give_the_bits_of_one(key):
    members = [members_of(key)[1] for _ in POINTS]
    outputs, target = drawn(len(members), 3.0, torch.float32)
    gradient = torch.empty_like(outputs)
    Joined(members).rows(outputs, target, gradient)
    _, slope = members[0].fused_row(outputs.flatten(0, 1), target.flatten())
    assert torch.equal(gradient.flatten(0, 1), slope)


def test_what_has_no_form_is_called_by_itself():
    assert form_of(CompSumLoss()) is None
    assert form_of(FocalLoss(alpha=[1.0, 2.0])) is None
    assert form_of(FocalLoss(form="sigmoid")) is None
    assert form_of(LDRLoss(normalize="l1")) is None
    assert form_of(SquentropyLoss(square_weight=0.5)) is None

    class Own(CrossEntropyLoss):
        """A subclass may compute anything."""

    assert form_of(Own()) is None


def test_outputs_and_targets_that_a_form_does_not_take():
    joined = Joined([CrossEntropyLoss(), CrossEntropyLoss()])
    outputs, target = drawn(2, 1.0, torch.float32)
    assert joined.takes(outputs, target)
    assert not joined.takes(outputs[..., 0], target)
    assert not joined.takes(outputs, target.double())
    assert not joined.takes(outputs, torch.full_like(target, CLASSES))
    assert not joined.takes(outputs, torch.full_like(target, -100))
    assert not joined.takes(outputs.half(), target)
    assert not joined.takes(outputs.to("meta"), target.to("meta")), "values that cannot be seen"
    assert not joined.takes(outputs[:, :0], target[:, :0])
    assert not joined.takes(torch.zeros(2, 3, 10**5), torch.zeros(2, 3, dtype=torch.int64))


@pytest.mark.parametrize(("labels", "taken"), [((0, CLASSES - 1), True), ((-100, 1), False), ((0, CLASSES), False)])
def test_known_labels_stand_for_those_of_a_batch(labels, taken):
    outputs, target = drawn(2, 1.0, torch.float32)
    assert Joined([CrossEntropyLoss(), CrossEntropyLoss()], labels).takes(outputs, target) == taken


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize(
    "members",
    [
        [SmoothedCrossEntropyLoss(a) for a in (0.1, 0.2, 0.3)],
        [CompSumLoss(tau=tau) for tau in (1.0, 0.5, 1.0)],
        [CrossEntropyLoss(), FocalLoss(1.5), CrossEntropyLoss()],
    ],
)
def test_rows_are_the_loss_and_its_gradient(members, ignored, weighted):
    outputs, target = drawn(3, 2.0, torch.float64)
    if ignored and not isinstance(members[0], CompSumLoss):
        target[1, :4] = -100
    weight = torch.rand(3, ROWS, dtype=torch.float64) if weighted else None
    named = {"weight": weight} if weighted else {}
    stacked = StackedObjective(members)
    assert stacked.of_outputs
    total, gradient = stacked.rows(outputs, target, weight)
    losses = stacked.losses
    leaf = outputs.clone().requires_grad_()
    alone = torch.stack(
        [member(leaf[m], target[m], **{k: v[m] for k, v in named.items()}) for m, member in enumerate(members)]
    )
    (slope,) = torch.autograd.grad(alone.sum(), leaf)
    torch.testing.assert_close(losses, alone.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(total, alone.sum().detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, slope, rtol=1e-12, atol=1e-12)
    assert not total.requires_grad
    assert not gradient.requires_grad


def test_a_model_that_leaves_takes_its_parameter_along():
    members = [SmoothedCrossEntropyLoss(a) for a in (0.01, 0.1, 0.3)]
    outputs, target = drawn(3, 2.0, torch.float64)
    stacked = StackedObjective(members)
    stacked.rows(outputs, target)
    stacked.keep([True, False, True])
    _, gradient = stacked.rows(outputs[[0, 2]], target[[0, 2]])
    for m, member in ((0, members[0]), (1, members[2])):
        _, slope = member.fused_row(outputs[2 * m], target[2 * m])
        torch.testing.assert_close(gradient[m], slope / ROWS, rtol=1e-12, atol=1e-12)
